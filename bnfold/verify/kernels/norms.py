"""Normalizations and softmaxes in float64.

Epsilon is the stored float32 value. onnx's own kernel for BatchNormalization before opset 14 mixes batch statistics
into inference, and the one for LRN sums over the wrong axis; both are written out here.
"""

from __future__ import annotations

import math

import numpy as np

from bnfold.arrays import Array
from bnfold.verify.kernels.base import Arrays, Call, Unsupported, channelwise, kernel, optional

EPSILON = float(np.float32(1e-5))


@kernel("BatchNormalization")
def batch_normalization(call: Call, inputs: Arrays) -> Arrays:
    """(x − mean)·gamma/√(var + epsilon) + beta per channel, from the frozen statistics."""
    x, gamma, beta, mean, var = inputs[:5]
    if call.get("training_mode", 0) or call.outputs > 1:
        raise Unsupported("BatchNormalization in training mode")
    scale = gamma / np.sqrt(var + call.get("epsilon", EPSILON))
    if not call.get("spatial", 1):
        return ((x - mean) * scale + beta,)
    per = [channelwise(v, x.ndim) for v in (mean, scale, beta)]
    return ((x - per[0]) * per[1] + per[2],)


def _standardized(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    mean = x.mean(axis=axes, keepdims=True)
    centred = x - mean
    inverse = 1.0 / np.sqrt((centred * centred).mean(axis=axes, keepdims=True) + epsilon)
    return centred * inverse, mean, inverse


@kernel("InstanceNormalization")
def instance_normalization(call: Call, inputs: Arrays) -> Arrays:
    """Standardize each channel of each sample, then scale [C] and shift [C]."""
    x, scale, bias = inputs
    y, _, _ = _standardized(x, tuple(range(2, x.ndim)), call.get("epsilon", EPSILON))
    return (y * channelwise(scale, x.ndim) + channelwise(bias, x.ndim),)


@kernel("GroupNormalization")
def group_normalization(call: Call, inputs: Arrays) -> Arrays:
    """Standardize each group of channels; scale and bias are per group before opset 21, then per channel."""
    x, scale, bias = inputs
    groups = int(call.get("num_groups"))
    y, _, _ = _standardized(x.reshape(x.shape[0], groups, -1), (2,), call.get("epsilon", EPSILON))
    y = y.reshape(x.shape)
    if scale.size != x.shape[1]:
        scale, bias = (np.repeat(v, x.shape[1] // groups) for v in (scale, bias))
    return (y * channelwise(scale, x.ndim) + channelwise(bias, x.ndim),)


@kernel("LayerNormalization")
def layer_normalization(call: Call, inputs: Arrays) -> Arrays:
    """Standardize over the axes from `axis` on; also returns the mean and the inverse deviation."""
    x, scale, bias = inputs[0], inputs[1], optional(inputs, 2)
    axes = tuple(range(call.get("axis", -1) % x.ndim, x.ndim))
    y, mean, inverse = _standardized(x, axes, call.get("epsilon", EPSILON))
    y = y * scale if bias is None else y * scale + bias
    return (y, mean, inverse)[: max(call.outputs, 1)]


@kernel("RMSNormalization")
def rms_normalization(call: Call, inputs: Arrays) -> Arrays:
    """Divide by the root mean square over the axes from `axis` on, then scale."""
    x, scale = inputs
    axes = tuple(range(call.get("axis", -1) % x.ndim, x.ndim))
    power = (x * x).mean(axis=axes, keepdims=True) + call.get("epsilon", EPSILON)
    return (x / np.sqrt(power) * scale,)


@kernel("MeanVarianceNormalization")
def mean_variance_normalization(call: Call, inputs: Arrays) -> Arrays:
    """Standardize over `axes` (0, 2, 3 by default); the specification adds 1e-9 to the deviation."""
    x = inputs[0]
    axes = tuple(call.get("axes", (0, 2, 3)))
    centred = x - x.mean(axis=axes, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(axis=axes, keepdims=True))
    return (centred / (deviation + float(np.float32(1e-9))),)


@kernel("LRN")
def lrn(call: Call, inputs: Arrays) -> Arrays:
    """Local response normalization across `size` neighbouring channels."""
    x, size = inputs[0], int(call.get("size"))
    before, after = math.floor((size - 1) / 2), math.ceil((size - 1) / 2)
    padded = np.pad(x * x, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
    total = sum(padded[:, i : i + x.shape[1]] for i in range(size))
    alpha, beta = call.get("alpha", float(np.float32(1e-4))), call.get("beta", 0.75)
    return (x / (call.get("bias", 1.0) + alpha / size * total) ** beta,)


@kernel("LpNormalization")
def lp_normalization(call: Call, inputs: Arrays) -> Arrays:
    """Divide by the 1- or 2-norm along `axis`; a zero norm gives zero."""
    x, axis, p = inputs[0], call.get("axis", -1), call.get("p", 2)
    norm = np.abs(x).sum(axis, keepdims=True) if p == 1 else np.sqrt((x * x).sum(axis, keepdims=True))
    return (np.where(norm == 0, 0.0, x / np.where(norm == 0, 1.0, norm)),)


@kernel("Softmax", "LogSoftmax", "Hardmax")
def softmax(call: Call, inputs: Arrays) -> Arrays:
    """Softmax along `axis`; before opset 13 over all axes from `axis` on, taken together."""
    x = inputs[0]
    if x.size == 0:
        return (x,)
    axis = call.get("axis", -1 if call.opset >= 13 else 1)
    shape = x.shape
    if call.opset < 13:
        axis %= x.ndim + (axis == x.ndim)
        x, axis = x.reshape(math.prod(shape[:axis]), -1), 1
    if call.op == "Hardmax":
        first = np.expand_dims(x.argmax(axis), axis)
        y = (np.arange(x.shape[axis]).reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)]) == first) * 1.0
        return (y.reshape(shape),)
    shifted = x - x.max(axis=axis, keepdims=True)
    power = np.exp(shifted)
    total = power.sum(axis=axis, keepdims=True)
    return ((shifted - np.log(total) if call.op == "LogSoftmax" else power / total).reshape(shape),)
