"""LeNet-5 with BN (LeCun et al. 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-01a.pdf)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.shapes import image_shape
from bnfold.models.style import PLAIN, Style


class LeNet(nn.Module):
    """Two 5×5 convolutions (6 and 16 maps), each with tanh and an average pool, then layers of 120 and 84 and a head.

    `(N, C, H, W)` → logits `(N, classes)`. Both convolutions are padded, so that 8×8 is enough. 4 BNs. Raises
    `ValueError` where `input_shape` is not `(C, H, W)` with H and W at least 4.
    """

    def __init__(
        self, *, input_shape: Sequence[int] = (1, 8, 8), classes: int = 10, style: Style = PLAIN
    ) -> None:
        super().__init__()
        channels, height, width = image_shape(input_shape, least=4)
        self.features = nn.Sequential(
            style.conv(channels, 6, 5, nn.Tanh),
            nn.AvgPool2d(2),
            style.conv(6, 16, 5, nn.Tanh),
            nn.AvgPool2d(2),
            nn.Flatten(),
        )
        self.body = nn.Sequential(
            style.linear(16 * (height // 4) * (width // 4), 120, nn.Tanh), style.linear(120, 84, nn.Tanh)
        )
        self.head = style.head(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` → logits `(N, classes)`."""
        logits: Tensor = self.head(self.body(self.features(x)))
        return logits
