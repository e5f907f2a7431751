"""Running totals of a verification: the worst sample of each cell, constancy of the outputs, coverage."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.arrays import Array
from bnfold.verify.compare import BEST, Measure, rms
from bnfold.verify.kernels.base import is_float
from bnfold.verify.verdict import Cell, Finding, Status, inconclusive

# Activations that clip to exactly zero: a channel that never leaves zero was never tested.
CLIPPING = ("Relu", "Clip", "HardSigmoid", "HardSwish", "ThresholdedRelu")

# o and y agree to within a small multiple of S if every kernel of the reference is right.
DISTRUST = 256.0


@dataclass
class CellTally:
    """What the samples of one provider, level and output add up to."""

    provider: str
    level: str
    output: str
    worst: Measure | None = None
    sample: str = ""
    samples: int = 0
    noisy: int = 0
    distrusted: int = 0
    best: dict[int, list[int]] = field(default_factory=dict)
    problems: dict[str, Finding] = field(default_factory=dict)
    doubts: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, m: Measure, sample: str, unit: float, classes: Mapping[int, tuple[int, int, int]]) -> None:
        """Count one sample's measure; `unit` is the unit roundoff.

        `classes` are, by number of best classes, the rows that agree, tie or differ.
        """
        self.samples += 1
        self.noisy += m.noisy
        self.distrusted += m.noise > DISTRUST * max(m.sensitivity, unit * m.size)
        worse = self.worst is None or m.ratio > self.worst.ratio
        if worse:
            self.worst, self.sample = m, sample
        if m.mismatch:
            self.problem("not-finite" if m.new else "output", f"{m.mismatch} ({sample})")
        elif m.ratio > 1.0:
            times = f"{m.ratio:.3g} times the limit {m.limit:.3g}" if m.limit else "and nothing is allowed"
            self.problem("output", f"error {m.error:.3g}, {times} ({sample})", instead=worse)
        if m.doubt:
            self.doubts.append(self.finding("inconclusive", f"{m.doubt} ({sample})"))
        if m.warning:
            self.warnings.append(self.finding("warning", f"{m.warning} ({sample})").message)
        for count, rows in classes.items():
            self.best[count] = [a + b for a, b in zip(self.best.get(count, (0, 0, 0)), rows, strict=True)]
            if rows[2]:
                what = "best class differs" if count == 1 else f"{count} best classes differ"
                self.problem("class", f"the {what} in {rows[2]} rows ({sample})")

    def problem(self, rule: str, text: str, instead: bool = False) -> None:
        """Note a mismatch, one for each rule: the first, unless a later one is worse."""
        if instead or rule not in self.problems:
            self.problems[rule] = self.finding(rule, text)

    def finding(self, rule: str, text: str) -> Finding:
        message = f"output {self.output!r} on {self.provider}, {self.level}: {text}"
        return Finding(rule, message, None, self.output, self.provider, self.level)

    def cell(self) -> Cell:
        """Return the finished cell."""
        m = self.worst or Measure(0, 0, 0, 0, 0, 0)
        status: Status = "mismatch" if self.problems else "inconclusive" if self.doubts or self.power() else "pass"
        top1, top5 = (dict(zip(("agree", "ties", "differ"), self.best.get(n, ()), strict=False)) for n in BEST)
        return Cell(
            self.provider, self.level, self.output, status, m.ratio, m.error, m.limit, m.noise, m.sensitivity,
            m.values, self.sample, top1, top5,
        )  # fmt: skip

    def power(self) -> Finding | None:
        """Return why these samples could not have shown a fault, if so."""
        if 2 * self.noisy > self.samples:
            return inconclusive(
                f"output {self.output!r}: rounding of the weights alone changes it by more than 10 % on "
                f"{self.noisy} of {self.samples} inputs; give inputs the model was made for",
                self.output,
            )
        if 2 * self.distrusted > self.samples:
            return Finding(
                "inconclusive",
                f"output {self.output!r} on {self.provider}: the original without optimizations is further from its "
                f"float64 evaluation than rounding explains; give inputs the model was made for",
                output=self.output, provider=self.provider,
            )  # fmt: skip
        return None


@dataclass
class Constancy:
    """Whether an output depends on the inputs: the spread of y over samples of one shape, against S."""

    first: dict[tuple[int, ...], Array] = field(default_factory=dict)
    spread: float = 0.0
    size: float = 0.0
    sensitivity: float = 0.0
    compared: int = 0

    def add(self, y: Array, s: float) -> None:
        """Count one sample's y with its S."""
        values = y.astype(np.float64)
        self.size, self.sensitivity = max(self.size, rms(values)), max(self.sensitivity, s)
        before = self.first.setdefault(y.shape, values)
        if before is not values:
            self.compared += 1
            with np.errstate(invalid="ignore"):
                self.spread = max(self.spread, rms(values - before))

    def verdict(self, output: str) -> str | None:
        """Return why the output says nothing about the model, if so."""
        if self.compared == 0:
            return None
        if self.size == 0.0:
            return f"output {output!r} is zero for every input"
        if self.spread <= max(self.sensitivity, 1e-12 * self.size):
            return f"output {output!r} is the same for every input, so that no fault would show"
        return None


@dataclass
class Coverage:
    """Which channels of clipping activations ever leave zero, and which branches and bodies of loops ever ran.

    Samples in several threads may be counted at once.
    """

    fired: dict[ir.Node, Array] = field(default_factory=dict)
    ran: set[Any] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __call__(self, node: ir.Node, inputs: Sequence[Any], results: Sequence[Any]) -> None:
        self.ran.add(node.graph)
        value = results[0] if results else None
        if node.op_type in CLIPPING and value is not None and is_float(value) and value.ndim >= 2 and value.size:
            now = (value != 0).any(axis=(0, *range(2, value.ndim)))
            with self.lock:
                before = self.fired.get(node)
                self.fired[node] = now if before is None or before.size != now.size else before | now

    @property
    def fraction(self) -> float | None:
        """The share of channels that fired; None if the model clips nowhere."""
        total = sum(v.size for v in self.fired.values())
        return sum(int(v.sum()) for v in self.fired.values()) / total if total else None

    def to_dict(self, samples: int) -> dict[str, Any]:
        """The figures for the report, with the bound that `samples` inputs buy at 95 % confidence."""
        total = sum(v.size for v in self.fired.values())
        # n ≥ ln(1/δ)/p: a fault on a larger share of inputs than this would have shown, were it visible at all.
        bound = min(1.0, math.log(20.0) / samples) if samples else 1.0
        return {"channels": total, "fraction": self.fraction, "samples": samples, "fault_share_95": bound}

