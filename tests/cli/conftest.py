import json
import os

import pytest

from cspipe.cli import main

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture
def cspipe(capsys):
    """Runs the command line in this process: exit code, standard output, standard error."""

    def run(*arguments):
        capsys.readouterr()
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as end:
            code = end.code or 0
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with a small digits store and a head run on it."""
    folder = tmp_path_factory.mktemp("made")
    places = ["--stores", str(folder / "stores"), "--runs", str(folder / "runs"), "--quiet", "--json"]
    for arguments in (
        ["extract", "lite0", "digits", "--image-px", "32", "--limit", "120"],
        ["head", "--labels", "40", "--seeds", "2", "--set", "steps=20", "--set", "components=32"],
    ):
        with pytest.raises(SystemExit) as end:
            main([*arguments, *places])
        assert not end.value.code
    return folder


@pytest.fixture
def places(made):
    """Flags that name that folder."""
    return ["--stores", made / "stores", "--runs", made / "runs", "--quiet"]


@pytest.fixture
def document(cspipe):
    """Runs a command that must succeed with --json and gives its document."""

    def run(*arguments):
        code, out, _ = cspipe(*arguments, "--json")
        assert code == 0
        return json.loads(out)

    return run
