"""Do the frozen statistics still describe the data? Observed against frozen mean and variance, per channel and layer.

With σ² = running_var + epsilon, which is what the layer divides by, and the observed mean m and variance v:

    shift      (m − running_mean)/σ               large beyond ±0.25
    ratio      (v + epsilon)/σ²                   large outside ½ … 2
    distance   √(shift² + (√ratio − 1)²)          the 2-Wasserstein distance of the two normal distributions, in σ

A channel is flagged if shift or ratio is large *and* cannot be chance: two-sided tests of shift and log ratio, over all
channels of the model together at most 1 % false alarms (Bonferroni). A layer is flagged if its median channel is.
Standard errors are those of independent examples (see `moments`), moderated: as if PRIOR more had been seen that vary
as the frozen statistics allow at most (Smyth 2004), since a handful of examples can agree by chance. A feature that
one example in fifty shows is missing from half of all samples of 32: single channels are not flagged below LEAST
examples, and nothing is below FEW.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.arrays import Float64
from bnfold.audit.findings import finite
from bnfold.audit.moments import Moments
from bnfold.folding.frozen import Frozen

SHIFT = 0.25
RATIO = 2.0
FALSE_ALARMS = 0.01
PRIOR = 10
LEAST = 64
FEW = 8
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class LayerDrift:
    """One BatchNorm against the data: per channel `shift`, `ratio` and whether it is `flagged`, all `(C,)`.

    A channel that can't be observed is NaN and not flagged; `large` says that the median channel is flagged.
    """

    name: str
    shift: Float64
    ratio: Float64
    flagged: Mask
    large: bool

    @property
    def distances(self) -> Float64:
        """`(C,)`: how far each channel's distribution is from the frozen one, in σ."""
        return np.hypot(self.shift, np.sqrt(self.ratio) - 1.0)

    @property
    def distance(self) -> float:
        """The median channel's distance, in σ; 0 where no channel is observed."""
        return median(self.distances)

    @property
    def median_shift(self) -> float:
        """The median channel's |shift|, in σ."""
        return median(np.abs(self.shift))

    @property
    def median_ratio(self) -> float:
        """The median channel's ratio, turned to be at least 1: 2 is as far as ½."""
        return math.exp(median(np.abs(np.log(self.ratio))))

    @property
    def worst(self) -> int:
        """The channel of the largest distance."""
        return int(np.nanargmax(self.distances)) if np.isfinite(self.distances).any() else 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "drifted": self.large,
            "distance": self.distance,
            "shift": self.median_shift,
            "ratio": self.median_ratio,
            "channels": len(self.shift),
            "observed": int(np.isfinite(self.shift).sum()),
            "flagged": [int(index) for index in np.flatnonzero(self.flagged)],
            "shifts": _quantiles(np.abs(self.shift)),
            "ratios": _quantiles(np.exp(np.abs(np.log(self.ratio)))),
            "worst": {
                "channel": self.worst,
                "shift": finite(self.shift[self.worst]),
                "ratio": finite(self.ratio[self.worst]),
            },
        }


def compare(pairs: Sequence[tuple[Frozen, Moments, Mask]]) -> list[LayerDrift]:
    """Hold what was seen at the inputs of BatchNorms against their frozen statistics, in the order given."""
    tests = 2 * sum(int(live.sum()) for _, _, live in pairs)
    limit = NormalDist().inv_cdf(1.0 - FALSE_ALARMS / (2.0 * max(tests, 1)))
    return [_layer(frozen, seen, live, limit) for frozen, seen, live in pairs]


def largest(layers: Iterable[LayerDrift]) -> float:
    """One number for a model: the distance of its most distant layer, in σ; 0 without layers."""
    return max((layer.distance for layer in layers), default=0.0)


def _layer(frozen: Frozen, seen: Moments, live: Mask, limit: float) -> LayerDrift:
    with np.errstate(all="ignore"):
        square = frozen.var + frozen.epsilon
        sigma = np.sqrt(square)
        shift, ratio = (seen.mean - frozen.mean) / sigma, (seen.var + frozen.epsilon) / square
        known = live & np.isfinite(shift) & np.isfinite(ratio) & (ratio > 0)
        shift_error = _moderated(seen.mean_error / sigma, 1.0, seen.examples)
        z_shift = _normal(np.abs(shift) / shift_error, seen.examples - 1 + PRIOR)
        # The error of a logarithm is the relative error; a normal variable's squared deviation has the variance 2σ⁴.
        log_error = _moderated(seen.var_error / (seen.var + frozen.epsilon), 2.0, seen.examples)
        z_ratio = _normal(np.abs(np.log(ratio)) / log_error, seen.examples - 1 + PRIOR)
    shift, ratio = np.where(known, shift, np.nan), np.where(known, ratio, np.nan)
    z_shift, z_ratio = np.where(known, z_shift, np.nan), np.where(known, z_ratio, np.nan)
    far = np.abs(np.log(ratio))
    flagged = ((np.abs(shift) > SHIFT) & (z_shift > limit)) | ((far > math.log(RATIO)) & (z_ratio > limit))
    large = (median(np.abs(shift)) > SHIFT and median(z_shift) > limit) or (
        median(far) > math.log(RATIO) and median(z_ratio) > limit
    )
    flagged, large = flagged & (seen.examples >= LEAST), bool(large and seen.examples >= FEW)
    return LayerDrift(frozen.name, shift, ratio, flagged, large)


def _moderated(error: Float64, variance: float, examples: int) -> Float64:
    """A standard error from few examples, with the `variance` that the frozen statistics expect as prior."""
    own = np.where(np.isfinite(error), error, 0.0) ** 2 * examples * (examples - 1)
    return np.asarray(np.sqrt((own + PRIOR * variance) / (examples - 1 + PRIOR) / examples))


def _normal(t: Float64, degrees: int) -> Float64:
    """A Student's t of so many degrees of freedom as the normal deviate of the same probability (Wallace 1959)."""
    return np.asarray((8 * degrees + 1) / (8 * degrees + 3) * np.sqrt(degrees * np.log1p(t**2 / degrees)))


def median(values: Float64) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if known.size else 0.0


def _quantiles(values: Float64) -> list[float]:
    """The 5, 25, 50, 75 and 95 % quantiles of what is known."""
    known = values[~np.isnan(values)]
    return [float(q) for q in np.quantile(known, QUANTILES)] if known.size else []
