"""A single-shot detector on two scales (Liu et al. 2015, https://arxiv.org/abs/1512.02325)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnfold.models.boxes import RATIOS
from bnfold.models.shapes import image_shape
from bnfold.models.style import PLAIN, Style


class Detector(nn.Module):
    """Strided convolutions with BN and ReLU; on the maps of stride 4 and 8 a 3×3 convolution says what is where.

    `(N, C, H, W)` → `(N, boxes, 4 + classes + 1)`: for each of `boxes.default_boxes(H, W)` its four offsets, then the
    scores of background and of every class. 5 BNs. Raises `ValueError` where `input_shape` is not `(C, H, W)` with H
    and W multiples of 8.
    """

    def __init__(
        self, *, input_shape: Sequence[int] = (1, 24, 24), classes: int = 10, width: int = 16, style: Style = PLAIN
    ) -> None:
        super().__init__()
        channels = image_shape(input_shape, multiple=8)[0]
        self.values = 4 + classes + 1
        self.fine = nn.Sequential(
            style.conv(channels, width, 3, nn.ReLU, stride=2),
            style.conv(width, 2 * width, 3, nn.ReLU),
            style.conv(2 * width, 2 * width, 3, nn.ReLU, stride=2),
        )
        self.coarse = nn.Sequential(
            style.conv(2 * width, 4 * width, 3, nn.ReLU, stride=2), style.conv(4 * width, 4 * width, 3, nn.ReLU)
        )
        self.drop = nn.Dropout(style.dropout)
        each = len(RATIOS) * self.values
        self.heads = nn.ModuleList(nn.Conv2d(inputs, each, 3, padding=1) for inputs in (2 * width, 4 * width))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` → `(N, boxes, 4 + classes + 1)`."""
        fine = self.fine(x)
        maps = (fine, self.coarse(self.drop(fine)))
        found = [head(part).permute(0, 2, 3, 1).flatten(1) for head, part in zip(self.heads, maps, strict=True)]
        return torch.cat([part.unflatten(1, (-1, self.values)) for part in found], dim=1)
