"""What the HTML pages share: their templates, where every value is escaped, and the link from report to explorer."""

from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from cspipe.headtrain.runs import write_atomic
from cspipe.terminal import plain

NO_BREAK = "\u00a0"
EXPLORER = "explorer.html"
HIDDEN_LINK = f'<p class="when explorer" hidden><a href="{EXPLORER}">'


def packaged(name: str) -> str:
    """A text file that comes with the package."""
    return files("cspipe").joinpath(name).read_text(encoding="utf-8")


def page_template(name: str) -> Template:
    """A template that escapes all but `Markup`, and shows control characters instead of obeying them."""
    return Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=printable,
        loader=FunctionLoader(packaged),
    ).get_template(name)  # fmt: skip


def printable(value: object) -> object:
    """Every text that enters a page: control characters and lone surrogates shown as escapes."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return NO_BREAK.join(plain(part) for part in value.split(NO_BREAK))


def link_explorer(report: Path) -> None:
    """Shows the link to the explorer on a report that was written before it, if there is one."""
    if report.is_file():
        text = report.read_text(encoding="utf-8")
        write_atomic(report, text.replace(HIDDEN_LINK, HIDDEN_LINK.replace(" hidden", "")))
