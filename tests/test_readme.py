"""What README.md shows works: commands parse, Python runs, files named in the tree are there."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from cspipe.cli import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands():
    """Every `cspipe ...` line of the console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ cspipe")]


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_readme_parses(line):
    command = typer.main.get_command(app)
    words = shlex.split(line.split("#")[0])[1:]
    context = command.make_context("cspipe", words, resilient_parsing=False)
    name, sub, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    assert sub.make_context(name, rest, parent=context).params is not None


def test_the_readme_has_commands():
    assert len(commands()) >= 4


def test_a_wrong_command_does_not_parse():
    command = typer.main.get_command(app)
    with pytest.raises(Exception, match="No such option"):
        command.commands["head"].make_context("head", ["--labls", "3"])


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    from cspipe.extract.run import extract

    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    told = extract("lite0", "digits", stores=tmp_path / "stores", image_px=32, limit=40)
    named = re.search(r'open_store\("(.*?)"\)', block).group(1)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block.replace(named, told["store"]), names)
    assert names["tokens"].shape == (40, 1280) and names["labels"].shape == (40,)


def test_the_tree_of_the_readme_names_files_that_exist():
    tree = README.split("## Where things are")[1].split("```text")[1].split("```")[0]
    folder, seen = "", 0
    for line in tree.splitlines():
        if match := re.match(r"(\w+)/", line):
            folder = match.group(1)
        for name in re.findall(r"\b(\w+\.(?:py|md|toml))\b", line):
            assert (ROOT / folder / name).is_file() or (ROOT / name).is_file(), name
            seen += 1
    assert seen > 20


def test_every_command_is_documented():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    command = typer.main.get_command(app)
    for name, sub in command.commands.items():
        assert f"## `cspipe {name}`" in page
        for child in getattr(sub, "commands", {}):
            assert f"## `cspipe {name} {child}`" in page
