"""What regularisers look at in one batch, made when the first of them asks for it.

Legend: `X` rows of a batch (labelled, then unlabelled), `L` labelled, `D` token width, `P` projected width, `K`
classes.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from cspipe.finetune.anchors import mask_and_refill
from cspipe.finetune.contrast import class_means
from cspipe.finetune.model import Joined
from cspipe.finetune.regularisers import REGULARISERS, needed
from cspipe.finetune.settings import FinetuneSettings
from cspipe.finetune.smoothness import DIVERGENCES, adversarial, noise, on_sphere, spectral_norm
from cspipe.finetune.world import World

Answer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Anchors:
    """What some regularisers compare with, as it was before the first step; None where none asks for it.

    Attributes:
        start_weights: the backbone's weights that learn, in order.
        head_norms: spectral norms of the encoder's matrices.
        prototypes_KP: mean projected cached token of each class.
        frozen: the backbone as it was.
    """

    start_weights: list[Tensor] | None = None
    head_norms: list[Tensor] | None = None
    prototypes_KP: Tensor | None = None
    frozen: nn.Module | None = None


@dataclass(frozen=True)
class Seen:
    """One batch: normalised pixels (one process's share), all live and cached tokens, labels, a generator."""

    pixels_X3HW: Tensor
    live_XD: Tensor
    cached_XD: Tensor
    label_L: Tensor
    generator: torch.Generator


def make_anchors(names: Iterable[str], model: Joined, cached_LD: Tensor, label_L: Tensor, classes: int) -> Anchors:
    """What the named regularisers will compare with, from the model before its first step.

    Args:
        names: of regularisers.
        model: backbone and head.
        cached_LD: cached tokens of the labelled rows.
        label_L: their classes.
        classes: K.
    """
    needs = needed(names)
    place = model.projection.mean_D
    projected_LP = model.projection(cached_LD.to(place)) if "prototypes_KP" in needs else None
    return Anchors(
        [weight.detach().clone() for weight in learning(model)] if "start_weights" in needs else None,
        [spectral_norm(weight.detach()) for weight in matrices(model)] if "head_norms" in needs else None,
        None if projected_LP is None
        else class_means(labelled_LP=projected_LP, label_L=label_L.to(place.device), classes=classes),
        copy.deepcopy(model.backbone).eval().requires_grad_(False) if "masked_frozen_BD" in needs else None,
    )  # fmt: skip


def learning(model: Joined) -> list[nn.Parameter]:
    """The backbone's weights that learn, in order."""
    return [parameter for parameter in model.backbone.parameters() if parameter.requires_grad]


def matrices(model: Joined) -> list[nn.Parameter]:
    """The encoder's matrices."""
    return [weight for name, weight in model.stack.encoder.named_parameters() if name.endswith("weight")]


def rotation_of(model: Joined) -> Tensor:
    """The orthogonal map that learns."""
    assert model.rotation is not None
    weight: Any = model.rotation.weight
    return torch.as_tensor(weight)


@dataclass(frozen=True)
class Supply:
    """Everything in `NEEDS` under its own name, made when it is first asked for and once.

    Attributes:
        settings: sizes of noise.
        model: backbone and head.
        embed: normalised pixels -> live tokens.
        seen: the batch.
        anchors: what was before the first step.
        world: which of how many processes.
    """

    settings: FinetuneSettings
    model: Joined
    embed: Answer
    seen: Seen
    anchors: Anchors
    world: World

    def moved(self, delta_X3HW: Tensor) -> Tensor:
        """Content logits of moved images: a second forward pass."""
        return self.model.content(self.world.gather(self.embed(self.seen.pixels_X3HW + delta_X3HW)))

    def noise(self, kind: str, scale: float) -> Tensor:
        """Noise for the whole batch, of which a process takes its share: the same whatever their number."""
        pixels_X3HW = self.seen.pixels_X3HW
        whole = pixels_X3HW.new_empty(len(self.seen.live_XD), *pixels_X3HW.shape[1:])
        return self.world.own(noise(whole, self.seen.generator, kind=kind, scale=scale))

    def sphere(self) -> Tensor:
        """A random direction for each image."""
        return on_sphere(self.noise("normal", 1.0), self.settings.radius)

    def adversarial_logits_BK(self, kind: str) -> Tensor:
        """Content logits of images moved against this divergence; each has a direction of its own."""
        pixels_X3HW, divergence = self.seen.pixels_X3HW, DIVERGENCES[kind]
        answer = lambda pixels: self.model.content(self.embed(pixels))  # noqa: E731
        return self.moved(adversarial(pixels_X3HW, answer, divergence, self.sphere(), self.settings.radius))

    @cached_property
    def refilled_X3HW(self) -> Tensor:
        """Masked images, refilled from images of this process's share: with several processes these are others."""
        return mask_and_refill(self.seen.pixels_X3HW, self.seen.generator)

    @cached_property
    def values(self) -> Mapping[str, Callable[[], Any]]:
        """Name in `NEEDS` -> what makes it."""
        seen, model, anchors, settings = self.seen, self.model, self.anchors, self.settings
        return {
            "live_BD": lambda: seen.live_XD, "cached_BD": lambda: seen.cached_XD,
            "rotation_DD": lambda: rotation_of(model),
            "logits_BK": lambda: model.content(seen.live_XD),
            "noisy_logits_BK": lambda: self.moved(self.noise(settings.noise, settings.noise_scale)),
            "sphere_logits_BK": lambda: self.moved(self.sphere()),
            "head_weights": lambda: matrices(model), "head_norms": lambda: anchors.head_norms,
            "weights": lambda: learning(model), "start_weights": lambda: anchors.start_weights,
            "labelled_LP": lambda: model.projection(seen.live_XD[: len(seen.label_L)]),
            "label_L": lambda: seen.label_L, "prototypes_KP": lambda: anchors.prototypes_KP,
            "masked_live_BD": lambda: self.world.gather(self.embed(self.refilled_X3HW)),
            "masked_frozen_BD": self.masked_frozen,
        }  # fmt: skip

    @torch.no_grad()
    def masked_frozen(self) -> Tensor:
        """The frozen backbone's tokens of the masked images."""
        assert self.anchors.frozen is not None
        token: Tensor = self.anchors.frozen(self.refilled_X3HW)
        return self.world.gather(token.to(self.seen.live_XD.dtype))


def regulariser_terms(names: Iterable[str], supply: Supply) -> dict[str, Tensor]:
    """Every named term, still attached; what two of them need is made once."""
    made: dict[str, Any] = {}
    terms = {}
    for name in names:
        entry = REGULARISERS[name]
        for need in entry.needs:
            if need == "adversarial_logits_BK":
                made[need] = supply.adversarial_logits_BK(name.removeprefix("pdr-").removesuffix("-adversarial"))
            elif need not in made:
                made[need] = supply.values[need]()
        value = entry.term(**{need: made[need] for need in entry.needs})
        terms[name] = supply.world.shared(value) if "weights" in entry.needs else value
    return terms
