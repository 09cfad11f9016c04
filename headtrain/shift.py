"""Heads of one data set judged on another one, under the same backbone: what a shift of the images costs.

Legend: `M` judged rows, `D` token width.
"""

from dataclasses import asdict, replace
from pathlib import Path

import torch

from cspipe.headtrain.rows import StudyRows
from cspipe.store import Store, open_store
from cspipe.store.errors import MismatchError, SettingError
from cspipe.store.layout import find_store, store_path


def find_test_store(stores: Path, store: Path, dataset: str) -> Path:
    """The store of `dataset` whose tokens a head of `store` can read.

    Args:
        stores: folder of the stores.
        store: what the head is trained on.
        dataset: recorded name of the other data set.

    Raises:
        MissingDataError: there is no store of it under the same backbone.
        SettingError: several fit by name and none by its key.
    """
    trained = open_store(store)
    same_key = store_path(stores, dataset, trained.backbone, trained.key)
    return same_key if same_key.is_dir() else find_store(stores, dataset=dataset, backbone=trained.backbone)


def judge_elsewhere(rows: StudyRows, store: Path, test_store: Path) -> StudyRows:
    """The same training rows, judged on the labelled rows of another store: its split `test`, else `train`.

    Args:
        rows: of the store that is trained on.
        store: that store.
        test_store: the other one.

    Raises:
        MismatchError: its tokens were made otherwise, or its classes have other names.
        SettingError: it is the same store, or holds no labelled row.
    """
    trained, other = open_store(store), open_store(test_store)
    if trained.path.resolve() == other.path.resolve():
        raise SettingError(
            f"{trained.path.name} is the store that is trained on: leave out --test-dataset to judge on its own test "
            "split."
        )
    check_fits(trained, other)
    for name in ("test", "train"):
        label_M = other[name].label() if name in other.splits else None
        if label_M is not None and (known_M := label_M >= 0).any():
            token_MD = torch.from_numpy(other[name].embedding())[torch.from_numpy(known_M)]
            return replace(rows, eval_token_MD=token_MD, eval_label_M=label_M[known_M], evaluation="test")
    raise SettingError(f"{other.path.name} holds no labelled row to judge on: name another --test-dataset.")


def check_fits(trained: Store, other: Store) -> None:
    """Refuses a store whose tokens or classes mean something else."""
    ours, theirs = asdict(trained.key), asdict(other.key)
    differing = [
        f"{name} {str(theirs[name])[:60]} against {str(ours[name])[:60]}" for name in ours if ours[name] != theirs[name]
    ]
    if differing:
        raise MismatchError(
            f"{other.path.name} cannot judge a head of {trained.path.name}, its tokens were made otherwise: "
            f"{', '.join(differing)}. Extract {other.dataset} with the options of {trained.dataset}."
        )
    if trained.class_names != other.class_names:
        raise MismatchError(
            f"{other.path.name} has the classes {listed(other.class_names)}, but {trained.path.name} has "
            f"{listed(trained.class_names)}: a head can only be judged on its own classes."
        )


def listed(names: list[str], most: int = 12) -> str:
    """Names in one line, the first of many."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
