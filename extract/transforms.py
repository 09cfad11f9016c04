"""A library's transform of torchvision steps, taken apart into its geometry and its normalisation."""

from collections.abc import Sequence
from typing import Any

from torchvision import transforms

from cspipe.extract.specs import Preprocessing, Triple
from cspipe.store.errors import SettingError

_CONVERSIONS = ("MaybeConvertMode", "MaybeToTensor", "ToTensor")


def triple(values: Sequence[float]) -> Triple:
    """One number for each of red, green and blue."""
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _step_words(step: Any) -> str:  # noqa: ANN401 - steps of a transform have no common class
    """One step in words that do not depend on versions of libraries."""
    kind = type(step).__name__
    if kind == "CenterCrop":
        return f"centre {' x '.join(map(str, step.size))} px"
    if kind == "Resize" and not (isinstance(step.size, Sequence) and len(step.size) == 1):
        how = f"{step.interpolation.value} on 8-bit pixels with antialias"
        if isinstance(step.size, Sequence):
            return f"both sides to {' x '.join(map(str, step.size))} px whatever the shape, {how}"
        return f"shorter side to {step.size} px, {how}"
    return " ".join(repr(step).split())


def split_transform(steps: Sequence[Any], name: str) -> Preprocessing:
    """The PIL part of a transform, what it does in words, and its normalisation.

    Args:
        steps: of a library's evaluation transform: geometry, conversions to a tensor, normalisation.
        name: of the backbone, for the error.

    Raises:
        SettingError: it is built in another way.
    """
    kinds = [type(step).__name__ for step in steps]
    geometry = [step for step, kind in zip(steps, kinds, strict=True) if kind not in (*_CONVERSIONS, "Normalize")]
    ordered = kinds[len(geometry) :]
    if not geometry or not ordered or ordered[-1] != "Normalize" or not set(ordered[:-1]) <= set(_CONVERSIONS):
        raise SettingError(f"the preprocessing of {name} is {', '.join(kinds)}, which cannot be split")
    words = "; ".join(_step_words(step) for step in geometry)
    return Preprocessing(transforms.Compose(geometry), words, triple(steps[-1].mean), triple(steps[-1].std))
