"""The paper's picture of a head: t-SNE of [CLS] tokens, content and style of the rows it is judged on.

Legend: `N` rows, `D` token width.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cspipe.store import Store, open_store
from cspipe.store.errors import MismatchError, MissingDataError, SettingError
from cspipe.store.remote import local_path, url_of
from cspipe.store.remotes import shown

if TYPE_CHECKING:
    from cspipe.headtrain.heads import Head

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
FEWEST_ROWS = 10
NEIGHBOURS = 10
PLACED = 5_000


@dataclass(frozen=True)
class TokenMap:
    """The same rows in three spaces.

    Attributes:
        spaces: name of a space, places `(N, 2)` of the rows, share of nearest neighbours there of the same class.
        label_N: their classes, -1 for no label.
        class_names: K names.
    """

    spaces: list[tuple[str, Floats, float]]
    label_N: Ints
    class_names: list[str]

    @property
    def chance(self) -> float:
        """Share of neighbours of the same class where the space knows nothing of classes."""
        shares = np.bincount(self.label_N[self.label_N >= 0]) / (self.label_N >= 0).sum()
        return float((shares**2).sum())


def run_store(told: dict[str, Any], stores: Path) -> Store:
    """The store that a run's tokens came from: where it was, else the one of its name under `stores`.

    Raises:
        MissingDataError: it is in neither place.
        MismatchError: a store of that name is there, but with other tokens.
    """
    recorded, under = told["store"], stores / Path(told["store"]).name
    there = under if url_of(recorded) and (under / "zarr.json").is_file() else local_path(recorded)
    places = [place for place in (there, under) if (place / "zarr.json").is_file()]
    if not places:
        raise MissingDataError(
            f"The store {under.name} is neither at {recorded} nor under {shown(stores)}. Name the folder that holds "
            "it with --stores, or extract it again."
        )
    store = open_store(places[0])
    if store.attributes["key_sha256"] != told["provenance"]["store_key"]:
        raise MismatchError(f"{store.path} is not the store of this run: its key is another.")
    return store


def map_tokens(run: Path, told: dict[str, Any], store: Store, *, most: int, dev_rows: int = 0) -> TokenMap:
    """Places up to `most` rows with the run's first content-style head.

    Args:
        run: a head run.
        told: its report.
        store: where its tokens are.
        most: rows that are drawn, evenly spaced.
        dev_rows: of the run's settings.

    Raises:
        CspipeError: no such head, a damaged store, or too few rows; the message can be shown.
    """
    from cspipe.headtrain import load_head

    saved = load_head(run / "heads" / "content-style-0.safetensors")
    token_ND, label_N = judged_rows(store, told["evaluation"], dev_rows, most)
    return place_rows(saved.head, token_ND, label_N, told["class_names"])


def place_rows(head: "Head", token_ND: Floats, label_N: Ints, class_names: list[str]) -> TokenMap:
    """Rows by their tokens, and by what a head makes of them.

    Raises:
        SettingError: too few rows have a label.
    """
    import torch

    if (label_N >= 0).sum() < FEWEST_ROWS:
        raise SettingError(f"{(label_N >= 0).sum()} labelled rows are too few for a picture.")
    content_NK, style_NS = head.encode(torch.from_numpy(token_ND))
    named = {"[CLS] tokens": token_ND, "content": content_NK.numpy(), "style": style_NS.numpy()}
    spaces = [(name, tsne(value_NX), agreement(value_NX, label_N)) for name, value_NX in named.items()]
    return TokenMap(spaces, label_N, class_names)


def judged_rows(store: Store, evaluation: str, dev_rows: int, most: int) -> tuple[Floats, Ints]:
    """Tokens `(N, D)` and classes of test rows, of dev rows, or after cross-validation of all training rows."""
    name, at_N = judged_places(store, evaluation, dev_rows, most)
    return store[name].embedding()[at_N].astype(np.float32), store[name].label()[at_N]


def judged_places(store: Store, evaluation: str, dev_rows: int, most: int) -> tuple[str, Ints]:
    """Name of the split that was judged, and the positions `(N,)` of those rows in it."""
    name = "test" if evaluation == "test" else "train"
    label_M = store[name].label()
    at = np.arange(len(label_M))[-dev_rows if evaluation == "dev" else 0 :]
    known, unknown = at[label_M[at] >= 0], at[label_M[at] < 0]
    chosen = spaced(known, most)
    if evaluation == "cross-validation":
        chosen = np.sort(np.concatenate([chosen, spaced(unknown, most - len(chosen))]))
    return name, chosen


def spaced(rows: Ints, most: int) -> Ints:
    """At most so many of the rows, evenly spaced."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def agreement(value_ND: Floats, label_N: Ints) -> float:
    """Share of the nearest labelled neighbours (Euclidean, `NEIGHBOURS` a row) that are of the row's own class."""
    from sklearn.neighbors import NearestNeighbors

    value_ND, label_N = value_ND[label_N >= 0], label_N[label_N >= 0]
    near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(label_N) - 1)).fit(value_ND)
    return float((label_N[near.kneighbors(return_distance=False)] == label_N[:, None]).mean())


def tsne(value_ND: Floats, *, threads: int = 1) -> Floats:
    """Two dimensions `(N, 2)` by t-SNE (van der Maaten and Hinton 2008), from a fixed start.

    Wide rows are put on their first 50 principal components first, as its authors do. Of more than `PLACED` rows so
    many are placed, evenly spaced, and each other one among its ten nearest of them, weighted as t-SNE weighs them.
    """
    from openTSNE import TSNE  # type: ignore[import-untyped]

    rows, width = value_ND.shape
    value_ND = principal(value_ND - value_ND.mean(0))
    at = spaced(np.arange(rows), PLACED)
    start = "pca" if width > 1 and float(value_ND.std()) > 0 else "random"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        placed = TSNE(
            initialization=start, perplexity=min(30.0, (len(at) - 1) / 3), n_iter=400, random_state=0, n_jobs=threads
        ).fit(value_ND[at])
        made_N2 = np.empty((rows, 2), np.float32)
        made_N2[at] = placed
        if len(at) < rows:
            others = np.setdiff1d(np.arange(rows), at)
            made_N2[others] = placed.prepare_partial(value_ND[others], initialization="weighted", k=NEIGHBOURS)
    return made_N2


def principal(value_ND: Floats, most: int = 50) -> Floats:
    """Centred rows on their first `most` principal components `(N, min(D, most))`."""
    if value_ND.shape[1] <= most:
        return value_ND
    components_DP = np.linalg.eigh(value_ND.T @ value_ND)[1][:, : -most - 1 : -1]
    turned_NP: Floats = value_ND @ components_DP
    return turned_NP
