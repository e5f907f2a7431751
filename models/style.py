"""How the layers of an architecture are built: the one factory of norms, and of blocks around them.

Every architecture takes one `Style`, so that BN can be compared with its alternatives on the same net:

| norm | statistics over | source |
|---|---|---|
| batch | the batch and all positions, per channel | Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167 |
| layer | all channels and positions of one example | Ba et al. 2016, https://arxiv.org/abs/1607.06450 |
| group | groups of channels and all positions of one example | Wu & He 2018, https://arxiv.org/abs/1803.08494 |
| instance | all positions of one channel of one example | Ulyanov et al. 2016, https://arxiv.org/abs/1607.08022 |
| none | nothing: a bias instead | |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

NORMS = ("batch", "layer", "group", "instance", "none")
POSITIONS = ("before", "after")

Activation = Callable[[], nn.Module]

_BATCH = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d}
_CONV = {1: nn.Conv1d, 2: nn.Conv2d}


class NoNorm(nn.Identity):
    """Where a norm would stand; a report looks at the activations there all the same."""


@dataclass(frozen=True)
class Style:
    """Which norm stands where, with which constants, and how much is dropped before the head.

    `position` is the norm's, before or after the activation. `momentum` is PyTorch's: the weight of the newest batch
    in the running statistics. Raises `ValueError` for what is not known or out of range.
    """

    norm: str = "batch"
    position: str = "before"
    momentum: float = 0.1
    eps: float = 1e-5
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, value, known in (("norm", self.norm, NORMS), ("position", self.position, POSITIONS)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; give {', '.join(known)}")
        for name, number, sound, range_ in (
            ("momentum", self.momentum, 0 < self.momentum <= 1, "above 0, at most 1"),
            ("eps", self.eps, 0 < self.eps < math.inf, "a finite number above 0"),
            ("dropout", self.dropout, 0 <= self.dropout < 1, "from 0, below 1"),
        ):
            if not sound:
                raise ValueError(f"{name} is {number}; it must be {range_}")

    def normalization(self, channels: int, rank: int = 2) -> nn.Module:
        """The norm of `(N, channels, *positions)` with `rank` axes of positions; 0 is for vectors `(N, channels)`."""
        if self.norm == "batch":
            return _BATCH[rank](channels, eps=self.eps, momentum=self.momentum)
        if self.norm == "none":
            return NoNorm()
        # A vector has one position, where a norm over positions alone would leave nothing but zeros.
        each = channels if rank else 1
        groups = {"layer": 1, "group": math.gcd(channels, 4), "instance": each}[self.norm]
        return nn.GroupNorm(groups, channels, eps=self.eps)

    def normed(self, channels: int, activation: Activation = nn.ReLU, rank: int = 2) -> nn.Sequential:
        """Norm and activation, in the order that `position` says."""
        pair = (self.normalization(channels, rank), activation())
        return nn.Sequential(*(pair if self.position == "before" else pair[::-1]))

    def conv(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        activation: Activation | None = None,
        *,
        stride: int = 1,
        groups: int = 1,
        rank: int = 2,
    ) -> nn.Sequential:
        """Convolution, padded to keep the size at stride 1, then norm and activation, if any, in their order.

        `(N, inputs, *positions)` → `(N, outputs, *ceil(positions / stride))`; `kernel` is odd.
        """
        bias = self._needs_bias(activation)
        layer = _CONV[rank](inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)
        return nn.Sequential(layer, *self._tail(outputs, activation, rank))

    def up(self, inputs: int, outputs: int, kernel: int, activation: Activation, *, stride: int = 2) -> nn.Sequential:
        """Transposed convolution, then norm and activation: `(N, inputs, H, W)` → `(N, outputs, stride·H, stride·W)`.

        `kernel − stride` is even and not negative.
        """
        layer = nn.ConvTranspose2d(
            inputs, outputs, kernel, stride, padding=(kernel - stride) // 2, bias=self._needs_bias(activation)
        )
        return nn.Sequential(layer, *self._tail(outputs, activation, 2))

    def linear(self, inputs: int, outputs: int, activation: Activation | None = None) -> nn.Sequential:
        """Linear layer, then norm and activation, if any, in their order: `(N, inputs)` → `(N, outputs)`."""
        layer = nn.Linear(inputs, outputs, bias=self._needs_bias(activation))
        return nn.Sequential(layer, *self._tail(outputs, activation, 0))

    def head(self, inputs: int, outputs: int) -> nn.Module:
        """The last layer, a linear one behind the dropout, if any: `(N, inputs)` → `(N, outputs)`."""
        layer = nn.Linear(inputs, outputs)
        return nn.Sequential(nn.Dropout(self.dropout), layer) if self.dropout else layer

    def branch(self, activation: Activation | None) -> Style:
        """The style of branches whose sum goes through `activation`: with no norm where the sum's stands behind it."""
        return replace(self, norm="none") if activation is not None and self.position == "after" else self

    def _needs_bias(self, activation: Activation | None) -> bool:
        # The norm's own shift is the bias where the norm follows at once.
        return self.norm == "none" or (activation is not None and self.position == "after")

    def _tail(self, channels: int, activation: Activation | None, rank: int) -> nn.Sequential | tuple[nn.Module]:
        if activation is None:
            return (self.normalization(channels, rank),)
        return self.normed(channels, activation, rank)


PLAIN = Style()
"""BN before the activation with PyTorch's constants."""
