"""Settings: a flag wins over pipeline.toml, which wins over the defaults written here."""

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_origin, get_type_hints

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic.dataclasses import dataclass as validated

from cspipe.finetune.settings import FinetuneSettings
from cspipe.headtrain.settings import DEFAULT_METHODS, HeadSettings
from cspipe.store.errors import MissingDataError, SettingError
from cspipe.store.remote import local_path

FILE = Path("pipeline.toml")
Positive = Annotated[int, Field(ge=1)]
Strict = ConfigDict(extra="forbid", frozen=True)
UNION_MEMBER = re.compile(r"constrained-|literal\[")
"""What a fault's place names besides keys: the member of a union that refused the value."""


class ExtractConfig(BaseModel):
    """Stage one: which backbones look at which images; several names, tokens and weights are separated by commas."""

    model_config = Strict
    backbone: str = "lite0"
    dataset: str = "digits"
    split: str = "all"
    weights: Path | None = None
    revision: str | None = None
    data_dir: Path | None = None
    image_px: Positive | None = None
    token: str | None = None
    dtype: Literal["fp16", "fp32"] = "fp16"
    batch_size: Positive | None = None
    devices: tuple[str, ...] = ()
    scheduler: str | None = None
    limit: Positive | None = None
    views: Annotated[int, Field(ge=0)] = 0
    augment: str = "affine"
    strict: bool = False
    trust_remote_code: bool = False


@validated(config=ConfigDict(extra="forbid"), frozen=True)
class CheckedHeadSettings(HeadSettings):
    """`HeadSettings`, with types and ranges checked."""


class HeadConfig(BaseModel):
    """Stage two: which labels, which methods."""

    model_config = Strict
    labels: Positive | Literal["all"] | None = None
    seeds: Positive = 5
    train_seed: Annotated[int, Field(ge=0)] = 0
    train_seeds: Positive = 1
    draw: Literal["balanced", "natural"] = "balanced"
    methods: tuple[str, ...] = DEFAULT_METHODS
    dev_rows: Annotated[int, Field(ge=0)] = 0
    test_dataset: str | None = None
    labels_from: tuple[Path, ...] = ()
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    settings: CheckedHeadSettings = CheckedHeadSettings()


@validated(config=ConfigDict(extra="forbid"), frozen=True)
class FinetuneConfig(FinetuneSettings):
    """Stage three: its settings, which head to start from and where its inputs are."""

    unfreeze: bool = False
    labels: Positive | None = None
    weights: Path | None = None
    data_dir: Path | None = None
    kept_dataset: str | None = None
    kept_data_dir: Path | None = None


def changes_to(kind: type, *, without: Sequence[str] = (), **more: Any) -> Any:  # noqa: ANN401
    """A model of any of another's values, each as strict as there; those that are not given are None."""
    hints = get_type_hints(kind, include_extras=True).items()
    keys: dict[str, Any] = {
        name: (hint, None) for name, hint in hints if name not in without and get_origin(hint) is not ClassVar
    }
    return create_model(f"{kind.__name__}Changes", __config__=Strict, **keys, **more)


if TYPE_CHECKING:
    HeadChanges = BaseModel
    ExtractChanges = BaseModel
else:
    HeadChanges = changes_to(HeadSettings, name=(str | None, None))
    ExtractChanges = changes_to(ExtractConfig, without=("backbone", "dataset"))


class SweepConfig(BaseModel):
    """The grid of `cspipe sweep`; an empty list stands for the value of [extract] or [head].

    An entry of `settings` may hold any settings of the head, and a name for the table. `backbone` and `dataset` hold
    options of [extract] that are one backbone's or one data set's own.
    """

    model_config = Strict
    backbones: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    labels: tuple[Positive | Literal["all"], ...] = ()
    regimes: tuple[Literal["frozen", "trainable"], ...] = ("frozen",)
    methods: tuple[str, ...] = ()
    settings: tuple[HeadChanges, ...] = ()
    seeds: Positive | None = None
    train_seeds: Positive | None = None
    backbone: Mapping[str, ExtractChanges] = Field(default_factory=dict)
    dataset: Mapping[str, ExtractChanges] = Field(default_factory=dict)


class Config(BaseModel):
    """All of pipeline.toml."""

    model_config = Strict
    stores_at: Annotated[str, BeforeValidator(lambda at: str(at) if isinstance(at, Path) else at)] = Field(
        default="stores", alias="stores"
    )
    runs: Path = Path("runs")
    device: str = "cpu"
    stages: tuple[Literal["extract", "head", "finetune"], ...] = ("extract", "head")
    extract: ExtractConfig = ExtractConfig()
    head: HeadConfig = HeadConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    sweep: SweepConfig = SweepConfig()

    @cached_property
    def stores(self) -> Path:
        """Folder of the stores; that of a URL is its local mirror, brought up to date where it is first asked for.

        Raises:
            CspipeError: the URL cannot be used.
        """
        return local_path(self.stores_at)

    def toml(self) -> str:
        """The resolved settings as TOML; what is not set is left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True, by_alias=True))


def load_config(file: Path | None = None) -> Config:
    """Reads a configuration file; `pipeline.toml` in the working folder where none is named, if it is there.

    Raises:
        MissingDataError: the named file is not there.
        SettingError: not TOML, an unknown key (the nearest is named), or a value that cannot be used.
    """
    if file is None and not FILE.is_file():
        return Config()
    path = file or FILE
    if not path.is_file():
        raise MissingDataError(f"no configuration file at {path}.")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is not valid TOML: {error}.") from error
    return check(table, source=str(path))


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """`config` with flags put over it, e.g. `{"head.labels": 250}`; a flag that was not given is None.

    Raises:
        SettingError: as `load_config`.
    """
    table = config.model_dump(mode="json", exclude_unset=True, by_alias=True)
    for dotted, value in changes.items():
        if value is None:
            continue
        *sections, key = dotted.split(".")
        place = table
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return check(table, source="command line")


def parse_settings(assignments: Sequence[str], prefix: str = "head.settings.") -> dict[str, Any]:
    """`key=value` texts as changes of what lies under `prefix`; the value is read as TOML, else as text.

    Raises:
        SettingError: a text without `=`.
    """
    changes: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise SettingError(f"--set expects key=value, such as lambda_s=0.1; it was given {text!r}.")
        try:
            changes[f"{prefix}{key.strip()}"] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            changes[f"{prefix}{key.strip()}"] = value.strip()
    return changes


def check(table: Mapping[str, Any], *, source: str) -> Config:
    """Validates a table against `Config`, one plain line for the first thing that is wrong."""
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        raise SettingError(f"{source}: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """The first fault of a validation, in a plain sentence."""
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"] if not UNION_MEMBER.match(str(part)))
    if fault["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where} = {fault['input']!r} cannot be used: {fault['msg'][0].lower()}{fault['msg'][1:]}."
    section, key = fault["loc"][:-1], str(fault["loc"][-1])
    known = known_keys(section)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}."
    return f"unknown key {where}; {hint}"


def known_keys(section: Sequence[int | str]) -> list[str]:
    """Names of the keys of a section."""
    kind: Any = Config
    if section[:2] == ("sweep", "settings"):
        kind, section = HeadChanges, ()
    elif len(section) == 3:
        kind, section = ExtractChanges, ()
    for part in section:
        kind = type(getattr(kind(), str(part)))
    fields = getattr(kind, "model_fields", None) or kind.__dataclass_fields__
    return [getattr(field, "alias", None) or name for name, field in fields.items()]
