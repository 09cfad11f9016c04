"""RADIO's published weights in timm's transformer, against transformers' and timm's own implementations."""

import argparse
import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file

from cspipe.extract import timm_models
from cspipe.extract.backbones import BACKBONES, load_backbone, load_tokens
from cspipe.extract.radio import read_radio, resample
from cspipe.store.errors import MismatchError

WIDTH, GRID, SIDE = 32, 8, 48
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def tiny(name, **changes):
    spec = BACKBONES[name]
    options = {**spec.options, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}
    return replace(spec, image_px=SIDE, options=options, depth=2, **changes)


def nvidia(rows=8, *, scaled=False, prefix="radio_model.model.", mlp=4 * WIDTH):
    """Random weights of two blocks as NVIDIA names them, with `rows` tokens before the patches."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, about=0.0):
        return torch.randn(*shape, generator=generator) * 0.2 + about

    state = {
        "patch_generator.embedder.weight": draw(WIDTH, 3 * 16 * 16),
        "patch_generator.pos_embed": draw(1, GRID**2, WIDTH),
        "patch_generator.cls_token.token": draw(rows, WIDTH),
    }
    for block in ("blocks.0.", "blocks.1."):
        for norm in ("norm1", "norm2"):
            state |= {f"{block}{norm}.weight": draw(WIDTH, about=1), f"{block}{norm}.bias": draw(WIDTH)}
        shapes = {
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "mlp.fc1": (mlp, WIDTH),
            "mlp.fc2": (WIDTH, mlp),
        }
        for layer, shape in shapes.items():
            state |= {f"{block}{layer}.weight": draw(*shape), f"{block}{layer}.bias": draw(shape[0])}
        if scaled:
            state |= {f"{block}ls{n}.grandma": draw(WIDTH, about=1) for n in (1, 2)}
    return {f"{prefix}{key}": value for key, value in state.items()}


def conditioner(prefix=""):
    named = {"norm_mean": MEAN, "norm_std": STD}
    return {f"{prefix}input_conditioner.{key}": torch.tensor(v).reshape(3, 1, 1) for key, v in named.items()}


@pytest.fixture
def hub_file(tmp_path):
    """A safetensors file as on the hub, with three of four class tokens in the summary."""
    state = nvidia() | conditioner("radio_model.") | {"radio_model.summary_idxs": torch.tensor([0, 1, 3])}
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def pixels():
    """Pixels in [0, 1]."""
    return torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


def normalised(pixels):
    return (pixels - torch.tensor(MEAN).reshape(3, 1, 1)) / torch.tensor(STD).reshape(3, 1, 1)


def test_summary_and_patches_equal_transformers_radio_on_the_same_published_file(hub_file, pixels):
    from transformers import AutoModel

    config = {
        "model_type": "radio", "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_img_size": GRID * 16, "num_cls_tokens": 4, "num_registers": 4, "summary_idxs": [0, 1, 3],
    }  # fmt: skip
    (hub_file.parent / "config.json").write_text(json.dumps(config))
    reference, info = AutoModel.from_pretrained(hub_file.parent, output_loading_info=True)
    assert type(reference).__name__ == "RadioModel"
    assert all("layer_scale" in key for key in info["missing_keys"])
    names = ["summary", "summary:0", "summary:2", "mean-patch", "cls", "block-1"]
    reader, backbones = load_tokens(tiny("radiov2.5-b", align_corners=False), tokens=names, weights=hub_file)
    with torch.inference_mode():
        want, found = reference.eval()(pixels, output_hidden_states=True), reader(normalised(pixels))
    torch.testing.assert_close(found["summary"], want.summary, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["mean-patch"], want.features.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["summary:0"], want.summary[:, :WIDTH], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["summary:2"], want.last_hidden_state[:, 3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["cls"], want.last_hidden_state[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["block-1"], want.hidden_states[1][:, 0], rtol=1e-4, atol=1e-5)
    assert [backbone.width for backbone in backbones] == [3 * WIDTH, WIDTH, WIDTH, WIDTH, WIDTH, WIDTH]
    assert (want.summary.std(0) > 1e-2).any()
    for backbone in backbones:
        assert (backbone.mean, backbone.std) == (pytest.approx(MEAN), pytest.approx(STD))


@pytest.mark.parametrize(("name", "corners"), [("base", True), ("giant", False)])
def test_the_grid_is_resampled_as_timms_own_radio_at_any_side_does(tmp_path, pixels, name, corners):
    scaled = name == "base"  # as timm's base has layer scale, its giant none
    state = nvidia(scaled=scaled)
    save_file(state, tmp_path / "model.safetensors")
    architecture = f"naflexvit_{name}_patch16_radio_v3"
    reference = timm.create_model(
        architecture, num_classes=0, embed_dim=WIDTH, depth=2, num_heads=2, pos_embed_grid_size=(GRID, GRID)
    )
    filled = timm.models.naflexvit.checkpoint_filter_fn(dict(state), reference)
    reference.load_state_dict(filled)
    backbone = load_backbone(tiny("radiov2.5-b", align_corners=corners), weights=tmp_path / "model.safetensors",
                             token="cls")  # fmt: skip
    other = load_backbone(tiny("radiov2.5-b", align_corners=not corners), weights=tmp_path / "model.safetensors",
                          token="cls")  # fmt: skip
    with torch.inference_mode():
        want = reference.eval().forward_features(pixels)
        want = want["patches"] if isinstance(want, dict) else want
        torch.testing.assert_close(backbone.model(pixels), want[:, 0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(other.model(pixels), want[:, 0], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_is_read_with_its_options_and_its_teachers_make_the_summary(tmp_path, hub_file, pixels):
    teachers = [{"name": "clip"}, {"name": "dino"}, {"name": "sam", "use_summary": False}, {"name": "siglip"}]
    options = argparse.Namespace(teachers=teachers, dtype=torch.bfloat16, lr=1e-3)
    state = nvidia(prefix="base_model.") | conditioner() | {"_heads.0.weight": torch.zeros(2, 2)}
    torch.save({"arch": "vit", "epoch": 3, "state_dict": state, "args": options}, tmp_path / "radio.pth.tar")
    spec = tiny("radiov2.5-b")
    ours, same = load_backbone(spec, weights=tmp_path / "radio.pth.tar"), load_backbone(spec, weights=hub_file)
    assert read_radio(tmp_path / "radio.pth.tar").summary == (0, 1, 3) and ours.width == 3 * WIDTH
    with torch.inference_mode():
        assert torch.equal(ours.model(pixels), same.model(pixels))


def test_teachers_of_one_name_count_once_and_a_single_class_token_is_the_summary(tmp_path):
    for options, want in (
        (argparse.Namespace(teachers=[{"name": "a"}, {"name": "a"}, {"name": "b"}]), (0, 2)),
        (argparse.Namespace(teachers=[{"name": "a"}, {"name": "b"}], cls_token_per_teacher=False), (0,)),
    ):
        torch.save({"state_dict": nvidia(prefix="base_model."), "args": options}, tmp_path / "radio.pth.tar")
        assert read_radio(tmp_path / "radio.pth.tar").summary == want


class Elsewhere:
    """A class that is not on the list of those that a checkpoint may hold."""


def test_a_checkpoint_with_any_other_class_is_refused(tmp_path):
    torch.save({"state_dict": nvidia(prefix="base_model."), "args": Elsewhere()}, tmp_path / "radio.pth.tar")
    with pytest.raises(MismatchError, match=r"radio\.pth\.tar cannot be read.*Elsewhere"):
        load_backbone(tiny("radiov2"), weights=tmp_path / "radio.pth.tar")


def test_registers_and_layer_scale_follow_the_file(tmp_path, pixels):
    tokens = {}
    for scaled, rows in ((False, 8), (True, 8), (False, 16)):
        save_file(nvidia(rows, scaled=scaled), tmp_path / "model.safetensors")
        backbone = load_backbone(tiny("radiov2.5-b"), weights=tmp_path / "model.safetensors")
        network = backbone.model.network
        assert network.num_prefix_tokens == rows
        assert any("ls1.gamma" in key for key in network.state_dict()) == scaled
        with torch.inference_mode():
            tokens[scaled, rows] = backbone.model(pixels)
    assert not torch.allclose(tokens[False, 8], tokens[True, 8], atol=1e-2)


def test_weights_in_training_form_of_another_size_or_with_more_layers_are_refused(tmp_path):
    spec, file = tiny("radiov2.1"), tmp_path / "model.safetensors"
    save_file(nvidia() | {"radio_model.model.blocks.0.attn.qkv.parametrizations.weight.original": torch.zeros(1)}, file)
    with pytest.raises(MismatchError, match="factored form of training"):
        load_backbone(spec, weights=file)
    save_file(nvidia() | {"radio_model.model.blocks.0.mlp.norm.weight": torch.zeros(4 * WIDTH)}, file)
    with pytest.raises(MismatchError, match=r"weights of radiov2.1 .*unexpected blocks.0.mlp.norm.weight"):
        load_backbone(spec, weights=file)
    save_file(nvidia(mlp=2 * WIDTH), file)
    with pytest.raises(MismatchError, match=r"blocks.0.mlp.fc1.weight is \(64, 32\), not \(128, 32\)"):
        load_backbone(spec, weights=file)
    save_file(nvidia(2), file)
    with pytest.raises(MismatchError, match=r"summary of class tokens \(0, 1, 2\), but 2 tokens"):
        load_backbone(spec, weights=file)


def test_weights_under_timms_names_are_read_too(hub_file, tmp_path, pixels):
    spec = tiny("cradiov3-h")
    ours = load_backbone(spec, weights=hub_file, token="cls")
    save_file(timm_models.timm.create_model(  # timm's own conversion of the same file, at the same side
        spec.architecture, img_size=SIDE, embed_dim=WIDTH, depth=2, num_heads=2, num_classes=0, pretrained=True,
        pretrained_cfg_overlay={"file": str(hub_file)},
    ).state_dict(), tmp_path / "timm.safetensors")  # fmt: skip
    theirs = load_backbone(spec, weights=tmp_path / "timm.safetensors", token="cls")
    with torch.inference_mode():
        torch.testing.assert_close(ours.model(pixels), theirs.model(pixels), rtol=1e-5, atol=1e-6)
    assert load_backbone(spec, weights=tmp_path / "timm.safetensors").width == 3 * WIDTH


def test_a_grid_of_the_images_own_size_is_left_as_it_is():
    grid = torch.randn(1, 3, 3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resample(grid, 3, align_corners=False), grid.reshape(1, 9, 5))
