"""PointNet: one small net for every point, then a maximum (Qi et al. 2016, https://arxiv.org/abs/1612.00593)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.style import PLAIN, Style


class PointNet(nn.Module):
    """Conv1d of kernel 1, BN and ReLU three times, the maximum over the points, a linear layer with BN, a head.

    `(N, coordinates, points)` → logits `(N, classes)`, whatever the order of the points. The paper's "vanilla" net,
    without the learned transforms. Defaults: 4 BNs. Raises `ValueError` where `input_shape` is not two positive sizes.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int] = (3, 48),
        classes: int = 10,
        widths: Sequence[int] = (32, 64, 128),
        style: Style = PLAIN,
    ) -> None:
        super().__init__()
        if len(input_shape) != 2 or min(input_shape) < 1:
            raise ValueError(f"input_shape must be (coordinates, points), got {tuple(input_shape)}")
        sizes = (input_shape[0], *widths)
        self.points = nn.Sequential(*(style.conv(a, b, 1, nn.ReLU, rank=1) for a, b in itertools.pairwise(sizes)))
        self.body = style.linear(sizes[-1], sizes[-1] // 2, nn.ReLU)
        self.head = style.head(sizes[-1] // 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, coordinates, points)` → logits `(N, classes)`."""
        logits: Tensor = self.head(self.body(self.points(x).amax(2)))
        return logits
