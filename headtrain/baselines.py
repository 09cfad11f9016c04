"""What a practitioner would use instead of a content-style head.

Legend: `N` training rows, `L` labelled rows, `M` rows to predict, `D` token width, `K` classes.
Tokens come standardised with the statistics of the unlabelled training rows, as the heads see them.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from cspipe.headtrain.given import Given
from cspipe.headtrain.graph import (
    VOTING_NEIGHBOURS,
    Neighbours,
    equal_class_masses,
    nearest_in_table,
    spread_labels,
)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

ROWS_FOR_CHOOSING_C = 2000

SEARCH_TOLERANCE = 1e-3
"""Of the fits that choose C. At scikit-learn's 1e-4 they take one and a half to twice as long and C is no better: on
dev rows of seven sets with 100 to 1,000 labels accuracy differs by +.15 points on average, -.3 to +2.2."""


def logistic(
    token_LD: Floats,
    label_L: Ints,
    token_MD: Floats,
    *,
    classes: int,
    scoring: str = "accuracy",
    view_VLD: Sequence[Floats] = (),
) -> Floats:
    """Multinomial logistic regression with an L2 penalty, C chosen by cross-validation among the labelled rows.

    The optimum lies in the span of the labelled rows, so with fewer rows than dimensions it is solved in that
    span: the same answer, in a fraction of the time. Few rows, and the choice of C, take one thread: two were 7 times
    slower beside torch's own, for each waits for the others at every small product (1,000 and 2,000 rows, two cores).

    Args:
        token_LD: labelled rows. label_L: their classes. token_MD: rows to predict. classes: K.
        scoring: what C is chosen by: `accuracy`, or `neg_log_loss` where the probabilities are to be calibrated.
        view_VLD: augmented views of the labelled rows, which are learned beside them; C is chosen without them, since
            a held-out row's views would tell its class, and divided by the rows there are of each image.

    Returns:
        Class probabilities `(M, K)`.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    probability_MK = np.zeros((len(token_MD), classes), np.float32)
    if len(np.unique(label_L)) == 1:
        probability_MK[:, label_L[0]] = 1
        return probability_MK
    known, every_LD = len(token_LD), np.concatenate([token_LD, *view_VLD])
    if len(every_LD) < every_LD.shape[1]:
        span_DR = np.linalg.svd(every_LD, full_matrices=False)[2].T
        every_LD, token_MD = every_LD @ span_DR, token_MD @ span_DR
    copies = 1 + len(view_VLD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # few rows of many
        with threadpool_limits(1):
            strength = choose_c(every_LD[:known], label_L, scoring=scoring) / copies
        with threadpool_limits(1 if known <= ROWS_FOR_CHOOSING_C else None):
            model = LogisticRegression(C=strength, max_iter=300).fit(every_LD, np.tile(label_L, copies))
    probability_MK[:, model.classes_] = model.predict_proba(token_MD)
    return probability_MK


def choose_c(token_LD: Floats, label_L: Ints, *, scoring: str = "accuracy") -> float:
    """C of the best cross-validated score on a log grid, on at most 2,000 labelled rows; the smallest of equals.

    1 where a class has a single row, so that nothing can be held out.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split

    spare, count_K = len(label_L) - ROWS_FOR_CHOOSING_C, np.unique(label_L, return_counts=True)[1]
    if spare > 0:
        stratify = label_L if count_K.min() >= 2 and spare >= len(count_K) else None
        token_LD, _, label_L, _ = train_test_split(
            token_LD, label_L, train_size=ROWS_FOR_CHOOSING_C, stratify=stratify, random_state=0
        )
    folds = min(5, int(np.unique(label_L, return_counts=True)[1].min()))
    if folds < 2:
        return 1.0
    search = GridSearchCV(
        LogisticRegression(max_iter=200, tol=SEARCH_TOLERANCE), {"C": list(np.logspace(-5, 1, 7))},
        cv=StratifiedKFold(folds, shuffle=True, random_state=0), refit=False, scoring=scoring,
    ).fit(token_LD, label_L)  # fmt: skip
    return float(search.best_params_["C"])


def knn(
    token_LD: Floats,
    label_L: Ints,
    token_MD: Floats,
    *,
    classes: int,
    neighbours: int = VOTING_NEIGHBOURS,
    temperature: float = 0.07,
) -> Floats:
    """Cosine k-nearest neighbours among the labelled rows, votes weighted by exp(cos / 0.07) (DINO's protocol).

    Returns:
        Normalised votes `(M, K)`.
    """
    unit_LD = F.normalize(torch.from_numpy(token_LD), dim=1)
    nearest = nearest_in_table(torch.from_numpy(token_MD), unit_LD, neighbours=neighbours)
    return votes_of(nearest, label_L, classes, temperature)


def knn_of_given(given: Given) -> Floats:
    """The same; where every row is labelled, what label propagation finds nearest serves both."""
    stored_ND = given.rows.stored_ND
    if isinstance(stored_ND, torch.Tensor) and len(given.at_L) == len(stored_ND):
        return votes_of(given.rows.nearest, given.label_L[np.argsort(given.at_L)], given.classes)
    return knn(given.token_LD, given.label_L, given.rows.token_MD, classes=given.classes)


def votes_of(nearest: Neighbours, label_N: Ints, classes: int, temperature: float = 0.07) -> Floats:
    """Votes `(M, K)` of the nearest rows of a table with such labels; they sum to 1."""
    weight_MC = np.exp((nearest.cosine - 1) / temperature)
    votes_MK = np.zeros((len(nearest.row), classes), np.float32)
    np.add.at(votes_MK, (np.arange(len(nearest.row))[:, None], label_N[nearest.row]), weight_MC)
    votes_MK /= votes_MK.sum(1, keepdims=True).clip(1e-30)
    return votes_MK


def label_propagation(given: Given) -> Floats:
    """Labels spread along the 10-nearest-neighbour graph of the rows that may be looked at. `(M, K)`.

    Local and global consistency (Zhou et al. 2004) on the graph of Iscen et al. 2019 (arXiv 1904.04717): weights are
    cubed cosines, alpha = 0.99, solved by conjugate gradients.

    Zhou's method is transductive; rows to predict are not in our graph. They get their class inductively: a vote of
    the class distributions of their 10 nearest rows in the graph, weighted by cubed cosine. A row that no label
    reaches gets the frequencies of the labelled rows.

    Class masses are made equal (`equal_class_masses`): .871 against .858 without (MNIST tokens, 100 balanced labels,
    dev rows, three splits). On the same rows thinned to class shares from 18 % down to 2 % it was .871 against .850,
    and .849 with masses in the true proportions.
    """
    affinity, judged = given.rows.graph
    spread_NK = spread_labels(affinity, given.at_L, given.label_L, classes=given.classes)
    share_NK = equal_class_masses(spread_NK)
    vote_MK = judged @ share_NK
    fallback_K = np.bincount(given.label_L, minlength=given.classes)
    vote_MK[vote_MK.sum(1) == 0] = fallback_K
    probability_MK: Floats = vote_MK / vote_MK.sum(1, keepdims=True)
    return probability_MK


BASELINES: Mapping[str, Callable[[Given], Floats]] = MappingProxyType({
    "logistic": lambda given: logistic(given.token_LD, given.label_L, given.rows.token_MD, classes=given.classes,
                                       view_VLD=given.view_VLD),
    "knn": knn_of_given,
    "label-propagation": label_propagation,
})  # fmt: skip
"""Name -> function of what is given (see `Given`) that gives probabilities `(M, K)` of the rows to predict."""
