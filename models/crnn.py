"""CRNN: convolutions, then a recurrent net over the columns (Shi et al. 2015, https://arxiv.org/abs/1507.05717).

The BN in front of the recurrence normalises every feature over batch and steps (Laurent et al. 2015,
https://arxiv.org/abs/1510.01378).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from bnfold.models.shapes import image_shape
from bnfold.models.style import PLAIN, Style

_CELLS = {"lstm": nn.LSTM, "gru": nn.GRU}


class CRNN(nn.Module):
    """Three convolutions, each with BN, ReLU and a halving max pool, a BN, a bidirectional LSTM or GRU, a linear head.

    `(N, C, H, W)` → logits `(N, length, classes)`: one of `classes` symbols for each of the `length` equal parts that
    the strip has from left to right. 4 BNs. Raises `ValueError` for another `cell`, or where H or W is too small.
    """

    def __init__(
        self,
        *,
        input_shape: Sequence[int] = (1, 8, 24),
        classes: int = 10,
        length: int = 3,
        width: int = 16,
        hidden: int = 32,
        cell: str = "lstm",
        style: Style = PLAIN,
    ) -> None:
        super().__init__()
        channels, height, columns = image_shape(input_shape, least=8)
        self.length, self.each = length, columns // 8 // max(length, 1)
        if length < 1 or not self.each:
            raise ValueError(f"a strip of {columns} columns has no room for {length} symbols of 8 columns")
        if cell not in _CELLS:
            raise ValueError(f"cell is {cell!r}; give {', '.join(_CELLS)}")
        layers: list[nn.Module] = []
        for inputs, outputs in ((channels, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [style.conv(inputs, outputs, 3, nn.ReLU), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        features = 4 * width * (height // 8)
        self.norm = style.normalization(features, rank=1)
        self.recurrent = _CELLS[cell](features, hidden, batch_first=True, bidirectional=True)
        self.head = style.head(2 * hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` → logits `(N, length, classes)`."""
        steps = self.norm(self.features(x).flatten(1, 2)).transpose(1, 2)
        out = self.recurrent(steps)[0][:, : self.length * self.each]
        # The columns of one symbol share one answer.
        logits: Tensor = self.head(out.unflatten(1, (self.length, self.each)).mean(2))
        return logits
