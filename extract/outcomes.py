"""What a run did to each store, as plain JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cspipe.extract.backbones import Backbone
from cspipe.store.leaks import count_duplicates
from cspipe.store.reader import Store, open_store
from cspipe.store.remotes import shown
from cspipe.store.views import parse_view
from cspipe.store.writer import StoreWriter


@dataclass(frozen=True)
class Outcome:
    """What one run did to a split: images wanted, computed now, found in the store; rows flagged, and left out."""

    rows: int
    computed: int
    reused: int
    flagged: int
    removed: int


def outcome(writer: StoreWriter, name: str, rows: int, computed: int) -> Outcome:
    """What was done to a finished split."""
    bad = len(open_store(writer.path).split_attributes(name)["bad_images"])
    return Outcome(rows, computed, rows - computed, bad, writer.removed(name))


def bad_images(store: Store, name: str) -> list[dict[str, Any]]:
    """Bad images of a split; of a view those that its own split does not list already."""
    listed: list[dict[str, Any]] = store.split_attributes(name)["bad_images"]
    view = parse_view(name, store.names)
    if view is None:
        return listed
    known = {entry["path"] for entry in store.split_attributes(view.split)["bad_images"]}
    return [entry for entry in listed if entry["path"] not in known]


def document(path: Path, backbone: Backbone, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """What a run did to one store."""
    store = open_store(path)
    bad = [{"split": name, **entry} for name in outcomes for entry in bad_images(store, name)]
    return {
        "store": shown(path),
        "backbone": backbone.name,
        "dataset": store.dataset,
        "class_names": store.class_names,
        "splits": {name: asdict(each) for name, each in outcomes.items()},
        "labelled": {name: int((store[name].label() >= 0).sum()) for name in outcomes if name in store.splits},
        "bad_images": bad,
        "duplicates": count_duplicates(store),
        "width": backbone.width,
        "image_px": backbone.image_px,
        "token": backbone.token,
        "licence": backbone.licence,
    }
