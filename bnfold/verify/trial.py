"""One sample as the comparison sees it: y, what rounding does to it, and the original's own output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bnfold.arrays import Array
from bnfold.inputs.feeds import Sample
from bnfold.verify.compare import Measure, Noises, measure
from bnfold.verify.kernels.base import is_float
from bnfold.verify.sides import Exact, Outputs


@dataclass
class Expected:
    """A sample with the float64 output `y`, the squared changes of it under perturbed weights, and their number."""

    sample: Sample
    y: Outputs
    changes: dict[str, Array] = field(default_factory=dict)
    runs: int = 0
    others: list[Outputs] = field(default_factory=list)
    coarser: float = 1.0

    @property
    def nbytes(self) -> int:
        return 2 * sum(v.nbytes for v in self.y.values())

    def perturb(self, noisy: Exact) -> None:
        """Add one evaluation with perturbed weights."""
        self.moved(noisy.run(self.sample.feeds))

    def moved(self, z: Outputs) -> None:
        """Add what perturbed weights give."""
        for name, y in self.y.items():
            if is_float(y) and z[name].shape == y.shape:
                with np.errstate(invalid="ignore", over="ignore"):
                    square = (self.coarser * (z[name] - y)) ** 2
                self.changes[name] = self.changes.get(name, np.zeros(y.shape)) + square
        self.others.append({n: v for n, v in z.items() if not is_float(v)})
        self.runs += 1

    def sensitivity(self, name: str) -> float:
        """S of one output; 0 for integers."""
        square = self.changes.get(name)
        if square is None or not square.size:
            return 0.0
        finite = square[np.isfinite(square)]
        return float(np.sqrt(finite.mean() / self.runs)) if finite.size else 0.0


class Trial(Expected):
    """What is expected beside the original's output `o` on one provider, whose error is noise of the second kind.

    `coarser` is how many times the provider's unit roundoff exceeds that of the weights: what rounding changes grows
    with it to first order.
    """

    def __init__(self, expected: Expected, o: Outputs, coarser: float = 1.0) -> None:
        changes = {name: square * coarser**2 for name, square in expected.changes.items()}
        super().__init__(expected.sample, expected.y, changes, expected.runs, list(expected.others))
        self.coarser = coarser
        self.o = o
        self.errors: dict[str, Array] = {}
        self.tries = 0
        self.firm = False
        self.add(self.y, o)

    def add(self, y: Outputs, o: Outputs) -> None:
        """Add one run of the original at inputs where y is known."""
        for name, exact in y.items():
            if is_float(exact) and o[name].shape == exact.shape == self.y[name].shape:
                with np.errstate(invalid="ignore", over="ignore"):
                    square = (o[name].astype(np.float64) - exact) ** 2
                self.errors[name] = self.errors.get(name, np.zeros(exact.shape)) + square
        self.tries += 1

    def measure(self, name: str, c: Array) -> Measure:
        """Hold the candidate's output against y and the noise."""
        y, noise = self.y[name], None
        if name in self.errors:
            changes = self.changes.get(name, np.zeros(y.shape))
            noise = Noises(changes.ravel(), self.runs, self.errors[name].ravel(), self.tries)
        return measure(y, self.o[name], c, noise, [z[name] for z in self.others if name in z])


def perturb(samples: Sequence[Expected], noisy: Exact) -> None:
    """Add one evaluation with perturbed weights to each of some samples."""
    for expected, z in zip(samples, noisy.runs([expected.sample.feeds for expected in samples]), strict=True):
        expected.moved(z)


def jittered(x: Array, unit: float, rng: np.random.Generator) -> Array:
    """Return floating-point inputs moved by about their unit roundoff, others as they are."""
    if not is_float(x):
        return x
    return np.asarray(x * (1.0 + 2.0 * unit * rng.uniform(-1.0, 1.0, x.shape))).astype(x.dtype)


def altered(x: Array) -> Array:
    """Return other inputs of the same kind: floats halved and shifted, integers in another order."""
    if is_float(x):
        return np.asarray(0.5 * x.astype(np.float64) + 0.25).astype(x.dtype)
    return np.roll(x.ravel(), 1).reshape(x.shape)
