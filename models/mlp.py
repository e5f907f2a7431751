"""A multilayer perceptron with BN before every activation (Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.style import PLAIN, Style


class MLP(nn.Module):
    """Flatten, then Linear, BN, ReLU for each entry of `hidden`, then a linear head.

    `(N, *input_shape)` → logits `(N, classes)`; any rank of input. Defaults: 2 BNs. Raises `ValueError` where
    `input_shape` is empty or not positive.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int] = (1, 8, 8),
        classes: int = 10,
        hidden: Sequence[int] = (128, 64),
        style: Style = PLAIN,
    ) -> None:
        super().__init__()
        if not input_shape or min(input_shape) < 1:
            raise ValueError(f"input_shape must be positive sizes, got {tuple(input_shape)}")
        layers: list[nn.Module] = [nn.Flatten()]
        features = math.prod(input_shape)
        for outputs in hidden:
            layers += style.linear(features, outputs, nn.ReLU)
            features = outputs
        self.body = nn.Sequential(*layers)
        self.head = style.head(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, *input_shape)` → logits `(N, classes)`."""
        logits: Tensor = self.head(self.body(x))
        return logits
