"""The fold formulas once more, written without the algebra that does the folding.

For a BatchNormalization directly behind a Conv, ConvTranspose, Gemm or MatMul, with s = γ/√(σ² + ε):

    W* = s·W        b* = s·(b − μ) + β

in float64 from the original file. A weight that bnfold folded is W* rounded once: |W′ − W*| ≤ ½ulp·(1 + 2⁻²⁰).
Somebody else's is held to |W′ − W*| ≤ t(u|W*| + η) and |b′ − b*| ≤ t(u(|sb| + |sμ| + |β|) + η), with the unit roundoff
u and the smallest subnormal η of the type, t = 4 for weights and 8 for biases: correct float32 formulas need up to
3.63u and 4.92u.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.graph import tensor

Array = npt.NDArray[np.float64]

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Folded:
    """W* and b* in float64, and the magnitudes `weight_scale`, `bias_scale` that their rounding is relative to.

    The weight has the layer's own layout; `bias` is None where the layer can't hold one (MatMul).
    """

    weight: Array
    weight_scale: Array
    bias: Array | None
    bias_scale: Array | None


def layer(linear: ir.Node) -> Folded | None:
    """Return a layer's own constants, that is without any BatchNormalization; None where they are computed."""
    weight, given = _array(linear.inputs[1]), linear.inputs[2] if len(linear.inputs) > 2 else None
    bias = _array(given) if given is not None else None
    if weight is None or (given is not None and bias is None):
        return None
    return Folded(weight, np.abs(weight), bias, None if bias is None else np.abs(bias))


def folded(linear: ir.Node, norm: ir.Node) -> Folded | None:
    """Return what the BatchNormalization `norm` makes of the layer before it, or None where the law above is not all.

    >>> folded(conv, batch_norm).weight.shape  # doctest: +SKIP
    (64, 3, 7, 7)
    """
    parameters = [_array(v) for v in norm.inputs[1:5]]
    weight = _array(linear.inputs[1])
    given = linear.inputs[2] if len(linear.inputs) > 2 else None
    bias = _array(given) if given is not None else np.zeros(1)
    if weight is None or bias is None or len(parameters) != 4:
        return None
    if any(p is None for p in parameters) or _integer(norm, "training_mode", 0):
        return None
    gamma, beta, mean, var = (p for p in parameters if p is not None)
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    scale = gamma / np.sqrt(var + float(np.float32(epsilon)))
    spread = _spread(linear, weight, bias, scale)
    if spread is None:
        return None
    star = weight * spread
    if linear.op_type == "MatMul":
        return Folded(star, np.abs(star), None, None)
    size = np.abs(scale) * (np.abs(bias) + np.abs(mean)) + np.abs(beta)
    return Folded(star, np.abs(star), scale * (bias - mean) + beta, size)


def _spread(linear: ir.Node, weight: Array, bias: Array, scale: Array) -> Array | None:
    """The scale, shaped to multiply the layer's weight."""
    if linear.op_type == "MatMul":
        rank = None if linear.inputs[0] is None or linear.inputs[0].shape is None else len(linear.inputs[0].shape)
        return scale if weight.ndim == 2 and rank == 2 else None
    if linear.op_type == "Gemm":
        factors = [
            float(np.float32(linear.attributes[n].as_float())) if n in linear.attributes else 1.0
            for n in ("alpha", "beta")
        ]
        if factors != [1.0, 1.0] or bias.ndim > 1 or bias.size not in (1, scale.size):
            return None
        return scale[:, None] if _integer(linear, "transB", 0) else scale
    taps = (1,) * (weight.ndim - 2)
    if linear.op_type == "Conv":
        return scale.reshape(-1, 1, *taps)
    group = _integer(linear, "group", 1)
    per_group = np.repeat(scale.reshape(group, 1, -1), weight.shape[0] // group, axis=1)
    return per_group.reshape(weight.shape[0], weight.shape[1], *taps)


def _integer(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def smallest_subnormal(dtype: ir.DataType) -> float:
    """η: below it a type holds nothing but zero."""
    return float(ml_dtypes.finfo(dtype.numpy()).smallest_subnormal)  # type: ignore[no-untyped-call]


def _array(value: ir.Value | None) -> Array | None:
    held = stored(value)
    return None if held is None else held.numpy().astype(np.float64)


def stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor that a value always holds, stored or computed from constants; None if it depends on inputs."""
    if value is None:
        return None
    # An initializer that a caller could override is a constant here, and the verdict says so.
    return value.const_value if value.is_initializer() else tensor(value)
