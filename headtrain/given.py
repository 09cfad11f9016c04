"""What a baseline is given: the rows of a trial, its labels, and what trials on the same rows can share.

Legend: `N` rows that may be looked at, `L` labelled rows, `M` rows to predict, `D` token width, `K` classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from cspipe.headtrain.chunked import Tokens, resident
from cspipe.headtrain.graph import (
    NEIGHBOURS,
    VOTING_NEIGHBOURS,
    Neighbours,
    edges,
    nearest_in_table,
    nearest_of_each,
    normalised_affinity,
)
from cspipe.headtrain.projection import Projection, fit_projection

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SharedRows:
    """Rows that several trials look at and predict, and what is computed of them once, when first asked for.

    Attributes:
        stored_ND: tokens that may be looked at, the labelled rows' among them, as they are stored.
        judged_MD: tokens to predict.
        device: where the heavy work is done.
        on_share: told the share of the nearest neighbours that is found.
        view_VND: augmented views of the stored rows, `(N, D)` each.
    """

    stored_ND: Tokens
    judged_MD: Tensor
    device: str = "cpu"
    on_share: Callable[[float], None] | None = None
    view_VND: Sequence[Tokens] = ()

    @cached_property
    def projection(self) -> Projection:
        """Standardisation with the statistics of the rows that may be looked at."""
        return fit_projection(self.stored_ND, 0)

    @cached_property
    def token_MD(self) -> Floats:
        """Standardised tokens to predict."""
        token: Floats = self.projection.rows(self.judged_MD).numpy()
        return token

    @cached_property
    def unit_ND(self) -> Tensor:
        """Standardised tokens that may be looked at, of length 1, on the device."""
        stored_ND = resident(self.stored_ND, "the search for nearest neighbours")
        return F.normalize(self.projection.rows(stored_ND).to(self.device), dim=1)

    @cached_property
    def nearest(self) -> Neighbours:
        """Rows among those that may be looked at that are nearest to each row to predict, by the cosine of standardised
        tokens."""
        judged_MD = torch.from_numpy(self.token_MD).to(self.device)
        return nearest_in_table(judged_MD, self.unit_ND, neighbours=VOTING_NEIGHBOURS)

    @cached_property
    def graph(self) -> tuple[sparse.csr_array, sparse.csr_array]:
        """Nearest rows among those that may be looked at, by the cosine of standardised tokens.

        The normalised affinity of these `(N, N)`, and the weights of the edges of each row to predict `(M, N)`. Tokens
        are not projected first: on 512 principal components, at half the time, label propagation lost .2 points, on
        256 a point (100 MNIST labels, dev rows).
        """
        own = nearest_of_each(self.unit_ND, on_share=self.on_share)
        return normalised_affinity(own), edges(self.nearest.first(NEIGHBOURS), len(own.row))


@dataclass(frozen=True)
class Given:
    """One trial as a baseline sees it.

    Attributes:
        rows: what may be looked at and what is to be predicted.
        at_L: positions of the labelled rows in `rows.stored_ND`.
        label_L: their classes.
        classes: K.
    """

    rows: SharedRows
    at_L: Ints
    label_L: Ints
    classes: int

    @cached_property
    def token_LD(self) -> Floats:
        """Standardised labelled tokens."""
        token: Floats = self.rows.projection.rows(self.rows.stored_ND[torch.from_numpy(self.at_L)]).numpy()
        return token

    @cached_property
    def view_VLD(self) -> list[Floats]:
        """Their views, scaled alike."""
        at_L = torch.from_numpy(self.at_L)
        return [self.rows.projection.rows(view_ND[at_L]).numpy() for view_ND in self.rows.view_VND]
