"""MobileOne: depthwise and pointwise convolutions, over-parameterized (Vasu et al. 2022, https://arxiv.org/abs/2206.04040)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.branches import Branches, reparameterized
from bnfold.models.shapes import image_shape
from bnfold.models.style import PLAIN, Style


class MobileOneBlock(nn.Module):
    """`relu(pointwise(relu(depthwise(x))))`, both a sum of `copies` convolutions and the input, each with BN.

    `(N, inputs, H, W)` → `(N, outputs, ceil(H / stride), ceil(W / stride))`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, copies: int, style: Style = PLAIN) -> None:
        super().__init__()
        self.depthwise = Branches(inputs, inputs, 3, nn.ReLU, stride=stride, groups=inputs, copies=copies, style=style)
        self.pointwise = Branches(inputs, outputs, 1, nn.ReLU, copies=copies, style=style)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` → `(N, outputs, H', W')`."""
        out: Tensor = self.pointwise(self.depthwise(x))
        return out


class MobileOne(nn.Module):
    """A stem, one stage of MobileOne blocks per entry of `blocks`, average pool, linear head.

    `(N, C, H, W)` → logits `(N, classes)`. Stage i has `blocks[i]` blocks of `width · 2^i` channels; the first block
    of every later stage halves the image, and the stem has `stem_stride`. Defaults: 19 BNs. Raises `ValueError` where
    `input_shape` is not `(C, H, W)`.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int] = (1, 8, 8),
        classes: int = 10,
        width: int = 16,
        blocks: Sequence[int] = (1, 1, 1),
        copies: int = 2,
        stem_stride: int = 1,
        style: Style = PLAIN,
    ) -> None:
        super().__init__()
        self.stem = Branches(image_shape(input_shape)[0], width, 3, nn.ReLU, stride=stem_stride, style=style)
        stages: list[nn.Module] = []
        inputs = width
        for stage, depth in enumerate(blocks):
            outputs = width * 2**stage
            for block in range(depth):
                stages.append(MobileOneBlock(inputs, outputs, 2 if stage and not block else 1, copies, style))
                inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = style.head(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` → logits `(N, classes)`."""
        logits: Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return logits

    def reparameterized(self) -> nn.Module:
        """The same net in eval mode with one convolution where there were branches."""
        return reparameterized(self)
