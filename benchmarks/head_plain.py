"""The plain loop that head.py measures against: what a practitioner would write, one head at a time.

Fixed, and never tuned to anything: the paper's objective (arXiv 2410.02069) on the whole standardised token, with one
step of both discriminators a step of encoder and decoder.

Legend: `N` training rows, `D` token width, `K` classes, `S` style, `B` unlabelled and `L` labelled batch rows, `X`
both, `M` judged rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN, STYLE, CRITIC = 512, 32, 500
STEPS, BATCH, LABELLED, RATE = 2_000, 256, 100, 1e-3
LAMBDA_C = LAMBDA_S = 0.1


def two_layers(wide_in: int, wide_out: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear."""
    return nn.Sequential(nn.Linear(wide_in, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, wide_out))


def discriminator(wide_in: int) -> nn.Sequential:
    """Two hidden layers of ReLU, one logit."""
    return nn.Sequential(
        nn.Linear(wide_in, CRITIC), nn.ReLU(), nn.Linear(CRITIC, CRITIC), nn.ReLU(), nn.Linear(CRITIC, 1)
    )


class PlainHead(nn.Module):
    """Encoder D-512-(K+S), decoder (K+S)-512-D, a discriminator of content and one of style."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.encoder, self.decoder = two_layers(width, classes + STYLE), two_layers(classes + STYLE, width)
        self.critics = nn.ModuleList([discriminator(classes), discriminator(STYLE)])

    def generator_loss(self, token_XD: Tensor, label_L: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """L_c + .1 D_c + .1 D_s + L_y, with content and style of the unlabelled rows for the discriminators."""
        known, code_XC = len(label_L), self.encoder(token_XD)
        content_BK, style_BS = code_XC[known:, : self.classes].softmax(1), code_XC[known:, self.classes :]
        rebuilt_BD = self.decoder(torch.cat([content_BK, style_BS], 1))
        loss = F.cross_entropy(code_XC[:known, : self.classes], label_L)
        loss = loss + LAMBDA_C * F.softplus(-self.critics[0](content_BK)).mean()
        loss = loss + LAMBDA_S * F.softplus(-self.critics[1](style_BS)).mean()
        loss = loss + 1 - F.cosine_similarity(rebuilt_BD, token_XD[known:]).mean()
        return loss, content_BK.detach(), style_BS.detach()

    def critic_loss(self, content_BK: Tensor, style_BS: Tensor, prior_BK: Tensor, noise_BS: Tensor) -> Tensor:
        """Binary cross-entropy of both discriminators, prior = 1 and model = 0."""
        loss = F.softplus(self.critics[0](content_BK)).mean() + F.softplus(-self.critics[0](prior_BK)).mean()
        return loss + F.softplus(self.critics[1](style_BS)).mean() + F.softplus(-self.critics[1](noise_BS)).mean()

    def restart(self, seed: int) -> None:
        """First weights anew."""
        torch.manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.BatchNorm1d):
                module.reset_parameters()

    @torch.no_grad()
    def probabilities(self, token_MD: Tensor) -> Tensor:
        """Class probabilities `(M, K)`."""
        self.eval()
        return torch.cat([self.encoder(part)[:, : self.classes] for part in torch.split(token_MD, 4096)]).softmax(1)


@dataclass(frozen=True)
class PlainLoop:
    """A head, resident rows, and the two losses as they are or compiled."""

    net: PlainHead
    token_ND: Tensor
    label_N: Tensor
    generator_loss: Callable[..., Any]
    critic_loss: Callable[..., Any]

    def train(self, labelled: Tensor, steps: int = STEPS) -> None:
        """So many steps on these labelled rows and all rows."""
        own = [*self.net.encoder.parameters(), *self.net.decoder.parameters()]
        generator = torch.optim.Adam(own, lr=RATE, fused=True)
        critic = torch.optim.Adam(self.net.critics.parameters(), lr=RATE, fused=True)
        prior_BK = F.one_hot(torch.arange(BATCH) % self.net.classes, self.net.classes).float()
        self.net.train()
        for _ in range(steps):
            known = labelled[torch.randperm(len(labelled))[:LABELLED]]
            token_XD = self.token_ND[torch.cat([known, torch.randint(len(self.token_ND), (BATCH,))])]
            loss, content_BK, style_BS = self.generator_loss(token_XD, self.label_N[known])
            generator.zero_grad()
            loss.backward(inputs=own)
            generator.step()
            critic.zero_grad()
            self.critic_loss(content_BK, style_BS, prior_BK, torch.randn(BATCH, STYLE)).backward()
            critic.step()


def standardise(token_ND: Tensor, judged_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Both in single precision, with the mean and deviation of the first."""
    token_ND, judged_MD = token_ND.float(), judged_MD.float()
    mean_D, deviation_D = token_ND.mean(0), token_ND.std(0)
    deviation_D = torch.where(deviation_D > 1e-6, deviation_D, 1)
    return (token_ND - mean_D) / deviation_D, (judged_MD - mean_D) / deviation_D
