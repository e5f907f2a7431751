"""LeViT: a vision transformer whose every linear layer has a BN (Graham et al. 2021, https://arxiv.org/abs/2104.01136)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnfold.models.shapes import image_shape
from bnfold.models.style import PLAIN, Style


class Attention(nn.Module):
    """Softmax attention between the tokens of an image, with a learned bias per pair of tokens and head.

    `(N, tokens, width)` → the same; queries and keys have `key` features a head, values twice as many.
    """

    def __init__(self, tokens: int, width: int, heads: int, key: int, style: Style = PLAIN) -> None:
        super().__init__()
        self.tokens, self.width, self.heads, self.key = tokens, width, heads, key
        self.qkv = style.linear(width, heads * 4 * key)
        self.bias = nn.Parameter(torch.zeros(heads, tokens, tokens))
        self.project = nn.Sequential(nn.Hardswish(), style.linear(2 * heads * key, width))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, tokens, width)` → the same."""
        parts = self.qkv(x.reshape(-1, self.width)).reshape(-1, self.tokens, self.heads, 4 * self.key).transpose(1, 2)
        query, key, value = parts.split((self.key, self.key, 2 * self.key), dim=3)
        weights = (query @ key.transpose(2, 3) * self.key**-0.5 + self.bias).softmax(3)
        joined = (weights @ value).transpose(1, 2).reshape(-1, self.heads * 2 * self.key)
        out: Tensor = self.project(joined).reshape(-1, self.tokens, self.width)
        return out


class Block(nn.Module):
    """`x + attention(x)`, then `x + mlp(x)`, with BN in place of layer norm: `(N, tokens, width)` → the same."""

    def __init__(self, tokens: int, width: int, heads: int, key: int, style: Style = PLAIN) -> None:
        super().__init__()
        # Sizes known when it is built stay constants in an exported graph; x.shape would be read at run time.
        self.tokens, self.width = tokens, width
        self.attention = Attention(tokens, width, heads, key, style)
        self.mlp = nn.Sequential(style.linear(width, 2 * width, nn.Hardswish), style.linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, tokens, width)` → the same."""
        x = x + self.attention(x)
        out: Tensor = x + self.mlp(x.reshape(-1, self.width)).reshape(-1, self.tokens, self.width)
        return out


class LeViT(nn.Module):
    """A convolutional stem that halves the image, `depth` blocks of attention on its pixels, mean, BN, linear head.

    `(N, C, H, W)` → logits `(N, classes)`. Defaults: 11 BNs. Raises `ValueError` where `input_shape` is not
    `(C, H, W)`.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int] = (1, 8, 8),
        classes: int = 10,
        width: int = 32,
        depth: int = 2,
        heads: int = 2,
        key: int = 8,
        style: Style = PLAIN,
    ) -> None:
        super().__init__()
        channels, height, columns = image_shape(input_shape)
        half = max(width // 2, 1)
        self.stem = nn.Sequential(
            style.conv(channels, half, 3, nn.Hardswish), style.conv(half, width, 3, stride=2)
        )
        tokens = (height + 1) // 2 * ((columns + 1) // 2)
        self.blocks = nn.Sequential(*(Block(tokens, width, heads, key, style) for _ in range(depth)))
        self.norm = style.normalization(width, rank=0)
        self.head = style.head(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` → logits `(N, classes)`."""
        tokens = self.blocks(self.stem(x).flatten(2).transpose(1, 2))
        logits: Tensor = self.head(self.norm(tokens.mean(1)))
        return logits
