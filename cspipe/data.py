"""Data sets that are known, and images that two splits of a store share: as documents and as tables."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cspipe.config import Config
from cspipe.store.remotes import shown
from cspipe.terminal import cell, print_table

Document = dict[str, Any]


def datasets() -> list[Document]:
    """What is known of each data set before any of its files is opened."""
    from cspipe.extract.datasets import DATASETS

    return [
        {"name": spec.name, "train": spec.train, "unlabelled": spec.unlabelled, "test": spec.test,
         "classes": spec.classes, "side_px": spec.side_px, "from": spec.where, "what": spec.words,
         "url": spec.url}
        for spec in DATASETS.values()
    ]  # fmt: skip


def print_datasets(records: Sequence[Mapping[str, Any]]) -> None:
    """One line a data set where 100 columns are there, and what else can be named."""
    rows = []
    for told in records:
        train = f"{told['train']:,}" + (f" + {told['unlabelled']:,}" if told["unlabelled"] else "")
        rows.append((told["name"], train, f"{told['test']:,}", *(told[key] for key in ("classes", "side_px", "from"))))
    print_table("datasets", ("name", "train (+ unlabelled)", "test", "classes", "px", "from"), rows)
    print("also: a folder of class folders, a .csv, a .npz, a .tar or pattern of them, hf:OWNER/NAME")


def duplicates(config: Config, path: Path | None, near: float | None, limit: int) -> Document:
    """Images that two splits of a store share."""
    from cspipe.stages import store_at
    from cspipe.store import open_store
    from cspipe.store.leaks import count_duplicates, exact_duplicates, near_duplicates

    store = open_store(store_at(config, path))
    found = exact_duplicates(store, limit=limit) if near is None else near_duplicates(store, near, limit=limit)
    return {"store": shown(store.path), "near": near, "duplicates": count_duplicates(store), **asdict(found)}


def print_duplicates(document: Document) -> None:
    """Pairs, the most alike first, or that there are none."""
    kind = (
        "equal images"
        if document["near"] is None
        else f"images whose tokens have a cosine of at least {document['near']}"
    )
    if not document["pairs"]:
        print(f"{document['store']}: no pair of {kind} in two splits")
        return
    rows = [
        (*(f"{row['split']} {row['row_id']} {row['path']}" for row in (pair["first"], pair["second"])),
         cell(pair["cosine"]))
        for pair in document["pairs"]
    ]  # fmt: skip
    print_table(f"{document['count']} pairs of {kind}", ("row", "row of the other split", "cosine"), rows)
    if document["count"] > len(rows):
        print(f"{len(rows)} of {document['count']} pairs are shown: --limit shows more")
