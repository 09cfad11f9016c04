"""How stage three is trained: one frozen record."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of stage three.

    Attributes:
        method: which head of the run to start from, and so which objective: `content-style`, or `supervised`, whose
            steps look at labelled rows alone (as many steps as content-style takes).
        unfreeze_blocks: last blocks that learn; None is the whole backbone.
        adapter: `none` trains the backbone's own weights; `lora` low-rank additions to them, merged at the end.
        lora_rank: rank of the additions; their scale is 2.
        split_seed: which labelled split of the head run.
        probe_steps: steps of the head alone on cached tokens before the backbone learns too. The head run is a probe
            already, so 0; some let a head that was refitted settle.
        epochs: passes over the unlabelled rows; None: one, or as many as make 60 steps. Fewer steps end while head and
            backbone are still apart, far below the cached head.
        limit: at most so many training images: the labelled ones and others evenly spaced; None is all.
        batch: unlabelled images a forward pass. labelled_batch: labelled images a forward pass.
        accumulate: forward passes a step; their gradients are averaged. Terms of a whole batch (covariances, the
            marginal of the content) are those of one pass.
        augment: names of augmentations joined by +, drawn anew each time an image is seen; empty: none.
        lr: peak learning rate of the backbone; None: 1e-3 for a network with batch or group norm and for an adapter,
            1e-5 for a transformer.
        layer_decay: each block learns at this share of the rate of the block behind it.
        head_lr: of encoder and decoder. weight_decay: AdamW's. clip: largest norm of the gradient.
        ema: decay of the moving average of all weights, which is then what is judged and kept; 0: none.
        grad_checkpointing: recompute activations in the backward pass: less memory, a third more time.
        autocast: bfloat16 in the backbone's forward pass; None: on CUDA alone.
        target: what L_y rebuilds: the `cached` token, the `live` one, either held fixed, or the `image` itself by a
            decoder of its own, as the predecessor does, which is for training from scratch.
        mix_temperature: of L_mix, in place of the head's own: below 1 it sharpens the contents that mixed tokens
            follow, which pays where every image is seen once or twice and harms where it is seen fifty times.
        entropy_weight: of the closed-form D_c, in place of the head's own, for the same reason.
        regularisers: name -> weight.
        noise: kind of r3f's and r4f's noise. noise_scale: its half width or deviation, in normalised pixels.
        radius: root mean square of pdr's delta, in normalised pixels.
        stop: `never`; or early, by the cross-entropy of labelled rows `held-out` of everything (a fifth), or by the
            `unsupervised` part of the objective on a fixed sample. Either also picks the epoch that is kept.
        patience: epochs without an improvement before it stops.
        checkpoint_steps: steps between checkpoints.
    """

    method: Literal["content-style", "supervised"] = "content-style"
    unfreeze_blocks: Count | None = None
    adapter: Literal["none", "lora"] = "none"
    lora_rank: Count = 8
    split_seed: Annotated[int, Ge(0)] = 0
    probe_steps: Annotated[int, Ge(0)] = 0
    epochs: Count | None = None
    limit: Count | None = None
    batch: Annotated[int, Ge(2)] = 128
    labelled_batch: Annotated[int, Ge(2)] = 32
    accumulate: Count = 1
    augment: str = ""
    lr: Positive | None = None
    layer_decay: Annotated[float, Gt(0), Le(1)] = 1.0
    head_lr: Positive = 3e-4
    weight_decay: Annotated[float, Ge(0)] = 0.05
    clip: Positive = 1.0
    ema: Annotated[float, Ge(0), Lt(1)] = 0.0
    grad_checkpointing: bool = False
    autocast: bool | None = None
    target: Literal["cached", "live", "image"] = "cached"
    mix_temperature: Positive = 0.5
    entropy_weight: Annotated[float, Ge(0)] = 0.6
    regularisers: Mapping[str, Annotated[float, Ge(0)]] = field(default_factory=dict)
    noise: Literal["normal", "uniform"] = "normal"
    noise_scale: Positive = 1e-5
    radius: Positive = 0.01
    stop: Literal["never", "held-out", "unsupervised"] = "never"
    patience: Count = 2
    checkpoint_steps: Count = 50
