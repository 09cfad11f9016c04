"""Content-style networks, many heads side by side as stacked tensors.

Legend: `H` heads, `B` batch rows, `D` token width, `P` projected width, `F` hidden width, `K` classes, `S` style.
A stack of one head is an ordinary head: the same code serves the study of hundreds and the one that is kept.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from cspipe.headtrain.derivatives import KeptAndMixed
from cspipe.headtrain.settings import Norm, Precision


class StackedLinear(nn.Module):
    """H linear layers in one product, `(H, B, in)` -> `(H, B, out)`, initialised as `nn.Linear` is.

    Before a batch norm, which takes the bias out again, `learn_bias` is False: there the bias's gradient is rounding
    noise, which Adam would blow up to whole steps that the running statistics lag behind.
    """

    def __init__(
        self, wide_in: int, wide_out: int, generators: Sequence[torch.Generator], *, learn_bias: bool = True
    ) -> None:
        super().__init__()
        bound = 1 / math.sqrt(wide_in)

        def draw(rows: int) -> Tensor:
            return torch.stack([(torch.rand(rows, wide_out, generator=g) * 2 - 1) * bound for g in generators])

        self.weight = nn.Parameter(draw(wide_in))
        self.bias = nn.Parameter(draw(1), requires_grad=learn_bias)

    def forward(self, x_HBI: Tensor, outputs: int | None = None) -> Tensor:
        """One batched product; with `outputs` only so many of what comes out, the first."""
        return torch.baddbmm(self.bias[..., :outputs], x_HBI, self.weight[..., :outputs])


class StackedBatchNorm(nn.Module):
    """H batch norms over their own rows, `(H, B, F)` -> `(H, B, F)`; running statistics as `nn.BatchNorm1d`."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, width))
        self.bias = nn.Parameter(torch.zeros(heads, width))
        self.register_buffer("running_mean", torch.zeros(heads, width))
        self.register_buffer("running_var", torch.ones(heads, width))

    def forward(self, x_HBF: Tensor) -> Tensor:
        """Rows first, so that all heads' features are the channels of one fused batch norm."""
        heads, rows, width = x_HBF.shape
        flat_BC = functional.batch_norm(
            x_HBF.transpose(0, 1).reshape(rows, heads * width), self.running_mean.view(-1), self.running_var.view(-1),
            self.weight.view(-1), self.bias.view(-1), self.training, 0.1,
        )  # fmt: skip
        return flat_BC.view(rows, heads, width).transpose(0, 1)


def two_layers(
    wide_in: int, hidden: int, wide_out: int, norm: Norm, generators: Sequence[torch.Generator]
) -> nn.Sequential:
    """Linear, norm, ReLU, linear. With a layer norm no row's result depends on the rows beside it."""
    batch = norm == "batch"
    between = StackedBatchNorm(hidden, len(generators)) if batch else nn.LayerNorm(hidden, elementwise_affine=False)
    return nn.Sequential(
        StackedLinear(wide_in, hidden, generators, learn_bias=not batch), between, nn.ReLU(inplace=not batch),
        StackedLinear(hidden, wide_out, generators),
    )  # fmt: skip


def discriminator(wide_in: int, hidden: int, generators: Sequence[torch.Generator]) -> nn.Sequential:
    """`(H, B, in)` -> logits `(H, B, 1)`: two hidden layers of ReLU, as in the predecessor."""
    return nn.Sequential(
        StackedLinear(wide_in, hidden, generators), nn.ReLU(),
        StackedLinear(hidden, hidden, generators), nn.ReLU(),
        StackedLinear(hidden, 1, generators),
    )  # fmt: skip


class ContentStyle(nn.Module):
    """H content-style heads: encoder P-F-(K+S), decoder (K+S)-F-P, one discriminator a prior in use.

    Args:
        width: projected token width P.
        classes: K.
        style: S.
        hidden: F.
        norm: between the layers of encoder and decoder, `layer` or `batch`.
        critics: name of each discriminator (`content`, `style`, `token`) -> its hidden width.
        seeds: one training seed a head: a head's first weights do not depend on its neighbours.
        precision: of the products while the stack trains; what goes in and comes out keeps its float type.
    """

    def __init__(
        self,
        *,
        width: int,
        classes: int,
        style: int,
        hidden: int,
        norm: Norm = "layer",
        critics: dict[str, int],
        seeds: Sequence[int],
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        self.width, self.classes, self.style, self.hidden = width, classes, style, hidden
        self.norm, self.critic_widths, self.precision = norm, dict(critics), precision
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.encoder = two_layers(width, hidden, classes + style, norm, generators)
        self.decoder = two_layers(classes + style, hidden, width, norm, generators)
        wide_in = {"content": classes, "style": style, "token": width}
        self.critics = nn.ModuleDict(
            {name: discriminator(wide_in[name], wide, generators) for name, wide in critics.items()}
        )

    def encode(self, token_HXP: Tensor) -> tuple[Tensor, Tensor]:
        """Content logits `(H, X, K)` and style `(H, X, S)`; the style is deterministic."""
        return self.code_of(self.through(self.encoder[0], token_HXP))

    def encode_with_mixes(self, token_HXP: Tensor, share_HB1: Tensor, *, kept: int) -> tuple[Tensor, Tensor, Tensor]:
        """Content logits and style of the first `kept` rows, and the logits `(H, B, K)` of the last B rows mixed.

        Each of these keeps its share and takes the rest from the one before it. The first layer is linear, so its
        values are mixed in place of the tokens: the same to rounding, and rows that are encoded anyway are mixed
        without a product. Mixed rows then go their own way, which spares a copy of everything and their style, but for
        a batch norm: its statistics are those of all rows.
        """
        hidden_HXF = self.through(self.encoder[0], token_HXP)
        hidden_HXF, mixed_HBF = KeptAndMixed.apply(hidden_HXF, share_HB1, kept)
        if self.norm == "batch":
            logits_HXK, style_HXS = self.code_of(torch.cat([hidden_HXF, mixed_HBF], 1))
            return logits_HXK[:, :kept], style_HXS[:, :kept], logits_HXK[:, kept:]
        norm, activation, last = self.encoder[1:]
        content_HBK = self.through(lambda hidden: last(activation(norm(hidden)), self.classes), mixed_HBF)
        return *self.code_of(hidden_HXF), content_HBK

    def code_of(self, hidden_HXF: Tensor) -> tuple[Tensor, Tensor]:
        """Content logits and style of what the encoder's first layer gave."""
        code_HXC = self.through(self.encoder[1:], hidden_HXF)
        logits_HXK, style_HXS = torch.split(code_HXC, [self.classes, self.style], -1)
        return logits_HXK, style_HXS

    def decode(self, content_HBK: Tensor, style_HBS: Tensor) -> Tensor:
        """Rebuilt token `(H, B, P)` from class probabilities and style."""
        return self.through(self.decoder, torch.cat([content_HBK, style_HBS], -1))

    def judge(self, critic: str, sample_HBX: Tensor) -> Tensor:
        """The named discriminator's logits `(H, B)`, an estimate of log prior/model."""
        return self.through(self.critics[critic], sample_HBX).squeeze(-1)

    def through(self, network: Callable[[Tensor], Tensor], x_HBI: Tensor) -> Tensor:
        """What a network gives, its products in bf16 where the stack trains so."""
        half = self.training and self.precision == "bf16"
        with torch.autocast(x_HBI.device.type, torch.bfloat16) if half else nullcontext():
            out = network(x_HBI)
        return out.to(x_HBI.dtype)

    def generator_parameters(self) -> list[nn.Parameter]:
        """What learns of encoder and decoder."""
        return [p for part in (self.encoder, self.decoder) for p in part.parameters() if p.requires_grad]

    def one(self, head: int) -> "ContentStyle":
        """The named head alone, as a stack of one with its own copy of the weights."""
        alone = ContentStyle(
            width=self.width, classes=self.classes, style=self.style, hidden=self.hidden, norm=self.norm,
            critics=self.critic_widths, seeds=[0],
        ).to(next(self.parameters()))  # fmt: skip
        alone.load_state_dict({name: value[head : head + 1].clone() for name, value in self.state_dict().items()})
        return alone.train(self.training)
