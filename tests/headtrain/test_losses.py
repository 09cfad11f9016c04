"""Every term on numbers worked out by hand, at its limits, and under gradcheck."""

import math

import pytest
import torch
from torch import Tensor

from cspipe.headtrain import losses
from cspipe.headtrain.derivatives import KeptAndMixed, mixed
from cspipe.headtrain.model import discriminator
from cspipe.store.errors import SettingError

LN2 = math.log(2)


def logits(*content: list[float]) -> Tensor:
    """Logits whose softmax is this content."""
    return torch.tensor(content, dtype=torch.float64).log()


def test_cross_entropy_is_the_mean_surprise_at_the_label():
    value = losses.content_cross_entropy(
        logits_LK=logits([0.5, 0.25, 0.25], [0.5, 0.25, 0.25]), label_L=torch.tensor([0, 1])
    )
    assert value.item() == pytest.approx((LN2 + 2 * LN2) / 2, abs=1e-12)


def test_cross_entropy_is_0_where_the_content_is_certain_and_right():
    certain = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    assert losses.content_cross_entropy(logits_LK=certain, label_L=torch.tensor([0, 1])).item() == 0
    assert losses.content_cross_entropy(logits_LK=certain, label_L=torch.tensor([1, 0])).item() == 1e4


def test_cross_entropy_refuses_labels_of_another_shape_and_names_both_shapes():
    with pytest.raises(SettingError, match=r"wants logits \(\.\.\., L, K\).*given \(4, 3\) and \(5,\)"):
        losses.content_cross_entropy(logits_LK=torch.zeros(4, 3), label_L=torch.zeros(5, dtype=torch.int64))


def entropy(logits_BK: Tensor) -> Tensor:
    return losses.content_divergence(logits_BK=logits_BK, prior_K=torch.ones(logits_BK.shape[-1])).entropy


def content(logits_BK: Tensor) -> Tensor:
    return losses.content_divergence(logits_BK=logits_BK, prior_K=torch.ones(logits_BK.shape[-1])).content_BK


def marginal_kl(logits_BK: Tensor, prior_K: Tensor) -> Tensor:
    return losses.content_divergence(logits_BK=logits_BK, prior_K=prior_K).marginal_kl


def test_entropy_is_the_mean_over_rows_of_the_rows_own_entropy():
    value = entropy(logits([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]))
    assert value.item() == pytest.approx(1.5 * LN2, abs=1e-12)


def test_entropy_is_0_for_certain_and_ln_k_for_uniform_content():
    assert entropy(torch.tensor([[1e4, 0.0, 0.0], [0.0, 0.0, 1e4]])).item() == 0
    assert entropy(torch.zeros(3, 7)).item() == pytest.approx(math.log(7), rel=1e-6)


def test_marginal_kl_compares_the_mean_content_with_the_prior():
    rows = logits([0.75, 0.25], [0.25, 0.75])
    prior = torch.tensor([0.25, 0.75], dtype=torch.float64)
    value = marginal_kl(rows, prior)
    assert value.item() == pytest.approx(0.5 * LN2 + 0.5 * math.log(2 / 3), abs=1e-12)


def test_marginal_kl_is_0_where_the_mean_content_is_the_prior_however_uncertain_the_rows():
    prior = torch.tensor([0.5, 0.5], dtype=torch.float64)
    for rows in (logits([0.75, 0.25], [0.25, 0.75]), logits([0.5, 0.5], [0.5, 0.5])):
        assert marginal_kl(rows, prior).item() == pytest.approx(0, abs=1e-12)
    certain = torch.tensor([[1e4, 0.0], [0.0, 1e4]], dtype=torch.float64)
    assert marginal_kl(certain, prior).item() == pytest.approx(0, abs=1e-12)


def test_marginal_kl_stays_finite_where_the_prior_rules_a_class_out():
    value = marginal_kl(torch.zeros(2, 2), torch.tensor([1.0, 0.0]))
    assert 10 < value.item() < 100


def test_marginal_kl_refuses_a_prior_of_another_number_of_classes():
    with pytest.raises(SettingError, match="prior has 2 probabilities but the content has 3 classes: give one"):
        marginal_kl(torch.zeros(4, 3), torch.ones(2) / 2)


def test_both_parts_of_the_closed_form_content_term_are_0_for_one_hot_content_in_the_priors_proportions():
    rows = torch.tensor([[1e4, 0.0], [0.0, 1e4], [0.0, 1e4], [0.0, 1e4]], dtype=torch.float64)
    prior = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert marginal_kl(rows, prior).item() == pytest.approx(0, abs=1e-12)
    assert entropy(rows).item() == pytest.approx(0, abs=1e-12)


def test_the_two_estimators_of_the_adversarial_term_differ_as_written():
    logit = torch.tensor([0.0, math.log(3)], dtype=torch.float64)
    assert losses.adversarial(logit_B=logit, estimator="kl").item() == pytest.approx(-math.log(3) / 2, abs=1e-12)
    nonsaturating = losses.adversarial(logit_B=logit, estimator="nonsaturating").item()
    assert nonsaturating == pytest.approx((LN2 + math.log(4 / 3)) / 2, abs=1e-12)
    assert losses.density_ratio_kl(logit_B=logit).item() == pytest.approx(-math.log(3) / 2, abs=1e-12)


def test_nonsaturating_pushes_hardest_where_the_discriminator_is_sure_and_kl_everywhere_the_same():
    gradient = {}
    for estimator in ("kl", "nonsaturating"):
        logit = torch.tensor([-20.0, 0.0, 20.0], dtype=torch.float64, requires_grad=True)
        losses.adversarial(logit_B=logit, estimator=estimator).backward()
        gradient[estimator] = (3 * logit.grad).tolist()
    assert gradient["kl"] == pytest.approx([-1, -1, -1])
    assert gradient["nonsaturating"] == pytest.approx([-1, -0.5, 0], abs=1e-8)


def test_discriminator_loss_is_ln_2_where_it_cannot_tell_and_0_where_it_is_sure():
    cannot, sure = torch.zeros(5), torch.full((5,), 200.0)
    assert losses.discriminator_loss(logit_prior_B=cannot, logit_model_B=cannot).item() == pytest.approx(LN2)
    assert losses.discriminator_loss(logit_prior_B=sure, logit_model_B=-sure).item() == 0
    assert losses.discriminator_loss(logit_prior_B=-sure, logit_model_B=sure).item() == 200


def test_discriminator_loss_is_the_mean_of_both_halves_however_many_rows_each_has():
    value = losses.discriminator_loss(
        logit_prior_B=torch.tensor([math.log(3)] * 4), logit_model_B=torch.tensor([0.0, 0.0])
    )
    assert value.item() == pytest.approx((math.log(4 / 3) + LN2) / 2)


def test_reconstruction_is_0_for_parallel_1_for_orthogonal_and_2_for_antiparallel_tokens():
    token = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    orthogonal = torch.tensor([[-4.0, 3.0], [0.0, 5.0]])
    for rebuilt, expected in ((0.1 * token, 0.0), (orthogonal, 1.0), (-7 * token, 2.0)):
        value = losses.token_reconstruction(token_BD=token, rebuilt_BD=rebuilt)
        assert value.item() == pytest.approx(expected, abs=1e-6)
    mixed = losses.token_reconstruction(token_BD=token[1:], rebuilt_BD=torch.tensor([[1.0, 1.0]]))
    assert mixed.item() == pytest.approx(1 - 1 / math.sqrt(2), abs=1e-6)


def test_reconstruction_of_a_token_of_zeros_is_1_and_pulls_nowhere():
    token = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    rebuilt = torch.tensor([[1.0, 2.0], [0.0, 1.0]], requires_grad=True)
    value = losses.token_reconstruction(token_BD=token, rebuilt_BD=rebuilt)
    assert value.item() == pytest.approx((1 + 0.2) / 2)
    (gradient,) = torch.autograd.grad(value, rebuilt)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0], [-0.3, 0.0]]))


def test_reconstruction_refuses_tokens_of_two_shapes_and_names_them():
    with pytest.raises(SettingError, match=r"two tensors of one shape; it was given \(2, 3\) and \(2, 4\)"):
        losses.token_reconstruction(token_BD=torch.zeros(2, 3), rebuilt_BD=torch.zeros(2, 4))


def doubles(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.requires_grad_()


PRIOR = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
LABEL = torch.tensor([[0, 1, 2, 2], [1, 1, 0, 2]])
CONTENT = doubles(2, 4, 3, seed=7).detach().softmax(-1)
SHARE = torch.tensor([[0.2, 0.5, 0.9, 1.0], [0.0, 0.3, 0.6, 0.7]], dtype=torch.float64)[..., None]
TERMS = {
    "L_c": (lambda x: losses.content_cross_entropy(logits_LK=x, label_L=LABEL[: len(x)] if x.ndim == 3 else LABEL[0]),
            [(2, 4, 3)]),
    "entropy": (entropy, [(2, 4, 3)]),
    "marginal": (lambda x: marginal_kl(x, PRIOR), [(2, 4, 3)]),
    "D_c and content": (lambda x: entropy(x) * marginal_kl(x, PRIOR) + content(x).square().sum((-2, -1)), [(2, 4, 3)]),
    "gaussian": (lambda x: losses.gaussian_kl(style_BS=x), [(2, 6, 3)]),
    "mmd": (lambda x, y: losses.mmd(style_BS=x, prior_BS=y), [(2, 4, 3), (2, 4, 3)]),
    "sharpened": (lambda x: losses.sharpened(content_BK=x.softmax(-1), temperature=0.5).square().sum((-2, -1)),
                  [(2, 4, 3)]),
    "L_mix": (lambda x: losses.interpolation(logits_BK=x, content_BK=CONTENT[: x.numel() // 12].view(x.shape),
                                             share_B1=SHARE[: x.numel() // 12].view(*x.shape[:-1], 1)), [(2, 4, 3)]),
    "nonsaturating": (lambda x: losses.adversarial(logit_B=x, estimator="nonsaturating"), [(2, 4)]),
    "kl": (lambda x: losses.adversarial(logit_B=x, estimator="kl"), [(2, 4)]),
    "discriminator": (lambda x, y: losses.discriminator_loss(logit_prior_B=x, logit_model_B=y), [(2, 4), (2, 5)]),
    "L_y": (lambda x, y: losses.token_reconstruction(token_BD=x, rebuilt_BD=y), [(2, 4, 3), (2, 4, 3)]),
}  # fmt: skip


@pytest.mark.parametrize("name", TERMS)
def test_gradient_is_the_derivative(name):
    term, shapes = TERMS[name]
    inputs = [doubles(*shape, seed=number) for number, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(term, inputs)


@pytest.mark.parametrize("name", [name for name in TERMS if name not in ("L_c", "L_mix")])
def test_leading_axes_give_each_slices_own_value(name):
    term, shapes = TERMS[name]
    inputs = [doubles(*shape, seed=number).detach() for number, shape in enumerate(shapes)]
    together = term(*inputs)
    assert together.shape == (2,)
    assert together[0] != together[1]
    for head in range(2):
        assert together[head].item() == pytest.approx(term(*(x[head] for x in inputs)).item(), abs=1e-14)


def test_gaussian_kl_is_the_known_value_of_the_rows_moments_and_0_for_those_of_the_prior():
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    assert losses.gaussian_kl(style_BS=corners).item() == pytest.approx(0, abs=1e-4)
    moved = losses.gaussian_kl(style_BS=2 * corners + torch.tensor([3.0, 0.0])).item()
    assert moved == pytest.approx(0.5 * (8 + 9 - 2 - math.log(16)), abs=1e-3)
    turned = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    assert losses.gaussian_kl(style_BS=turned).item() > 3


def test_gaussian_kl_is_finite_and_falls_with_spread_where_there_are_fewer_rows_than_dimensions():
    style = doubles(3, 8).detach()
    assert math.isfinite(losses.gaussian_kl(style_BS=style).item())
    assert losses.gaussian_kl(style_BS=torch.zeros(3, 8)).item() > losses.gaussian_kl(style_BS=style.float()).item()
    with pytest.raises(SettingError, match=r"at least two rows .* given \(1, 8\)"):
        losses.gaussian_kl(style_BS=style[:1])


def test_mmd_is_0_on_average_between_two_draws_of_the_prior_and_grows_with_the_shift():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(200, 64, 4, generator=generator) for _ in range(2))
    same = losses.mmd(style_BS=one, prior_BS=other)
    assert abs(same.mean().item()) < 4 * same.std().item() / 200**0.5
    by_shift = [losses.mmd(style_BS=one + shift, prior_BS=other).mean().item() for shift in (0.5, 1.0, 2.0)]
    assert same.mean().item() < by_shift[0] < by_shift[1] < by_shift[2]


def test_mmd_of_single_points_apart_is_the_kernels_own_arithmetic():
    at_0, at_2 = torch.zeros(2, 1, dtype=torch.float64), torch.full((2, 1), 2.0, dtype=torch.float64)
    value = losses.mmd(style_BS=at_0, prior_BS=at_2).item()
    assert value == pytest.approx(1 + 1 - 2 * 2 / (2 + 4), abs=1e-12)
    with pytest.raises(SettingError, match=r"two tensors of one shape"):
        losses.mmd(style_BS=at_0, prior_BS=at_2[:1])


def test_sharpening_squares_the_odds_at_one_half_and_changes_nothing_at_1():
    content = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    sharp = losses.sharpened(content_BK=content, temperature=0.5)[0]
    assert (sharp[0] / sharp[1]).item() == pytest.approx(4) and sharp.sum().item() == pytest.approx(1)
    torch.testing.assert_close(losses.sharpened(content_BK=content, temperature=1.0), content)


def test_interpolation_follows_the_mix_of_each_row_and_the_row_before_it_which_is_held_fixed():
    content = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    share = torch.tensor([[0.25], [1.0]], dtype=torch.float64)
    rows = logits([0.25, 0.75], [0.5, 0.5]).requires_grad_()
    value = losses.interpolation(logits_BK=rows, content_BK=content, share_B1=share)
    first = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert value.item() == pytest.approx((first + LN2) / 2, abs=1e-12)
    gradients = torch.autograd.grad(value, [rows, content], allow_unused=True)
    assert gradients[1] is None
    assert gradients[0][0].abs().max().item() < 1e-12  # the first row already says what it should
    with pytest.raises(SettingError, match=r"shares \(\.\.\., B, 1\)"):
        losses.interpolation(logits_BK=rows, content_BK=content, share_B1=share[:1])


def test_mixing_tokens_and_contents_is_the_same_linear_map():
    token, share = doubles(2, 5, 3).detach(), torch.rand(2, 5, 1, dtype=torch.float64)
    expected = share * token + (1 - share) * token[:, [4, 0, 1, 2, 3]]
    torch.testing.assert_close(mixed(token, share), expected)


@pytest.mark.parametrize("kept", [5, 3, 7])
def test_kept_and_mixed_rows_are_those_of_the_plain_operations_and_so_are_their_derivatives(kept):
    rows, share = doubles(2, 7, 3), torch.rand(2, 4, 1, dtype=torch.float64)
    expected = rows[:, :kept], mixed(rows[:, -4:], share)
    found = KeptAndMixed.apply(rows, share, kept)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert torch.autograd.gradcheck(lambda x: KeptAndMixed.apply(x, share, kept), [rows])


def test_content_of_which_a_class_has_vanished_pulls_finitely():
    rows = torch.tensor([[0.0, -1e4], [0.0, -1e4]], requires_grad=True)
    found = losses.content_divergence(logits_BK=rows, prior_K=torch.tensor([0.5, 0.5]))
    assert found.marginal_kl.item() == pytest.approx(LN2)
    (gradient,) = torch.autograd.grad(found.entropy + found.marginal_kl, rows)
    assert gradient.tolist() == [[0, 0], [0, 0]]


def test_leading_axes_of_the_cross_entropy_give_each_slices_own_value():
    rows = doubles(2, 4, 3).detach()
    together = losses.content_cross_entropy(logits_LK=rows, label_L=LABEL)
    alone = [losses.content_cross_entropy(logits_LK=rows[h], label_L=LABEL[h]) for h in range(2)]
    assert together.tolist() == pytest.approx([value.item() for value in alone], abs=1e-14)


def test_a_trained_discriminator_is_the_log_density_ratio_of_two_gaussians():
    """log N(x; 0, 1) / N(x; 1, 1) = 1/2 - x, and KL(N(1, 1) || N(0, 1)) = 1/2."""
    generator = torch.Generator().manual_seed(0)
    critic = discriminator(1, 16, [generator])
    optimiser = torch.optim.Adam(critic.parameters(), lr=5e-3)
    for _ in range(400):
        prior, model = torch.randn(1, 512, 1, generator=generator), 1 + torch.randn(1, 512, 1, generator=generator)
        loss = losses.discriminator_loss(logit_prior_B=critic(prior)[..., 0], logit_model_B=critic(model)[..., 0])
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
    with torch.no_grad():
        x = torch.linspace(-1, 2, 31).view(1, -1, 1)
        assert (critic(x) - (0.5 - x)).abs().max().item() < 0.3
        model = 1 + torch.randn(1, 20_000, 1, generator=generator)
        assert losses.density_ratio_kl(logit_B=critic(model)[..., 0]).item() == pytest.approx(0.5, abs=0.1)
