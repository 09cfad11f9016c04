"""LoRA: nothing changes at first, only additions learn, and merging leaves the backbone's own names."""

import sys

import pytest
import timm
import torch

from cspipe.finetune.adapter import add_lora, layers_of, merge_lora
from cspipe.finetune.model import unfreeze
from cspipe.store.errors import MissingDataError, SettingError

ARCHITECTURES = ("test_vit", "test_efficientnet")


@pytest.fixture(params=ARCHITECTURES)
def backbone(request) -> torch.nn.Module:
    torch.manual_seed(0)
    side = {"img_size": 32} if request.param == "test_vit" else {}
    made = timm.create_model(request.param, pretrained=False, num_classes=0, **side).eval()
    unfreeze(made, None)
    return made


def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def learn(backbone: torch.nn.Module, steps: int = 3) -> None:
    optimiser = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        optimiser.zero_grad()
        backbone(pixels()).square().mean().backward()
        optimiser.step()


def test_at_first_nothing_changes_and_the_additions_alone_learn(backbone):
    before, own = backbone(pixels()), {name for name, _ in backbone.named_parameters()}
    learning = add_lora(backbone, 2, seed=0)
    torch.testing.assert_close(backbone(pixels()), before)
    there = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert there and all(".lora_" in name for name in there) and not there & own
    assert learning == sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    assert learning < 0.5 * sum(p.numel() for p in backbone.parameters())


def test_merged_the_file_has_the_librarys_own_names_and_gives_the_tuned_tokens(backbone):
    names, before = list(backbone.state_dict()), {k: v.clone() for k, v in backbone.state_dict().items()}
    targets = {f"{name}.weight" for name in layers_of(backbone)}
    add_lora(backbone, 2, seed=0)
    learn(backbone)
    tuned = backbone(pixels())
    merge_lora(backbone)
    after = backbone.state_dict()
    assert list(after) == names
    torch.testing.assert_close(backbone(pixels()), tuned, rtol=1e-4, atol=1e-5)
    changed = {name for name in names if not torch.equal(after[name], before[name])}
    assert changed <= targets
    assert len(changed) > 0.5 * len(targets)


def test_an_addition_has_its_rank(backbone):
    weight = {name: p.clone() for name, p in backbone.named_parameters()}
    name = f"{layers_of(backbone)[-1]}.weight"
    add_lora(backbone, 2, seed=0)
    for part, parameter in backbone.named_parameters():
        if ".lora_B" in part:
            torch.nn.init.normal_(parameter)
    merge_lora(backbone)
    moved = (dict(backbone.named_parameters())[name] - weight[name]).detach().flatten(1)
    assert torch.linalg.matrix_rank(moved, rtol=1e-3) == 2


def test_only_blocks_that_learn_get_additions(backbone):
    every = set(layers_of(backbone))
    unfreeze(backbone, 1)
    some = set(layers_of(backbone))
    assert some < every
    add_lora(backbone, 2, seed=0)
    touched = {name.split(".lora_")[0] for name, p in backbone.named_parameters() if p.requires_grad}
    assert touched == some


def test_first_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone(backbone):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    add_lora(backbone, 2, seed=5)
    assert torch.equal(torch.rand(1), expected)
    first = {n: p.clone() for n, p in backbone.named_parameters() if ".lora_A" in n}
    merge_lora(backbone)
    backbone.requires_grad_(True)
    add_lora(backbone, 2, seed=5)
    assert all(torch.equal(p, first[n]) for n, p in backbone.named_parameters() if ".lora_A" in n)


def test_a_network_without_such_layers_and_a_missing_peft_are_told(monkeypatch):
    with pytest.raises(SettingError, match="no layer of this backbone takes a low-rank addition"):
        add_lora(torch.nn.Sequential(torch.nn.BatchNorm2d(3)), 2, seed=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingDataError, match=r"needs peft, which is not installed: pip install .*\[lora\]"):
        add_lora(torch.nn.Sequential(torch.nn.Linear(3, 3)), 2, seed=0)
