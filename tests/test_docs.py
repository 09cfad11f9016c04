"""What the pages in docs/ show holds: Python runs, links lead somewhere, commands, options and errors exist."""

import json
import os
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import typer

from cspipe.cli import app

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
COMMAND = typer.main.get_command(app)
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def blocks(text, language):
    """Fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def without_blocks(text):
    """The page's own words."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchor(heading):
    """What GitHub makes of a heading."""
    plain = re.sub(r"[`*_]", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def broken_links(page, text):
    """Relative links of a page that lead to no file, or to no heading of it."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, wanted = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (wanted and wanted not in anchors(there)):
            broken.append(target)
    return broken


def anchors(page):
    """Anchors of a page's headings; comments in its blocks only look like headings."""
    text = without_blocks(page.read_text(encoding="utf-8"))
    return [anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_leads_to_a_file_and_a_heading(name):
    page = ROOT / name
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


def test_a_link_to_nothing_and_an_anchor_that_is_not_there_are_found():
    page = DOCS / "index.md"
    text = "[a](nowhere.md) [b](commands.md#cspipe-had) [c](commands.md#cspipe-head) [d](https://example.org)"
    assert broken_links(page, text) == ["nowhere.md", "commands.md#cspipe-had"]


def test_the_table_of_contents_names_every_page():
    linked = set(re.findall(r"\]\((\w[\w-]*\.md)\)", (DOCS / "index.md").read_text(encoding="utf-8")))
    assert linked == {page.name for page in DOCS.glob("*.md")} - {"index.md"}


def console_lines(text):
    """Every `cspipe ...` command of the console blocks, with what follows a pipe or a comment left out."""
    for block in blocks(text, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ cspipe"):
                yield line.removeprefix("$ ")


def parse(line):
    """Parses a whole command line; a wrong one raises."""
    words = shlex.split(line, comments=True)[1:]
    context = COMMAND.make_context("cspipe", words)
    parent, command, rest = COMMAND, None, [*context._protected_args, *context.args]
    while hasattr(parent, "commands"):
        name, command, rest = parent.resolve_command(context, rest)
        parent = command
        if hasattr(command, "commands"):
            context = command.make_context(name, rest, parent=context)
            rest = [*context._protected_args, *context.args]
    return command.make_context(name, rest, parent=context)


@pytest.mark.parametrize(
    ("name", "line"),
    [(page.name, line) for page in PAGES for line in console_lines(page.read_text(encoding="utf-8"))],
)
def test_a_command_of_a_page_parses(name, line):
    assert parse(line).params


@pytest.mark.parametrize("line", ["cspipe head --labls 3", "cspipe haed", "cspipe store verfy", "cspipe export runs/x"])
def test_a_wrong_command_does_not_parse(line):
    with pytest.raises(Exception, match=r"No such|Missing"):
        parse(line)


def every_command(command=COMMAND, path="cspipe"):
    """Path and options of each command."""
    yield path, {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    for name, sub in getattr(command, "commands", {}).items():
        yield from every_command(sub, f"{path} {name}")


def unknown_words(text):
    """Commands and options that the words of a page name in `code` and that there are not."""
    known, wrong = dict(every_command()), []
    options = {"--help"}.union(*known.values())
    for code in re.findall(r"`([^`\n]+)`", without_blocks(text)):
        words = code.split()
        if words[:1] == ["cspipe"] and len(words) > 1 and not words[1].startswith("-"):
            path = next((p for n in (3, 2) if (p := " ".join(words[:n])) in known), None)
            if path is None:
                wrong.append(code)
                continue
            wrong += [w for w in words if w.startswith("--") and w not in known[path] | {"--help"}]
        elif words and (words[0].startswith("--") or words[0] == "cspipe"):
            wrong += [w for w in words if w.startswith("--") and w not in options]
    return wrong


OURS = [name for name in NAMES if Path(name).name not in ("log.md", "commands.md")]


@pytest.mark.parametrize("name", OURS)
def test_every_command_and_option_that_a_page_names_exists(name):
    assert unknown_words((ROOT / name).read_text(encoding="utf-8")) == []


def test_a_command_and_options_that_do_not_exist_are_found():
    text = "`cspipe heed`, `--viewz`, `cspipe head --unfreeze`, `cspipe head --labels 3`, `cspipe store verify`"
    assert unknown_words(text) == ["cspipe heed", "--viewz", "--unfreeze"]


@cache
def source():
    """Every text that the code holds, string literals that stand in a row joined as Python joins them."""
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("cspipe", "extract", "headtrain", "finetune", "store")
        for path in sorted((ROOT / folder).glob("*.py"))
    )
    return re.sub(r"\{[^{}\n]*\}", "{}", re.sub(r"\"\s*\n?\s*f?\"", "", text))


def is_in_code(line):
    """Whether one message of the code reads like this; `...` stands for what differs."""
    parts = [re.escape(part) for part in re.split(r"\s*\.\.\.\s*", line)]
    return re.search(r"[^\n]{0,60}?".join(parts), source()) is not None


def quoted():
    """Error lines that the page on troubles quotes."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    return [line.removeprefix("> ") for line in page.splitlines() if line.startswith("> ")]


@pytest.mark.parametrize("line", quoted())
def test_a_quoted_error_is_in_the_code_word_by_word(line):
    assert is_in_code(line)


def test_an_error_that_is_not_in_the_code_is_found_and_enough_are_quoted():
    assert is_in_code("... holds no label: write the name of a class into its column `label`.")
    assert not is_in_code("... holds no label: write the name of a clas into its column `label`.")
    assert not is_in_code("... holds no label: ... wait for it, or stop it")
    assert len(quoted()) >= 25


@pytest.mark.parametrize("name", ["python.md", "extending.md"])
def test_the_python_of_a_page_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda handle: None)
    names = {}
    for number, block in enumerate(blocks((DOCS / name).read_text(encoding="utf-8"), "python")):
        exec(compile(block, f"{name}, example {number + 1}", "exec"), names)
    check = {"python.md": python_page, "extending.md": extending_page}[name]
    check(names)


def python_page(names):
    """What the examples of python.md promise."""
    assert names["tokens"].shape == (120, 1280) and names["style"].shape == (len(names["test"]), 32)
    assert names["probability"].sum(1) == pytest.approx(1) and len(names["fit"].heads) == 3
    assert (names["few"] >= 0).sum() == 60
    assert all((answer == names["test"].label()).mean() > 0.2 for answer in names["answers"])
    told = json.loads((Path(names["document"]["run"]) / "report.json").read_text())
    assert told["summary"] == names["document"]["summary"]
    assert names["model"].predict([names["image"]])[0] in names["store"].class_names


def extending_page(names):
    """What the examples of extending.md promise."""
    assert names["told"]["splits"]["test"]["rows"] == 8
    same, other = (names["norms"](live_BD=k * names["cached"], cached_BD=names["cached"]) for k in (1, 1.1))
    assert float(same) == 0 and float(other) == pytest.approx(0.01, rel=1e-3)
    assert len([path for path in os.listdir("stores") if path.endswith(".zarr")]) == 2  # noqa: PTH208


def walk_through():
    """Python of the page on one's own images, in order."""
    return blocks((DOCS / "your-images.md").read_text(encoding="utf-8"), "python")


def test_the_folder_of_the_walk_through_holds_what_the_page_says(tmp_path, monkeypatch):
    pytest.importorskip("conformal_clip_data")
    from cspipe.extract.datasets import load_dataset

    monkeypatch.chdir(tmp_path)
    make, fill = walk_through()
    exec(make, {})
    found = load_dataset("textiles")
    train, test = found.splits["train"], found.splits["test"]
    page = (DOCS / "your-images.md").read_text(encoding="utf-8")
    assert found.class_names == ["global", "local", "nominal"]
    assert f"│ train │ {len(train)} │" in page and f"│ test  │  {len(test)} │" in page
    assert (train.labels >= 0).sum() == 30 and len(list(Path("new").iterdir())) == 100
    first = Path(next(path for path in train.paths if path.startswith("unlabelled"))).name
    Path("suggested.csv").write_text(f"row,path,guess,probability,label\n30,unlabelled/{first},local,0.5,\n")
    exec(fill, {})
    assert Path("suggested.csv").read_text().splitlines()[1].rsplit(",", 1)[1] in found.class_names
