"""What a verification says: the verdict, its cells, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["pass", "mismatch", "inconclusive"]

SCHEMA_VERSION = 1
EXIT_CODES: dict[Status, int] = {"pass": 0, "mismatch": 1, "inconclusive": 3}


@dataclass(frozen=True)
class Finding:
    """One thing that speaks against a pass: the rule that it breaks, in a line, and where.

    `rule` is a key of `bnfold.report.findings.RULES`. What is None is not said: a finding of an output alone is of all
    its cells.
    """

    rule: str
    message: str
    layer: str | None = None
    output: str | None = None
    provider: str | None = None
    level: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def inconclusive(message: str, output: str | None = None) -> Finding:
    """A reason for which a verification proves nothing."""
    return Finding("inconclusive", message, output=output)


@dataclass(frozen=True)
class Cell:
    """One output on one provider at one level, as its worst sample shows it.

    `error` is RMS(candidate − y), `noise` RMS(original − y), `sensitivity` the RMS change of y under rounding of
    the weights (S), all over one sample's `values` elements, with y the original in float64; `limit` is
    τ·max(noise, sensitivity) and `ratio` error / limit. For integers and booleans `error` counts differing elements.
    `top1` and `top5` count the rows of class scores whose best and five best classes agree, are ties or differ.
    """

    provider: str
    level: str
    output: str
    status: Status
    ratio: float
    error: float
    limit: float
    noise: float
    sensitivity: float
    values: int
    sample: str
    top1: Mapping[str, int] = field(default_factory=dict)
    top5: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {key: _json(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate computes what the original does, with every figure that this rests on.

    `status` is "pass", "mismatch" or "inconclusive"; only a pass is a pass. `findings` say why it is none. `layers` are
    the windows in which the models differ, each with the local error it adds. `seconds` say where time went; they are
    no part of the result.
    """

    status: Status
    cells: tuple[Cell, ...] = ()
    findings: tuple[Finding, ...] = ()
    warnings: tuple[str, ...] = ()
    coverage: Mapping[str, Any] = field(default_factory=dict)
    certificate: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[Mapping[str, Any], ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The findings' messages."""
        return tuple(finding.message for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """0 pass, 1 mismatch, 3 inconclusive."""
        return EXIT_CODES[self.status]

    @property
    def ratio(self) -> float:
        """The worst error ratio over all cells, 1.0 being the limit; NaN if nothing was compared."""
        return max((cell.ratio for cell in self.cells), default=math.nan)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-safe form; numbers that are not finite become null."""
        return {
            "version": SCHEMA_VERSION,
            "status": self.status,
            "exit_code": self.exit_code,
            "ratio": _json(self.ratio),
            "reasons": list(self.reasons),
            "findings": [finding.to_dict() for finding in self.findings],
            "warnings": list(self.warnings),
            "cells": [cell.to_dict() for cell in self.cells],
            "layers": [_json(layer) for layer in self.layers],
            "coverage": _json(self.coverage),
            "certificate": _json(self.certificate),
            "settings": _json(self.settings),
        }

    def __str__(self) -> str:
        if self.status == "pass":
            providers = ", ".join(dict.fromkeys(cell.provider for cell in self.cells))
            proof = self.certificate.get("summary")
            text = f"pass: worst error {self.ratio:.2g} of the limit on {self.settings.get('samples')} inputs"
            text += f" ({providers})" + (f"; {proof}" if proof else "")
        else:
            more = f" (and {len(self.reasons) - 1} more)" if len(self.reasons) > 1 else ""
            text = f"{self.status}: {self.reasons[0] if self.reasons else 'no reason given'}{more}"
        count = len(self.warnings)
        return text + (f"; {count} warning{'s' if count > 1 else ''}" if count else "")


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
