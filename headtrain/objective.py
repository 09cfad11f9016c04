"""L_total of many heads: which terms the settings switch on, and what the discriminators are shown.

Legend: `H` heads, `B` unlabelled batch rows, `R` those of them that are rebuilt, `L` labelled batch rows, `X` all rows
of a step, `P` projected width, `K` classes, `S` style.
"""

import torch
from torch import Tensor

from cspipe.headtrain import losses
from cspipe.headtrain.model import ContentStyle
from cspipe.headtrain.settings import HeadSettings

SYMBOLS = {"content": "D_c", "style": "D_s", "token": "D_y"}


def objective(
    stack: ContentStyle,
    token_HXP: Tensor,
    label_HL: Tensor,
    prior_HK: Tensor,
    settings: HeadSettings,
    *,
    target_HBP: Tensor | None = None,
    share_HB1: Tensor | None = None,
    vote_HBK: Tensor | None = None,
    prior_HBS: Tensor | None = None,
    image_HBI: Tensor | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every term of L_total that is switched on, one value a head, and the logits of the discriminators.

    Args:
        stack: the heads.
        token_HXP: the labelled rows, then the unlabelled rows, then, where there are views, those or views of them;
            L is `label_HL.shape[1]`. With no term on unlabelled rows the latter may be absent.
        label_HL: class of each labelled row.
        prior_HK: class prior.
        settings: weights and estimators.
        target_HBP: what L_y rebuilds of the unlabelled rows; None: their tokens as given. Never followed backward.
        share_HB1: what the last B rows, views or the unlabelled rows themselves, keep when each is mixed with the one
            before it, all where `settings.mix_share` is 0; None: no L_mix.
        vote_HBK: class probabilities of the unlabelled rows that L_mix follows; None: their own content.
        prior_HBS: draws of N(0, I), which the style term `mmd` compares with.
        image_HBI: pixels in [0, 1] of the unlabelled rows, which L_y rebuilds and D_y looks at in the tokens' place,
            where the decoder gives logits of pixels.

    Returns:
        Terms `(H,)` by their symbol, unweighted, and each discriminator's logits `(H, B)` of the unlabelled rows, or
        `(H, R)` of the rebuilt ones, still attached.
    """
    known = label_HL.shape[1]
    mixed_HBK: Tensor | None = None
    if share_HB1 is not None and settings.mix_share:
        logits_HXK, style_HXS, mixed_HBK = stack.encode_with_mixes(
            token_HXP, share_HB1, kept=known + share_HB1.shape[1]
        )
    else:
        logits_HXK, style_HXS = stack.encode(token_HXP)
        if share_HB1 is not None:
            rows = share_HB1.shape[1]
            mixed_HBK = logits_HXK[:, -rows:]
            logits_HXK, style_HXS = logits_HXK[:, : known + rows], style_HXS[:, : known + rows]
    known_HLK, logits_HBK = torch.split(logits_HXK, [known, logits_HXK.shape[1] - known], 1)
    terms = {"L_c": losses.content_cross_entropy(logits_LK=known_HLK, label_L=label_HL)}
    judged: dict[str, Tensor] = {}
    if not settings.semi_supervised:
        return terms, judged
    style_HBS, token_HBP = style_HXS[:, known:], token_HXP[:, known : logits_HXK.shape[1]]
    content_HBK, entropy, marginal_kl = losses.content_divergence(logits_BK=logits_HBK, prior_K=prior_HK)
    shown = {"content": content_HBK, "style": style_HBS}
    if settings.lambda_y or settings.lambda_yy:
        real_HBX = image_HBI if image_HBI is not None else token_HBP if target_HBP is None else target_HBP
        some = slice(settings.rebuilt_batch or None)
        rebuilt_HRX = stack.decode(content_HBK[:, some], style_HBS[:, some])
        terms["L_y"], shown["token"] = reconstruction(rebuilt_HRX, real_HBX[:, some], pixels=image_HBI is not None)
    if mixed_HBK is not None and share_HB1 is not None:
        given_HBK = content_HBK.detach() if vote_HBK is None else vote_HBK
        followed_HBK = losses.sharpened(content_BK=given_HBK, temperature=settings.mix_temperature)
        terms["L_mix"] = losses.interpolation(logits_BK=mixed_HBK, content_BK=followed_HBK, share_B1=share_HB1)
    terms |= {"content_entropy": entropy, "content_kl": marginal_kl}
    if settings.lambda_c and settings.content_term == "entropy":
        terms["D_c"] = marginal_kl + settings.entropy_weight * entropy
    if settings.lambda_s and settings.style_term != "adversarial":
        terms["D_s"] = closed_form_style(style_HBS, prior_HBS, settings)
    for name in stack.critics:
        judged[name], symbol = stack.judge(name, shown[name]), SYMBOLS[name]
        terms[symbol] = losses.adversarial(logit_B=judged[name], estimator=settings.estimator)
        terms[f"{symbol}_kl"] = losses.density_ratio_kl(logit_B=judged[name].detach())
    return terms, judged


def reconstruction(rebuilt_HRX: Tensor, real_HRX: Tensor, *, pixels: bool) -> tuple[Tensor, Tensor]:
    """L_y `(H,)` and what D_y looks at: rebuilt tokens, or rebuilt pixels in [0, 1]."""
    if pixels:
        return losses.image_reconstruction(pixel_BI=real_HRX, logit_BI=rebuilt_HRX), rebuilt_HRX.sigmoid()
    return losses.token_reconstruction(token_BD=real_HRX.detach(), rebuilt_BD=rebuilt_HRX), rebuilt_HRX


def closed_form_style(style_HBS: Tensor, prior_HBS: Tensor | None, settings: HeadSettings) -> Tensor:
    """D_s `(H,)` without a discriminator."""
    if settings.style_term == "gaussian":
        return losses.gaussian_kl(style_BS=style_HBS)
    return losses.mmd(style_BS=style_HBS, prior_BS=torch.randn_like(style_HBS) if prior_HBS is None else prior_HBS)


def total(terms: dict[str, Tensor], settings: HeadSettings) -> Tensor:
    """L_total `(H,)`: the weighted sum of the terms at hand."""
    weights = {
        "L_c": 1.0, "D_c": settings.lambda_c, "D_s": settings.lambda_s, "D_y": settings.lambda_y,
        "L_y": settings.lambda_yy, "L_mix": settings.lambda_mix,
    }  # fmt: skip
    return torch.stack([weights[name] * value for name, value in terms.items() if name in weights]).sum(0)


def critic_losses(stack: ContentStyle, judged: dict[str, Tensor], reals: dict[str, Tensor]) -> dict[str, Tensor]:
    """Binary cross-entropy `(H,)` of every discriminator, prior or real rows against the model's.

    `judged` are the logits that encoder and decoder were judged by: one forward pass of their rows serves both, and
    its gradient is asked for the discriminator's weights alone.
    """
    return {
        name: losses.discriminator_loss(logit_prior_B=stack.judge(name, reals[name]), logit_model_B=logit_HB)
        for name, logit_HB in judged.items()
    }


def critics_in_use(settings: HeadSettings) -> dict[str, int]:
    """Discriminators that the settings ask for -> hidden width."""
    use = {
        "content": settings.lambda_c > 0 and settings.content_term == "adversarial",
        "style": settings.lambda_s > 0 and settings.style_term == "adversarial",
        "token": settings.lambda_y > 0,
    }
    return {name: settings.discriminator for name, wanted in use.items() if wanted}
