"""Arithmetic on constants, evaluated in the tensors' own types as the runtime would."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.arrays import Array

# What Python and numpy raise where an operator contradicts its operands.
FAULTS = (ArithmeticError, LookupError, MemoryError, TypeError, ValueError)


def attr(node: ir.Node, name: str, default: Any) -> Any:
    """Return an attribute's value, or the default where it is absent.

    Floats are rounded to float32, as in a file: an exporter's model in memory may hold more digits.
    """
    found = node.attributes.get(name)
    if found is None or found.is_ref():
        return default
    if found.type == ir.AttributeType.FLOAT:
        return float(np.float32(found.value))
    if found.type == ir.AttributeType.FLOATS:
        return tuple(float(np.float32(value)) for value in found.value)
    return found.value


def _axes(node: ir.Node, rest: list[Array]) -> tuple[int, ...]:
    if rest:
        return tuple(int(axis) for axis in rest[0])
    return tuple(attr(node, "axes", ()))


def _unsqueezed(node: ir.Node, x: Array, *rest: Array) -> Array:
    return np.expand_dims(x, _axes(node, list(rest)))


def _squeezed(node: ir.Node, x: Array, *rest: Array) -> Array:
    return np.squeeze(x, _axes(node, list(rest)) or None)


def _reshaped(node: ir.Node, x: Array, *rest: Array) -> Array:
    target = [int(size) for size in (rest[0] if rest else attr(node, "shape", ()))]
    if not attr(node, "allowzero", 0):
        target = [x.shape[axis] if size == 0 else size for axis, size in enumerate(target)]
    return x.reshape(target)


def _filled(node: ir.Node, size: Array) -> Array:
    fill = attr(node, "value", None)
    fill = np.zeros(1, np.float32) if fill is None else fill.numpy()
    return np.full([int(n) for n in size], fill.reshape(()), dtype=fill.dtype)


def _sliced(node: ir.Node, x: Array, *rest: Array | None) -> Array:
    given = list(rest) if rest else [attr(node, name, None) for name in ("starts", "ends", "axes")]
    starts, ends, axes, steps = ([*given, None, None])[:4]
    assert starts is not None and ends is not None
    cuts = zip(starts, ends, [1] * len(starts) if steps is None else steps, strict=True)
    parts = [slice(None)] * x.ndim
    for axis, (start, end, step) in zip(range(len(starts)) if axes is None else axes, cuts, strict=True):
        parts[int(axis)] = slice(int(start), int(end), int(step))
    return x[tuple(parts)]


def _flattened(node: ir.Node, x: Array) -> Array:
    axis = attr(node, "axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _parts(node: ir.Node, x: Array, *rest: Array) -> tuple[Array, ...]:
    axis, count = attr(node, "axis", 0), len(node.outputs)
    even = -(-x.shape[axis] // count)
    sizes = rest[0] if rest else attr(node, "split", None) or [even] * (count - 1)
    return tuple(np.split(x, np.cumsum(sizes)[: count - 1], axis=axis))


def _reduce(function: Callable[..., Array]) -> Callable[..., Array]:
    def reduced(node: ir.Node, x: Array, *rest: Array) -> Array:
        axes = _axes(node, list(rest))
        if not axes and attr(node, "noop_with_empty_axes", 0):
            return x
        kept = function(x, axis=axes or None, keepdims=bool(attr(node, "keepdims", 1)))
        return np.asarray(kept).astype(x.dtype)

    return reduced


def _quantized(
    node: ir.Node, x: Array, step: Array, *zero: Array
) -> Array:
    """QuantizeLinear per tensor or axis, rounding halves to even and saturating."""
    kind = zero[0].dtype if zero else np.dtype(np.uint8)
    if kind not in (np.dtype(np.int8), np.dtype(np.uint8)) or attr(node, "block_size", 0):
        return np.array(None)
    along = [-1 if k == attr(node, "axis", 1) % x.ndim else 1 for k in range(x.ndim)] if step.size > 1 else [1] * x.ndim
    codes = np.rint(x / step.reshape(along)) + (zero[0].reshape(along).astype(x.dtype) if zero else 0)
    limits = np.iinfo(kind)
    result: Array = np.clip(codes, limits.min, limits.max).astype(kind)
    return result


def _dequantized(
    node: ir.Node, q: Array, step: Array, *zero: Array
) -> Array:
    """A dequantized vector, such as a bias; what has more axes is a weight and stays quantized."""
    if q.ndim > 1 or attr(node, "block_size", 0):
        return np.array(None)
    centred = q.astype(np.int64) - (zero[0].astype(np.int64) if zero else 0)
    result: Array = centred.astype(step.dtype) * (step.reshape(()) if step.size == 1 else step)
    return result


EVALUATE: dict[str, Callable[..., Any]] = {
    "Identity": lambda node, x: x,
    "Cast": lambda node, x: x.astype(ir.DataType(attr(node, "to", 1)).numpy()),
    "Transpose": lambda node, x: np.transpose(x, attr(node, "perm", None)),
    "Reshape": _reshaped,
    "Unsqueeze": _unsqueezed,
    "Squeeze": _squeezed,
    "Shape": lambda node, x: np.asarray(x.shape[attr(node, "start", 0) : attr(node, "end", None)], np.int64),
    "Sqrt": lambda node, x: np.sqrt(x),
    "Reciprocal": lambda node, x: np.reciprocal(x),
    "Neg": lambda node, x: np.negative(x),
    "Exp": lambda node, x: np.exp(x),
    "Abs": lambda node, x: np.abs(x),
    "Pow": lambda node, a, b: np.power(a, b).astype(a.dtype),
    "Expand": lambda node, x, size: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(n) for n in size))),
    "Add": lambda node, a, b: np.add(a, b),
    "Sub": lambda node, a, b: np.subtract(a, b),
    "Mul": lambda node, a, b: np.multiply(a, b),
    "Div": lambda node, a, b: np.divide(a, b) if np.issubdtype(a.dtype, np.inexact) else np.array(None),
    "ConstantOfShape": _filled,
    "Max": lambda node, *parts: functools.reduce(np.maximum, parts),
    "Min": lambda node, *parts: functools.reduce(np.minimum, parts),
    "Where": lambda node, chosen, a, b: np.where(chosen, a, b),
    "MatMul": lambda node, a, b: np.matmul(a, b),
    "ReduceMean": _reduce(np.mean),
    "ReduceSum": _reduce(np.sum),
    "ReduceMax": _reduce(np.max),
    "ReduceMin": _reduce(np.min),
    "Flatten": _flattened,
    "Slice": _sliced,
    "Split": _parts,
    "Gather": lambda node, x, index: np.take(x, index, axis=attr(node, "axis", 0)),
    "Tile": lambda node, x, repeats: np.tile(x, repeats),
    "QuantizeLinear": _quantized,
    "DequantizeLinear": _dequantized,
    "Concat": lambda node, *parts: np.concatenate(parts, axis=attr(node, "axis", 1)),
}

_BROADCASTS = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where")


def evaluated(
    node: ir.Node, arrays: list[Array | None], index: int, limit: int
) -> Array | None:
    """Return output `index` of a node on constant operands, or None if that is unknown or larger than `limit` bytes."""
    if node.op_type in _BROADCASTS and ("broadcast" in node.attributes or "axis" in node.attributes):
        return None  # as before opset 7
    try:
        if 8 * _elements(node.op_type, [np.zeros(()) if array is None else array for array in arrays]) > limit:
            return None
        with np.errstate(all="ignore"):
            result = EVALUATE[node.op_type](node, *arrays)
    except FAULTS:
        return None  # an invalid operator is left for the runtime to refuse
    array = np.asarray(result[index] if isinstance(result, tuple) else result)
    return None if array.dtype == object else array


def _elements(op_type: str, arrays: list[Array]) -> float:
    """The number of elements that the result of an operator has at most."""
    if op_type in ("ConstantOfShape", "Expand"):
        return float(np.prod(arrays[-1], dtype=np.float64))
    if op_type == "Tile":
        return arrays[0].size * float(np.prod(arrays[1], dtype=np.float64))
    if op_type in ("Gather", "MatMul"):
        return float(arrays[0].size) * arrays[1].size
    if op_type in _BROADCASTS:
        return math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))
    return sum(array.size for array in arrays)
