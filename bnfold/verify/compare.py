"""The output test (V3), the class test (V4) and the test for new NaN and infinities (V5), on one sample.

    RMS(c − y) ≤ τ·max(RMS(o − y), S, u·RMS(y), η)

y is the original in float64, o the original on the provider with graph optimizations off, c the candidate there, S the
RMS change of y when every weight moves by its unit roundoff, u·RMS(y) what it takes to store y, and η what is as good
as zero in the output's type: a cosine of a value with itself may come out as exactly 1, whatever the weights. Pooling
is per output and per sample, so that a sample of large values does not mask one of small values.

τ falls with the number of values pooled, because the RMS of few errors scatters. What counts is how many values carry
the noise: a saturated softmax over 1000 classes has two that move. With q the squared noise of each value, that number
is (Σq)²/Σq², the participation ratio; and values that coincide in y, as on a constant image, err alike and count once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bnfold.arrays import Array
from bnfold.verify.kernels.base import is_float
from bnfold.verify.precision import underflow, unit_roundoff

# Few pooled values scatter more: (from this many values on, τ).
TAU = ((64, 4.0), (8, 8.0), (0, 16.0))
# Of how many best classes it is asked whether they are the same.
BEST = (1, 5)
# Where S exceeds this share of RMS(y), weights at storage precision do not determine the output.
NOISY = 0.1


@dataclass(frozen=True)
class Measure:
    """One output of one sample, measured; see `Cell` for the fields' meaning. `new` counts new NaN and infinities."""

    error: float
    limit: float
    noise: float
    sensitivity: float
    size: float
    values: int
    mismatch: str | None = None
    doubt: str | None = None
    warning: str | None = None
    new: int = 0

    @property
    def ratio(self) -> float:
        """error / limit, where nothing over nothing is 0 and something over nothing infinite."""
        if self.error == 0.0:
            return 0.0
        return self.error / self.limit if self.limit > 0 else float("inf")

    @property
    def noisy(self) -> bool:
        """Whether rounding of the weights alone changes the output by more than a tenth."""
        return self.sensitivity > NOISY * self.size


def tau(values: float) -> float:
    """Return the factor by which the RMS error may exceed the noise if `values` elements carry it."""
    return next(factor for least, factor in TAU if values >= least)


def rms(x: Array) -> float:
    """Root mean square; 0 of nothing."""
    if x.size == 0:
        return 0.0
    # Scaled, so that squares of very small or large values neither vanish nor overflow.
    peak = float(np.max(np.abs(x)))
    return peak * float(np.sqrt(np.mean((x / peak) ** 2))) if peak > 0 and np.isfinite(peak) else peak


def participation(q: Array, axes: tuple[int, ...] | None = None) -> Array:
    """Return (Σq)²/Σq² along `axes`, which stay: how many of the squares q, not all of them zero, carry their sum."""
    keep = axes is not None
    return np.asarray(q.sum(axis=axes, keepdims=keep) ** 2 / (q**2).sum(axis=axes, keepdims=keep))


@dataclass(frozen=True)
class Noises:
    """What rounding does to one output y: `changes` and `errors` hold squared deviations, summed over runs.

    `changes` are those of y under perturbed weights, `errors` those of the original on the provider.
    """

    changes: Array
    change_runs: int
    errors: Array
    error_runs: int

    def pooled(self, good: Array) -> tuple[float, float, float]:
        """Return RMS(o − y), S, and how many values carry the noise, over the values that are `good`."""
        changes, errors = self.changes[good] / max(self.change_runs, 1), self.errors[good] / max(self.error_runs, 1)
        if not (np.isfinite(changes).all() and np.isfinite(errors).all()):
            return _root_mean(errors), float("inf"), 0.0
        both = np.maximum(changes, errors)
        # Scaled: fourth powers of small errors would vanish.
        both = both / both.max(initial=0.0) if both.max(initial=0.0) > 0 else np.ones_like(both)
        return _root_mean(errors), _root_mean(changes), float(participation(both)) if both.size else 0.0


def _root_mean(squares: Array) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.sqrt(squares.mean())) if squares.size else 0.0


def measure(y: Array, o: Array, c: Array, noise: Noises | None, others: Sequence[Array] = ()) -> Measure:
    """Compare one output: y, o, c of one shape; for integers `others` are y under perturbed weights."""
    if c.shape != o.shape:
        return _unequal(f"shape {list(c.shape)} instead of {list(o.shape)}")
    if y.shape != o.shape:
        return Measure(0, 0, 0, 0, 0, 0, doubt=f"its shape depends on rounding: {list(y.shape)} or {list(o.shape)}")
    if not is_float(o) or noise is None:
        return _exact(y, o, c, others)
    stored, least = o.dtype, underflow(o.dtype)
    y, o, c = (v.astype(np.float64).ravel() for v in (y, o, c))
    bad_y, bad_o, bad_c = (~np.isfinite(v) for v in (y, o, c))
    good = ~(bad_y | bad_o | bad_c)
    new, removed, both = (int(np.count_nonzero(m)) for m in (bad_c & ~bad_o, bad_o & ~bad_c, bad_c & bad_o))
    error, size, values = rms((c - y)[good]), rms(y[good]), int(np.count_nonzero(good))
    least = max(least, unit_roundoff(stored) * size)
    spread, s, carrying = noise.pooled(good)
    carrying = min(carrying, float(np.unique(y[good]).size))
    mismatch = f"{new} new NaN or infinite values" if new else None
    doubt = None
    if both or bad_y.any():
        doubt = f"{max(both, int(np.count_nonzero(bad_y)))} values of the original are NaN or infinite too"
    warning = f"{removed} NaN or infinite values of the original are finite in the candidate" if removed else None
    return Measure(error, tau(carrying) * max(spread, s, least), spread, s, size, values, mismatch, doubt, warning, new)


def _exact(y: Array, o: Array, c: Array, others: Sequence[Array]) -> Measure:
    """Integers and booleans: each element must be one that the original itself gives, here or within rounding."""
    allowed = (c == o) | (c == y)
    for other in others:
        if other.shape == c.shape:
            allowed |= c == other
    wrong = int(np.count_nonzero(~allowed))
    text = f"{wrong} of {c.size} values differ" if wrong else None
    return Measure(float(wrong), 0.0, float(np.count_nonzero(o != y)), 0.0, rms(y.astype(np.float64)), c.size, text)


def _unequal(text: str) -> Measure:
    return Measure(float("inf"), 0.0, 0.0, 0.0, 0.0, 0, mismatch=text)


def scores(shape: Sequence[int]) -> int | None:
    """Return the number of classes if an output of this shape looks like class scores: [N, K] or [N, K, 1, 1]."""
    alike = len(shape) >= 2 and shape[1] >= 2 and all(n == 1 for n in shape[2:])
    return shape[1] if alike else None


def best(y: Array, c: Array, limit: float, count: int) -> tuple[int, int, int]:
    """Return in how many rows of [N, K] scores the `count` best classes are the same, undecided, or others.

    A row is undecided where the float64 margin between the last of them and the next class is within twice the limit.
    """
    y, c = y.reshape(*y.shape[:2]).astype(np.float64), c.reshape(*c.shape[:2]).astype(np.float64)
    ordered = -np.sort(-y, axis=1)
    decided = ordered[:, count - 1] - ordered[:, count] > 2.0 * limit
    ours, theirs = (np.sort(np.argsort(-v, axis=1, kind="stable")[:, :count], axis=1) for v in (y, c))
    same = (ours == theirs).all(axis=1)
    return int(np.sum(decided & same)), int(np.sum(~decided)), int(np.sum(decided & ~same))


def beyond(y: Array, c: Array, rtol: float | None, atol: float | None) -> int:
    """Return how many elements exceed |c − y| ≤ atol + rtol·|y|, the user's own extra limit."""
    if (rtol is None and atol is None) or y.shape != c.shape or not is_float(c):
        return 0
    y, c = y.astype(np.float64), c.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return int(np.count_nonzero(np.abs(c - y) > (atol or 0.0) + (rtol or 0.0) * np.abs(y)))
