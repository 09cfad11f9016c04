"""Backbones with drawn weights: always the same ones, told apart from trained ones, rows apart from one another."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cspipe.extract import drawn
from cspipe.extract.backbones import BACKBONES, load_backbone
from cspipe.extract.images import to_uint8
from cspipe.finetune.model import block_numbers, unfreeze
from cspipe.networks import place_of_weights
from cspipe.store.errors import MismatchError, MissingDataError, SettingError


def test_weights_are_drawn_the_same_whatever_was_drawn_before():
    first = load_backbone("conv-small")
    torch.rand(7)
    again = load_backbone("conv-small")
    assert first.weights_sha256 == again.weights_sha256
    assert first.weights_source == "drawn from seed 0" and first.revision is None
    pairs = zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_the_hash_is_that_of_the_numbers_and_sees_each_of_them():
    state = load_backbone("conv-small").model.state_dict()
    assert drawn.state_sha256(state) == load_backbone("conv-small").weights_sha256
    for name in state:
        changed = {key: value.clone() for key, value in state.items()}
        changed[name].view(-1)[-1] += 1e-3
        assert drawn.state_sha256(changed) != drawn.state_sha256(state), name
    other = drawn.draw_weights(drawn.build(BACKBONES["conv-small"], 28), 1)
    assert drawn.state_sha256(other) != drawn.state_sha256(state)


def test_drawn_weights_have_the_variance_that_keeps_a_signals_size():
    state = load_backbone("conv-small").model.state_dict()
    for name, inputs in (("blocks.0.0.weight", 75), ("blocks.1.0.weight", 144), ("final.weight", 1024)):
        assert float(state[name].var()) == pytest.approx(2 / inputs, rel=0.1)
        assert float(state[name].abs().max()) <= (6 / inputs) ** 0.5
    assert torch.equal(state["blocks.1.1.weight"], torch.ones(32))
    assert not any(state[name].any() for name in ("blocks.0.0.bias", "blocks.0.1.bias", "final.bias"))


def test_trained_weights_come_back_from_a_file_and_others_are_refused(tmp_path):
    network = load_backbone("conv-small").model
    trained = {name: value + 0.01 for name, value in network.state_dict().items()}
    save_file(trained, tmp_path / "trained.safetensors")
    again = load_backbone("conv-small", weights=tmp_path / "trained.safetensors")
    assert all(torch.equal(value, trained[name]) for name, value in again.model.state_dict().items())
    assert again.weights_source == "file trained.safetensors"
    trained.pop("final.bias")
    save_file(trained, tmp_path / "short.safetensors")
    with pytest.raises(MismatchError, match=r"weights of conv-small .*missing final\.bias"):
        load_backbone("conv-small", weights=tmp_path / "short.safetensors")
    with pytest.raises(MissingDataError, match="no weights at"):
        load_backbone("conv-small", weights=tmp_path / "none.safetensors")
    with pytest.raises(SettingError, match="drawn from a seed and have no revision"):
        load_backbone("conv-small", revision="main")


@pytest.mark.parametrize("side", [25, 28, 32, 60])
def test_the_token_is_as_wide_at_every_side(side):
    backbone = load_backbone("conv-small", image_px=side)
    pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert backbone.model(pixels).shape == (3, 256)
        torch.testing.assert_close(backbone.model(pixels[1:2])[0], backbone.model(pixels)[1])


def test_too_small_a_side_is_refused():
    with pytest.raises(SettingError, match="at least 25 px; 24 was given"):
        load_backbone("conv-small", image_px=24)


def test_an_image_of_the_right_side_reaches_the_network_as_it_is_from_minus_1_to_1():
    backbone = load_backbone("conv-small")
    grey = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    assert np.array_equal(to_uint8(Image.fromarray(grey), backbone.geometry), np.stack([grey] * 3))
    assert (backbone.mean, backbone.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_its_last_convolutions_and_what_follows_can_learn_alone():
    network = load_backbone("conv-small").model
    number = block_numbers(network)
    assert {number[f"blocks.{place}.0.weight"] for place in range(3)} == {0, 1, 2}
    assert number["final.weight"] == 2
    assert unfreeze(network, 1) == 64 * 32 * 9 + 3 * 64 + 1024 * 256 + 256


def test_the_list_of_backbones_says_where_the_weights_are_from():
    assert place_of_weights(BACKBONES["conv-small"]) == "drawn from a seed"
    assert place_of_weights(BACKBONES["lite0"]).startswith("package efficientnet-lite0")
    assert place_of_weights(replace(BACKBONES["dinov2-s"])).startswith("huggingface.co/")
