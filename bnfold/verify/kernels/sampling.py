"""Values at places that are computed: GridSample, AffineGrid, DeformConv and MaxRoiPool in float64.

The places of a grid have a coordinate for each spatial axis, the last axis first, which reaches from -1 to 1: over the
centres of the outermost pixels where `align_corners` is set, over their outer edges otherwise. onnx's own kernels for
GridSample and DeformConv compute in float32, and clip cubic samples at the border, as ONNX Runtime and PyTorch don't.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bnfold.arrays import Array
from bnfold.verify.kernels.base import Arrays, Call, Unsupported, channelwise, kernel, optional

# Of cubic interpolation (Keys 1981), as ONNX Runtime and PyTorch have it.
ALPHA = -0.75


def _cubic(distance: Array) -> Array:
    d = np.abs(distance)
    near = ((ALPHA + 2.0) * d - (ALPHA + 3.0)) * d * d + 1.0
    far = ALPHA * (((d - 5.0) * d + 8.0) * d - 4.0)
    return np.where(d <= 1.0, near, far)


# mode → (offsets of the pixels that count from the one at or before a place, their weight by their distance to it)
MODES: dict[str, tuple[range, Callable[[Array], Array]]] = {
    "nearest": (range(1), np.ones_like),
    "linear": (range(2), lambda distance: 1.0 - np.abs(distance)),
    "cubic": (range(-1, 3), _cubic),
}
# Their names before opset 20.
MODES |= {"bilinear": MODES["linear"], "bicubic": MODES["cubic"]}


@kernel("GridSample")
def grid_sample(call: Call, inputs: Arrays) -> Arrays:
    """Interpolate x [N, C, *S] at the places of a grid [N, *O, rank] → [N, C, *O]."""
    x, grid = inputs
    mode, aligned = call.get("mode", "linear"), bool(call.get("align_corners", 0))
    if mode not in MODES or not np.isfinite(grid).all():
        raise Unsupported(f"GridSample of mode {mode}" if mode not in MODES else "GridSample at no place")
    sizes = x.shape[2:]
    places = [_denormalized(grid[..., -1 - axis], size, aligned) for axis, size in enumerate(sizes)]
    return (_sampled(x, places, mode, call.get("padding_mode", "zeros"), aligned),)


@kernel("DeformConv")
def deform_conv(call: Call, inputs: Arrays) -> Arrays:
    """A convolution [M, C/g, *K] whose taps are moved by offsets [N, parts·taps·2, *O] and weighed by a mask."""
    x, w, moved, bias, mask = (optional(inputs, n) for n in range(5))
    if x.ndim != 4:
        raise Unsupported("DeformConv in other than two dimensions")
    group, parts = int(call.get("group", 1)), int(call.get("offset_group", 1))
    stride, dilation = call.get("strides") or [1, 1], call.get("dilations") or [1, 1]
    begin, out = list(call.get("pads") or [0, 0, 0, 0])[:2], moved.shape[2:]
    moved = moved.reshape(len(x), parts, -1, 2, *out)
    mask = np.ones(moved[:, :, :, 0].shape) if mask is None else mask.reshape(len(x), parts, -1, *out)
    split = x.reshape(len(x), parts, -1, *x.shape[2:])
    columns = np.empty((*split.shape[:3], moved.shape[2], *out))
    first = np.meshgrid(*(s * np.arange(n) - b for s, n, b in zip(stride, out, begin, strict=True)), indexing="ij")
    for part, (tap, kernel_at) in itertools.product(range(parts), enumerate(np.ndindex(*w.shape[2:]))):
        places = [first[n] + dilation[n] * kernel_at[n] + moved[:, part, tap, n] for n in range(2)]
        columns[:, part, :, tap] = _sampled(split[:, part], places, "linear", "zeros", True) * mask[:, part, None, tap]
    weight = w.reshape(group, w.shape[0] // group, -1)
    result = (weight @ columns.reshape(len(x), group, weight.shape[2], -1)).reshape(len(x), w.shape[0], *out)
    return (result if bias is None else result + channelwise(bias, 4),)


def _sampled(x: Array, places: Sequence[Array], mode: str, padding: str, aligned: bool) -> Array:
    """Interpolate x [N, C, *S] at `places`, a coordinate in pixels [N, *O] for each spatial axis."""
    offsets, weight = MODES[mode]
    taps = []
    for place, size in zip(places, x.shape[2:], strict=True):
        first = np.rint(place) if mode == "nearest" else np.floor(place)
        taps.append([(_pixel(first + n, size, aligned, padding), weight(place - (first + n))) for n in offsets])
    rows = np.arange(len(x)).reshape(-1, *[1] * (places[0].ndim - 1))
    result = np.zeros((*places[0].shape, x.shape[1]), x.dtype)
    for corner in itertools.product(*taps):
        values: Any = (rows, slice(None), *(np.maximum(pixel, 0) for pixel, _ in corner))
        factor = np.asarray(math.prod(share * (pixel >= 0) for pixel, share in corner))
        result += (factor[..., None] * x[values]).astype(x.dtype)
    return np.moveaxis(result, -1, 1)


def _denormalized(x: Array, size: int, aligned: bool) -> Array:
    return (x + 1.0) / 2.0 * (size - 1) if aligned else ((x + 1.0) * size - 1.0) / 2.0


def _pixel(index: Array, size: int, aligned: bool, padding: str) -> Array:
    """The pixel whose value an index stands for, -1 where that is zero."""
    if padding == "zeros":
        return np.where((index >= 0) & (index < size), index, -1.0).astype(np.int64)
    if padding == "reflection":
        index = _reflected(index, size, aligned)
    return np.clip(index, 0, size - 1).astype(np.int64)


def _reflected(index: Array, size: int, aligned: bool) -> Array:
    """Reflect about the centres or the outer edges of the outermost pixels, as often as it takes."""
    low, span = (0.0, size - 1.0) if aligned else (-0.5, float(size))
    if span == 0.0:
        return np.zeros_like(index)
    beyond = np.abs(index - low) % (2.0 * span)
    return low + np.minimum(beyond, 2.0 * span - beyond)


@kernel("AffineGrid")
def affine_grid(call: Call, inputs: Arrays) -> Arrays:
    """The grid of places [N, *S, rank] that affine maps theta [N, rank, rank + 1] make of a regular one."""
    theta, sizes = inputs[0], [int(n) for n in inputs[1][2:]]
    aligned = bool(call.get("align_corners", 0))
    if aligned and 1 in sizes:
        raise Unsupported("AffineGrid that aligns the corners of a single pixel")
    axes = [np.linspace(-1, 1, n) if aligned else (2.0 * np.arange(n) + 1.0) / n - 1.0 for n in sizes]
    places = np.meshgrid(*axes, indexing="ij")[::-1]
    homogeneous = np.stack([*places, np.ones(sizes)], axis=-1)
    return (np.einsum("nrk,...k->n...r", theta, homogeneous),)


@kernel("MaxRoiPool")
def max_roi_pool(call: Call, inputs: Arrays) -> Arrays:
    """The maximum in each bin of regions of interest [R, 5]: batch and two corners, in pixels times `spatial_scale`."""
    x, regions = inputs
    shape, scale = call.get("pooled_shape"), call.get("spatial_scale", 1.0)
    result = np.zeros((len(regions), x.shape[1], *shape))
    for region, target in zip(regions, result, strict=True):
        # Halves are rounded up.
        left, top, right, bottom = (math.floor(v * scale + 0.5) for v in region[1:])
        for row, rows in enumerate(_bins(top, bottom, shape[0], x.shape[2])):
            for column, columns in enumerate(_bins(left, right, shape[1], x.shape[3])):
                patch = x[int(region[0])][:, rows, columns]
                if patch.size:
                    target[:, row, column] = patch.max(axis=(1, 2))
    return (result,)


def _bins(first: int, last: int, count: int, size: int) -> Iterator[slice]:
    """Cut pixels `first` to `last` into bins that may overlap by one, of an axis of `size` pixels."""
    width = max(last - first + 1, 1) / count
    for n in range(count):
        edges = (math.floor(n * width) + first, math.ceil((n + 1) * width) + first)
        yield slice(*(min(max(edge, 0), size) for edge in edges))
