"""The contract that every registered backbone keeps, on a tiny random network of its own class."""

import math
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cspipe.extract import drawn, open_clip_models, radio, timm_models
from cspipe.extract.backbones import BACKBONES, load_backbone, load_tokens
from cspipe.extract.images import decode, normalise, to_uint8
from cspipe.extract.tokens import block_number, sequence_widths
from cspipe.store.errors import MismatchError, UnknownNameError

BUILD = {"timm": timm_models.build, "open_clip": open_clip_models.build, "radio": radio.build, "drawn": drawn.build}
NAMES = sorted(BACKBONES)
SHIPPED = {"lite0": 32, "conv-small": 28}
"""Backbones whose weights are always here -> the side they are tried at, pixels."""
TRANSFORMER = {"embed_dim": 32, "depth": 2, "num_heads": 2}
TEXT = {"context_length": 4, "vocab_size": 9, "width": 8, "heads": 2, "layers": 1}


def tiny_of(name):
    """The registered spec with its network shrunk by the constructor's own keywords."""
    spec = BACKBONES[name]
    if name in SHIPPED:
        return replace(spec, image_px=SHIPPED[name])
    depth, side = 2, 2 * spec.side_multiple
    options = dict(spec.options)
    if name == "siglip":
        depth, vision = 8, {"timm_model_name": "test_vit2", "timm_pool": "map", "timm_proj": "none", "image_size": 32}
        options |= {"embed_dim": 64, "vision_cfg": vision, "text_cfg": TEXT}
    elif spec.family == "open_clip":
        vision = {"image_size": side, "layers": 2, "width": 32, "head_width": 16, "patch_size": spec.side_multiple}
        options |= {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}
    else:
        options |= TRANSFORMER
    return replace(spec, image_px=side, options=options, depth=depth)


def randomised(state, seed=0):
    """Random tensors of the same names and shapes, scales near 1 where a norm or layer scale is meant."""
    generator = torch.Generator().manual_seed(seed)

    def draw(key, tensor):
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=generator) * 0.2
        return noise + 1 if key.endswith((".gamma", "norm.weight", "norm1.weight", "norm2.weight")) else noise

    return {key: draw(key, tensor).contiguous() for key, tensor in state.items()}


def radio_layout(state, grid=8):
    """A transformer's weights as NVIDIA publishes RADIO: its names, a larger grid of position embeddings."""
    width = state["cls_token"].shape[-1]
    prefix = "radio_model.model."
    out = {f"{prefix}{k.replace('.gamma', '.grandma')}": v for k, v in state.items() if k.startswith("blocks.")}
    out[f"{prefix}patch_generator.embedder.weight"] = state["patch_embed.proj.weight"].flatten(1)
    out[f"{prefix}patch_generator.pos_embed"] = torch.randn(
        1, grid**2, width, generator=torch.Generator().manual_seed(1)
    )
    out[f"{prefix}patch_generator.cls_token.token"] = torch.cat([state["cls_token"], state["reg_token"]], 1)[0]
    out["radio_model.input_conditioner.norm_mean"] = torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1)
    out["radio_model.input_conditioner.norm_std"] = torch.tensor([0.2, 0.3, 0.4]).reshape(3, 1, 1)
    return {key: value.clone() for key, value in out.items()}


def published(spec):
    """Random weights in the layout in which this family's are published."""
    if spec.family == "open_clip":
        config = {key: spec.options[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}
        kind = open_clip.CustomTextCLIP if spec.name == "siglip" else open_clip.CLIP
        return randomised(kind(**config).state_dict())
    state = randomised(BUILD[spec.family](spec, spec.image_px).state_dict())
    if spec.family == "radio":
        return radio_layout(state) | {"radio_model.summary_idxs": torch.tensor(spec.summary)}
    return state


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function from a name to a tiny spec and a file of its weights, each written once."""
    known = {}

    def make(name):
        if name not in known:
            spec, file = tiny_of(name), None
            if name not in SHIPPED:
                file = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
                save_file(published(spec), file)
            known[name] = spec, file
        return known[name]

    return make


def batch_of(spec, count):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, spec.image_px, spec.image_px, generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_listed_of_a_backbone_is_what_is_built(name):
    spec = BACKBONES[name]
    with torch.device("meta"):
        network = BUILD[spec.family](spec, spec.image_px)
    if spec.family == "radio":
        widths = sequence_widths(network.num_features, len(network.blocks), class_token=True, summary=len(spec.summary))
        assert max(spec.summary) < network.num_prefix_tokens
    elif spec.family == "open_clip":
        embed_dim = open_clip.get_model_config(spec.architecture)["embed_dim"]
        widths = open_clip_models.reading_of(network, embed_dim)[1]
        assert "projected" not in widths or f"is {widths['projected']} wide" in spec.notes
    else:
        widths = timm_models.widths_of(network)
    assert spec.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert spec.width == widths[spec.token]
    assert spec.depth == sum(block_number(token) is not None for token in widths)
    assert set(spec.tokens) == {token for token in widths if block_number(token) is None}
    assert spec.tokens[0] == spec.token and spec.image_px % spec.side_multiple == 0


@pytest.mark.parametrize("name", NAMES)
def test_one_pass_gives_every_token_as_alone_whatever_the_batch(made, name):
    spec, file = made(name)
    tokens = [*spec.tokens, *([f"block-{number}" for number in range(1, spec.depth + 1)])]
    reader, backbones = load_tokens(spec, tokens=tokens, weights=file)
    pixels = batch_of(spec, 5)
    with torch.inference_mode():
        together, again, one = reader(pixels), reader(pixels), reader(pixels[3:4])
        for backbone in backbones:
            token = backbone.token
            alone = backbone.model(pixels)
            assert alone.shape == (5, backbone.width) and alone.dtype == torch.float32, token
            assert alone.isfinite().all() and alone.std(0).mean() > 1e-3, token
            assert torch.equal(together[token], again[token]), token
            torch.testing.assert_close(together[token], alone, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(one[token][0], alone[3], rtol=1e-4, atol=1e-4)
    assert [backbone.token for backbone in backbones] == tokens and set(together) == set(tokens)


@pytest.mark.parametrize("name", NAMES)
def test_the_default_token_is_the_one_that_is_listed(made, name):
    spec, file = made(name)
    backbone = load_backbone(spec, weights=file)
    assert (backbone.token, backbone.licence, backbone.image_px) == (spec.token, spec.licence, spec.image_px)
    assert len(backbone.weights_sha256) == 64


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SHIPPED])
def test_weights_in_the_published_layout_all_arrive_and_a_missing_one_is_named(made, name, tmp_path):
    spec, file = made(name)
    state = load_file(file)
    backbone = load_backbone(spec, weights=file)
    numbers = sum(tensor.double().sum() for tensor in backbone.model.state_dict().values())
    lost = next(key for key in state if key.endswith(("blocks.1.norm1.weight", "resblocks.1.ln_1.weight")))
    changed = state | {lost: state[lost] + 1}
    save_file(changed, tmp_path / "changed.safetensors")
    other = load_backbone(spec, weights=tmp_path / "changed.safetensors")
    moved = sum(tensor.double().sum() for tensor in other.model.state_dict().values()) - numbers
    assert math.isclose(moved, state[lost].numel(), abs_tol=1e-2)
    save_file({key: value for key, value in state.items() if key != lost}, tmp_path / "short.safetensors")
    with pytest.raises(MismatchError, match=f"weights of {name} .*missing .*1.(norm1|ln_1).weight"):
        load_backbone(spec, weights=tmp_path / "short.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_a_token_that_a_backbone_lacks_is_answered_with_those_it_has(made, name):
    spec, file = made(name)
    for token in ("spatial", f"block-{spec.depth + 1}", "block-0"):
        with pytest.raises(UnknownNameError, match=f"token of {name} '{token}'.*{spec.token}"):
            load_backbone(spec, weights=file, token=token)


@pytest.mark.parametrize("name", ["dinov2-s", "dinov3-s", "dinov2-s-reg"])
def test_tokens_of_timms_transformers_are_what_their_names_say(made, name):
    spec, file = made(name)
    reader, (backbone, *_) = load_tokens(
        spec, tokens=["cls", "mean-patch", "cls+mean", "block-1", "block-2"], weights=file
    )
    network, pixels = backbone.model, batch_of(spec, 2)
    with torch.inference_mode():
        found, last = reader(pixels), network.forward_features(pixels)
        first = network.forward_intermediates(pixels, [0], return_prefix_tokens=True, intermediates_only=True)
        registers = {"dinov2-s": 0, "dinov3-s": 4, "dinov2-s-reg": 4}[name]
        mean = last[:, 1 + registers :].mean(1)
        assert torch.equal(found["cls"], last[:, 0]) and torch.equal(found["mean-patch"], mean)
        assert torch.equal(found["cls+mean"], torch.cat([last[:, 0], mean], -1))
        torch.testing.assert_close(found["block-1"], network.norm(first[0][1][:, 0]))
        assert torch.equal(found["block-2"], found["cls"])
        assert not torch.allclose(found["block-1"], found["cls"], atol=1e-2)


def test_a_network_that_pools_before_its_norm_gives_normed_tokens(tmp_path):
    """timm's test_vit2 has no class token and pools the patches before its last norm."""
    spec = replace(tiny_of("dinov2-s"), name="gap", architecture="test_vit2", options={}, tokens=(), token="",
                   image_px=32, side_multiple=16, depth=0)  # fmt: skip
    save_file(randomised(timm_models.build(spec, 32).state_dict()), tmp_path / "gap.safetensors")
    names = ["pooled", "mean-patch", "block-8"]
    reader, backbones = load_tokens(spec, tokens=names, weights=tmp_path / "gap.safetensors")
    network, pixels = backbones[0].model, batch_of(spec, 2)
    with torch.inference_mode():
        found, last = reader(pixels), network.forward_features(pixels)
        assert torch.equal(found["pooled"], network(pixels))
        torch.testing.assert_close(found["mean-patch"], network.fc_norm(last)[:, 1:].mean(1))
        assert not torch.allclose(found["mean-patch"], last[:, 1:].mean(1), atol=1e-2)
    assert load_backbone(spec, weights=tmp_path / "gap.safetensors").token == "pooled"


@pytest.mark.parametrize("name", ["clip-b32", "siglip", "dinov3-s", "radiov2.5-b"])
def test_a_fine_tuned_backbone_is_read_again_under_its_readers_names(made, tmp_path, name):
    spec, file = made(name)
    backbone = load_backbone(spec, weights=file)
    save_file(backbone.model.state_dict(), tmp_path / "tuned.safetensors")
    again = load_backbone(spec, weights=tmp_path / "tuned.safetensors")
    pixels = batch_of(spec, 2)
    with torch.inference_mode():
        assert torch.equal(again.model(pixels), backbone.model(pixels))


@pytest.mark.parametrize("name", ["clip-b32", "siglip", "radiov2.5-b"])
def test_a_wrapped_network_tells_its_blocks_apart_for_fine_tuning(made, name):
    spec, file = made(name)
    backbone = load_backbone(spec, weights=file, token="mean-patch")
    number = {key: backbone.model.group_matcher()(key) for key, _ in backbone.model.named_parameters()}
    assert {n for key, n in number.items() if ".1.norm1" in key or ".1.ln_1" in key} == {2}
    assert {n for key, n in number.items() if "patch_embed" in key or "conv1" in key or "posit" in key} == {0}
    assert {n for key, n in number.items() if "ln_post" in key or "attn_pool" in key} <= {spec.depth}
    assert max(number.values()) == spec.depth


def test_pixels_of_a_picture_reach_the_network_normalised_once(made):
    """RADIO's own model normalises inside; here the numbers are the same, and outside."""
    spec, file = made("radiov2.5-b")
    backbone = load_backbone(spec, weights=file)
    picture = Image.fromarray(np.full((32, 32, 3), 128, np.uint8))
    pixels = to_uint8(decode(np.asarray(picture)), backbone.geometry)
    batch = normalise(torch.from_numpy(pixels.copy())[None], backbone.mean, backbone.std)
    want = (128 / 255 - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.2, 0.3, 0.4])
    torch.testing.assert_close(batch[0, :, 5, 5], want)
    assert not any("conditioner" in key for key in backbone.model.state_dict())
