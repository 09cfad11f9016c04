"""Checkpoints: everything comes back to the bit, and a broken one is named."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cspipe.finetune.checkpoint import BEST, FILE, load_checkpoint, load_weights, save_checkpoint, save_weights
from cspipe.store.errors import StoreError


def make() -> tuple[nn.Module, dict[str, torch.optim.Optimizer]]:
    """A small network under two optimisers, one parameter of which never has a gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    model.register_parameter("idle", nn.Parameter(torch.ones(3)))
    groups = [{"params": [*model[0].parameters(), model.idle], "weight_decay": 0.1, "peak": 1e-3},
              {"params": [*model[1].parameters()], "weight_decay": 0.0, "peak": 1e-2}]  # fmt: skip
    return model, {"main": torch.optim.AdamW(groups, lr=1e-3), "critics": torch.optim.Adam(model[3].parameters())}


def steps(model: nn.Module, optimisers: dict[str, torch.optim.Optimizer], numbers: range) -> None:
    model.train()
    for number in numbers:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        model.zero_grad()
        model(x).square().mean().backward()
        for optimiser in optimisers.values():
            optimiser.step()


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_weights_optimisers_and_step_come_back_bit_for_bit(tmp_path):
    model, optimisers = make()
    steps(model, optimisers, range(5))
    save_checkpoint(tmp_path, model, optimisers, {"step": 5})
    other, others = make()
    steps(other, others, range(50, 52))
    assert load_checkpoint(tmp_path, other, others) == {"step": 5}
    assert same(model, other)
    for name, optimiser in optimisers.items():
        mine, theirs = optimiser.state_dict(), others[name].state_dict()
        assert mine["param_groups"] == theirs["param_groups"]
        assert mine["state"].keys() == theirs["state"].keys()
        for number, state in mine["state"].items():
            assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
            assert all(torch.equal(value, theirs["state"][number][key]) for key, value in state.items())


def test_training_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(tmp_path):
    model, optimisers = make()
    steps(model, optimisers, range(5))
    save_checkpoint(tmp_path, model, optimisers, {"step": 5})
    steps(model, optimisers, range(5, 9))
    fresh, others = make()
    load_checkpoint(tmp_path, fresh, others)
    steps(fresh, others, range(5, 9))
    assert same(model, fresh)


def test_saving_changes_nothing_and_a_later_checkpoint_replaces_the_former(tmp_path):
    model, optimisers = make()
    before = copy.deepcopy(model)
    save_checkpoint(tmp_path, model, optimisers, {"step": 1})
    assert same(model, before)
    steps(model, optimisers, range(2))
    save_checkpoint(tmp_path, model, optimisers, {"step": 3})
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert load_checkpoint(tmp_path, *make()) == {"step": 3}


def test_without_a_checkpoint_nothing_is_loaded_and_nothing_is_told(tmp_path):
    model, optimisers = make()
    (tmp_path / f".{FILE}.partial").write_bytes(b"half")
    assert load_checkpoint(tmp_path, model, optimisers) == {}
    assert same(model, make()[0])


def test_a_write_that_fails_leaves_the_former_checkpoint(tmp_path, monkeypatch):
    model, optimisers = make()
    save_checkpoint(tmp_path, model, optimisers, {"step": 1})

    def full(handle):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(tmp_path, model, optimisers, {"step": 2})
    assert load_checkpoint(tmp_path, *make()) == {"step": 1}


def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path):
    model, optimisers = make()
    save_checkpoint(tmp_path, model, optimisers, {"step": 1})
    whole = (tmp_path / FILE).read_bytes()
    for broken in (whole[:-50], b"", b"\xff" * 100):
        (tmp_path / FILE).write_bytes(broken)
        with pytest.raises(StoreError, match=r"checkpoint\.safetensors is damaged .*remove the run folder and start"):
            load_checkpoint(tmp_path, *make())
    save_file({"weight": torch.zeros(2)}, tmp_path / FILE)
    with pytest.raises(StoreError, match="is damaged"):
        load_checkpoint(tmp_path, *make())


def test_facts_beside_the_step_come_back(tmp_path):
    model, optimisers = make()
    facts = {"step": 4, "skipped": 2, "seconds": 0.1 + 0.2}
    save_checkpoint(tmp_path, model, optimisers, facts)
    assert load_checkpoint(tmp_path, *make()) == facts


def test_weights_alone_come_back_and_a_damaged_or_foreign_file_is_named(tmp_path):
    model, optimisers = make()
    steps(model, optimisers, range(3))
    save_weights(tmp_path / BEST, model)
    fresh = make()[0]
    load_weights(tmp_path / BEST, fresh)
    assert same(model, fresh)
    with pytest.raises(StoreError, match=r"best\.safetensors is damaged"):
        load_weights(tmp_path / BEST, nn.Linear(2, 2))
    (tmp_path / BEST).write_bytes(b"half")
    with pytest.raises(StoreError, match=r"best\.safetensors is damaged .*remove the run folder"):
        load_weights(tmp_path / BEST, fresh)
