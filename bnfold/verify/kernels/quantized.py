"""Quantization and integer arithmetic; float64 holds every integer that int32 does, so that no sum is rounded."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.arrays import Array
from bnfold.verify.kernels.base import KERNELS, Arrays, Call, Unsupported, channelwise, kernel, optional


@kernel("DequantizeLinear")
def dequantize(call: Call, inputs: Arrays) -> Arrays:
    """(x − zero_point)·scale, per tensor, per axis or per block."""
    x, zero = inputs[0], optional(inputs, 2)
    scale = _spread(inputs[1], x, call)
    shift = 0.0 if zero is None else _spread(zero.astype(np.float64), x, call)
    return ((x.astype(np.float64) - shift) * scale,)


@kernel("QuantizeLinear")
def quantize(call: Call, inputs: Arrays) -> Arrays:
    """Saturate(round-half-even(x / scale) + zero_point) in the zero point's integer type."""
    x, zero = inputs[0], optional(inputs, 2)
    stored = call.get("output_dtype", 0)
    dtype = zero.dtype if zero is not None else ir.DataType(stored).numpy() if stored else np.dtype(np.uint8)
    if dtype.kind not in "iu":
        raise Unsupported(f"QuantizeLinear to {dtype.name}")
    shift = np.zeros(()) if zero is None else _spread(zero.astype(np.float64), x, call)
    return (_saturated(x / _spread(inputs[1], x, call), shift, dtype),)


def _spread(parameter: Array, x: Array, call: Call) -> Array:
    """Broadcast a scale or zero point against `x` as `axis` and `block_size` say."""
    if parameter.size == 1:
        return parameter.reshape(())
    axis = call.get("axis", 1) % x.ndim
    block = call.get("block_size", 0)
    if block:
        return np.repeat(parameter, block, axis=axis)[tuple(slice(0, n) for n in x.shape)]
    return parameter.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


@kernel("DynamicQuantizeLinear")
def dynamic_quantize(call: Call, inputs: Arrays) -> Arrays:
    """x in 256 steps of its own range, which holds zero: the codes, their scale and the code of zero."""
    x = inputs[0]
    low, high = min(0.0, float(x.min(initial=0.0))), max(0.0, float(x.max(initial=0.0)))
    scale = (high - low) / 255.0 or 1.0
    zero = np.rint(np.clip(-low / scale, 0.0, 255.0))
    return _saturated(x / scale, zero, np.dtype(np.uint8)), np.float64(scale).reshape(()), np.uint8(zero).reshape(())


@kernel("MatMulInteger")
def matmul_integer(call: Call, inputs: Arrays) -> Arrays:
    """(a − a₀)·(b − b₀) in int32, with one zero point for all, for a row of a, for a column of b."""
    a, b = _centred(inputs[0], _row(optional(inputs, 2))), _centred(inputs[1], optional(inputs, 3))
    return (np.matmul(a, b).astype(np.int32),)


@kernel("ConvInteger")
def conv_integer(call: Call, inputs: Arrays) -> Arrays:
    """The convolution of x − x₀ with w − w₀ in int32; w₀ may be one an output channel."""
    return (_convolved(call, inputs[0], optional(inputs, 2), inputs[1], optional(inputs, 3)).astype(np.int32),)


@kernel("QLinearMatMul")
def qlinear_matmul(call: Call, inputs: Arrays) -> Arrays:
    """(a − a₀)·(b − b₀) times both scales, in codes of the result's."""
    a, a_scale, a_zero, b, b_scale, b_zero, scale, zero = inputs
    product = np.matmul(_centred(a, _row(a_zero)), _centred(b, b_zero)) * _row(a_scale) * b_scale
    return (_saturated(product / scale, zero.astype(np.float64), zero.dtype),)


@kernel("QLinearConv")
def qlinear_conv(call: Call, inputs: Arrays) -> Arrays:
    """The convolution of x − x₀ with w − w₀, plus an int32 bias, times both scales, in codes of the result's."""
    x, x_scale, x_zero, w, w_scale, w_zero, scale, zero = inputs[:8]
    summed, bias = _convolved(call, x, x_zero, w, w_zero), optional(inputs, 8)
    if bias is not None:
        summed = summed + channelwise(bias.astype(np.float64), x.ndim)
    return (_saturated(summed * x_scale * _outputs(w_scale, x.ndim) / scale, zero.astype(np.float64), zero.dtype),)


def _convolved(call: Call, x: Array, x_zero: Array | None, w: Array, w_zero: Array | None) -> Array:
    kernel = _centred(w, None if w_zero is None else w_zero.reshape(-1, *[1] * (w.ndim - 1)))
    result: Array = KERNELS["Conv"](call, [_centred(x, x_zero), kernel])[0]
    return result


def _centred(codes: Array, zero: Array | None) -> Array:
    return codes.astype(np.float64) - (0.0 if zero is None else zero.astype(np.float64))


def _row(parameter: Array | None) -> Array | None:
    """A vector that holds one number for each row, beside a matrix."""
    return parameter[:, None] if parameter is not None and parameter.ndim == 1 and parameter.size > 1 else parameter


def _outputs(parameter: Array, rank: int) -> Array:
    return channelwise(parameter.reshape(-1), rank) if parameter.size > 1 else parameter.reshape(())


def _saturated(real: Array, zero: Array, dtype: np.dtype[Any]) -> Array:
    limits = np.iinfo(dtype)
    codes: Array = np.clip(np.rint(real) + zero, limits.min, limits.max).astype(dtype)
    return codes
