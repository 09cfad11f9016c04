"""The grid of `cspipe sweep`: every combination that pipeline.toml lists, each a whole configuration of its own."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal

import cspipe
from cspipe.config import Config, check
from cspipe.headtrain.settings import MAIN_METHOD
from cspipe.store.errors import SettingError, unknown_name
from cspipe.store.meta import canonical

Regime = Literal["frozen", "trainable"]
FORMAT = 1
BACKBONES_OWN = ("weights", "revision", "image_px", "token")
DATASETS_OWN = ("data_dir",)
"""Options of [extract] that belong to the backbone and the data set named there: no other cell inherits them."""


@dataclass(frozen=True)
class Cell:
    """One place of the grid: all methods and splits of one backbone, data set, label count, regime and setting.

    Attributes:
        config: what runs it alone, with `cspipe extract`, `cspipe head` and, if trainable, `cspipe finetune`.
        regime: whether the backbone is `frozen`, or `trainable` from the head of the frozen cell on.
        setting: name of the head's settings in the table.
    """

    config: Config
    regime: Regime
    setting: str

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that the cell's numbers depend on, as plain JSON."""
        parts = {"extract", "head"} | ({"finetune"} if self.regime == "trainable" else set())
        resolved = self.config.model_dump(mode="json", include=parts)
        return {"format": FORMAT, "cspipe": cspipe.__version__, "regime": self.regime, **resolved}

    @cached_property
    def name(self) -> str:
        """Sixteen hexadecimal digits of the identity's hash."""
        return hashlib.sha256(canonical(self.identity)).hexdigest()[:16]

    @property
    def place(self) -> dict[str, Any]:
        """The cell in the words of the table."""
        return {
            "backbone": self.config.extract.backbone, "dataset": self.config.extract.dataset,
            "labels": self.config.head.labels, "regime": self.regime, "setting": self.setting,
        }  # fmt: skip

    @property
    def words(self) -> str:
        """The cell in a sentence."""
        place = self.place
        labels = "labels as they are" if place["labels"] is None else f"{place['labels']} labels"
        setting = "" if self.setting == "default" else f", {self.setting}"
        return f"{place['backbone']} on {place['dataset']}, {labels}, {self.regime}{setting}"


def make_cells(config: Config) -> list[Cell]:
    """The cells in the order in which they run: store by store, a frozen cell before the trainable one that needs it.

    A trainable cell starts from the heads of the frozen one, so that one is in the grid too.

    Raises:
        SettingError: options of a backbone or data set outside the grid, two settings of one name, or trainable cells
            without what they need.
        UnknownNameError: as the first, where a name of the grid is near.
    """
    grid, head = config.sweep, config.head
    backbones, datasets = grid.backbones or (config.extract.backbone,), grid.datasets or (config.extract.dataset,)
    check_names("sweep.backbone", grid.backbone, backbones)
    check_names("sweep.dataset", grid.dataset, datasets)
    regimes: tuple[Regime, ...] = ("frozen", "trainable") if "trainable" in grid.regimes else ("frozen",)
    if "trainable" in regimes:
        check_trainable(config)
    cells: dict[str, Cell] = {}
    for backbone, dataset, labels, (setting, changes), regime in product(
        backbones, datasets, grid.labels or (head.labels,), named_settings(config).items(), regimes
    ):
        own = {
            "labels": labels, "seeds": grid.seeds or head.seeds, "train_seeds": grid.train_seeds or head.train_seeds,
            "methods": grid.methods or head.methods,
        }  # fmt: skip
        cell = Cell(cell_config(config, extraction(config, backbone, dataset), own, changes), regime, setting)
        cells.setdefault(cell.name, cell)
    return list(cells.values())


def check_names(section: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuses options of something that is not in the grid."""
    for name in given:
        if name not in known:
            raise unknown_name(f"name in [{section}.NAME]", name, known)


def check_trainable(config: Config) -> None:
    """Refuses trainable cells that have no head to start from or that would be judged on other rows."""
    if MAIN_METHOD not in (config.sweep.methods or config.head.methods):
        raise SettingError(
            f"trainable cells start from the {MAIN_METHOD} head of the frozen ones: add it to sweep.methods."
        )
    if config.head.test_dataset:
        raise SettingError(
            "trainable cells are judged on their own test split and head.test_dataset names another: leave one out."
        )


def named_settings(config: Config) -> dict[str, dict[str, Any]]:
    """Changes to [head.settings] by the name of the setting; without any, `default` changes nothing."""
    named: dict[str, dict[str, Any]] = {}
    for entry in config.sweep.settings:
        changes = entry.model_dump(mode="json", exclude_none=True)
        told = " ".join(f"{key}={value}" for key, value in changes.items() if key != "name")
        name = str(changes.pop("name", told or "default"))
        if named.setdefault(name, changes) != changes:
            raise SettingError(f"sweep.settings names two settings {name!r}: give each a name of its own.")
    return named or {"default": {}}


def extraction(config: Config, backbone: str, dataset: str) -> dict[str, Any]:
    """[extract] of a cell: the general options, those of its backbone, those of its data set."""
    common = config.extract
    dropped: tuple[str, ...] = BACKBONES_OWN if backbone != common.backbone else ()
    dropped += DATASETS_OWN if dataset != common.dataset else ()
    options = {key: value for key, value in dumped(common).items() if key not in dropped}
    for own in (config.sweep.backbone.get(backbone), config.sweep.dataset.get(dataset)):
        options |= dumped(own) if own else {}
    return options | {"backbone": backbone, "dataset": dataset, "split": "all"}


def dumped(section: Any) -> dict[str, Any]:  # noqa: ANN401 - any section of the configuration
    """A section as plain values, without what is not set."""
    values: dict[str, Any] = section.model_dump(mode="json", exclude_none=True, by_alias=True)
    return values


def cell_config(
    config: Config, extract: Mapping[str, Any], own: Mapping[str, Any], changes: Mapping[str, Any]
) -> Config:
    """The whole configuration of one cell, checked again."""
    table = dumped(config)
    table["extract"] = dict(extract)
    table["head"] |= {key: value for key, value in own.items() if value is not None}
    table["head"]["settings"] |= changes
    del table["sweep"]
    return check(table, source="sweep")
