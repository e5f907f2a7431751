"""RepVGG: plain 3×3 nets trained with branches (Ding et al. 2021, https://arxiv.org/abs/2101.03697)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.branches import Branches, reparameterized
from bnfold.models.shapes import image_shape
from bnfold.models.style import PLAIN, Style


class RepVGG(nn.Module):
    """Blocks of `relu(bn(conv3×3(x)) + bn(conv1×1(x)) + bn(x))`, average pool, linear head.

    `(N, C, H, W)` → logits `(N, classes)`. The first block makes `width` channels, with `stem_stride`; stage i has
    `blocks[i]` blocks of `width · 2^i`, and the first of every later stage halves the image. Only blocks that keep
    the shape have the third branch. Defaults: 4 blocks and 9 BNs. Raises `ValueError` where `input_shape` is not
    `(C, H, W)`.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int] = (1, 8, 8),
        classes: int = 10,
        width: int = 16,
        blocks: Sequence[int] = (1, 1, 1),
        stem_stride: int = 1,
        style: Style = PLAIN,
    ) -> None:
        super().__init__()
        inputs = width
        stages: list[nn.Module] = [self._block(image_shape(input_shape)[0], width, stem_stride, style)]
        for stage, depth in enumerate(blocks):
            outputs = width * 2**stage
            for block in range(depth):
                stages.append(self._block(inputs, outputs, 2 if stage and not block else 1, style))
                inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.head = style.head(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` → logits `(N, classes)`."""
        logits: Tensor = self.head(self.stages(x).mean((2, 3)))
        return logits

    @staticmethod
    def _block(inputs: int, outputs: int, stride: int, style: Style) -> Branches:
        return Branches(inputs, outputs, 3, nn.ReLU, stride=stride, style=style)

    def reparameterized(self) -> nn.Module:
        """The same net in eval mode with one convolution a block."""
        return reparameterized(self)
