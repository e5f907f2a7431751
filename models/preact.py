"""Pre-activation ResNet: BN and ReLU before every convolution (He et al. 2016, https://arxiv.org/abs/1603.05027).

The first BN of a block stands between a residual sum and a ReLU: it folds only if its scale may go back through the
sum, which an identity shortcut that reads the same sum forbids. The second one follows a convolution.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.shapes import image_shape
from bnfold.models.style import PLAIN, Style


class PreActBlock(nn.Module):
    """`conv(relu(bn(conv(relu(bn(x)))))) + shortcut`; where the shape changes the shortcut reads `relu(bn(x))`.

    `(N, inputs, H, W)` → `(N, outputs, ceil(H / stride), ceil(W / stride))`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, style: Style = PLAIN) -> None:
        super().__init__()
        self.bn1 = style.normed(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = style.normed(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` → `(N, outputs, H', W')`."""
        active = self.bn1(x)
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(active)
        branch: Tensor = self.conv2(self.bn2(self.conv1(active)))
        return branch + shortcut


class PreActResNet(nn.Module):
    """A small pre-activation residual classifier: stem, stages of `PreActBlock`, a last BN, pool, linear head.

    `(N, C, H, W)` → logits `(N, classes)`; `width` and `blocks` as in `ResNet`. Defaults: 7 BNs. Raises `ValueError`
    where `input_shape` is not `(C, H, W)`.
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
        self.stem = nn.Conv2d(image_shape(input_shape)[0], width, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        inputs = width
        for stage, depth in enumerate(blocks):
            outputs = width * 2**stage
            for block in range(depth):
                stages.append(PreActBlock(inputs, outputs, 2 if stage and not block else 1, style))
                inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.bn = style.normed(inputs)
        self.head = style.head(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` → logits `(N, classes)`."""
        logits: Tensor = self.head(self.bn(self.stages(self.stem(x))).mean((2, 3)))
        return logits
