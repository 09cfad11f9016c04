"""Every term that keeps what the backbone knew: its name, its function and what it needs.

A term is a pure function with keyword arguments; `needs` names them, and `NEEDS` says what each stands for and costs.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import Tensor

from cspipe.finetune.anchors import distillation, l2sp, masked
from cspipe.finetune.contrast import proco, supcon
from cspipe.finetune.rift import rift, rift_learned, rift_procrustes
from cspipe.finetune.smoothness import DIVERGENCES, pdr, r3f, r4f
from cspipe.store.errors import SettingError, unknown_name

NEEDS: Mapping[str, str] = MappingProxyType({
    "live_BD": "live tokens of the batch",
    "cached_BD": "cached tokens of the same rows",
    "rotation_DD": "an orthogonal map that learns",
    "logits_BK": "content of the batch",
    "noisy_logits_BK": "a second forward pass, on noisy images",
    "sphere_logits_BK": "a second forward pass, on images moved in a random direction",
    "adversarial_logits_BK": "two more forward passes and a backward pass, on images moved against the answer",
    "head_weights": "the head's matrices", "head_norms": "their spectral norms at the start",
    "weights": "the backbone's weights that learn", "start_weights": "the same weights at the start",
    "labelled_LP": "projected live tokens of the labelled rows", "label_L": "the labels",
    "prototypes_KP": "mean cached token of each class",
    "masked_live_BD": "a second forward pass, on masked images",
    "masked_frozen_BD": "a forward pass of the frozen backbone, on masked images",
})  # fmt: skip
"""Keyword of a term -> what it is and what it costs."""


@dataclass(frozen=True)
class Regulariser:
    """One entry of the table: a pure function, and its arguments as `NEEDS` names them."""

    term: Callable[..., Tensor]
    needs: tuple[str, ...]


def against(term: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A term of `sphere_logits_BK` that looks at `adversarial_logits_BK`."""
    return lambda *, logits_BK, adversarial_logits_BK: term(logits_BK=logits_BK, sphere_logits_BK=adversarial_logits_BK)


PAIR = ("live_BD", "cached_BD")
REGULARISERS: Mapping[str, Regulariser] = MappingProxyType({
    "rift": Regulariser(rift, PAIR),
    "rift-procrustes": Regulariser(rift_procrustes, PAIR),
    "rift-learned": Regulariser(rift_learned, (*PAIR, "rotation_DD")),
    "distillation": Regulariser(distillation, PAIR),
    "l2sp": Regulariser(l2sp, ("weights", "start_weights")),
    "masked": Regulariser(masked, ("masked_live_BD", "masked_frozen_BD")),
    "r3f": Regulariser(r3f, ("logits_BK", "noisy_logits_BK")),
    "r4f": Regulariser(r4f, ("logits_BK", "noisy_logits_BK", "head_weights", "head_norms")),
    "supcon": Regulariser(supcon, ("labelled_LP", "label_L")),
    "proco": Regulariser(proco, ("labelled_LP", "label_L", "prototypes_KP")),
    **{f"pdr-{kind}": Regulariser(pdr(f), ("logits_BK", "sphere_logits_BK")) for kind, f in DIVERGENCES.items()},
    **{f"pdr-{kind}-adversarial": Regulariser(against(pdr(f)), ("logits_BK", "adversarial_logits_BK"))
       for kind, f in DIVERGENCES.items()},
})  # fmt: skip
"""Name -> regulariser."""

BATCH_OF_LABELS = frozenset({"supcon", "proco"})


def needed(names: Iterable[str]) -> frozenset[str]:
    """Everything that the named regularisers need together."""
    return frozenset(need for name in names for need in REGULARISERS[name].needs)


def check_names(names: Iterable[str]) -> None:
    """Refuses names that are not in the table, before any work.

    Raises:
        UnknownNameError: there is no such regulariser.
    """
    for name in names:
        if name not in REGULARISERS:
            raise unknown_name("regulariser", name, REGULARISERS)


def check_regularisers(
    names: Iterable[str], *, learning: int, labelled_classes: int, cached: bool = True, adapter: bool = False
) -> None:
    """Refuses terms that would be constant or undefined in this run.

    Args:
        names: of the regularisers, known ones.
        learning: how many numbers of the backbone learn.
        labelled_classes: classes with a labelled row.
        cached: whether the pretrained tokens of the training rows are at hand.
        adapter: whether only an adapter of the backbone learns, its own weights staying.

    Raises:
        SettingError: the first of them, with what to do.
    """
    for name in names:
        needs = REGULARISERS[name].needs
        if learning == 0:
            raise SettingError(
                f"{name} is constant where no part of the backbone learns: leave it out, or use --unfreeze or "
                "--unfreeze-blocks N."
            )
        if name in BATCH_OF_LABELS and labelled_classes < 2:
            raise SettingError(
                f"{name} contrasts classes, but the labelled rows are of {labelled_classes} class: label images of "
                "another one, or leave it out."
            )
        if "cached_BD" in needs and not cached:
            raise SettingError(
                f"{name} compares with the cached tokens, and there are none of these images: extract them first, or "
                "leave it out."
            )
        if "start_weights" in needs and adapter:
            raise SettingError(
                f"{name} measures how far the backbone's own weights have moved, and with an adapter they stay: "
                "leave out one of the two."
            )
