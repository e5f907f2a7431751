"""What layers cost: the multiply-accumulates and the values moved of one inference.

    layer               positions · weights                                 accumulates
                        positions · (outputs + inputs · steps) + weights    values moved
    addition, affine    every value read or written                         values moved

    cost  =  accumulates (× DEPTHWISE in a depthwise layer)  +  MOVE · values moved

Both constants are measured: docs/merging.md.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

# Moving a value between memory and core takes about as long as this many multiply-accumulates …
MOVE = 4.0
# … and one of a depthwise layer, which reuses nothing, as long as this many of a dense one.
DEPTHWISE = 3.0


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates of dense and of depthwise layers, and values moved, of one inference."""

    dense: float = 0.0
    depthwise: float = 0.0
    moved: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    @property
    def macs(self) -> float:
        """Multiply-accumulates of either kind."""
        return self.dense + self.depthwise

    @property
    def total(self) -> float:
        """The one figure that is compared, in accumulates of a dense layer."""
        return self.dense + DEPTHWISE * self.depthwise + MOVE * self.moved
