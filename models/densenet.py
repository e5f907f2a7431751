"""DenseNet: every layer reads all earlier ones (Huang et al. 2016, https://arxiv.org/abs/1608.06993).

Bottleneck layers (DenseNet-B): the second BN of a layer stands right after a 1×1 convolution and folds; the first
stands after a concatenation and before a ReLU, and stays unless its affine can reach every producer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnfold.models.shapes import image_shape
from bnfold.models.style import PLAIN, Style


class DenseLayer(nn.Module):
    """`concat(x, conv3x3(relu(bn(conv1x1(relu(bn(x)))))))`: `(N, inputs, H, W)` → `(N, inputs + growth, H, W)`."""

    def __init__(self, inputs: int, growth: int, style: Style = PLAIN) -> None:
        super().__init__()
        hidden = 2 * growth
        self.bn1 = style.normed(inputs)
        self.conv1 = nn.Conv2d(inputs, hidden, 1, bias=False)
        self.bn2 = style.normed(hidden)
        self.conv2 = nn.Conv2d(hidden, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` → `(N, inputs + growth, H, W)`."""
        return torch.cat((x, self.conv2(self.bn2(self.conv1(self.bn1(x))))), dim=1)


class DenseNet(nn.Module):
    """A small DenseNet-BC: a stem, two blocks of `layers` layers with a halving transition between, pool, head.

    `(N, C, H, W)` → logits `(N, classes)`, with H and W at least 2. Defaults: 14 BNs. Raises `ValueError` where
    `input_shape` is not `(C, H, W)` or too small.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int] = (1, 8, 8),
        classes: int = 10,
        growth: int = 12,
        layers: int = 3,
        style: Style = PLAIN,
    ) -> None:
        super().__init__()
        features = 2 * growth
        self.stem = nn.Conv2d(image_shape(input_shape, least=2)[0], features, 3, padding=1, bias=False)
        self.block1 = nn.Sequential(*(DenseLayer(features + i * growth, growth, style) for i in range(layers)))
        features += layers * growth
        squeeze = nn.Conv2d(features, features // 2, 1, bias=False)
        self.transition = nn.Sequential(*style.normed(features), squeeze, nn.AvgPool2d(2))
        features //= 2
        self.block2 = nn.Sequential(*(DenseLayer(features + i * growth, growth, style) for i in range(layers)))
        features += layers * growth
        self.bn = style.normed(features)
        self.head = style.head(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` → logits `(N, classes)`."""
        x = self.bn(self.block2(self.transition(self.block1(self.stem(x)))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits
