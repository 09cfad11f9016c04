"""Stacked layers against torch's own, heads taken out of a stack, and what a seed decides."""

import pytest
import torch
from torch import nn

from cspipe.headtrain.derivatives import mixed
from cspipe.headtrain.model import ContentStyle, StackedBatchNorm, StackedLinear

HEADS, ROWS, WIDE_IN, WIDE_OUT = 3, 10, 5, 4


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(seeds=(0, 1, 2), **changes) -> ContentStyle:
    shape = {"width": 6, "classes": 3, "style": 2, "hidden": 8, "critics": {"content": 5, "style": 5, "token": 5}}
    return ContentStyle(**{**shape, **changes}, seeds=seeds)


def test_stacked_linear_is_one_torch_linear_a_head():
    stacked, x = StackedLinear(WIDE_IN, WIDE_OUT, generators(0, 1, 2)), drawn(HEADS, ROWS, WIDE_IN)
    for head in range(HEADS):
        plain = nn.Linear(WIDE_IN, WIDE_OUT)
        plain.weight.data, plain.bias.data = stacked.weight.data[head].T, stacked.bias.data[head, 0]
        torch.testing.assert_close(stacked(x)[head], plain(x[head]), rtol=0, atol=1e-6)


def test_stacked_linear_is_initialised_uniformly_within_torchs_bound():
    stacked = StackedLinear(100, 500, generators(0))
    for values in (stacked.weight, stacked.bias):
        assert values.abs().max().item() <= 0.1
        assert values.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.06)
        assert abs(values.mean().item()) < 0.01


def test_stacked_batch_norm_is_one_torch_batch_norm_a_head_in_training_and_in_use():
    stacked = StackedBatchNorm(WIDE_IN, HEADS)
    plain = [nn.BatchNorm1d(WIDE_IN) for _ in range(HEADS)]
    for step in range(5):
        x = drawn(HEADS, ROWS, WIDE_IN, seed=step) * 3 + step
        out = stacked(x)
        for head in range(HEADS):
            torch.testing.assert_close(out[head], plain[head](x[head]), rtol=0, atol=1e-5)
    stacked.eval()
    for head in range(HEADS):
        torch.testing.assert_close(stacked(x)[head], plain[head].eval()(x[head]), rtol=0, atol=1e-5)


def test_a_bias_before_a_batch_norm_does_not_learn():
    stack = make(norm="batch")
    assert [p.requires_grad for p in (stack.encoder[0].bias, stack.encoder[3].bias)] == [False, True]
    assert all(parameter.requires_grad for parameter in stack.generator_parameters())


def test_a_heads_first_weights_do_not_depend_on_its_neighbours():
    alone, among = make((7,)).state_dict(), make((3, 7, 5)).state_dict()
    assert alone.keys() == among.keys()
    for name, value in alone.items():
        assert torch.equal(value[0], among[name][1]), name
    assert not torch.equal(among["encoder.0.weight"][0], among["encoder.0.weight"][1])


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("training", [True, False])
def test_one_head_of_a_stack_gives_the_same_outputs_alone(training, norm):
    stack, x = make(norm=norm).train(), drawn(HEADS, ROWS, 6)
    for _ in range(5):
        stack.encode(x * 2 + 1)  # running statistics that are not the first ones
    stack.train(training)
    logits, style = stack.encode(x)
    rebuilt = stack.decode(logits.softmax(-1), style)
    stack.load_state_dict(before := {name: value.clone() for name, value in stack.state_dict().items()})
    for head in range(HEADS):
        alone = stack.one(head)
        assert alone.training is training
        mine, my_style = alone.encode(x[head : head + 1])
        torch.testing.assert_close(mine[0], logits[head], rtol=0, atol=1e-6)
        torch.testing.assert_close(my_style[0], style[head], rtol=0, atol=1e-6)
        again = alone.decode(mine.softmax(-1), my_style)
        torch.testing.assert_close(again[0], rebuilt[head], rtol=0, atol=1e-6)
        judged = stack.judge("token", rebuilt)[head]
        torch.testing.assert_close(alone.judge("token", again)[0], judged, rtol=0, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in stack.state_dict().items())


def test_one_head_of_a_stack_has_its_own_weights_in_the_stacks_precision():
    stack = make().double()
    alone = stack.one(1)
    assert {value.dtype for value in alone.state_dict().values()} == {torch.float64}
    alone.encoder[0].weight.data.zero_()
    assert stack.encoder[0].weight[1].abs().sum().item() > 0


def test_code_is_k_content_logits_then_s_style_values_and_a_critic_gives_one_logit_a_row():
    stack, x = make(), drawn(HEADS, ROWS, 6)
    logits, style = stack.encode(x)
    assert (logits.shape, style.shape) == ((HEADS, ROWS, 3), (HEADS, ROWS, 2))
    assert torch.equal(torch.cat([logits, style], -1), stack.encoder(x))
    assert stack.decode(logits, style).shape == x.shape
    assert stack.judge("style", style).shape == (HEADS, ROWS)


def test_everything_but_the_discriminators_learns_with_the_encoder_and_decoder():
    stack = make()
    learning = {id(parameter) for parameter in stack.generator_parameters()}
    named = {name for name, parameter in stack.named_parameters() if id(parameter) in learning}
    assert named == {name for name, _ in stack.named_parameters() if not name.startswith("critics")}


@pytest.mark.parametrize("training", [True, False])
def test_with_a_layer_norm_a_rows_code_does_not_depend_on_the_rows_beside_it(training):
    stack, x = make().train(training), drawn(HEADS, ROWS, 6)
    torch.testing.assert_close(stack.encode(x)[0][:, :3], stack.encode(x[:, :3])[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_rows_mixed_behind_the_first_layer_have_the_code_of_mixed_tokens(norm, training):
    stack = make(norm=norm).double().train(training)
    token, share = drawn(3, 11, stack.width).double(), drawn(3, 4, 1, seed=1).double().sigmoid()
    rows = torch.cat([token[:, :9], mixed(token[:, -4:], share)], 1)
    logits, style, mixed_logits = stack.encode_with_mixes(token, share, kept=9)
    assert style.shape[1] == 9
    known_logits, known_style = stack.encode(rows)
    torch.testing.assert_close(torch.cat([logits, mixed_logits], 1), known_logits, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(style, known_style[:, :9], rtol=1e-12, atol=1e-12)
