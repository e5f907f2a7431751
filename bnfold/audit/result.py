"""What an audit says: findings, the layers ranked by their drift, and what recalibration changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bnfold.audit.drift import LayerDrift, largest
from bnfold.audit.findings import AuditFinding, Code
from bnfold.audit.observe import Unobserved
from bnfold.errors import UsageError


@dataclass(frozen=True)
class Drift:
    """Every observed BatchNorm against the data, the most distant first; `examples` is how many were seen."""

    examples: int
    layers: tuple[LayerDrift, ...]
    unobserved: tuple[Unobserved, ...] = ()

    @property
    def score(self) -> float:
        """One number for the model: the distance of its most distant layer, in σ."""
        return largest(self.layers)

    def to_dict(self) -> dict[str, Any]:
        return {
            "examples": self.examples,
            "score": self.score,
            "layers": [layer.to_dict() for layer in self.layers],
            "unobserved": [site.to_dict() for site in self.unobserved],
        }


@dataclass(frozen=True)
class AuditReport:
    """Whether a model's BatchNorms are sound and fit the data; `allowed` findings do not count.

    `accuracy` holds the shares of right predictions before and after recalibration, where they are known; `negated`
    says that the recalibrated model takes its input with the opposite sign.
    """

    batch_norms: int
    findings: tuple[AuditFinding, ...] = ()
    allowed: tuple[AuditFinding, ...] = ()
    drift: Drift | None = None
    accuracy: tuple[float | None, float | None] = (None, None)
    recalibrated: tuple[str, ...] = ()
    negated: bool = False
    write: Callable[[str | os.PathLike[str]], None] | None = field(default=None, compare=False, repr=False)

    @property
    def exit_code(self) -> int:
        """0 nothing found, 1 findings."""
        return 1 if self.findings else 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the recalibrated model, whole or not at all. Raises `OutputError`, or `UsageError` if there is none."""
        if self.write is None:
            raise UsageError("nothing was recalibrated; call audit with recalibrate=True and data")
        self.write(path)

    def to_dict(self) -> dict[str, Any]:
        before, after = self.accuracy
        return {
            "status": "findings" if self.findings else "sound",
            "batch_norms": self.batch_norms,
            "findings": [finding.to_dict() for finding in self.findings],
            "allowed": [finding.to_dict() for finding in self.allowed],
            "drift": None if self.drift is None else self.drift.to_dict(),
            "accuracy": {"before": before, "after": after},
            "recalibrated": list(self.recalibrated),
            "negated": self.negated,
        }

    def __str__(self) -> str:
        count = len(self.findings)
        what = "nothing found" if not count else f"{count} finding{'s' if count > 1 else ''}"
        text = f"{self.batch_norms} BatchNorm{'s' if self.batch_norms != 1 else ''}: {what}"
        if self.drift is not None:
            text += f"; drift {self.drift.score:.2f}σ over {self.drift.examples} examples"
        before, after = self.accuracy
        if before is not None and after is not None:
            text += f"; accuracy {before:.2%}, {after:.2%} once recalibrated" + (" (worse)" if after < before else "")
        return text


def drifted(layer: LayerDrift) -> AuditFinding | None:
    """The finding that a layer's drift is, if it is one."""
    channels = int(layer.flagged.sum())
    numbers = {"distance": layer.distance, "shift": layer.median_shift, "ratio": layer.median_ratio, "count": channels}
    if layer.large:
        off = f"mean off by {layer.median_shift:.2f}σ, variance by a factor of {layer.median_ratio:.2f}"
        return AuditFinding(Code.DRIFTED, layer.name, f"median channel: {off}", numbers)
    if channels:
        shift, ratio = layer.shift[layer.worst], layer.ratio[layer.worst]
        worst = f"worst is {layer.worst}: mean {shift:+.2f}σ, variance {ratio:.2f} of the frozen one"
        detail = f"{channels} of {len(layer.shift)} channels, {worst}"
        return AuditFinding(Code.DRIFTED_CHANNELS, layer.name, detail, numbers)
    return None
