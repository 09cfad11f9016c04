"""The commands, settings and names of docs/paper.md are there."""

import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from cspipe.cli import app
from cspipe.config import check
from cspipe.grid import make_cells
from cspipe.headtrain import HeadSettings

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def head():
    """benchmarks/head.py, imported as it is when it runs as a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("head")


def commands(program: str) -> list[str]:
    """Every command of this program on the page, in code spans and console blocks."""
    return re.findall(rf"(?:`|\$ )({re.escape(program)} [^`\n]*)", PAGE)


@pytest.mark.parametrize("line", commands("python benchmarks/head.py"))
def test_a_benchmark_command_of_the_paper_page_parses(head, line):
    told = head.parse(shlex.split(line)[2:])
    assert told.store == Path("STORE") and told.part


@pytest.mark.parametrize("line", commands("cspipe"))
def test_a_command_of_the_paper_page_parses(line):
    command = typer.main.get_command(app)
    context = command.make_context("cspipe", shlex.split(line)[1:], resilient_parsing=False)
    name, sub, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    assert sub.make_context(name, rest, parent=context).params is not None


def test_the_paper_page_has_commands_for_every_part_and_stage(head):
    told = [head.parse(shlex.split(line)[2:]).part for line in commands("python benchmarks/head.py")]
    assert {part for parts in told for part in parts} == set(head.PARTS)
    assert {line.split()[1] for line in commands("cspipe")} >= {"extract", "head", "sweep"}


def test_the_grid_of_the_paper_page_is_one_that_the_sweep_takes():
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    cells = make_cells(check(tomllib.loads(text), source="docs/paper.md"))
    assert len(cells) == 24 and {cell.setting for cell in cells} == {"semi-supervised", "supervised"}
    supervised = [cell.config.head.settings for cell in cells if cell.setting == "supervised"]
    assert not any(settings.semi_supervised for settings in supervised)
    assert all(cell.config.extract.data_dir == Path("data/mnist") for cell in cells)


def test_the_paper_page_names_terms_that_the_benchmark_prints(head):
    names = {variant.name for variant in head.head_rows.terms(head.Bench(None, HeadSettings()))}
    named = set(re.findall(r"`(L_c[^`]*)`", PAGE))
    ends = set(re.findall(r"`\.\.\.,? ?([^`]*)`", PAGE))
    assert named <= names and len(named) > 4
    assert ends and all(any(name.endswith(end) for name in names) for end in ends)
