"""Terms that ask for the same answer near an image, and where near is. All need a second forward pass.

| name           | term                                                               | source                        |
|----------------|--------------------------------------------------------------------|-------------------------------|
| `r3f`          | KL(p(x), p(x + noise)) + KL(p(x + noise), p(x))                    | Aghajanyan 2020, 2008.03156   |
| `r4f`          | r3f + how far the head's spectral norms are above those at start   | the same; as a penalty (ours) |
| `pdr-KIND`     | f-divergence between p(x) and p(x + delta), delta on a sphere      | Cheng 2020, arXiv 2010.12638  |
| `...-adversarial` | the same, delta along the gradient of the divergence            | the same                      |

The sources work on embedded words; here noise and delta are added to the normalised pixels (ours), which every
backbone has. Legend: `B` batch rows, `K` classes. All divergences are means over the rows, in nats except Hellinger.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cspipe.store.errors import SettingError

Divergence = Callable[[Tensor, Tensor], Tensor]


def kl(log_p_BK: Tensor, log_q_BK: Tensor) -> Tensor:
    """KL(p || q) = sum p (log p - log q), nats; f(t) = t log t."""
    return (log_p_BK.exp() * (log_p_BK - log_q_BK)).sum(-1).mean()


def symmetric_kl(log_p_BK: Tensor, log_q_BK: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) = sum (p - q) (log p - log q), nats; no rounding makes it negative."""
    return ((log_p_BK.exp() - log_q_BK.exp()) * (log_p_BK - log_q_BK)).sum(-1).mean()


def jensen_shannon(log_p_BK: Tensor, log_q_BK: Tensor) -> Tensor:
    """(KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, from 0 to ln 2 nats."""
    log_m_BK = torch.logaddexp(log_p_BK, log_q_BK) - torch.log(log_p_BK.new_tensor(2.0))
    return (kl(log_p_BK, log_m_BK) + kl(log_q_BK, log_m_BK)) / 2


def hellinger(log_p_BK: Tensor, log_q_BK: Tensor) -> Tensor:
    """Squared Hellinger distance, sum (sqrt p - sqrt q)^2, from 0 to 2; f(t) = (sqrt t - 1)^2."""
    return ((log_p_BK / 2).exp() - (log_q_BK / 2).exp()).square().sum(-1).mean()


def compare(divergence: Divergence, logits_BK: Tensor, moved_logits_BK: Tensor) -> Tensor:
    """The divergence of the classes' probabilities, `(B, K)` logits twice -> a number.

    Raises:
        SettingError: the two differ in shape.
    """
    if logits_BK.shape != moved_logits_BK.shape:
        raise SettingError(
            f"a divergence compares two answers about the same rows; it was given {tuple(logits_BK.shape)} and "
            f"{tuple(moved_logits_BK.shape)}."
        )
    return divergence(logits_BK.log_softmax(-1), moved_logits_BK.log_softmax(-1))


def r3f(*, logits_BK: Tensor, noisy_logits_BK: Tensor) -> Tensor:
    """R3F: symmetric KL between the answer and the answer under noise, `(B, K)` twice -> nats."""
    return compare(symmetric_kl, logits_BK, noisy_logits_BK)


def r4f(
    *, logits_BK: Tensor, noisy_logits_BK: Tensor, head_weights: Sequence[Tensor], head_norms: Sequence[Tensor]
) -> Tensor:
    """R3F plus `spectral_excess` of the head.

    The source divides the weights of a new head by their spectral norm. Ours is trained already and would change its
    answers, so its norms are held where they were by a penalty (ours).
    """
    excess = spectral_excess(head_weights=head_weights, head_norms=head_norms)
    return r3f(logits_BK=logits_BK, noisy_logits_BK=noisy_logits_BK) + excess


def spectral_excess(*, head_weights: Sequence[Tensor], head_norms: Sequence[Tensor]) -> Tensor:
    """Mean over the head's matrices of max(0, norm / norm at start - 1)^2; norm is the largest singular value."""
    ratios = [spectral_norm(weight) / norm for weight, norm in zip(head_weights, head_norms, strict=True)]
    return torch.stack([(ratio - 1).clamp_min(0).square() for ratio in ratios]).mean()


def spectral_norm(weight_1IO: Tensor) -> Tensor:
    """Largest singular value of a matrix `(I, O)`, or of a stack of one."""
    norm: Tensor = torch.linalg.matrix_norm(weight_1IO, 2)
    return norm.max()


def pdr(divergence: Divergence) -> Callable[..., Tensor]:
    """PDR with this divergence, delta drawn on a sphere: a function of `logits_BK` and `sphere_logits_BK`."""

    def term(*, logits_BK: Tensor, sphere_logits_BK: Tensor) -> Tensor:
        return compare(divergence, logits_BK, sphere_logits_BK)

    return term


def noise(pixels_B3HW: Tensor, generator: torch.Generator, *, kind: str, scale: float) -> Tensor:
    """Noise of the pixels' shape: uniform in [-scale, scale], or normal with that deviation."""
    if kind == "uniform":
        uniform = torch.rand(pixels_B3HW.shape, generator=generator, device=pixels_B3HW.device, dtype=pixels_B3HW.dtype)
        return (uniform * 2 - 1) * scale
    return scale * torch.randn(
        pixels_B3HW.shape, generator=generator, device=pixels_B3HW.device, dtype=pixels_B3HW.dtype
    )


def on_sphere(direction_B3HW: Tensor, radius: float) -> Tensor:
    """Each image's direction, scaled so that its root mean square is `radius`; 0 where there is no direction."""
    rms_B111 = direction_B3HW.square().mean((1, 2, 3), keepdim=True).sqrt()
    return direction_B3HW * (radius / rms_B111.clamp_min(torch.finfo(rms_B111.dtype).tiny))


def adversarial(
    pixels_B3HW: Tensor, answer: Callable[[Tensor], Tensor], divergence: Divergence, start_B3HW: Tensor, radius: float
) -> Tensor:
    """One step of ascent of the divergence from `start_B3HW`, on the sphere; held fixed.

    Args:
        pixels_B3HW: normalised pixels.
        answer: pixels -> logits `(B, K)`.
        divergence: what is raised.
        start_B3HW: where the gradient is taken: at 0 it would be 0, for that is the divergence's minimum.
        radius: root mean square of delta.
    """
    delta_B3HW = start_B3HW.detach().clone().requires_grad_()
    with torch.enable_grad():
        still_BK = answer(pixels_B3HW).detach()
        value = compare(divergence, still_BK, answer(pixels_B3HW + delta_B3HW))
        (gradient_B3HW,) = torch.autograd.grad(value, delta_B3HW)
    return on_sphere(gradient_B3HW, radius)


DIVERGENCES: dict[str, Divergence] = {
    "kl": kl, "symmetric-kl": symmetric_kl, "js": jensen_shannon, "hellinger": hellinger,
}  # fmt: skip
"""KIND of `pdr-KIND` -> divergence."""
