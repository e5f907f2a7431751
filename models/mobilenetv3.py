"""MobileNetV3: squeeze-and-excitation and hard-swish (Howard et al. 2019, https://arxiv.org/abs/1905.02244)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.shapes import image_shape
from bnfold.models.style import PLAIN, Style


class SqueezeExcite(nn.Module):
    """A gate per channel, from the mean of every channel (Hu et al. 2017, https://arxiv.org/abs/1709.01507).

    `(N, channels, H, W)` → the same, times hard-sigmoid gates `(N, channels, 1, 1)`.
    """

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.gate = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1), nn.Hardsigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` → the same."""
        gated: Tensor = x * self.gate(x.mean((2, 3), keepdim=True))
        return gated


class Bottleneck(nn.Module):
    """1×1 expand, depthwise, gate, 1×1 linear projection; added to the input where the shapes agree.

    `(N, inputs, H, W)` → `(N, outputs, ceil(H / stride), ceil(W / stride))`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int,
        stride: int,
        expand: int,
        gated: bool,
        activation: type[nn.Module],
        style: Style = PLAIN,
    ) -> None:
        super().__init__()
        hidden = inputs * expand
        self.expand = style.conv(inputs, hidden, 1, activation)
        self.depthwise = style.conv(hidden, hidden, kernel, activation, stride=stride, groups=hidden)
        self.gate = SqueezeExcite(hidden) if gated else nn.Identity()
        self.project = style.conv(hidden, outputs, 1)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` → `(N, outputs, H', W')`."""
        out: Tensor = self.project(self.gate(self.depthwise(self.expand(x))))
        return x + out if self.residual else out


class MobileNetV3(nn.Module):
    """A small MobileNetV3: a hard-swish stem, four bottlenecks of every kind, a 1×1 convolution, pool, head.

    `(N, C, H, W)` → logits `(N, classes)`; channels are `width`, `width`, `2·width`, `2·width`, `4·width`. 14 BNs.
    Raises `ValueError` where `input_shape` is not `(C, H, W)`.
    """

    # Kernel, stride, gated, activation: the first bottlenecks of the paper use ReLU, the later ones hard-swish.
    ROWS = (
        (3, 1, True, nn.ReLU),
        (3, 2, False, nn.ReLU),
        (5, 1, True, nn.Hardswish),
        (5, 2, True, nn.Hardswish),
    )

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
        self.stem = style.conv(image_shape(input_shape)[0], width, 3, nn.Hardswish)
        widths = (width, width, 2 * width, 2 * width, 4 * width)
        self.blocks = nn.Sequential(
            *(
                Bottleneck(
                    widths[i], widths[i + 1], kernel=kernel, stride=stride, expand=expand, gated=gated,
                    activation=activation, style=style,
                )
                for i, (kernel, stride, gated, activation) in enumerate(self.ROWS)
            )
        )  # fmt: skip
        self.last = style.conv(4 * width, 8 * width, 1, nn.Hardswish)
        self.head = style.head(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` → logits `(N, classes)`."""
        x = self.last(self.blocks(self.stem(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits
