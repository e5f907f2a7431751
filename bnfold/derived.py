"""Stored tensors seen through affines: float64 inside, one rounding at the end.

A fold edits a weight by an `Affine` that broadcasts against it. Several folds may edit the same weight; their
steps are kept apart and applied in float64 when the bytes are asked for, so that each weight is rounded once
however many folds it took, and a large one is computed in slices while it is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import BinaryIO, TypeGuard

import ml_dtypes
import numpy as np
import onnx_ir as ir

from bnfold.affine import Affine, varying
from bnfold.arrays import Array, Float64

# Small enough that the temporaries stay in the cache and in memory that is already mapped.
SLICE_BYTES = 1 << 20
# What is at most as large in float64 is computed once and kept: a graph has thousands of biases.
KEPT_BYTES = 16 << 10

_LIMITS: dict[ir.DataType, ml_dtypes.finfo] = {
    dtype: ml_dtypes.finfo(dtype.numpy())  # type: ignore[no-untyped-call]
    for dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)
}


def foldable_dtype(dtype: ir.DataType | None) -> bool:
    """Whether values of this type can carry an affine: float16, bfloat16, float32 and float64."""
    return dtype in _LIMITS


def rounded(values: Float64, dtype: ir.DataType) -> Array:
    """Round float64 values once, to nearest even, to `dtype` (beyond its range: infinity)."""
    with np.errstate(over="ignore"):
        if dtype is ir.DataType.BFLOAT16:
            # The cast goes through float32; rounding to odd there keeps the second rounding correct.
            single = np.asarray(values.astype(np.float32))
            toward_zero = np.where(np.abs(single) > np.abs(values), np.nextafter(single, np.float32(0)), single)
            bits = np.asarray(toward_zero, dtype=np.float32).view(np.uint32)
            odd = np.where(toward_zero != values, bits | 1, bits).astype(np.uint32)
            return odd.view(np.float32).astype(ml_dtypes.bfloat16)
        return values.astype(dtype.numpy())


def values(tensor: ir.TensorProtocol | Float64) -> Float64:
    """Return a copy of a tensor's values in float64, exact for the floating types."""
    if type(tensor) is Derived:  # see `is_external`
        return tensor.exact()
    with np.errstate(invalid="ignore"):  # a signalling NaN is no number in float64 either
        array: Float64 = (tensor if isinstance(tensor, np.ndarray) else tensor.numpy()).astype(np.float64)
    release(tensor)
    return array


def is_external(tensor: object) -> TypeGuard[ir.ExternalTensor]:
    """Whether this is a tensor in a file of its own."""
    return type(tensor) is ir.ExternalTensor  # `isinstance` asks its protocols first, at ten times the price


def release(tensor: ir.TensorProtocol | Float64) -> None:
    """Give the pages of a memory-mapped tensor back; where an array of it is still in use, once it is not."""
    if is_external(tensor):
        try:
            tensor.release()
        except BufferError:
            tensor.raw = None  # the map closes with the last array that needs it


class Derived(ir.LazyTensor):
    """A tensor computed as `stepₙ(… step₁(base))` in float64 and rounded once to its dtype.

    `base` is a stored tensor, or a float64 array for one that did not exist before; every step broadcasts against it
    and may enlarge it.
    """

    def __init__(self, base: ir.TensorProtocol | Float64, dtype: ir.DataType, steps: tuple[Affine, ...] = ()) -> None:
        self.base = base
        self.steps = steps
        self._kept: Float64 | None = None
        shape = base.shape if isinstance(base, np.ndarray) else tuple(base.shape.numpy())
        self._dims = np.broadcast_shapes(shape, *(a.shape for step in steps for a in (step.scale, step.shift)))
        super().__init__(self._rounded, dtype, ir.Shape(self._dims))

    def __repr__(self) -> str:
        return f"Derived({self.dtype.name}{list(self._dims)}, {len(self.steps)} steps)"

    def then(self, step: Affine) -> Derived:
        """Return this tensor with one more affine applied after the others."""
        return self if step.is_identity else Derived(self.base, self.dtype, (*self.steps, step))

    def _rounded(self) -> ir.TensorProtocol:
        array = np.ascontiguousarray(rounded(self.exact(), self.dtype)).reshape(self._dims)
        return ir.Tensor(array, self.dtype, name=self.name)

    def exact(self) -> Float64:
        """Return all values in float64, before rounding."""
        if self._kept is not None:
            return self._kept
        exact = np.broadcast_to(_through(values(self.base), self.steps), self._dims)
        if exact.nbytes <= KEPT_BYTES:
            self._kept = exact
        return exact

    def slices(self) -> Iterator[Float64]:
        """Yield the exact values in blocks along the first axis of a bounded size."""
        rows = self._dims[0] if self._dims else 1
        block = max(1, SLICE_BYTES * rows // max(1, 8 * math.prod(self._dims)))
        if block >= rows:
            yield self.exact()
            return
        steps = [step.at(len(self._dims)) for step in self.steps]
        base = self.base if isinstance(self.base, np.ndarray) else self.base.numpy()
        base = base.reshape((1,) * (len(self._dims) - base.ndim) + base.shape)
        for start in range(0, rows, block):
            part = slice(start, min(start + block, rows))
            here = [Affine(_rows(step.scale, part), _rows(step.shift, part)) for step in steps]
            exact = _through(_rows(base, part).astype(np.float64), here)
            yield np.broadcast_to(exact, (part.stop - part.start, *self._dims[1:]))
        del base
        release(self.base)

    def blocks(self) -> Iterator[bytes]:
        """Yield the stored bytes, in the order and the bounded pieces of `slices`."""
        for part in self.slices():
            array = np.ascontiguousarray(rounded(part, self.dtype))
            yield array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()

    def tobytes(self) -> bytes:
        return b"".join(self.blocks())

    def tofile(self, file: BinaryIO) -> None:
        file.writelines(self.blocks())

    def range_fault(self) -> str | None:
        """Return why the rounded values would not stand for the exact ones, or None if they do.

        Refused are an overflow of the type, and a channel that scaling brings among the subnormals, where its
        relative error would exceed the unit roundoff by far. A shifted tensor is a bias, whose absolute error counts.
        """
        if not foldable_dtype(self.dtype):
            return f"{self.dtype.name.lower()} is no floating-point type that could hold the result"
        limits, name = _LIMITS[self.dtype], self.dtype.name.lower()
        peak, normal = self._peak(self), float(limits.smallest_normal)
        if peak.size and normal <= peak.min() and peak.max() <= float(limits.max):
            return None  # the many whose every channel is well inside
        if not np.isfinite(rounded(peak, self.dtype)).all():
            if not np.isfinite(peak).all():
                return "the result is not finite"
            return f"the result reaches {peak.max():.3g}, beyond {name}'s largest {float(limits.max):.3g}"
        low = peak < normal
        if not any(step.shifts for step in self.steps):
            lost = low & (peak > 0.0)
            if self.steps and lost.any():
                unscaled = Affine(np.broadcast_to(1.0, self._dims), np.zeros(()))
                lost &= self._peak(Derived(self.base, self.dtype, (unscaled,))) >= normal
            if lost.any():
                return f"a channel is at most {peak[lost].max():.3g}, below {name}'s smallest normal {normal:.3g}"
        return None

    def _peak(self, of: Derived) -> Float64:
        """The largest magnitude in each channel, that is along every axis on which no step's scale varies."""
        rank = len(self._dims)
        channels = frozenset[int]().union(*(varying(step.scale, rank) for step in self.steps))
        uniform = tuple(axis for axis in range(rank) if axis not in channels)
        peaks = [np.abs(part).max(axis=uniform, initial=0.0, keepdims=True) for part in of.slices()]
        peak: Float64 = np.concatenate(peaks) if 0 in channels else np.maximum.reduce(peaks)
        return peak


def _through(values: Float64, steps: tuple[Affine, ...] | list[Affine]) -> Float64:
    with np.errstate(all="ignore"):  # `range_fault` says what is not finite
        for step in steps:
            values = step(values)
    return values


def _rows(array: Array, part: slice) -> Array:
    return array if array.shape[0] == 1 else array[part]
