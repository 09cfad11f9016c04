"""How stage three is trained: one frozen record."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of stage three.

    Attributes:
        unfreeze_blocks: last blocks that learn; None is the whole backbone.
        split_seed: which labelled split of the head run.
        epochs: passes over the unlabelled rows.
        limit: at most so many training images: the labelled ones and others evenly spaced; None is all.
        batch: unlabelled images a step. labelled_batch: labelled images a step.
        lr: peak learning rate of the backbone; None: 2e-4 for a network with batch norm, 1e-5 for a transformer.
        head_lr: of encoder and decoder. weight_decay: AdamW's.
        target: what L_y rebuilds: the `cached` token, or the `live` one; either is held fixed.
        regularisers: name -> weight.
        checkpoint_steps: steps between checkpoints.
    """

    unfreeze_blocks: Annotated[int, Ge(1)] | None = None
    split_seed: Annotated[int, Ge(0)] = 0
    epochs: Annotated[int, Ge(1)] = 1
    limit: Annotated[int, Ge(1)] | None = None
    batch: Annotated[int, Ge(2)] = 128
    labelled_batch: Annotated[int, Ge(2)] = 32
    lr: Annotated[float, Gt(0)] | None = None
    head_lr: Annotated[float, Gt(0)] = 3e-4
    weight_decay: Annotated[float, Ge(0)] = 0.05
    target: Literal["cached", "live"] = "cached"
    regularisers: Mapping[str, Annotated[float, Ge(0)]] = field(default_factory=dict)
    checkpoint_steps: Annotated[int, Ge(1)] = 50
