"""The fold formulas once more, written without the algebra that does the folding.

For a BatchNormalization directly behind a Conv, ConvTranspose, Gemm or MatMul, with s = γ/√(σ² + ε):

    W* = s·W        b* = s·(b − μ) + β

in float64 from the original file. A weight that bnfold folded is W* rounded once: |W′ − W*| ≤ ½ulp·(1 + 2⁻²⁰).
Somebody else's is held to |W′ − W*| ≤ t(u|W*| + η) and |b′ − b*| ≤ t(u(|sb| + |sμ| + |β|) + η), with the unit roundoff
u and the smallest subnormal η of the type, t = 4 for weights and 8 for biases: correct float32 formulas need up to
3.63u and 4.92u.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from bnfold.arrays import Array, Float64
from bnfold.graph import tensor

# Weights that are compared at once.
PART = 1 << 20
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Folded:
    """A layer's constants, W* = s·W one row an output channel: `rows` is W as stored, `scale` is s.

    `shape` is that of the weight in the file. `bias` is b* in float64 and `bias_scale` the magnitude that its rounding
    is relative to; both are None where the layer can't hold a bias (MatMul).
    """

    rows: Array
    shape: tuple[int, ...]
    scale: Float64
    bias: Float64 | None
    bias_scale: Float64 | None

    def star(self, part: slice = slice(None)) -> Float64:
        """W* of some output channels [outputs, inputs·taps] in float64."""
        return self.rows[part].astype(np.float64) * self.scale[part, None]

    def parts(self) -> Iterator[slice]:
        """Output channels, so many at once that a large weight is not widened as a whole."""
        outputs, inputs = self.rows.shape
        step = max(1, PART // max(inputs, 1))
        yield from (slice(start, start + step) for start in range(0, outputs, step))

    def distance(self, other: Folded) -> float:
        """‖W* of the other − W*‖ / ‖W*‖, where nothing over nothing is 0."""
        size = off = 0.0
        with np.errstate(invalid="ignore", over="ignore"):
            for part in self.parts():
                star = self.star(part)
                size, off = size + float((star**2).sum()), off + float(((other.star(part) - star) ** 2).sum())
        return math.sqrt(off) / (math.sqrt(size) or 1.0)


def layer(linear: ir.Node) -> Folded | None:
    """Return a layer's own constants, that is without any BatchNormalization; None where they are computed."""
    weight, given = stored(linear.inputs[1]), linear.inputs[2] if len(linear.inputs) > 2 else None
    bias = _array(given) if given is not None else None
    if weight is None or (given is not None and bias is None):
        return None
    rows, shape = by_output(weight.numpy(), linear), tuple(weight.shape.numpy())
    return Folded(rows, shape, np.ones(len(rows)), bias, None if bias is None else np.abs(bias))


def folded(linear: ir.Node, norm: ir.Node) -> Folded | None:
    """Return what the BatchNormalization `norm` makes of the layer before it, or None where the law above is not all.

    >>> folded(conv, batch_norm).shape  # doctest: +SKIP
    (64, 3, 7, 7)
    """
    parameters = [_array(v) for v in norm.inputs[1:5]]
    alone = layer(linear)
    if alone is None or not _plain(linear, alone) or len(parameters) != 4:
        return None
    if any(p is None for p in parameters) or _integer(norm, "training_mode", 0):
        return None
    gamma, beta, mean, var = (p for p in parameters if p is not None)
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    scale = gamma / np.sqrt(var + float(np.float32(epsilon)))
    if linear.op_type == "MatMul":
        return replace(alone, scale=scale)
    bias = np.zeros(1) if alone.bias is None else alone.bias
    size = np.abs(scale) * (np.abs(bias) + np.abs(mean)) + np.abs(beta)
    return replace(alone, scale=scale, bias=scale * (bias - mean) + beta, bias_scale=size)


def _plain(linear: ir.Node, alone: Folded) -> bool:
    """Whether the layer is W·x + b with nothing else to it, so that the law holds as it stands."""
    if linear.op_type == "MatMul":
        rank = None if linear.inputs[0] is None or linear.inputs[0].shape is None else len(linear.inputs[0].shape)
        return len(alone.shape) == 2 and rank == 2
    if linear.op_type == "Gemm":
        given = [linear.attributes[name] for name in ("alpha", "beta") if name in linear.attributes]
        bias = np.zeros(1) if alone.bias is None else alone.bias
        unscaled = all(np.float32(factor.as_float()) == 1.0 for factor in given)
        return unscaled and bias.ndim <= 1 and bias.size in (1, len(alone.rows))
    return True


def by_output(weight: Array, linear: ir.Node) -> Array:
    """A layer's weight as one row an output channel, without a copy where there are no groups to transpose."""
    if linear.op_type == "ConvTranspose":
        group, outputs = _integer(linear, "group", 1), weight.shape[1]
        split = weight.reshape(group, weight.shape[0] // group, outputs, -1)
        return np.moveaxis(split, 2, 1).reshape(group * outputs, -1)
    if linear.op_type == "MatMul" or (linear.op_type == "Gemm" and not _integer(linear, "transB", 0)):
        return weight.reshape(-1, weight.shape[-1]).T
    return weight.reshape(weight.shape[0], -1)


def _integer(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _array(value: ir.Value | None) -> Float64 | None:
    held = stored(value)
    return None if held is None else held.numpy().astype(np.float64)


def stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor that a value always holds, stored or computed from constants; None if it depends on inputs."""
    if value is None:
        return None
    # An initializer that a caller could override is a constant here, and the verdict says so.
    return value.const_value if value.is_initializer() else tensor(value)
