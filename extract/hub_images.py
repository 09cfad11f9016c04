"""Image data sets of the Hugging Face hub, or saved in its formats: parquet and arrow files, no remote code.

``hf:OWNER/NAME`` takes the repository's parquet files, or those that the hub itself converted; ``hf:OWNER/NAME/FOLDER``
one of several configurations; ``@REVISION`` at the end a certain state. Splits go by the names of files and folders.
A validation split is the test split where there is no other labelled one, and else left out.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from cspipe.extract.arrow_files import classes_of, numbered, read_arrow
from cspipe.extract.published import absolute
from cspipe.extract.splits import Dataset, ImageSplit, split_of, train_and_test
from cspipe.store.errors import MissingDataError, SettingError

PREFIX = "hf:"
SAVED = "dataset_dict.json"
_CONVERTED = "refs/convert/parquet"
_NAME = re.compile(r"hf:(?!.*\.\.)(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:/(?P<folder>[\w./-]+))?(?:@(?P<revision>[\w./-]+))?")


def _folder_of(name: str) -> str:
    """The configuration that a file belongs to: its folder without what speaks of splits or is called data."""
    parts = PurePosixPath(name).parts[:-1]
    return "/".join(part for part in parts if part not in ("data", "default") and split_of(part) is None)


def _one_configuration(names: Sequence[str], folder: str | None, whole: str) -> list[str]:
    """The files of the configuration that is meant.

    Raises:
        SettingError: there are several and none is named, or not the named one.
    """
    found = sorted({_folder_of(name) for name in names})
    meant = folder if folder is not None else ("" if "" in found else found[0] if len(found) == 1 else None)
    if meant not in found:
        listed = ", ".join(name for name in found if name) or "none"
        raise SettingError(
            f"{whole} has the configurations {listed}: name one of them, as in hf:OWNER/NAME/{found[-1]}"
        )
    return sorted(name for name in names if _folder_of(name) == meant)


def _download(repo: str, revision: str | None, choose: Callable[[list[str]], list[str]]) -> Path | None:
    """The repository's chosen parquet files from the hub, None where it has none."""
    import huggingface_hub

    names = huggingface_hub.HfApi().list_repo_files(repo, repo_type="dataset", revision=revision)
    wanted = choose([name for name in names if name.endswith(".parquet")])
    if not wanted:
        return None
    return Path(huggingface_hub.snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=wanted))


def _kept(repo: str, revisions: Sequence[str | None]) -> Path | None:
    """What an earlier download left on this machine."""
    import huggingface_hub

    for revision in revisions:
        try:
            folder = Path(
                huggingface_hub.snapshot_download(repo, repo_type="dataset", revision=revision, local_files_only=True)
            )
        except (OSError, ValueError):
            continue
        if next(folder.rglob("*.parquet"), None):
            return folder
    return None


def snapshot(repo: str, *, folder: str | None = None, revision: str | None = None) -> Path:
    """A folder with the parquet files of a data set of the hub, downloaded once.

    Args:
        repo: ``OWNER/NAME``.
        folder: the configuration, or None for the only one.
        revision: a branch, tag or commit.

    Raises:
        MissingDataError: there is no such data set, it has no parquet files, or the hub cannot be reached.
        SettingError: it has several configurations.
    """
    revisions = (revision,) if revision else (None, _CONVERTED)
    try:
        for each in revisions:
            found = _download(repo, each, lambda names: names and _one_configuration(names, folder, repo))
            if found is not None:
                return found
    except SettingError:
        raise
    except Exception as error:  # the hub's client lets the errors of several libraries through
        kept = _kept(repo, revisions)
        if kept is not None:
            return kept
        reason = " ".join(str(error).split())[:200]
        raise MissingDataError(
            f"huggingface.co/datasets/{repo} is not on this machine and cannot be downloaded ({reason}): check the "
            "name and the connection, or give a folder with its parquet files as --data-dir"
        ) from error
    raise MissingDataError(
        f"huggingface.co/datasets/{repo} has no parquet files, and data sets that need code of their own are not "
        "read: convert it, or give a folder with parquet files as --data-dir"
    )


def _saved_files(root: Path, folder: str | None) -> list[str]:
    """Parquet files below a folder, or the arrow files of a saved data set."""
    found = [path for ending in ("*.parquet", "*.arrow") for path in root.rglob(ending)]
    names = [path.relative_to(root).as_posix() for path in found]
    names = [name for name in names if not any(part.startswith((".", "cache-")) for part in name.split("/"))]
    if not names:
        raise MissingDataError(f"{root} holds no parquet or arrow files: give a folder that does")
    return _one_configuration(names, folder, str(root))


def read_saved(
    folder: Path, *, name: str | None = None, configuration: str | None = None, class_names: list[str] | None = None
) -> Dataset:
    """List the images of parquet or arrow files below a folder.

    Args:
        folder: where they lie.
        name: of the data set; the folder's where None.
        configuration: which of several sub-folders.
        class_names: where the files do not say them.

    Returns:
        Split ``train`` and, where there are labelled test or validation files, ``test``.

    Raises:
        MissingDataError: no such files, or pyarrow is not installed.
        SettingError: a file is damaged, or has no images or no labels.
    """
    root = absolute(folder)
    by_split: dict[str, list[Path]] = {}
    for file in _saved_files(root, configuration):
        by_split.setdefault(split_of(file) or "train", []).append(root / file)
    parts = {split: read_arrow(files, root) for split, files in by_split.items()}
    values = [value for part in parts.values() for value in part.labels]
    if all(value is None for value in values):
        raise SettingError(f"the files in {root} have no column of labels: one must be called label")
    given = next((part.class_names for part in parts.values() if part.class_names), None)
    names = given or class_names or classes_of(values, root)
    found = {
        split: ImageSplit(split, numbered(part.labels, names, root), part.paths, part.load)
        for split, part in parts.items()
    }
    return Dataset(name or root.name, names, train_and_test(found, root), str(root))


def read_hub(name: str, data_dir: Path | None) -> Dataset:
    """List a data set of the hub.

    Args:
        name: ``hf:OWNER/NAME[/FOLDER][@REVISION]``.
        data_dir: folder with its parquet files, in place of the hub.

    Raises:
        MissingDataError: there is no such data set, or it cannot be reached or read without code.
        SettingError: the name is of another form, or names no single configuration.
    """
    told = _NAME.fullmatch(name)
    if told is None:
        raise SettingError(
            f"a data set of the hub is hf:OWNER/NAME, hf:OWNER/NAME/FOLDER or with @REVISION; got {name}"
        )
    folder = data_dir or snapshot(told["repo"], folder=told["folder"], revision=told["revision"])
    found = read_saved(folder, name=name.removeprefix(PREFIX), configuration=told["folder"])
    return Dataset(found.name, found.class_names, found.splits, name if data_dir is None else found.source)
