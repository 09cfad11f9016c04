"""Five steps in float64 on a small transformer: run by one process, or by several that torchrun's variables name."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from cspipe.finetune.image_decoder import put_image_decoder
from cspipe.finetune.images import RowImages
from cspipe.finetune.model import Joined
from cspipe.finetune.optimise import optimisers
from cspipe.finetune.plan import TrainRows
from cspipe.finetune.regularisers import REGULARISERS
from cspipe.finetune.rift import learned_rotation
from cspipe.finetune.settings import FinetuneSettings
from cspipe.finetune.step import Parts, Pass, take_step
from cspipe.finetune.supply import make_anchors
from cspipe.finetune.world import World, join_world
from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.objective import critics_in_use
from cspipe.headtrain.projection import Projection
from cspipe.headtrain.settings import HeadSettings

ROWS, CLASSES, STEPS = 24, 3, 5
LOCAL = frozenset({"masked"})  # refills from a process's own images
SETTINGS = FinetuneSettings(
    batch=12, labelled_batch=6, accumulate=2, lr=1e-3, head_lr=1e-3, noise_scale=0.1, radius=0.3,
    regularisers={name: 0.1 for name in REGULARISERS if name not in LOCAL},
)  # fmt: skip
HEAD = HeadSettings(
    style=3, hidden=8, discriminator=6, style_term="adversarial", content_term="adversarial", lambda_y=0.1, lambda_s=1.0
)


@dataclass(frozen=True)
class Kind:
    """What preprocessing asks of a backbone's spec."""

    convolutional: bool = False


@dataclass(frozen=True)
class Plain:
    """What preprocessing asks of a backbone."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    spec: Kind = Kind()


def image(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (3, 32, 32), np.uint8)


def run(world: World, *, rebuild: bool = False) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights after the steps, and what each step told; with `rebuild` the image is rebuilt in the token's place."""
    torch.manual_seed(0)
    backbone = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=32).double().eval()
    stack = ContentStyle(width=64, classes=CLASSES, style=HEAD.style, hidden=HEAD.hidden,
                         critics=critics_in_use(HEAD), seeds=[0]).double()  # fmt: skip
    if rebuild:
        put_image_decoder(stack, 32, 3, seed=0)
    projection = Projection(torch.zeros(64, dtype=torch.float64), torch.ones(64, dtype=torch.float64), None)
    rotation = learned_rotation(64).double()
    model = Joined(backbone, stack, projection, rotation)
    cached_ND = torch.randn(ROWS, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    label_N = torch.arange(ROWS) % CLASSES
    images = RowImages(np.arange(ROWS), image)
    rows = TrainRows(images, cached_ND, label_N, np.arange(6), np.arange(ROWS))
    anchors = make_anchors(SETTINGS.regularisers, model, cached_ND[:6], label_N[:6], CLASSES)
    prior_1K = torch.full((1, CLASSES), 1 / CLASSES, dtype=torch.float64)
    parts = Parts(model, Plain(), HEAD, prior_1K, torch.device("cpu"), anchors, world, 3 * rebuild)  # type: ignore[arg-type]
    made, told = optimisers(model, SETTINGS), []
    for optimiser in made.values():
        for group in optimiser.param_groups:
            group["lr"] = group.get("peak", 1e-3)
    model.learn()
    for step in range(STEPS):
        order = np.random.default_rng(step).permutation(ROWS)
        batches = [np.concatenate([np.arange(6), order[start : start + 12]]) for start in (0, 12)]
        passes = [Pass(batch, images.batch(world.mine(batch))) for batch in batches]
        terms = take_step(parts, rows, passes, made, SETTINGS, torch.Generator().manual_seed(step))
        told.append({name: float(value) for name, value in terms.items()})
    return {name: value.detach().clone() for name, value in model.state_dict().items()}, told


if __name__ == "__main__":
    torch.set_num_threads(1)
    mine = join_world("cpu")
    weights, _ = run(mine, rebuild="rebuild" in sys.argv)
    save_file(weights, Path(sys.argv[1]) / f"{mine.rank}.safetensors")
    torch.distributed.destroy_process_group()
