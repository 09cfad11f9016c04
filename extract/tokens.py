"""Names of tokens, and modules that read them out of one forward pass.

Legend: ``B`` batch, ``P`` class tokens and registers, ``N`` patches, ``D`` width of the network.

| token | what it is | width |
|---|---|---|
| ``cls`` | the class token after the last norm | D |
| ``mean-patch`` | mean of the patch tokens after the last norm | D |
| ``cls+mean`` | both, one behind the other | 2 D |
| ``pooled`` | what the network itself pools: mean of a feature map, attention pooling | its own |
| ``projected`` | CLIP's image embedding in the space that it shares with text, not scaled to length 1 | its own |
| ``summary`` | RADIO's class tokens of all teachers that have one, one behind the other | teachers x D |
| ``summary:K`` | the K-th of them, from 0 | D |
| ``block-K`` | the class token after block K, from 1, with the last norm applied | D |

A network without a class token gives the mean of its patches as ``block-K``.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

Read = Callable[[nn.Module, Tensor, tuple[str, ...]], dict[str, Tensor]]

_BLOCK = re.compile(r"(?:^|\.)(?:blocks|resblocks|layers|layer|stages)\.(\d+)\.")


def block_number(token: str) -> int | None:
    """3 for ``block-3``, None for a token of another kind."""
    return int(token[6:]) if re.fullmatch(r"block-[1-9]\d*", token) else None


def blocks_wanted(tokens: Sequence[str]) -> list[int]:
    """Numbers of the blocks among these tokens, ascending."""
    return sorted({number for token in tokens if (number := block_number(token)) is not None})


def sequence_widths(width: int, depth: int, *, class_token: bool, summary: int = 0) -> dict[str, int]:
    """Tokens of a transformer and their widths.

    Args:
        width: of one token, D.
        depth: its blocks.
        class_token: whether it has one.
        summary: how many class tokens a summary joins.
    """
    tokens = {"summary": summary * width} | {f"summary:{k}": width for k in range(summary)} if summary else {}
    tokens |= {"cls": width, "mean-patch": width, "cls+mean": 2 * width} if class_token else {"mean-patch": width}
    return tokens | {f"block-{number}": width for number in range(1, depth + 1)}


def sequence_token(
    token: str,
    prefix_BPD: Tensor,
    patch_BND: Tensor,
    summary: Sequence[int] = (),
    blocks: Mapping[int, Tensor] | None = None,
) -> Tensor:
    """One token of a transformer's last sequence, ``(B, its width)``.

    Args:
        token: see the table of this module.
        prefix_BPD: class tokens and registers after the last norm; P may be 0.
        patch_BND: patch tokens after the last norm.
        summary: numbers of the class tokens that a summary joins.
        blocks: number of a block to its token ``(B, D)``.
    """
    number = block_number(token)
    if number is not None:
        return (blocks or {})[number]
    if token == "cls":
        return prefix_BPD[:, 0]
    if token == "mean-patch":
        return patch_BND.mean(1)
    if token == "cls+mean":
        return torch.cat([prefix_BPD[:, 0], patch_BND.mean(1)], -1)
    if token == "summary":
        return prefix_BPD[:, list(summary)].flatten(1)
    return prefix_BPD[:, summary[int(token.removeprefix("summary:"))]]


def class_or_mean(prefix_BPD: Tensor | None, patch_BND: Tensor) -> Tensor:
    """The class token, or the mean of the patches where there is none."""
    return patch_BND.mean(1) if prefix_BPD is None or prefix_BPD.shape[1] == 0 else prefix_BPD[:, 0]


class TokenReader(nn.Module):
    """A network and the tokens that are read out of one forward pass of it: a dict of ``(B, width)``."""

    def __init__(self, network: nn.Module, read: Read, tokens: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.read = read
        self.tokens = tokens

    def forward(self, pixels_B3HW: Tensor) -> dict[str, Tensor]:
        """Every token by its name, from normalised pixels."""
        return self.read(self.network, pixels_B3HW, self.tokens)


class SideBySide(nn.Module):
    """The tokens of a reader as one vector: ``(B, 3, H, W)`` to ``(B, sum of their widths)``."""

    def __init__(self, reader: nn.Module, tokens: tuple[str, ...]) -> None:
        super().__init__()
        self.reader = reader
        self.tokens = tokens

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """The tokens one behind the other, from normalised pixels."""
        read = self.reader(pixels_B3HW)
        return torch.cat([read[token].float() for token in self.tokens], -1)


class OneToken(nn.Module):
    """A network and one token of it: ``(B, 3, H, W)`` to ``(B, width)``."""

    def __init__(self, network: nn.Module, read: Read, token: str) -> None:
        super().__init__()
        self.network = network
        self.read = read
        self.token = token

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """The token, from normalised pixels."""
        return self.read(self.network, pixels_B3HW, (self.token,))[self.token]

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Parameter name to the number of its block, timm's way: 0 the stem, what follows the last block is part of it.

        A parameter outside the blocks belongs to the end if it is a final norm, a pooling or a projection.
        """
        numbers = [int(found[1]) + 1 for name, _ in self.named_parameters() if (found := _BLOCK.search(name))]
        last = max(numbers, default=1)

        def number(name: str) -> int:
            if found := _BLOCK.search(name):
                return int(found[1]) + 1
            own = name.removeprefix("network.").removeprefix("trunk.").split(".")[0]
            end = own.startswith(
                ("norm", "fc_norm", "ln_post", "layernorm", "post_layernorm", "proj", "head", "attn_pool")
            )
            return last if end and own != "norm_pre" else 0

        return number
