"""LoRA: low-rank additions learn in place of the backbone's own weights (Hu 2021, arXiv 2106.09685), by peft.

    w x  becomes  w x + 2 B A x,   A (rank, in) drawn at random, B (out, rank) zero at first

Nothing changes at step 0. At the end B A is added to w, so that the backbone's own library loads the file.
"""

from typing import Any

import torch
from torch import nn

from cspipe.store.errors import MissingDataError, SettingError

SCALE = 2
"""alpha / rank, as in the source's code."""


def load_peft() -> Any:  # noqa: ANN401 - a module
    """peft.

    Raises:
        MissingDataError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise MissingDataError(
            "--adapter lora needs peft, which is not installed: pip install 'content-style-pipeline[lora]'."
        ) from error
    return peft


def layers_of(backbone: nn.Module) -> list[str]:
    """Names of the layers that get an addition: linear ones whose weights learn, else convolutions of one group."""
    named = [(name, part) for name, part in backbone.named_modules() if name and all_learn(part)]
    linear = [name for name, part in named if isinstance(part, nn.Linear)]
    return linear or [name for name, part in named if isinstance(part, nn.Conv2d) and part.groups == 1]


def all_learn(part: nn.Module) -> bool:
    """True where the module's own weight learns."""
    weight = getattr(part, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.requires_grad


def add_lora(backbone: nn.Module, rank: int, seed: int) -> int:
    """Puts an addition on every linear layer that learns, in place; the additions alone learn from then on.

    Args:
        backbone: whose blocks are unfrozen already: only those get additions.
        rank: of each.
        seed: of their first weights.

    Returns:
        How many numbers learn.

    Raises:
        SettingError: no layer can have one.
        MissingDataError: peft is not installed.
    """
    peft = load_peft()
    names = layers_of(backbone)
    if not names:
        raise SettingError("no layer of this backbone takes a low-rank addition: leave out --adapter lora.")
    config = peft.LoraConfig(r=rank, lora_alpha=SCALE * rank, lora_dropout=0.0, target_modules=names)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, backbone)
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    return sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)


def merge_lora(backbone: nn.Module) -> None:
    """Adds every addition to its layer's own weight and takes it away, in place."""
    kind = load_peft().tuners.lora.LoraLayer
    wrapped = [(name, part) for name, part in backbone.named_modules() if isinstance(part, kind)]
    for name, layer in wrapped:
        layer.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(backbone.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(backbone, "peft_config"):
        del backbone.peft_config
