"""What a study looks at: training rows, evaluation rows and labelled splits of a store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cspipe.headtrain.chunked import ChunkedTokens, Tokens, chunked_split
from cspipe.headtrain.labelfile import with_given
from cspipe.store import Store, open_store
from cspipe.store.errors import SettingError
from cspipe.store.split import draw_labelled

Ints = NDArray[np.int64]
Evaluation = Literal["test", "dev", "cross-validation"]
Labels = int | Literal["all"]
Draw = Literal["balanced", "natural"]

LABELS_WHERE_ALL_ARE_KNOWN = 250


@dataclass(frozen=True)
class StudyRows:
    """Rows of one store. `N` training rows, `M` evaluation rows, `D` token width.

    Attributes:
        token_ND, label_N, row_id_N: rows of the split `train` (label -1: unlabelled), without dev rows;
            tokens that do not fit into memory stay in their store.
        eval_token_MD, eval_label_M: labelled rows that accuracy is measured on; None for cross-validation.
        evaluation: where those come from.
        class_names: K names.
        flagged: rows left out because their image is bad or gone.
        view_VND: tokens of augmented views of the training rows, `(N, D)` each; empty where the store holds none.
        given: positions of the rows whose label was given beside the store.
        stored_label_N: labels as the store has them, where some were given beside it.
    """

    token_ND: Tokens
    label_N: Ints
    row_id_N: Ints
    eval_token_MD: Tensor | None
    eval_label_M: Ints | None
    evaluation: Evaluation
    class_names: list[str]
    flagged: int
    view_VND: tuple[Tokens, ...] = ()
    given: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    stored_label_N: Ints | None = None

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return len(self.class_names)


def read_rows(
    path: Path,
    *,
    dev_rows: int = 0,
    views: int = 0,
    stream_bytes: int | None = None,
    given: Mapping[int, int] | None = None,
) -> StudyRows:
    """Loads a store's rows.

    Args:
        path: the store.
        dev_rows: when positive, the last so many training rows are evaluated on instead of the test split, and
            leave the labelled and the unlabelled set: for choosing settings without looking at test rows.
        views: at most so many cached views of the training rows are loaded too.
        stream_bytes: leave the training rows in their store, and let a training take so many bytes of memory; None
            loads them.
        given: row id -> class number of labels beside those of the store; they win.

    Raises:
        SettingError: no training split or no labelled row, or dev rows that miss a class.
        StoreError: extraction is not finished.
    """
    store = open_store(path)
    if "train" not in store.splits:
        raise SettingError(f"{path.name} holds no split 'train': extract it with --split train or all.")
    train = store["train"]
    label, row_id, flagged = train.label(), train.row_id(), train.flagged()
    token, view = read_train(store, store.views("train")[:views], stream_bytes)
    evaluation: Evaluation = "cross-validation"
    eval_token, eval_label = None, None
    if dev_rows:
        evaluation = "dev"
        eval_token, eval_label = after(token, len(label) - dev_rows), label[-dev_rows:]
        label, row_id = label[:-dev_rows], row_id[:-dev_rows]
        token, *view = [before(held, len(label)) for held in (token, *view)]
    elif (test := read_test(store)) is not None:
        evaluation = "test"
        eval_token, eval_label = test
    stored = label
    label, added = with_given(label, row_id, given or {})
    if not (label >= 0).any():
        raise SettingError(f"{path.name} holds no labelled training row: put labelled images in class folders.")
    if eval_label is not None and eval_token is not None:
        known = eval_label >= 0
        eval_token, eval_label = eval_token[torch.from_numpy(known)], eval_label[known]
        if dev_rows and len(np.unique(eval_label)) < len(store.class_names):
            raise SettingError(
                f"the last {dev_rows} training rows do not hold every class: dev_rows is for data sets whose rows are "
                "in mixed order. Use the test split, or more rows."
            )
    return StudyRows(
        token, label, row_id, eval_token, eval_label, evaluation, store.class_names, flagged, tuple(view), added,
        stored if len(added) else None,
    )  # fmt: skip


def read_train(store: Store, views: Sequence[str], stream_bytes: int | None) -> tuple[Tokens, list[Tokens]]:
    """Tokens of the training rows and of each of the named views, in memory or in their store."""
    if stream_bytes is None:
        view = [torch.from_numpy(store.view_embedding("train", name)) for name in views]
        return torch.from_numpy(store["train"].embedding()), list(view)
    token, *chunked = chunked_split(store, "train", views, stream_bytes)
    return token, list(chunked)


def before(tokens: Tokens, row: int) -> Tokens:
    """The rows before one, where they are."""
    return tokens.first(row) if isinstance(tokens, ChunkedTokens) else tokens[:row]


def after(tokens: Tokens, row: int) -> Tensor:
    """A row and those after it, in memory."""
    return tokens[row:] if isinstance(tokens, Tensor) else tokens[torch.arange(row, len(tokens))]


def read_test(store: Store) -> tuple[Tensor, Ints] | None:
    """Tokens and labels of the split `test`; None where it is missing or has no labelled row."""
    if "test" not in store.splits:
        return None
    label = store["test"].label()
    return (torch.from_numpy(store["test"].embedding()), label) if (label >= 0).any() else None


def labelled_positions(rows: StudyRows, labels: Labels | None, seeds: int, draw: Draw) -> dict[int, Ints]:
    """Positions of the labelled training rows by split seed 0..seeds-1.

    `labels=None` means every labelled row where the store also has unlabelled ones (they are all the user has),
    else 250. With every labelled row in use and a test split, all split seeds agree: one is kept. Rows whose label
    was given beside the store are added to every draw, which is made as if they were not there.
    """
    stored_N = rows.label_N if rows.stored_label_N is None else rows.stored_label_N
    known, stored = int((rows.label_N >= 0).sum()), int((stored_N >= 0).sum())
    if labels is None:
        labels = "all" if known < len(rows.label_N) else min(known, LABELS_WHERE_ALL_ARE_KNOWN)
    if labels == "all" or labels == stored:
        position = np.flatnonzero(rows.label_N >= 0)
        kept = seeds if rows.evaluation == "cross-validation" else 1
        return dict.fromkeys(range(kept), position)
    order = np.argsort(rows.row_id_N)
    drawn = {seed: draw_labelled(stored_N, rows.row_id_N, labels, seed, draw=draw) for seed in range(seeds)}
    at = {seed: order[np.searchsorted(rows.row_id_N, ids, sorter=order)] for seed, ids in drawn.items()}
    return {seed: np.union1d(position, rows.given) for seed, position in at.items()} if len(rows.given) else at
