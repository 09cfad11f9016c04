"""Repairing, importing, exporting and removing stores: as documents and as tables."""

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cspipe.common import Common
from cspipe.config import Config
from cspipe.display import print_records, print_verify
from cspipe.store.remotes import shown
from cspipe.terminal import message

Document = dict[str, Any]


def repair(common: Common, config: Config, path: Path | None, data_dir: Path | None, weights: Path | None) -> Document:
    """Mends a store and computes its damaged chunks again."""
    from cspipe.extract.progress import console_progress
    from cspipe.extract.recompute import repair as run_repair
    from cspipe.stages import calm, store_at

    calm(common)
    store = store_at(config, path)
    with nullcontext() if common.quiet else console_progress() as progress:
        return run_repair(store, data_dir=data_dir, weights=weights, device=config.device, progress=progress)


def print_repair(document: Document) -> None:
    """What was mended, computed, refused; then what verify says."""
    print_records("mended", document["mended"])
    print_records("computed again", document["recomputed"])
    print_records("left as they are", document["refused"])
    print_verify(document)


def import_embeddings(
    config: Config, embeddings: Path, labels: Path, test: Path | None, test_labels: Path | None,
    name: str | None, backbone: str, dtype: str | None,
) -> Document:  # fmt: skip
    """A store of somebody's own embeddings."""
    from cspipe.store.foreign import import_embeddings as run_import
    from cspipe.store.foreign import read_labelled

    parts = [read_labelled(embeddings, labels, "train")]
    if test and test_labels:
        parts.append(read_labelled(test, test_labels, "test"))
    return run_import(
        parts, stores=config.stores, dataset=name or embeddings.stem, backbone=backbone, dtype=dtype,
        source=embeddings.resolve(),
    )  # fmt: skip


def print_import(document: Document) -> None:
    """Rows of each split, and where they are."""
    title = f"{document['dataset']} ({document['width']} wide, {len(document['class_names'])} classes)"
    print_records(title, [{"split": name, **told} for name, told in document["splits"].items()])
    print(document["store"])


def join(config: Config, paths: list[Path]) -> Document:
    """A store of several backbones' tokens."""
    from cspipe.stages import store_at
    from cspipe.store.join import join_stores

    return join_stores([store_at(config, path) for path in paths], stores=config.stores)


def print_join(document: Document) -> None:
    """What was joined, rows of each split, and where they are."""
    print_records(f"{document['dataset']} by {document['backbone']}", document["parts"])
    print_records("rows", [{"split": name, **told} for name, told in document["splits"].items()])
    if document["views"]:
        print(f"views: {', '.join(document['views'])}")
    print(document["store"])


def export(config: Config, path: Path | None, to: Path | None, *, views: bool) -> Document:
    """Files of plain arrays and tables."""
    from cspipe.stages import store_at
    from cspipe.store import open_store
    from cspipe.store.foreign import export_split

    store = open_store(store_at(config, path))
    folder = to or Path(store.path.stem)
    names = store.names if views else store.splits
    return {"store": shown(store.path), "files": [str(f) for name in names for f in export_split(store, name, folder)]}


def print_export(document: Document) -> None:
    """One file a line."""
    print("\n".join(document["files"]))


def remove(paths: list[Path]) -> Document:
    """Removes stores."""
    from cspipe.store.cleaning import remove_store
    from cspipe.store.remote import local_path

    stores = [local_path(path) for path in paths]
    return {"removed": [{"store": shown(store), "bytes": remove_store(store)} for store in stores]}


def unlock(place: str) -> Document:
    """Removes the lock of a remote store."""
    from cspipe.store.remote import unlock as run_unlock

    return {"store": place, "removed": run_unlock(place)}


def print_unlocked(document: Document) -> None:
    """Whose lock it was."""
    holder = document["removed"]
    if holder is None:
        print(f"{document['store']}: there was no lock")
    else:
        print(f"{document['store']}: removed the lock of process {holder.get('process')} on {holder.get('host')}")


def print_removed(document: Document) -> None:
    """One store a line."""
    print_records("removed", document["removed"])


def collect(config: Config, *, remove: bool) -> Document:
    """Finds garbage under the folder of stores, and removes it where asked."""
    from cspipe.store.cleaning import collect as run_collect

    found, busy = run_collect(config.stores, remove=remove)
    listed = [asdict(garbage) | {"path": shown(garbage.path)} for garbage in found]
    return {"garbage": listed, "removed": remove, "busy": [shown(store) for store in busy]}


def print_garbage(document: Document) -> None:
    """What was found or removed, and the stores that were passed over."""
    print_records("removed" if document["removed"] else "nobody needs", document["garbage"])
    if not document["garbage"]:
        print("nothing to remove")
    for store in document["busy"]:
        message(f"{store} is being written, and was passed over")
