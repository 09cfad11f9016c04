"""The forward pass of stage one against the library's own."""

import threading

import pytest
import torch
from torch import nn

from cspipe.extract.backbones import load_backbone
from cspipe.extract.embed import embed, fold_batch_norm, make_lane, make_seat, pick_device, single_threaded
from cspipe.extract.images import normalise
from cspipe.store.errors import SettingError


def filled_seat(lane, batch_size):
    seat = make_seat(lane, batch_size)
    generator = torch.Generator().manual_seed(1)
    seat.pixels_B3HW[:] = torch.randint(0, 256, seat.pixels_B3HW.shape, generator=generator, dtype=torch.uint8)
    return seat


def test_tokens_of_a_convolutional_backbone_equal_its_plain_forward_to_rounding():
    backbone = load_backbone("lite0", image_px=64)
    lane = make_lane(backbone, torch.device("cpu"), "fp16")
    seat = filled_seat(lane, 4)
    with torch.inference_mode():
        plain = backbone.model(normalise(seat.pixels_B3HW.contiguous(), backbone.mean, backbone.std))
    tokens = torch.from_numpy(embed(lane, seat))
    assert (1 - torch.cosine_similarity(plain, tokens)).max() < 1e-6
    torch.testing.assert_close(tokens, plain, rtol=1e-4, atol=1e-4)


def test_folding_leaves_the_backbone_itself_as_it_was():
    backbone = load_backbone("lite0", image_px=32)
    names = list(backbone.model.state_dict())
    folded = fold_batch_norm(backbone.model)
    assert list(backbone.model.state_dict()) == names
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


def test_a_transformer_runs_exactly_as_its_library_runs_it(tiny, tiny_weights):
    backbone = load_backbone(tiny, weights=tiny_weights)
    lane = make_lane(backbone, torch.device("cpu"), "fp32")
    seat = filled_seat(lane, 4)
    with single_threaded(), torch.inference_mode():
        plain = backbone.model(normalise(seat.pixels_B3HW.contiguous(), backbone.mean, backbone.std))
        assert torch.equal(torch.from_numpy(embed(lane, seat)), plain)


def test_a_tokens_bits_do_not_depend_on_the_rest_of_its_batch():
    backbone = load_backbone("lite0", image_px=32)
    lane = make_lane(backbone, torch.device("cpu"), "fp16")
    seat = filled_seat(lane, 8)
    with single_threaded():
        whole = embed(lane, seat)
        seat.pixels_B3HW[3:] = 0
        assert (embed(lane, seat)[:3] == whole[:3]).all()


def test_the_number_of_threads_comes_back():
    before = torch.get_num_threads()
    with single_threaded():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(SettingError, match="--device cpu"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(SettingError, match="--device cpu"):
            pick_device("cuda")


def test_lanes_of_a_cpu_do_not_wait_for_each_other(tiny, tiny_weights):
    lane = make_lane(load_backbone(tiny, weights=tiny_weights), torch.device("cpu"), "fp16")
    assert not isinstance(lane.turn, type(threading.Lock()))


def test_the_batch_of_a_gpu_is_the_largest_power_of_two_that_fits(tiny, tiny_weights, monkeypatch):
    from cspipe.extract import embed as module

    lane = make_lane(load_backbone(tiny, weights=tiny_weights), torch.device("cpu"), "fp16")
    tried = []

    def little_memory(lane, seat):
        tried.append(len(seat.pixels_B3HW))
        if tried[-1] > fits:
            raise torch.OutOfMemoryError("no room")
        return embed(lane, seat)

    monkeypatch.setattr(module, "embed", little_memory)
    fits = 100
    assert module.largest_batch(lane) == 64
    assert tried == [512, 256, 128, 64]
    fits = 0
    with pytest.raises(SettingError, match="no memory left for one image of 32 px"):
        module.largest_batch(lane, most=4)
    assert module.default_batch_size(lane) == 16
