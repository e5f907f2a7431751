"""What merging did: the layers that became one, and those that were left apart, with their costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bnfold.merging.costs import Cost

BIASED = "the bias between them would differ at the padded border"
COSTS_MORE = "one layer would cost more"
READ_ELSEWHERE = "a value inside has other readers"


@dataclass(frozen=True)
class Merge:
    """Layers that became one (an exchange: changed places), or that were left apart with the reason.

    Costs are those of one inference, of values of `itemsize` bytes; both are the same where there is no such layer.
    """

    law: Literal["sum", "composition", "exchange"]
    nodes: tuple[str, ...]
    into: str | None
    before: Cost
    after: Cost
    itemsize: int
    reason: str | None = None

    @property
    def cost_before(self) -> float:
        """The cost model's figure of the layers apart, in multiply-accumulates."""
        return self.before.total

    @property
    def cost_after(self) -> float:
        """The cost model's figure of the one layer."""
        return self.after.total

    def to_dict(self) -> dict[str, Any]:
        return {
            "law": self.law,
            "nodes": list(self.nodes),
            "into": self.into,
            "cost": {"before": self.cost_before, "after": self.cost_after},
            "macs": {"before": self.before.macs, "after": self.after.macs},
            "bytes": {"before": self.before.moved * self.itemsize, "after": self.after.moved * self.itemsize},
            "reason": self.reason,
        }
