"""Pools in float64: one pass per kernel tap, so that no window is ever copied out."""

from __future__ import annotations

import math

import numpy as np

from bnfold.arrays import Array
from bnfold.verify.kernels.base import Arrays, Call, Unsupported, kernel
from bnfold.verify.kernels.windows import windows

ALL = slice(None)


@kernel("MaxPool")
def max_pool(call: Call, inputs: Arrays) -> Arrays:
    """The largest element of every window; padding never wins. Optionally its flat index in x."""
    x = inputs[0]
    geometry = windows(call, x.shape[2:], call.get("kernel_shape"))
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    padded = geometry.pad(x, lowest)
    best = np.full((*x.shape[:2], *geometry.out), lowest, dtype=x.dtype)
    if call.outputs == 1:
        for _, where in geometry.taps():
            np.fmax(best, padded[(ALL, ALL, *where)], out=best)
        return (_with_nan(best, padded, geometry.taps()),)
    if call.get("storage_order", 0):
        raise Unsupported("MaxPool with column-major indices")
    flat = np.arange(x.size, dtype=np.int64).reshape(x.shape)
    flat, index = geometry.pad(flat, -1), np.zeros(best.shape, np.int64)
    for _, where in geometry.taps():
        here = padded[(ALL, ALL, *where)]
        wins = here > best
        best, index = np.where(wins, here, best), np.where(wins, flat[(ALL, ALL, *where)], index)
    return best, index


def _with_nan(best: Array, padded: Array, taps: object) -> Array:
    # fmax ignores NaN; a window that holds one must still show it.
    if best.dtype.kind == "f" and np.isnan(padded).any():
        for _, where in taps:  # type: ignore[attr-defined]
            best = np.where(np.isnan(padded[(ALL, ALL, *where)]), np.nan, best)
    return best


@kernel("AveragePool")
def average_pool(call: Call, inputs: Arrays) -> Arrays:
    """The mean of every window, over the elements inside the input unless count_include_pad."""
    x = inputs[0]
    geometry = windows(call, x.shape[2:], call.get("kernel_shape"))
    padded = geometry.pad(x)
    total = np.zeros((*x.shape[:2], *geometry.out))
    for _, where in geometry.taps():
        total += padded[(ALL, ALL, *where)]
    inside = np.ones((1, 1, *x.shape[2:]))
    if call.get("count_include_pad", 0):
        ones = [(0, 0), (0, 0), *zip(geometry.begin, geometry.end, strict=True)]
        inside = np.pad(inside, ones, constant_values=1.0)
        inside = np.pad(inside, [(0, 0), (0, 0), *((0, o) for o in geometry.overhang)])
    else:
        inside = geometry.pad(inside)
    count = np.zeros((1, 1, *geometry.out))
    for _, where in geometry.taps():
        count += inside[(ALL, ALL, *where)]
    return (total / count,)


@kernel("LpPool")
def lp_pool(call: Call, inputs: Arrays) -> Arrays:
    """The p-norm of every window."""
    x, p = inputs[0], call.get("p", 2)
    geometry = windows(call, x.shape[2:], call.get("kernel_shape"))
    padded = geometry.pad(np.abs(x) ** p)
    total = np.zeros((*x.shape[:2], *geometry.out))
    for _, where in geometry.taps():
        total += padded[(ALL, ALL, *where)]
    return (total ** (1.0 / p),)


@kernel("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(call: Call, inputs: Arrays) -> Arrays:
    """The mean, maximum or p-norm over all spatial axes, which keep size 1."""
    x = inputs[0]
    axes = tuple(range(2, x.ndim))
    if call.op == "GlobalAveragePool":
        return (x.sum(axis=axes, keepdims=True) / math.prod(x.shape[2:]),)
    if call.op == "GlobalMaxPool":
        return (x.max(axis=axes, keepdims=True),)
    p = call.get("p", 2)
    return ((np.abs(x) ** p).sum(axis=axes, keepdims=True) ** (1.0 / p),)
