"""MobileNetV2: inverted residuals with depthwise convolutions (Sandler et al. 2018, https://arxiv.org/abs/1801.04381)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.shapes import image_shape
from bnfold.models.style import PLAIN, Style


class InvertedResidual(nn.Module):
    """1×1 expand, 3×3 depthwise, 1×1 linear projection, each with BN; added to the input where the shapes agree.

    `(N, inputs, H, W)` → `(N, outputs, ceil(H / stride), ceil(W / stride))`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int, style: Style = PLAIN) -> None:
        super().__init__()
        hidden = inputs * expand
        self.expand = style.conv(inputs, hidden, 1, nn.ReLU6)
        self.depthwise = style.conv(hidden, hidden, 3, nn.ReLU6, stride=stride, groups=hidden)
        self.project = style.conv(hidden, outputs, 1)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` → `(N, outputs, H', W')`."""
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


class MobileNet(nn.Module):
    """A small MobileNetV2: a 3×3 stem, four inverted residuals (strides 1, 2, 1, 2), a 1×1 convolution, pool, head.

    `(N, C, H, W)` → logits `(N, classes)`; channels are `width`, `2·width`, `2·width`, `4·width`. 14 BNs. Raises
    `ValueError` where `input_shape` is not `(C, H, W)`.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int] = (1, 8, 8),
        classes: int = 10,
        width: int = 16,
        expand: int = 3,
        style: Style = PLAIN,
    ) -> None:
        super().__init__()
        self.stem = style.conv(image_shape(input_shape)[0], width, 3, nn.ReLU6)
        self.blocks = nn.Sequential(
            InvertedResidual(width, width, 1, expand, style),
            InvertedResidual(width, 2 * width, 2, expand, style),
            InvertedResidual(2 * width, 2 * width, 1, expand, style),
            InvertedResidual(2 * width, 4 * width, 2, expand, style),
        )
        self.last = style.conv(4 * width, 8 * width, 1, nn.ReLU6)
        self.head = style.head(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` → logits `(N, classes)`."""
        x = self.last(self.blocks(self.stem(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits
