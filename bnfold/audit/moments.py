"""Mean and variance per channel of a stream of arrays, with standard errors that know what an example is.

The values of one image resemble each other, so the unit of the sample is the example, not the pixel. With
e = (1, a, q), where a and q are the means of x − centre and of its square over one example of w values, two sums are
kept:

    S₁ = Σ w·e        S₂ = Σ w²·e·eᵀ        over the n examples, per channel

    mean − centre = S₁[a]/S₁[1] = d         var = S₁[q]/S₁[1] − d²          (of the population: divided by n)
    se² = n/(n−1) · uᵀ·S₂·u / S₁[1]²        u = (−d, 1, 0) for the mean, (d² − var, −2d, 1) for the variance

which are the ratio estimator and its linearised standard error over clusters (Cochran, Sampling Techniques, 1977,
§6.3).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bnfold.arrays import Float64

_CHUNK = 1 << 22  # values widened to float64 at a time


@dataclass(eq=False)
class Moments:
    """What was seen of C channels; `centre` `(C,)` is subtracted first, so that sums lose no digits."""

    centre: Float64
    examples: int = 0
    first: Float64 = field(init=False)
    second: Float64 = field(init=False)
    lowest: Float64 = field(init=False)
    highest: Float64 = field(init=False)

    def __post_init__(self) -> None:
        channels = self.centre.size
        self.first, self.second = np.zeros((3, channels)), np.zeros((3, 3, channels))
        self.lowest, self.highest = np.full(channels, np.inf), np.full(channels, -np.inf)

    def add(self, x: npt.NDArray[np.generic], examples: int) -> None:
        """Take in `x` `(N, C, …)`, which holds `examples` examples: N, or a divisor of N."""
        rows = len(x)
        parts = examples if examples and rows % examples == 0 else rows
        if not x.size:
            return
        grouped = x.reshape(parts, rows // parts, x.shape[1], -1)
        step = max(1, _CHUNK * parts // x.size)
        for start in range(0, parts, step):
            self._add(grouped[start : start + step].astype(np.float64))

    def _add(self, x: Float64) -> None:
        self.lowest = np.minimum(self.lowest, x.min((0, 1, 3)))
        self.highest = np.maximum(self.highest, x.max((0, 1, 3)))
        x -= self.centre[:, None]
        weight = float(x.shape[1] * x.shape[3])
        a, q = x.mean((1, 3)), np.einsum("nkcp,nkcp->nc", x, x) / weight
        e = np.stack([np.ones_like(a), a, q])
        self.first += weight * e.sum(1)
        self.second += weight**2 * np.einsum("inc,jnc->ijc", e, e)
        self.examples += len(x)

    def scaled(self, factor: Float64, centre: Float64) -> Moments:
        """The moments of `factor·(x − centre of x) + centre`, `(C,)` both."""
        power = np.stack([np.ones_like(factor), factor, factor**2])
        result = Moments(centre, self.examples)
        result.first, result.second = self.first * power, self.second * power[:, None] * power
        ends = np.stack([self.lowest, self.highest])
        ends = factor * (ends - self.centre) + centre
        result.lowest, result.highest = ends.min(0), ends.max(0)
        return result

    @property
    def offset(self) -> Float64:
        """`(C,)`: mean − centre."""
        return np.asarray(self.first[1] / self.first[0])

    @property
    def mean(self) -> Float64:
        """`(C,)`: the mean of everything seen."""
        return self.centre + self.offset

    @property
    def var(self) -> Float64:
        """`(C,)`: the variance of everything seen, not below 0."""
        return np.asarray(np.maximum(self.first[2] / self.first[0] - self.offset**2, 0.0))

    @property
    def mean_error(self) -> Float64:
        """`(C,)`: the standard error of the mean; infinite for fewer than two examples."""
        one = np.ones_like(self.offset)
        return self._error(np.stack([-self.offset, one, 0 * one]))

    @property
    def var_error(self) -> Float64:
        """`(C,)`: the standard error of the variance; infinite for fewer than two examples."""
        one = np.ones_like(self.offset)
        return self._error(np.stack([self.offset**2 - self.var, -2 * self.offset, one]))

    def _error(self, u: Float64) -> Float64:
        if self.examples < 2:
            return np.full(self.centre.size, np.inf)
        square = np.einsum("ic,ijc,jc->c", u, self.second, u).clip(0.0)
        return np.asarray(np.sqrt(square * self.examples / (self.examples - 1)) / self.first[0])
