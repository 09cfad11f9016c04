"""The paper's picture of a head: t-SNE of [CLS] tokens, content and style of the rows it is judged on.

Legend: `N` rows, `D` token width.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.store import Store, open_store
from cspipe.store.errors import MismatchError, MissingDataError, SettingError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
FEWEST_ROWS = 10
NEIGHBOURS = 10


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
    recorded = Path(told["store"])
    places = [place for place in (recorded, stores / recorded.name) if (place / "zarr.json").is_file()]
    if not places:
        raise MissingDataError(
            f"The store {recorded.name} is neither at {recorded} nor under {stores}. Name the folder that holds "
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
    import torch

    from cspipe.headtrain import load_head

    saved = load_head(run / "heads" / "content-style-0.safetensors")
    token_ND, label_N = judged_rows(store, told["evaluation"], dev_rows, most)
    if (label_N >= 0).sum() < FEWEST_ROWS:
        raise SettingError(f"{(label_N >= 0).sum()} labelled rows are too few for a picture.")
    with torch.no_grad():
        content_NK, style_NS = saved.head.encode(torch.from_numpy(token_ND))
    named = {"[CLS] tokens": token_ND, "content": content_NK.numpy(), "style": style_NS.numpy()}
    spaces = [(name, tsne(value_NX), agreement(value_NX, label_N)) for name, value_NX in named.items()]
    return TokenMap(spaces, label_N, told["class_names"])


def judged_rows(store: Store, evaluation: str, dev_rows: int, most: int) -> tuple[Floats, Ints]:
    """Tokens `(N, D)` and classes of test rows, of dev rows, or after cross-validation of all training rows."""
    split = store["test" if evaluation == "test" else "train"]
    label_M = split.label()
    at = np.arange(len(label_M))[-dev_rows if evaluation == "dev" else 0 :]
    known, unknown = at[label_M[at] >= 0], at[label_M[at] < 0]
    chosen = spaced(known, most)
    if evaluation == "cross-validation":
        chosen = np.sort(np.concatenate([chosen, spaced(unknown, most - len(chosen))]))
    return split.embedding()[chosen].astype(np.float32), label_M[chosen]


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


def tsne(value_ND: Floats) -> Floats:
    """Two dimensions `(N, 2)` by t-SNE (van der Maaten and Hinton 2008), from a fixed start.

    Wide rows are put on their first 50 principal components first, as its authors do.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows, width = value_ND.shape
    value_ND = value_ND - value_ND.mean(0)
    if width > 50:
        value_ND = PCA(min(50, rows - 1), random_state=0).fit_transform(value_ND)
    start = "pca" if width > 1 and float(value_ND.std()) > 0 else "random"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Floats = TSNE(
            init=start, perplexity=min(30.0, (rows - 1) / 3), max_iter=500, random_state=0, n_jobs=1
        ).fit_transform(value_ND.astype(np.float32))
    return made
