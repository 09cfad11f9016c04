"""The files of published data sets: found in a folder, checked against the published sums, downloaded once."""

import contextlib
import hashlib
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from cspipe.extract.splits import Dataset, DatasetSpec, ImageSplit
from cspipe.store.errors import MissingDataError, SettingError

T = TypeVar("T")
_DOWNLOAD_SECONDS = 10.0
_BLOCK_BYTES = 2**22


def absolute(path: Path) -> Path:
    """The path from the root, links kept: they may carry the name."""
    return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100 - resolve() would follow links


def cache_folder(name: str) -> Path:
    """Where a downloaded data set is kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cspipe" / name


def find_file(folder: Path, name: str, below: tuple[str, ...] = ()) -> Path | None:
    """The file of that name in the folder, or in one of the named folders below it."""
    places = [folder / sub / name for sub in ("", *below)]
    return next((place for place in places if place.is_file()), None)


def need_file(spec: DatasetSpec, folder: Path, name: str, below: tuple[str, ...] = ()) -> Path:
    """The file of that name.

    Raises:
        MissingDataError: it is not there; the message names it and all that belong to the data set.
    """
    found = find_file(folder, name, below)
    if found is None:
        names = ", ".join(file.name for file in spec.files) or name
        raise MissingDataError(
            f"{name} of {spec.name} is not in {folder}: --data-dir takes a folder with {names} (published at "
            f"{spec.url})"
        )
    return found


def published_md5(spec: DatasetSpec, name: str) -> str | None:
    """The sum of that file, None where none was published."""
    return next((file.md5 for file in spec.files if file.name == name), None)


def _refuse(spec: DatasetSpec, path: Path, found: str, wanted: str | None) -> None:
    if wanted is not None and found != wanted:
        raise SettingError(
            f"{path} is not the file that was published (its MD5 is {found}, published {wanted}): it was cut short "
            f"or changed; fetch it again (published at {spec.url})"
        )


def check_file(spec: DatasetSpec, path: Path) -> Path:
    """The path again, once its content has the published sum.

    Raises:
        SettingError: it has another one.
    """
    wanted = published_md5(spec, path.name)
    if wanted is not None:
        md5 = hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                md5.update(block)
        _refuse(spec, path, md5.hexdigest(), wanted)
    return path


def checked_bytes(spec: DatasetSpec, path: Path) -> bytes:
    """The file's content, which has the published sum: what was checked is what is returned."""
    content = path.read_bytes()
    _refuse(spec, path, hashlib.md5(content, usedforsecurity=False).hexdigest(), published_md5(spec, path.name))
    return content


def damaged(path: Path, what: str) -> SettingError:
    """The error for a file that cannot be what it should be."""
    return SettingError(f"{path} is damaged or of another kind ({what}): fetch the file again")


def inside(name: str, archive: Path) -> str:
    """A member's name, once it is known to stay inside the archive.

    Raises:
        SettingError: it is absolute or climbs out.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]:
        raise SettingError(f"{archive} names {name!r}, which leads out of the archive: do not use this file")
    return path.as_posix()


def check_counts(spec: DatasetSpec, dataset: Dataset) -> Dataset:
    """The data set again, once it has the published number of images and labels of known classes.

    Raises:
        SettingError: images are missing or too many, or a label is of no class.
    """
    train, test = dataset.splits["train"], dataset.splits["test"]
    unlabelled = int((train.labels < 0).sum())
    found = {"train": len(train) - unlabelled, "unlabelled": unlabelled, "test": len(test)}
    wanted = {"train": spec.train, "unlabelled": spec.unlabelled, "test": spec.test}
    for part, count in found.items():
        if count != wanted[part]:
            raise SettingError(
                f"{dataset.source} holds {count:,} {part} images of {spec.name}, {wanted[part]:,} were published: "
                f"fetch its files again (published at {spec.url})"
            )
    top = max((int(split.labels.max()) for split in dataset.splits.values() if len(split)), default=-1)
    if top >= spec.classes:
        raise SettingError(f"{dataset.source} holds the label {top}, but {spec.name} has {spec.classes} classes")
    return dataset


def two_splits(
    spec: DatasetSpec, class_names: list[str], splits: tuple[ImageSplit, ImageSplit], folder: Path
) -> Dataset:
    """The data set of a training and a test split, its counts checked."""
    by_name = {"train": splits[0], "test": splits[1]}
    return check_counts(spec, Dataset(spec.name, class_names, by_name, str(folder)))


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    former = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(former)


def download(spec: DatasetSpec, folder: Path, reader: str, options: tuple[Mapping[str, Any], ...] = ({},)) -> None:
    """Fetch a data set by torchvision's own downloader, which checks the published sums.

    Args:
        spec: what.
        folder: where it is kept.
        reader: torchvision's class.
        options: one call each.

    Raises:
        MissingDataError: it cannot be fetched.
    """
    import torchvision.datasets

    try:
        with _socket_timeout(_DOWNLOAD_SECONDS), contextlib.redirect_stdout(sys.stderr):
            for keywords in options:
                getattr(torchvision.datasets, reader)(str(folder), download=True, **keywords)
    except Exception as error:  # the downloader lets urllib's many errors through
        reason = " ".join(str(error).split())[:200]
        names = ", ".join(file.name for file in spec.files)
        raise MissingDataError(
            f"{spec.name} is not on this machine and cannot be downloaded ({reason}): give a folder with {names} "
            f"as --data-dir (published at {spec.url})"
        ) from error


def local_or_downloaded(
    spec: DatasetSpec, data_dir: Path | None, read: Callable[[Path], T], fetch: Callable[[Path], None]
) -> T:
    """What ``read`` makes of the given folder, or of the cache, which is filled first where it has to be."""
    if data_dir is not None:
        return read(absolute(data_dir))
    folder = cache_folder(spec.name)
    try:
        return read(folder)
    except (MissingDataError, SettingError):
        fetch(folder)
        return read(folder)
