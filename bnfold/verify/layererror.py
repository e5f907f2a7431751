"""How far one layer's output may be off (V2), channel by channel and element by element.

With y the original's layer in float64 on given inputs, o and c the original's and the candidate's on a provider without
optimizations, and M the magnitude of what is summed (`magnitude`),

    RMS(c − y) ≤ τ·max(RMS(o − y), u·RMS(M), η)        |c − y| ≤ 16·max(u·M, RMS_channel(o − y), η)

and |c − y| > γ_{K+8}·M + η is PROVEN no rounding of K sums; η is as good as zero in the layer's type. τ is 4 for a
channel in which 64 elements and more carry the noise and grows to 16 as fewer do, as for outputs (`compare`): a channel
of one element is held to what an element is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnfold.arrays import Array
from bnfold.verify.compare import participation, tau
from bnfold.verify.magnitude import Bounded, gamma
from bnfold.verify.precision import underflow

ELEMENT, EXTRA_TERMS = 16.0, 8


@dataclass(frozen=True)
class LocalMeasure:
    """One window on one sample: errors over their limits, 1.0 being the limit; `proof` over γ_{K+8}·M."""

    channel: float
    element: float
    proof: float
    fault: str = ""

    @property
    def ratio(self) -> float:
        return max(self.channel, self.element)


def _unlike(fault: str) -> LocalMeasure:
    return LocalMeasure(np.inf, np.inf, np.inf, fault)


def measure(found: Bounded, o: Array, c: Array, unit: float, axis: int) -> LocalMeasure:
    """Hold c against y, channel by channel and element by element."""
    y, m = found.y, found.m
    if c.shape != o.shape or y.shape != o.shape:
        return _unlike(f"shape {list(c.shape)} instead of {list(o.shape)}")
    if y.size == 0:
        return LocalMeasure(0.0, 0.0, 0.0)
    least = underflow(o.dtype)
    o, c = o.astype(np.float64), c.astype(np.float64)
    finite = np.isfinite(o) & np.isfinite(y) & np.isfinite(m)
    if (finite & ~np.isfinite(c)).any():
        return _unlike("new NaN or infinite values")
    error, noise = (np.where(finite, np.abs(v - y), 0.0) for v in (c, o))
    m = np.where(finite, m, 0.0)
    axis = axis % y.ndim if y.ndim > 1 else 0
    others = tuple(n for n in range(y.ndim) if n != axis)
    rms_error, rms_noise, rms_m = (np.sqrt((v * v).mean(axis=others, keepdims=True)) for v in (error, noise, m))
    channel = _over(rms_error, _tau(noise, others) * np.maximum(np.maximum(rms_noise, unit * rms_m), least))
    element = _over(error, ELEMENT * np.maximum(np.maximum(unit * m, rms_noise), least))
    proof = _over(error, gamma(found.k + EXTRA_TERMS, unit) * m + least) if found.proves else 0.0
    return LocalMeasure(channel, element, proof)


def _tau(noise: Array, others: tuple[int, ...]) -> Array:
    """Return τ of each channel by how many of its elements carry the noise: behind a ReLU it may be two of them.

    The participation ratio is n for n equal squares, and n/3 for those of normal noise.
    """
    peak = noise.max(axis=others, keepdims=True)
    q = np.where(peak > 0.0, noise / np.where(peak > 0.0, peak, 1.0), 1.0) ** 2
    return np.asarray(np.vectorize(tau, otypes=[float])(3.0 * participation(q, others)))


def _over(error: Array, limit: Array) -> float:
    """The largest error over its limit, where nothing over nothing is 0."""
    if error.size == 0:
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(error == 0.0, 0.0, error / limit).max())
