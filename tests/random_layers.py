"""Families of random graphs that compute: affines, linear operators, norms, recurrent layers, quantized weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import helper

from tests.random_builder import TYPES, Builder, Value


def batch_norm(b: Builder, x: Value | None = None, groups: int = 0) -> None:
    """A BatchNormalization; with `groups` its channels agree within each."""
    x = x or b.pick(2, 3, 4)
    if x is None or len(x.shape) < 2:
        return
    c = x.shape[1]
    gamma = b.draw.of(b.normal(c), np.abs(b.normal(c)), np.full(c, 1.5)) * b.draw.rng.choice([0.0, 1, 1, 1], c)
    shift = b.draw.of(1.0, 1.0, 0.0)
    arrays = [gamma, b.normal(c, spread=shift), b.normal(c, spread=shift), b.draw.rng.uniform(0.5, 2.0, c)]
    if groups:
        arrays = [np.repeat(array[: groups], c // groups) for array in arrays]
    legacy = {"is_test": 1} if b.opset < 7 else {}
    b.add("BatchNormalization", x, [x.name, *(b.constant(a, x.dtype) for a in arrays)], x.shape, epsilon=1e-3, **legacy)


def arithmetic(b: Builder) -> None:
    x = b.pick()
    if x is None:
        return
    op = b.draw.of("Mul", "Add", "Sub", "Div", "Neg")
    if op == "Neg":
        b.add(op, x, [x.name], x.shape)
        return
    rank = len(x.shape)
    keep = set(b.draw.of([1], [1], [], [rank - 1], b.draw.some(list(range(rank))) if rank and b.opset >= 7 else []))
    shape = [size if axis in keep and axis else 1 for axis, size in enumerate(x.shape)]
    while shape and shape[0] == 1 and b.chance(2):
        shape = shape[1:]
    c = b.normal(*shape)
    if op == "Div":
        c = np.where(c < 0, c - 0.5, c + 0.5)
    b.arithmetic(op, x, c, swapped=op != "Div" and b.chance(2))


def last_affine(b: Builder, x: Value) -> Value:
    """A scale or a shift, or both, that vary along the last axis."""
    op = b.draw.of("Mul", "Add", "both")
    if op != "Add":
        x = b.arithmetic("Mul", x, b.normal(x.shape[-1]))
    return x if op == "Mul" else b.arithmetic("Add", x, b.normal(x.shape[-1]))


def conv(b: Builder) -> None:
    x = b.pick(3, 4)
    if x is None:
        return
    n, c, *space = x.shape
    group = b.draw.of(1, 1, 2 if c % 2 == 0 else 1, c)
    out, kernel = group * b.draw.size(1, 3), [b.draw.of(1, 1, 3) if size >= 3 else 1 for size in space]
    pad = b.draw.of(0, 1)
    attributes: dict[str, Any] = {"group": group, "pads": [pad] * 2 * len(space)} if pad else {"group": group}
    shape = [n, out, *(size + 2 * pad - k + 1 for size, k in zip(space, kernel, strict=True))]
    weight = b.weight([out, c // group, *kernel], c // group * int(np.prod(kernel)), x.dtype)
    bias = [b.constant(b.normal(out), x.dtype)] if b.chance(2) else []
    b.add("Conv", x, [x.name, weight, *bias], shape, **attributes)


def conv_transpose(b: Builder) -> None:
    x = b.pick(4)
    if x is None:
        return
    n, c, h, w = x.shape
    group, out, kernel = b.draw.of(1, 2 if c % 2 == 0 else 1), b.draw.size(1, 3), b.draw.of(1, 2)
    weight = b.weight([c, out, kernel, kernel], c // group, x.dtype)
    b.add("ConvTranspose", x, [x.name, weight], [n, out * group, h + kernel - 1, w + kernel - 1], group=group)


def gemm(b: Builder) -> None:
    x = b.pick(2)
    if x is None:
        return
    out, flip = b.draw.size(2, 5), b.draw.of(0, 1)
    k = x.shape[1]
    weight = b.weight([out, k] if flip else [k, out], k, x.dtype)
    shapes: list[tuple[int, ...] | None] = [(out,), (1, out), (1,)]
    c = b.draw.of(*shapes, None) if b.opset >= 11 else (out,)
    bias = [] if c is None else [b.constant(b.normal(*c), x.dtype)]
    alpha, beta = b.draw.of((1.0, 1.0), (0.5, 2.0))
    legacy = {"broadcast": 1} if b.opset < 7 else {}
    b.add("Gemm", x, [x.name, weight, *bias], [x.shape[0], out], transB=flip, alpha=alpha, beta=beta, **legacy)


def matmul(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    if x is None:
        return
    *rest, m, k = x.shape
    out = b.draw.size(2, 4)
    if len(rest) == 1 and b.opset >= 12 and x.dtype != "bfloat16" and b.chance(4):
        weight = b.weight([out, k], k, x.dtype)
        y = b.add("Einsum", x, [x.name, weight], [*rest, m, out], equation="bik,ok->bio")
    elif b.chance(3):
        y = b.add("MatMul", x, [b.weight([out, m], m, x.dtype), x.name], [*rest, out, k])
    else:
        y = b.add("MatMul", x, [x.name, b.weight([k, out], k, x.dtype)], [*rest, m, out])
    if b.chance(2):
        b.arithmetic("Add", y, b.normal(y.shape[-1]), swapped=b.chance(2))


def attention(b: Builder) -> None:
    """Softmax(QKᵀ)V; its rows sum to one, so that an affine after it may reach V."""
    x = b.pick(3)
    if x is None:
        return
    n, t, c = x.shape
    q, k, v = (b.add("MatMul", x, [x.name, b.weight([c, 3], c, x.dtype)], [n, t, 3]) for _ in range(3))
    turned = b.add("Transpose", k, [k.name], [n, 3, t], perm=[0, 2, 1])
    scores = b.arithmetic("Mul", b.add("MatMul", q, [q.name, turned.name], [n, t, t]), 0.5)
    weights = b.add("Softmax", scores, [scores.name], scores.shape, axis=-1 if b.opset >= 11 else 2)
    if b.chance(3):
        v = last_affine(b, v)
    with b.family("average"):
        y = b.add("MatMul", x, [weights.name, v.name], [n, t, 3])
    if b.chance(2):
        last_affine(b, y)


_CHANNELS, _LAST = ("InstanceNormalization", "GroupNormalization"), ("LayerNormalization", "RMSNormalization")
NORMS = {"InstanceNormalization": 6, "LayerNormalization": 17, "GroupNormalization": 21, "RMSNormalization": 23}


def norm(b: Builder) -> None:
    """A normalization, every other one with an affine that fits its gamma right behind it."""
    x = b.pick(3, 4)
    if x is None:
        return
    op = b.draw.of(*(op for op, since in NORMS.items() if b.opset >= since))
    c, groups = x.shape[1], 2 if x.shape[1] % 2 == 0 else 1
    attributes = {"num_groups": groups} if op == "GroupNormalization" else {}
    size = x.shape[-1] if op in _LAST else c
    parameters = [b.normal(size)] if op == "RMSNormalization" else [b.normal(size), b.normal(size)]
    with b.family(op):
        y = b.add(op, x, [x.name, *(b.constant(array, x.dtype) for array in parameters)], x.shape, **attributes)
    if b.chance(2):
        if op in _LAST:
            last_affine(b, y)
        else:
            batch_norm(b, y, groups)


def recurrent(b: Builder) -> None:
    """An LSTM, GRU or RNN in one or both directions, with an affine of its features before it or none."""
    x = b.pick(3)
    if x is None or b.opset < 7:
        return
    if b.chance(2):
        x = last_affine(b, x)
    t, n, features = x.shape
    op, gates = b.draw.of(("LSTM", 4), ("GRU", 3), ("RNN", 1))
    ways = b.draw.of(1, 2)
    arrays = [b.normal(ways, gates * 2, features), b.normal(ways, gates * 2, 2)]
    if b.chance(2):
        arrays.append(b.normal(ways, gates * 4))
    direction = "bidirectional" if ways == 2 else b.draw.of("forward", "reverse")
    operands = [x.name, *(b.constant(array, x.dtype) for array in arrays)]
    b.add(op, x, operands, [t, ways, n, 2], hidden_size=2, direction=direction)


_CODES = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15)}


def quantized(b: Builder) -> None:
    """A Conv or MatMul whose weight is dequantized: per tensor, per axis or in blocks, with zero points or without.

    The scale's type is the weight's, which has no double; most often a BatchNormalization follows.
    """
    x = b.pick(2, 3, 4)
    if x is None or b.opset < 10 or x.dtype == "double" or (x.dtype != "float" and b.opset < 19):
        return
    wide = len(x.shape) == 4 or b.chance(2)
    rows, out = (x.shape[1] if wide and len(x.shape) > 2 else x.shape[-1]), b.draw.size(2, 4)
    convolves = wide and len(x.shape) > 2
    shape = [out, rows, *[1] * (len(x.shape) - 2)] if convolves else [rows, out]
    axis = 0 if convolves else 1
    kind = b.draw.of("int8", "uint8", "int4", "uint4") if b.opset >= 21 else b.draw.of("int8", "uint8")
    low, high = _CODES[kind]
    ways = ["tensor", *(["axis"] if b.opset >= 13 else []), *(["block"] if b.opset >= 21 and rows % 2 == 0 else [])]
    way = b.draw.of(*ways)
    along: tuple[int, ...] = {"tensor": (), "axis": (out,), "block": tuple(shape)}[way]
    attributes = {"axis": axis} if way == "axis" else {}
    if way == "block":
        attributes = {"axis": 1 - axis, "block_size": 2}
        along = tuple(size // 2 if k == 1 - axis else size for k, size in enumerate(shape))
    step = b.constant(b.draw.rng.uniform(0.5, 1.0, along) * rows**-0.5 * 2 / (high - low), x.dtype)
    operands = [_codes(b, kind, shape, low, high), step]
    if kind.startswith("u") or b.chance(2):
        operands.append(_codes(b, kind, along, low // 2, high // 2))
    weight = b.hidden("DequantizeLinear", operands, shape, x.dtype, **attributes)
    if convolves:
        y = b.add("Conv", x, [x.name, weight.name], [x.shape[0], out, *x.shape[2:]])
        if b.chance(3):
            return
        batch_norm(b, y)
    else:
        y = b.add("MatMul", x, [x.name, weight.name], [*x.shape[:-1], out])
        if not b.chance(3):
            last_affine(b, y)


def _codes(b: Builder, kind: str, shape: Any, low: int, high: int) -> str:
    return b.constant(b.draw.rng.integers(low, high, shape, endpoint=True).astype(ir.DataType[kind.upper()].numpy()))


def cast(b: Builder) -> None:
    """A value in another floating type; most often a layer and an affine work on it there."""
    x = b.pick(2, 3, 4)
    if x is None or b.dtype == "double":
        return
    others = [kind for kind in ("double", "float", "float16") if kind != x.dtype and x.dtype != "bfloat16"]
    target = b.draw.of(*others) if others else "float"
    with b.family(f"{x.dtype} to {target}"):
        b.add("Cast", x, [x.name], x.shape, dtype=target, to=TYPES[target])


def info(value: Value) -> Any:
    return helper.make_tensor_value_info(value.name, TYPES[value.dtype], value.shape)
