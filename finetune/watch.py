"""What is told of an epoch: how far the tokens moved on a fixed sample, and the criterion of early stopping.

Legend: `N` rows of the sample, `M` held-out rows, `D` token width, `P` projected width.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from cspipe.finetune.drift import measure_drift
from cspipe.finetune.image_decoder import image_rows
from cspipe.finetune.images import Ints, live_tokens
from cspipe.finetune.model import Joined
from cspipe.finetune.plan import TrainRows
from cspipe.finetune.settings import FinetuneSettings
from cspipe.finetune.step import Parts
from cspipe.headtrain.losses import content_cross_entropy
from cspipe.headtrain.objective import objective, total

SAMPLE = 512
"""Training rows of the fixed sample, evenly spaced."""


def tokens_of(parts: Parts, shown: nn.Module, rows: TrainRows, at: Ints) -> Tensor:
    """Tokens of these training rows by the backbone of `shown`, `(N, D)` float32 on the CPU."""
    backbone = replace(parts.backbone, model=shown.get_submodule("backbone"))
    return live_tokens(backbone, rows.images, at, parts.device)


@torch.no_grad()
def watch_epoch(parts: Parts, shown: nn.Module, rows: TrainRows, settings: FinetuneSettings) -> dict[str, float | None]:
    """Drift on the fixed sample, and `criterion` where the settings stop early.

    Args:
        parts: device and objective.
        shown: the joined model that is judged: the moving average where there is one.
        rows: the sample's source.
        settings: of stage three.
    """
    chosen = np.unique(np.linspace(0, len(rows.unlabelled) - 1, SAMPLE).round().astype(np.int64))
    chosen = rows.unlabelled[chosen]
    live_ND, cached_ND = tokens_of(parts, shown, rows, chosen), rows.cached_ND[torch.from_numpy(chosen)].float()
    told: dict[str, float | None] = {**measure_drift(live_ND, cached_ND)}
    if settings.stop == "never":
        return told
    assert isinstance(shown, Joined)
    if settings.stop == "held-out":
        label_1M = rows.label_N[torch.from_numpy(rows.held)].to(parts.device)[None]
        live_MD = tokens_of(parts, shown, rows, rows.held).to(parts.device)
        logits_MK = shown.content(live_MD)
        value = content_cross_entropy(logits_LK=logits_MK[None], label_L=label_1M)
    else:
        image_1NI = None
        if parts.channels:
            image_1NI = image_rows(rows.images.batch(chosen), parts.channels, parts.prior_1K)
        value = unsupervised(parts, shown, live_ND.to(parts.device), cached_ND.to(parts.device), settings, image_1NI)
    return told | {"criterion": float(value.sum()) if bool(value.isfinite().all()) else None}


def unsupervised(
    parts: Parts, shown: Joined, live_ND: Tensor, cached_ND: Tensor, settings: FinetuneSettings,
    image_1NI: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The objective's value on unlabelled rows alone, without L_c and what needs discriminators or mixing.

    A supervised objective has no such part: there it is the mean entropy of the content.
    """
    projected_1NP = shown.projection(live_ND)[None]
    plain = replace(parts.head_settings, lambda_mix=0.0, lambda_y=0.0)
    if not plain.semi_supervised:
        plain = replace(plain, lambda_c=1.0, content_term="entropy", entropy_weight=1.0)
    nobody = torch.zeros(1, 1, dtype=torch.int64, device=projected_1NP.device)
    target = shown.projection(cached_ND)[None] if settings.target == "cached" else None
    token_1XP = torch.cat([projected_1NP[:, :1], projected_1NP], 1)
    terms, _ = objective(shown.stack, token_1XP, nobody, parts.prior_1K, plain, target_HBP=target, image_HBI=image_1NI)
    return total({name: value for name, value in terms.items() if name != "L_c"}, plain)
