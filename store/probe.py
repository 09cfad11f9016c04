"""The probe of a store: what its backbone made of one fixed image when the store was begun.

A key says what ought to give a token; a probe says what did. Another version of a library that resizes or
normalises in another way leaves the key alone and moves the probe.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cspipe.store.errors import MismatchError

MOST_APART = 1e-3
"""Cosine distance and share of the length that devices and types of numbers may differ by."""


def encode(probe_D: NDArray[np.floating[Any]]) -> dict[str, Any]:
    """A probe as plain JSON: fp32 values, little-endian, base64."""
    return {"width": len(probe_D), "fp32": base64.b64encode(probe_D.astype("<f4").tobytes()).decode()}


def decode(told: Mapping[str, Any]) -> NDArray[np.float32]:
    """The probe of :func:`encode`, `(D,)`."""
    return np.frombuffer(base64.b64decode(told["fp32"]), "<f4")


def apart(first_D: NDArray[np.floating[Any]], second_D: NDArray[np.floating[Any]]) -> float:
    """The larger of cosine distance and relative difference in length; infinite for other widths or no numbers."""
    if first_D.shape != second_D.shape or not (np.isfinite(first_D).all() and np.isfinite(second_D).all()):
        return float("inf")
    lengths = float(np.linalg.norm(first_D)), float(np.linalg.norm(second_D))
    if min(lengths) == 0:
        return 0.0 if max(lengths) == 0 else float("inf")
    cosine = float(first_D.astype(np.float64) @ second_D.astype(np.float64)) / (lengths[0] * lengths[1])
    return max(1 - cosine, abs(lengths[0] / lengths[1] - 1))


def check_probe(path: Path, recorded: Mapping[str, Any], probe_D: NDArray[np.floating[Any]]) -> None:
    """Refuse a backbone that makes another token of the probe image than the store's did.

    Args:
        path: the store.
        recorded: its attributes; one without a probe is not checked.
        probe_D: what the backbone gives now.

    Raises:
        MismatchError: they are further apart than devices and types of numbers can be.
    """
    if "probe" not in recorded:
        return
    distance = apart(decode(recorded["probe"]), probe_D)
    if distance > MOST_APART:
        raise MismatchError(
            f"{path} was made by a backbone that gives another token for the probe image (apart by {distance:.2g}, "
            f"at most {MOST_APART:g} is rounding): a library resizes or computes otherwise now. Install the versions "
            "that `cspipe store info` lists, or extract into another --stores folder"
        )
