"""U-Net: down, up again, and a skip at every scale (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnfold.models.shapes import image_shape
from bnfold.models.style import PLAIN, Style


class UNet(nn.Module):
    """Two scales of double 3×3 convolutions down, a bottom, and two up by transposed convolutions, with skips.

    `(N, C, H, W)` → logits `(N, 1, H, W)` of a mask; channels are `width`, `2·width`, `4·width`. 12 BNs. Raises
    `ValueError` where `input_shape` is not `(C, H, W)` with H and W multiples of 4.
    """

    def __init__(self, *, input_shape: Sequence[int] = (1, 8, 8), width: int = 12, style: Style = PLAIN) -> None:
        super().__init__()
        channels = image_shape(input_shape, multiple=4)[0]

        def double(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(style.conv(inputs, outputs, 3, nn.ReLU), style.conv(outputs, outputs, 3, nn.ReLU))

        self.down1 = double(channels, width)
        self.down2 = double(width, 2 * width)
        self.bottom = double(2 * width, 4 * width)
        self.up2 = style.up(4 * width, 2 * width, 2, nn.ReLU)
        self.join2 = double(4 * width, 2 * width)
        self.up1 = style.up(2 * width, width, 2, nn.ReLU)
        self.join1 = double(2 * width, width)
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(style.dropout)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` → logits `(N, 1, H, W)`."""
        fine = self.down1(x)
        coarse = self.down2(self.pool(fine))
        x = self.drop(self.bottom(self.pool(coarse)))
        x = self.join2(torch.cat((coarse, self.up2(x)), dim=1))
        x = self.join1(torch.cat((fine, self.up1(x)), dim=1))
        logits: Tensor = self.head(x)
        return logits
