"""Inception: branches of different kernels, concatenated (Szegedy et al. 2014, https://arxiv.org/abs/1409.4842).

With BN and two 3×3 in place of a 5×5, as in the second version (Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnfold.models.shapes import image_shape
from bnfold.models.style import PLAIN, Style


class Mixed(nn.Module):
    """Four branches side by side: 1×1; 1×1 and 3×3; 1×1 and two 3×3; a max pool and 1×1. 7 BNs.

    `(N, inputs, H, W)` → `(N, 4·width, H, W)`.
    """

    def __init__(self, inputs: int, width: int, style: Style = PLAIN) -> None:
        super().__init__()

        def conv(channels: int, kernel: int) -> nn.Sequential:
            return style.conv(channels, width, kernel, nn.ReLU)

        self.branches = nn.ModuleList(
            (
                conv(inputs, 1),
                nn.Sequential(conv(inputs, 1), conv(width, 3)),
                nn.Sequential(conv(inputs, 1), conv(width, 3), conv(width, 3)),
                nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(inputs, 1)),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` → `(N, 4·width, H, W)`."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Inception(nn.Module):
    """A stem, two mixed blocks with a max pool between, average pool, linear head.

    `(N, C, H, W)` → logits `(N, classes)`. 15 BNs. Raises `ValueError` where `input_shape` is not `(C, H, W)` with H
    and W at least 2.
    """

    def __init__(
        self, *, input_shape: Sequence[int] = (1, 8, 8), classes: int = 10, width: int = 12, style: Style = PLAIN
    ) -> None:
        super().__init__()
        channels = image_shape(input_shape, least=2)[0]
        self.stem = style.conv(channels, 2 * width, 3, nn.ReLU)
        self.body = nn.Sequential(Mixed(2 * width, width, style), nn.MaxPool2d(2), Mixed(4 * width, width, style))
        self.head = style.head(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` → logits `(N, classes)`."""
        logits: Tensor = self.head(self.body(self.stem(x)).mean((2, 3)))
        return logits
