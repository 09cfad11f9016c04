"""Bring what an extraction reads onto this machine, so that it needs no network afterwards."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cspipe.terminal import print_table

Document = dict[str, Any]
MOST_LISTED = 100


def prefetch(
    backbone: str, dataset: str, *, revision: str | None = None, data_dir: Path | None = None,
    trust_remote_code: bool = False,
) -> Document:  # fmt: skip
    """Downloads a backbone's weights and a data set's files into their caches, where they are not there yet.

    Args:
        backbone: as `cspipe extract` takes it.
        dataset: likewise; a user's own files are only looked at.
        revision: of the weights on the hub.
        data_dir: where a named data set's files lie; nothing of it is downloaded then.
        trust_remote_code: fetch a repository's own Python too.

    Returns:
        Where the files lie, their sizes in bytes and their SHA-256.

    Raises:
        MissingDataError: a file is neither here nor can it be downloaded.
    """
    from cspipe.extract.backbones import find_files, resolve_spec
    from cspipe.extract.datasets import load_dataset

    spec = resolve_spec(backbone, trust_remote_code=trust_remote_code)
    weights = find_files(spec, None, revision)
    listed = load_dataset(dataset, data_dir=data_dir)
    source = Path(listed.source)
    images = {name: len(split) for name, split in listed.splits.items()}
    return {
        "backbone": spec.name,
        "licence": spec.licence,
        "source": weights.source,
        "revision": weights.revision,
        "weights_sha256": weights.sha256,
        "weights": described(files_of(weights.path)),
        "dataset": listed.name,
        "images": images,
        "data_source": listed.source,
        "data": described(_published(dataset, source) or files_of(source)),
    }


def files_of(place: Path) -> list[Path]:
    """The file, or every file below the folder; none where there is no such place."""
    if place.is_dir():
        return sorted(path for path in place.rglob("*") if path.is_file())
    return [place] if place.is_file() else []


def _published(dataset: str, source: Path) -> list[Path]:
    """Where the files of a named data set lie, in the order of its registry; empty for any other."""
    from cspipe.extract.datasets import DATASETS

    names = [file.name for file in DATASETS[dataset].files] if dataset in DATASETS else []
    found = (next((path for path in files_of(source) if path.name == name), None) for name in names)
    return [path for path in found if path is not None]


def described(files: Sequence[Path]) -> list[Document]:
    """Path, bytes and SHA-256 of each file; of very many files the paths and sizes alone."""
    from cspipe.extract.weights import file_sha256

    few = len(files) <= MOST_LISTED
    return [
        {"path": str(path), "bytes": path.stat().st_size, "sha256": file_sha256(path) if few else None}
        for path in files
    ]  # fmt: skip


def print_prefetch(document: Document) -> None:
    """What lies where."""
    for kind, title in (("weights", f"{document['backbone']} ({document['licence']})"), ("data", document["dataset"])):
        files: Iterable[Document] = document[kind][:MOST_LISTED]
        rows = [(told["path"], f"{told['bytes']:,}", (told["sha256"] or "-")[:16]) for told in files]
        if rows:
            print_table(title, ("file", "bytes", "SHA-256, first 16"), rows)
        more = len(document[kind]) - len(rows)
        if more > 0:
            print(f"and {more:,} files more")
        if not rows:
            print(f"{title}: {document['data_source']}, part of the installation")
