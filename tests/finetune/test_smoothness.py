"""Terms that ask for the same answer near an image: known values, gradients, directions."""

import math

import pytest
import torch
from torch import Tensor

from cspipe.finetune.smoothness import (
    DIVERGENCES,
    adversarial,
    compare,
    hellinger,
    jensen_shannon,
    kl,
    noise,
    on_sphere,
    pdr,
    r3f,
    r4f,
    spectral_excess,
    symmetric_kl,
)
from cspipe.store.errors import SettingError

P, Q = (0.5, 0.5), (0.9, 0.1)
KNOWN = {
    "kl": 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1),
    "symmetric-kl": 0.4 * math.log(9),
    "js": 0.5 * (0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3))
    + 0.5 * (0.9 * math.log(0.9 / 0.7) + 0.1 * math.log(0.1 / 0.3)),
    "hellinger": 2 - 2 * (math.sqrt(0.45) + math.sqrt(0.05)),
}


def logits(*shares: float) -> Tensor:
    return torch.tensor([shares], dtype=torch.float64).log() + 7  # logits are free of a constant


def drawn(rows: int = 5, classes: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergence_of_a_fair_and_a_loaded_coin(name):
    assert compare(DIVERGENCES[name], logits(*P), logits(*Q)).item() == pytest.approx(KNOWN[name])


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergence_is_0_for_equal_answers_else_positive_a_mean_over_rows_and_has_its_gradient(name):
    term, first, second = DIVERGENCES[name], drawn(), drawn(seed=1)
    assert compare(term, first, first + 3).item() == pytest.approx(0, abs=1e-12)
    value = compare(term, first, second).item()
    assert value > 0.01
    rows = [compare(term, first[i : i + 1], second[i : i + 1]).item() for i in range(5)]
    assert value == pytest.approx(sum(rows) / 5)
    assert torch.autograd.gradcheck(lambda x, y: compare(term, x, y), [first.requires_grad_(), second.requires_grad_()])


def test_only_kl_depends_on_which_answer_comes_first():
    for name, term in DIVERGENCES.items():
        there, back = compare(term, drawn(), drawn(seed=1)).item(), compare(term, drawn(seed=1), drawn()).item()
        assert (there == pytest.approx(back)) is (name != "kl")


def test_divergences_are_bounded_by_their_known_limits():
    sure, other = torch.tensor([[0.0, -800.0]]), torch.tensor([[-800.0, 0.0]])
    assert compare(jensen_shannon, sure, other).item() == pytest.approx(math.log(2))
    assert compare(hellinger, sure, other).item() == pytest.approx(2)
    assert compare(kl, sure, other).item() == pytest.approx(800)
    assert compare(symmetric_kl, sure, other).item() == pytest.approx(1600)


def test_r3f_is_the_symmetric_kl_and_never_negative_under_tiny_noise():
    assert r3f(logits_BK=logits(*P), noisy_logits_BK=logits(*Q)).item() == pytest.approx(KNOWN["symmetric-kl"])
    still = drawn(50).float()
    assert 0 <= r3f(logits_BK=still, noisy_logits_BK=still + 1e-6 * drawn(50, seed=1).float()).item() < 1e-9


def test_pdr_is_the_divergence_it_is_made_of():
    for name, term in DIVERGENCES.items():
        assert pdr(term)(logits_BK=logits(*P), sphere_logits_BK=logits(*Q)).item() == pytest.approx(KNOWN[name])


def test_answers_about_other_rows_are_refused():
    with pytest.raises(SettingError, match=r"the same rows; it was given \(5, 4\) and \(6, 4\)"):
        r3f(logits_BK=drawn(), noisy_logits_BK=drawn(6))


def test_spectral_excess_counts_only_growth_and_has_its_gradient():
    start = [torch.diag(torch.tensor([2.0, 1.0], dtype=torch.float64)), torch.eye(3, dtype=torch.float64)[None]]
    norms = [torch.tensor(2.0), torch.tensor(1.0)]
    assert spectral_excess(head_weights=start, head_norms=norms).item() == 0
    assert spectral_excess(head_weights=[start[0] / 2, start[1]], head_norms=norms).item() == 0
    grown = [1.5 * start[0], start[1]]
    assert spectral_excess(head_weights=grown, head_norms=norms).item() == pytest.approx(0.25 / 2)
    leaf = (1.5 * start[0]).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: spectral_excess(head_weights=[w], head_norms=norms[:1]), [leaf])


def test_r4f_is_r3f_and_the_excess():
    grown, norms = [1.5 * torch.eye(2, dtype=torch.float64)], [torch.tensor(1.0)]
    value = r4f(logits_BK=logits(*P), noisy_logits_BK=logits(*Q), head_weights=grown, head_norms=norms)
    assert value.item() == pytest.approx(KNOWN["symmetric-kl"] + 0.25)


def test_noise_has_its_scale_and_is_a_function_of_the_generator():
    pixels = torch.zeros(4, 3, 32, 32)

    def draw(kind: str, seed: int = 0) -> Tensor:
        return noise(pixels, torch.Generator().manual_seed(seed), kind=kind, scale=0.1)

    assert 0.099 < draw("uniform").abs().max() <= 0.1
    assert draw("uniform").std() == pytest.approx(0.1 / math.sqrt(3), rel=0.05)
    assert draw("normal").std() == pytest.approx(0.1, rel=0.05)
    assert torch.equal(draw("normal"), draw("normal"))
    assert not torch.equal(draw("normal"), draw("normal", 1))


def test_a_direction_on_the_sphere_has_the_radius_and_no_direction_stays_0():
    directions = (
        torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(4.0)[:, None, None, None]
    )
    moved = on_sphere(directions, 0.2)
    assert moved.square().mean((1, 2, 3)).sqrt().tolist() == pytest.approx([0, 0.2, 0.2, 0.2])
    assert torch.nn.functional.cosine_similarity(moved[1].flatten(), directions[1].flatten(), dim=0) > 0.999


def test_the_adversarial_direction_lies_along_the_gradient_and_beats_a_random_one():
    """A linear answer that looks at one pixel alone: the worst direction is that pixel."""
    weight = torch.zeros(2, 12, dtype=torch.float64)
    weight[0, 5] = 3.0

    def answer(pixels: Tensor) -> Tensor:
        return pixels.flatten(1) @ weight.T

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(6, 3, 2, 2, generator=generator, dtype=torch.float64)
    start = on_sphere(torch.randn(6, 3, 2, 2, generator=generator, dtype=torch.float64), 0.01)
    delta = adversarial(pixels, answer, kl, start, 0.5)
    assert not delta.requires_grad
    along = delta.flatten(1).abs()
    assert along[:, 5].tolist() == pytest.approx([0.5 * math.sqrt(12)] * 6)
    assert along.sum(1).tolist() == pytest.approx(along[:, 5].tolist())
    assert torch.equal(delta.flatten(1)[:, 5].sign(), start.flatten(1)[:, 5].sign())  # uphill, away from the image
    worst = compare(kl, answer(pixels), answer(pixels + delta))
    assert worst > 2 * compare(kl, answer(pixels), answer(pixels + on_sphere(start, 0.5)))
