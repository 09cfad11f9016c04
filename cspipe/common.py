"""Options that every command takes, declared once."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from cspipe.config import Config

PANEL = "Common options"


@dataclass(frozen=True, kw_only=True)
class Common:
    """The common options as the user gave them; None where a flag was left out."""

    json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False
    stores: Annotated[
        str | None,
        typer.Option(metavar="DIR|URL", help="Folder of the stores, such as s3://BUCKET/PREFIX. [default: stores]"),
    ] = None
    runs: Annotated[Path | None, typer.Option(help="Folder of the runs. [default: runs]")] = None
    file: Annotated[Path | None, typer.Option("--config", help="Configuration. [default: pipeline.toml]")] = None
    device: Annotated[str | None, typer.Option(help="Torch device. [default: cpu]")] = None
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no messages.")] = False
    verbose: Annotated[bool, typer.Option("--verbose", help="Warnings and log lines of the libraries too.")] = False

    def config(self, *, assignments: Sequence[str] = (), **sections: Mapping[str, Any]) -> "Config":
        """Settings: these flags over the file over the defaults.

        Args:
            assignments: `key=value` texts for the head.
            **sections: section of the configuration -> its changes; None is a flag that was left out.
        """
        from cspipe.config import load_config, override, parse_settings

        changes: dict[str, Any] = {"stores": self.stores, "runs": self.runs, "device": self.device}
        for section, values in sections.items():
            changes |= {f"{section}.{key}": value for key, value in values.items()}
        changes |= parse_settings(assignments)
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in changes.items()}
        return override(load_config(self.file), plain)


def with_common(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command that takes `common: Common` the common options in its place."""
    hints = get_type_hints(command, include_extras=True)
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "common"]
    options = get_type_hints(Common, include_extras=True)
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=options[f.name])
        for f in fields(Common)
    ]

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:  # noqa: ANN401
        mine = Common(**{f.name: values.pop(f.name) for f in fields(Common)})
        command(common=mine, **values)

    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name]) for p in own] + shared
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return wrapped
