"""Convolutions and matrix products in float64.

Conv gathers its windows into a matrix (im2col) a band of rows at a time, so that the extra memory stays bounded, and
multiplies per group. ConvTranspose multiplies first and adds each tap into its strided slice; the reference kernels
of onnx are wrong for it as soon as there are groups.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bnfold.arrays import Array
from bnfold.verify.kernels.base import Arrays, Call, channelwise, kernel, optional
from bnfold.verify.kernels.windows import Windows, windows

# Elements of one im2col band, 1 MiB of float64: what a core's cache holds. Fewer columns than COLUMNS multiply slowly.
BAND, COLUMNS = 1 << 17, 128
ALL: Any = slice(None)


@kernel("Conv")
def conv(call: Call, inputs: Arrays) -> Arrays:
    """Convolve x [N, C, *S] with w [M, C/g, *K] and add a bias [M]."""
    x, w, bias = inputs[0], inputs[1], optional(inputs, 2)
    group = int(call.get("group", 1))
    geometry = windows(call, x.shape[2:], w.shape[2:])
    padded = geometry.pad(x)
    if group == x.shape[1] and w.shape[1] == 1:
        result = _depthwise(padded, w, geometry)
    else:
        result = _grouped(padded, w, geometry, group)
    if bias is not None:
        result += channelwise(bias, result.ndim)
    return (result,)


def _depthwise(padded: Array, w: Array, geometry: Windows) -> Array:
    count, channels = padded.shape[:2]
    multiplier = w.shape[0] // channels
    result = np.zeros((count, channels, multiplier, *geometry.out))
    per_tap = w.reshape(channels, multiplier, *w.shape[2:])
    for tap, where in geometry.taps():
        factor = per_tap[(ALL, ALL, *tap)]
        factor = factor.reshape(1, channels, multiplier, *[1] * len(tap))
        result += factor * padded[(ALL, ALL, *where)][:, :, None]
    return result.reshape(count, channels * multiplier, *geometry.out)


def _grouped(padded: Array, w: Array, geometry: Windows, group: int) -> Array:
    count, channels = padded.shape[:2]
    rank, out = len(geometry.out), geometry.out
    result = np.empty((count, w.shape[0], *out))
    if result.size == 0:
        return result
    matrix = w.reshape(group, w.shape[0] // group, -1)
    steps = [s * t for s, t in zip(padded.strides[2:], geometry.stride, strict=True)]
    dilated = [s * t for s, t in zip(padded.strides[2:], geometry.dilation, strict=True)]
    view = np.lib.stride_tricks.as_strided(
        padded, (count, channels, *geometry.kernel, *out), (*padded.strides[:2], *dilated, *steps), writeable=False
    )
    across = max(1, math.prod(out[1:]))
    columns = max(COLUMNS, BAND // (channels * math.prod(geometry.kernel)))
    rows = -(-columns // across)
    for n in range(count):
        for start in range(0, out[0] if rank else 1, rows):
            band = (slice(None),) * (1 + rank) + (slice(start, start + rows),)
            product = matrix @ view[n][band].reshape(group, matrix.shape[2], -1)
            target = result[n][:, start : start + rows]
            target[...] = product.reshape(target.shape)
    return result


@kernel("ConvTranspose")
def conv_transpose(call: Call, inputs: Arrays) -> Arrays:
    """Transposed convolution of x [N, C, *S] with w [C, M/g, *K]; see the ONNX specification for pads."""
    x, w, bias = inputs[0], inputs[1], optional(inputs, 2)
    group, rank = int(call.get("group", 1)), x.ndim - 2
    stride = list(call.get("strides") or [1] * rank)
    dilation = list(call.get("dilations") or [1] * rank)
    extra = list(call.get("output_padding") or [0] * rank)
    shape, size = w.shape[2:], x.shape[2:]
    full = [s * (n - 1) + d * (k - 1) + 1 for s, n, d, k in zip(stride, size, dilation, shape, strict=True)]
    begin, out = _transposed_pads(call, size, stride, [f + e for f, e in zip(full, extra, strict=True)])
    geometry = Windows(tuple(full), shape, tuple(stride), tuple(dilation), (0,) * rank, (0,) * rank, size)

    per_group = x.reshape(x.shape[0], group, x.shape[1] // group, -1)
    matrix = w.reshape(group, x.shape[1] // group, -1).transpose(0, 2, 1)
    # Wide enough for output padding and for an output_shape that is larger than the taps reach.
    reach = [max(f, b + o) for f, b, o in zip(full, begin, out, strict=True)]
    channels = group * w.shape[1]
    result = np.zeros((x.shape[0], channels, *reach))
    for n in range(x.shape[0]):
        spread = (matrix @ per_group[n]).reshape(channels, *shape, *size)
        for tap, where in geometry.taps():
            place: Any = (n, ALL, *where)
            result[place] += spread[(ALL, *tap)]
    result = result[(ALL, ALL, *(slice(b, b + o) for b, o in zip(begin, out, strict=True)))]
    return (result if bias is None else result + channelwise(bias, result.ndim),)


def _transposed_pads(call: Call, size: Arrays, stride: list[int], full: list[int]) -> tuple[list[int], list[int]]:
    """Return the padding cut off in front and the output size, per spatial axis."""
    rank, auto = len(size), call.get("auto_pad", "NOTSET")
    pads = list(call.get("pads") or [0] * (2 * rank))
    wanted = call.get("output_shape")
    if not wanted:
        if auto not in ("SAME_UPPER", "SAME_LOWER"):
            begin = pads[:rank] if auto == "NOTSET" else [0] * rank
            end = pads[rank:] if auto == "NOTSET" else [0] * rank
            return begin, [f - b - e for f, b, e in zip(full, begin, end, strict=True)]
        wanted = [n * s for n, s in zip(size, stride, strict=True)]
    out = list(wanted)[-rank:]
    total = [max(0, f - o) for f, o in zip(full, out, strict=True)]
    return [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total], out


@kernel("Gemm")
def gemm(call: Call, inputs: Arrays) -> Arrays:
    """alpha·A'B' + beta·C, with A and B transposed as the attributes say."""
    a, b, c = inputs[0], inputs[1], optional(inputs, 2)
    a = a.T if call.get("transA", 0) else a
    b = b.T if call.get("transB", 0) else b
    result = (a @ b) * call.get("alpha", 1.0)
    return (result if c is None else result + call.get("beta", 1.0) * c,)


@kernel("MatMul")
def matmul(call: Call, inputs: Arrays) -> Arrays:
    """The matrix product with numpy's broadcasting rules."""
    return (np.asarray(np.matmul(inputs[0], inputs[1])),)


@kernel("Einsum")
def einsum(call: Call, inputs: Arrays) -> Arrays:
    """The Einstein summation of the `equation` attribute."""
    return (np.asarray(np.einsum(call.get("equation").replace(" ", ""), *inputs, optimize=True)),)
