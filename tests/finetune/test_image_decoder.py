"""The image in the token's place: its loss, its decoder, and a whole training from drawn weights."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cspipe.extract.run import extract
from cspipe.finetune.image_decoder import channels_of, image_rows, put_back, put_image_decoder, rebuilds_image
from cspipe.finetune.images import RowImages, keep_small
from cspipe.finetune.model_directory import load_model
from cspipe.finetune.run import run_finetune
from cspipe.finetune.settings import FinetuneSettings
from cspipe.headtrain.losses import image_reconstruction
from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.objective import critics_in_use, objective, total
from cspipe.headtrain.run import run_head
from cspipe.headtrain.settings import HeadSettings
from cspipe.store.errors import SettingError

HEAD = HeadSettings(
    components=0, hidden=16, style=4, discriminator=8, steps=1, batch=32, cluster_terms="always",
    content_term="adversarial", style_term="adversarial", lambda_y=0.01, lambda_mix=0.0,
)  # fmt: skip


def stack_of(settings: HeadSettings = HEAD) -> ContentStyle:
    return ContentStyle(
        width=12, classes=3, style=settings.style, hidden=settings.hidden, critics=critics_in_use(settings), seeds=[0]
    )


def test_image_reconstruction_of_known_pixels():
    pixel_BI = torch.tensor([[0.0, 1.0], [1.0, 0.5]], dtype=torch.float64)
    even = image_reconstruction(pixel_BI=pixel_BI, logit_BI=torch.zeros(2, 2, dtype=torch.float64))
    assert even.item() == pytest.approx(math.log(2))
    three = math.log(3)  # rebuilt pixels of 1/4 and 3/4
    logit_BI = torch.tensor([[-three, three], [-three, three]], dtype=torch.float64)
    right, wrong, between = -math.log(0.75), -math.log(0.25), -0.5 * math.log(0.75) - 0.5 * math.log(0.25)
    told = image_reconstruction(pixel_BI=pixel_BI, logit_BI=logit_BI)
    assert told.item() == pytest.approx((right + right + wrong + between) / 4)


def test_image_reconstruction_is_least_at_the_pixels_themselves_and_keeps_leading_axes():
    pixel_HBI = torch.rand(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    best_H = image_reconstruction(pixel_BI=pixel_HBI, logit_BI=pixel_HBI.logit())
    entropy_H = -(torch.xlogy(pixel_HBI, pixel_HBI) + torch.xlogy(1 - pixel_HBI, 1 - pixel_HBI)).mean((1, 2))
    torch.testing.assert_close(best_H, entropy_H)
    assert (image_reconstruction(pixel_BI=pixel_HBI, logit_BI=pixel_HBI.logit() + 0.1) > best_H).all()


def test_image_reconstruction_has_the_gradient_of_its_value_and_stays_finite_for_sure_pixels():
    generator = torch.Generator().manual_seed(0)
    pixel_BI = torch.rand(3, 4, dtype=torch.float64, generator=generator)
    logit_BI = torch.randn(3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: image_reconstruction(pixel_BI=pixel_BI, logit_BI=x), logit_BI)
    sure = image_reconstruction(pixel_BI=torch.tensor([[0.0, 1.0]]), logit_BI=torch.tensor([[-500.0, 500.0]]))
    assert sure.item() == 0


def test_image_reconstruction_refuses_tensors_of_two_shapes():
    with pytest.raises(SettingError, match=r"one shape; it was given \(2, 3\) and \(2, 4\)"):
        image_reconstruction(pixel_BI=torch.zeros(2, 3), logit_BI=torch.zeros(2, 4))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_objective_rebuilds_and_judges_pixels_where_it_is_given_some(channels):
    stack = stack_of()
    put_image_decoder(stack, 5, channels, seed=0)
    pixels = torch.randint(0, 256, (6, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image_1BI = image_rows(pixels, channels, torch.zeros(()))
    assert image_1BI.shape == (1, 6, channels * 25)
    assert image_1BI[0, 2, 7] == pixels[2, 0, 1, 2] / 255
    token_1XP = torch.randn(1, 8, 12, generator=torch.Generator().manual_seed(1))
    prior_1K = torch.full((1, 3), 1 / 3)
    terms, judged = objective(stack, token_1XP, torch.tensor([[0, 1]]), prior_1K, HEAD, image_HBI=image_1BI)
    logits_1BK, style_1BS = stack.encode(token_1XP[:, 2:])
    rebuilt = stack.decode(logits_1BK.softmax(-1), style_1BS)
    torch.testing.assert_close(terms["L_y"], image_reconstruction(pixel_BI=image_1BI, logit_BI=rebuilt))
    torch.testing.assert_close(judged["token"], stack.judge("token", rebuilt.sigmoid()))
    total(terms, HEAD).sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in stack.decoder.parameters())


def test_the_decoder_of_images_is_drawn_from_its_seed_and_the_heads_own_comes_back():
    first, stacks = stack_of(), [stack_of(), stack_of(), stack_of()]
    for stack, seed in zip(stacks, (0, 0, 1), strict=True):
        put_image_decoder(stack, 5, 3, seed)
    weights = [torch.cat([w.flatten() for w in stack.generator_parameters()]) for stack in stacks]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert stacks[0].critics["token"](torch.zeros(1, 2, 75)).shape == (1, 2, 1)
    put_back(stacks[0], first)
    own = first.state_dict()
    assert own.keys() == stacks[0].state_dict().keys()
    assert all(torch.equal(value, own[name]) for name, value in stacks[0].state_dict().items())


def test_an_objective_that_rebuilds_nothing_has_no_decoder_of_images():
    settings = FinetuneSettings(target="image")
    assert rebuilds_image(settings, HEAD)
    assert not rebuilds_image(settings, HEAD.without_clusters())
    assert not rebuilds_image(FinetuneSettings(target="live"), HEAD)
    assert rebuilds_image(settings, HeadSettings(lambda_yy=0.0, lambda_y=0.1))


def test_a_probe_and_large_images_are_refused():
    with pytest.raises(SettingError, match=r"the 3 steps of the probe look at none: set finetune\.probe_steps to 0"):
        rebuilds_image(FinetuneSettings(target="image", probe_steps=3), HEAD)
    with pytest.raises(SettingError, match=r"at most 64 px; these have 112\..*--image-px.*finetune\.target"):
        put_image_decoder(stack_of(), 112, 3, seed=0)


def test_grey_images_are_known_by_three_equal_channels():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 5), np.uint8)
    pixels[:3] = pixels[:3, :1]
    images = RowImages(np.arange(4), pixels.__getitem__)
    assert channels_of(images, np.array([0, 1, 2])) == 1
    assert channels_of(images, np.array([0, 3])) == 3


def test_small_images_are_decoded_once_and_large_ones_each_time():
    asked = []

    def read(number: int) -> np.ndarray:
        asked.append(number)
        return np.full((3, 8, 8), number, np.uint8)

    small = keep_small(read, 10, 8)
    assert [int(small(number)[0, 0, 0]) for number in (4, 4, 7, 4)] == [4, 4, 7, 4]
    assert asked == [4, 7]
    large = keep_small(read, 10_000_000, 8)
    assert large is read


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """Digits at 28 px under drawn weights, and untrained heads with every adversarial term."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("scratch")
    extracted = extract("conv-small", "digits", stores=root / "stores", limit=400)
    head = run_head(store=Path(extracted["store"]), runs=root / "runs", labels=40, seeds=1, settings=HEAD,
                    methods=("content-style", "supervised"))  # fmt: skip
    return root, head


def run(scratch, **changes):
    root, head = scratch
    settings = FinetuneSettings(**{"target": "image", "batch": 50, "labelled_batch": 20, "head_lr": 1e-3, **changes})
    return run_finetune(head_run=Path(head["run"]), runs=root / "tuned", stores=root / "stores", settings=settings)


def test_from_drawn_weights_it_learns_digits_and_rebuilds_them_and_the_model_loads_again(scratch):
    document = run(scratch, epochs=12)
    assert document["accuracy_after"] > document["accuracy_before"] + 0.2
    assert document["accuracy_after"] > 0.6  # .68 to .81 on four splits
    records = [json.loads(line) for line in (Path(document["run"]) / "metrics.jsonl").read_text().splitlines()]
    terms = [record for record in records if "L_y" in record]
    assert {"D_c", "D_s", "D_y", "critic_token"} <= terms[0].keys()
    assert terms[-1]["L_y"] < 0.75 * terms[0]["L_y"]
    folder = Path(document["model_dir"])
    model = load_model(folder)
    assert model.backbone.name == "conv-small" and model.config["trained_backbone"]
    kept = load_file(folder / "head.safetensors")
    first = load_file(Path(scratch[1]["run"]) / "heads" / "content-style-0.safetensors")
    assert kept.keys() == first.keys()
    same = {name for name in kept if torch.equal(kept[name], first[name])}
    assert {name for name in kept if name.startswith(("stack.decoder", "stack.critics.token"))} <= same
    assert not any(name.startswith("stack.encoder") and name.endswith("weight") for name in same)


def test_the_supervised_method_has_nothing_to_rebuild(scratch):
    document = run(scratch, method="supervised", epochs=2)
    assert document["accuracy_after"] > document["accuracy_before"]
    checkpoint = load_file(Path(document["run"]) / "checkpoint.safetensors")
    assert not any(name.endswith("decoder.2.weight") and tensor.shape[-1] == 784 for name, tensor in checkpoint.items())


def test_a_probe_is_refused_before_a_run_folder_is_left_as_finished(scratch):
    with pytest.raises(SettingError, match="look at none"):
        run(scratch, probe_steps=2)


def test_the_head_that_training_started_from_is_not_changed(scratch):
    stack = stack_of()
    before = copy.deepcopy(stack.state_dict())
    put_image_decoder(copy.deepcopy(stack), 5, 1, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in stack.state_dict().items())
