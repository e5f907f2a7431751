"""The kinds of inputs that a verification draws, one array at a time.

Normal noise alone leaves faults unseen: a wrong border shows on impulses at the border, a dropped shift on zeros and
constants, a scale on large and small magnitudes, and clipped channels only near the statistics they were trained on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.arrays import Array
from bnfold.graph import BATCH_NORM, is_op

Shape = tuple[int, ...]

# Sixteen samples: 6 normal, 3 mixed scales, 2 uniform and one of each other kind; ordered so that few are diverse.
ORDER = (
    "normal", "mixed", "uniform", "matched", "normal", "constant", "normal", "smooth",
    "mixed", "impulses", "normal", "uniform", "zero", "normal", "normal", "mixed",
)  # fmt: skip

# Operators that hand integer indices on unchanged.
_PASSES = ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Slice", "Concat", "Expand")


def draw(value: ir.Value, shape: Shape, dtype: np.dtype[Any], kind: str, index: int, rng: np.random.Generator) -> Array:
    """Draw an array of `shape` and `dtype` for input `value`; `index` varies samples of one kind."""
    if dtype.kind in "iub":
        return _integers(value, shape, dtype, kind, rng)
    x = _floats(value, shape, kind, index, rng)
    return np.asarray(x).astype(dtype)


def index_bound(value: ir.Value) -> int | None:
    """Return the size of the smallest Gather or OneHot axis that the integers of `value` index, if any."""
    bounds, seen, todo = [], {value}, [value]
    while todo:
        for node, position in todo.pop().uses():
            if node.op_type == "Gather" and position == 1:
                bounds.append(_axis_size(node.inputs[0], node))
            elif node.op_type == "OneHot" and position == 0 and node.inputs[1] is not None:
                depth = node.inputs[1].const_value
                bounds.append(None if depth is None else int(depth.numpy().reshape(-1)[0]))
            elif node.op_type in _PASSES and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                todo.append(node.outputs[0])
    known = [b for b in bounds if b]
    return min(known) if known else None


def _axis_size(data: ir.Value | None, node: ir.Node) -> int | None:
    if data is None or data.shape is None:
        return None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    size = data.shape.dims[axis]
    return size if isinstance(size, int) else None


def _integers(value: ir.Value, shape: Shape, dtype: np.dtype[Any], kind: str, rng: np.random.Generator) -> Array:
    bound = index_bound(value)
    if bound is None and dtype.kind != "b":
        if dtype.itemsize == 1 and len(shape) >= 3:
            limits = np.iinfo(dtype)
            return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
        bound = 2
    if kind == "zero" and bound is not None and bound > 2:
        return np.zeros(shape, dtype)
    if kind == "constant" and bound is not None and bound > 2:
        return np.full(shape, rng.integers(bound), dtype)
    if bound is None or bound == 2:
        # A mask: all ones, or random after a leading one. All zeros would make attention divide nothing by nothing.
        mask = rng.integers(0, 2, shape) if kind in ("mixed", "uniform", "impulses") else np.ones(shape)
        if mask.ndim and shape != (1,):  # a single number is a flag
            mask[..., :1] = 1
        return np.asarray(mask).astype(dtype)
    return rng.integers(0, bound, shape).astype(dtype)


def _floats(value: ir.Value, shape: Shape, kind: str, index: int, rng: np.random.Generator) -> Array:
    channel = tuple(n if i == (1 if len(shape) > 1 else 0) else 1 for i, n in enumerate(shape))
    if kind == "mixed":
        # In turn: small, large, and another magnitude in each channel.
        turn = index % 3
        size = 10.0 ** (rng.uniform(-2, 2, channel) if turn == 2 else (-2.0, 2.0)[turn])
        return size * (rng.standard_normal(shape) + rng.standard_normal(channel))
    if kind == "uniform":
        return rng.uniform(0.0 if index % 2 else -1.0, 1.0, shape)
    if kind == "zero":
        return np.zeros(shape)
    if kind == "constant":
        return np.broadcast_to(rng.standard_normal(channel), shape)
    if kind == "smooth":
        return _smooth(shape, channel, rng)
    if kind == "impulses":
        return _impulses(shape, rng)
    if kind == "matched":
        found = matched(value)
        if found is not None and len(shape) > 1 and found[0].size == shape[1]:
            mean, deviation = (v.reshape(channel) for v in found)
            return mean + deviation * rng.standard_normal(shape)
    return rng.standard_normal(shape)


def _smooth(shape: Shape, channel: Shape, rng: np.random.Generator) -> Array:
    result = np.asarray(rng.standard_normal(channel))
    for axis in range(2 if len(shape) > 2 else len(shape) - 1, len(shape)):
        along = [-1 if i == axis else 1 for i in range(len(shape))]
        wave = np.cos(np.pi * rng.uniform(0.5, 2) * np.linspace(0, 1, shape[axis]) + rng.uniform(0, 6)) if shape else 0
        result = result + np.reshape(wave, along) * rng.standard_normal(channel)
    return np.broadcast_to(result, shape)


def _impulses(shape: Shape, rng: np.random.Generator) -> Array:
    result = np.zeros(shape)
    if result.size == 0:
        return result
    spatial = shape[2:]
    for corner in itertools.product(*({0, n // 2, n - 1} for n in spatial)):
        where: Any = (..., *corner)
        result[where] = 3.0 * rng.choice([-1.0, 1.0], shape[:2])
    return result


def matched(value: ir.Value) -> tuple[Array, Array] | None:
    """Return the mean and deviation per channel [C] of inputs that the first BatchNormalization was trained on.

    Directly, or through one convolution, whose output statistics are solved for the input's (least squares).
    """
    for node in _consumers(value):
        if is_op(node, BATCH_NORM):
            statistics = _statistics(node)
            return None if statistics is None else (statistics[0], np.sqrt(statistics[1]))
        if node.op_type != "Conv" or node.inputs[1] is None or node.inputs[1].const_value is None:
            continue
        weight = node.inputs[1].const_value.numpy().astype(np.float64)
        for follower in _consumers(node.outputs[0]):
            statistics = _statistics(follower) if is_op(follower, BATCH_NORM) else None
            grouped = "group" in node.attributes and node.attributes["group"].as_int() != 1
            if statistics is None or grouped or not np.isfinite(weight).all():
                continue
            bias = node.inputs[2].const_value if len(node.inputs) > 2 and node.inputs[2] is not None else None
            shift = 0.0 if bias is None else bias.numpy().astype(np.float64)
            taps = tuple(range(2, weight.ndim))
            mean = np.linalg.lstsq(weight.sum(axis=taps), statistics[0] - shift, rcond=1e-6)[0]
            variance = np.linalg.lstsq((weight**2).sum(axis=taps), statistics[1], rcond=1e-6)[0]
            return mean, np.sqrt(np.maximum(variance, 1e-3 * max(float(variance.max()), 1e-6)))
    return None


def _consumers(value: ir.Value) -> Iterator[ir.Node]:
    for node, position in value.uses():
        if node.op_type in ("Identity", "Cast"):
            yield from _consumers(node.outputs[0])
        elif position == 0:
            yield node


def _statistics(node: ir.Node) -> tuple[Array, Array] | None:
    constants = [None if v is None else v.const_value for v in node.inputs[3:5]]
    arrays = [c.numpy().astype(np.float64) for c in constants if c is not None]
    if len(arrays) != 2 or not all(np.isfinite(a).all() for a in arrays) or (arrays[1] < 0).any():
        return None
    return arrays[0], arrays[1]
