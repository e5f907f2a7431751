"""ResNet: residual blocks with BN after every convolution (He et al. 2015, https://arxiv.org/abs/1512.03385)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bnfold.models.shapes import image_shape
from bnfold.models.style import PLAIN, Style


class BasicBlock(nn.Module):
    """`relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))`.

    `(N, inputs, H, W)` → `(N, outputs, ceil(H / stride), ceil(W / stride))`; the shortcut is the identity, or a 1×1
    convolution with BN where the shape changes (option B of the paper).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, style: Style = PLAIN) -> None:
        super().__init__()
        self.conv1 = style.conv(inputs, outputs, 3, nn.ReLU, stride=stride)
        self.conv2 = style.conv(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else style.conv(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` → `(N, outputs, H', W')`."""
        return torch.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class ResNet(nn.Module):
    """A small residual classifier: a 3×3 stem, one stage per entry of `blocks`, average pool, linear head.

    `(N, C, H, W)` → logits `(N, classes)`. Stage i has `blocks[i]` blocks of `width · 2^i` channels, and every stage
    but the first halves the image. Defaults: 7 convolutions and 2 shortcuts, so 9 BNs. Raises `ValueError` where
    `input_shape` is not `(C, H, W)`.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int] = (1, 8, 8),
        classes: int = 10,
        width: int = 16,
        blocks: Sequence[int] = (1, 1, 1),
        style: Style = PLAIN,
    ) -> None:
        super().__init__()
        channels = image_shape(input_shape)[0]
        self.stem = style.conv(channels, width, 3, nn.ReLU)
        stages: list[nn.Module] = []
        inputs = width
        for stage, depth in enumerate(blocks):
            outputs = width * 2**stage
            for block in range(depth):
                stages.append(BasicBlock(inputs, outputs, 2 if stage and not block else 1, style))
                inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = style.head(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` → logits `(N, classes)`."""
        logits: Tensor = self.head(self.stages(self.stem(x)).mean((2, 3)))
        return logits
