"""The monoid that folding carries: elementwise affine maps `x ↦ scale·x + shift`.

Laws (checked in tests/test_laws.py):

    (A @ B)(x) = A(B(x))      scale = A.scale·B.scale      shift = A.scale·B.shift + A.shift
    A = A.shifting @ A.scaling
    IDENTITY @ A = A = A @ IDENTITY

An affine is composed, moved and absorbed but never inverted, so a scale of zero is safe everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from bnfold.arrays import Float64


def collapsed(array: npt.ArrayLike) -> Float64:
    """Return `array` in float64 with size 1 on every axis along which its values are all equal."""
    result = np.asarray(array, dtype=np.float64)
    for axis in range(result.ndim):
        if result.shape[axis] > 1:
            first = result[(slice(None),) * axis + (slice(1),)]
            if (first == result).all():
                result = first
    return result


@dataclass(frozen=True, eq=False)
class Affine:
    """An elementwise map `scale·x + shift`; both arrays broadcast against `x`, size 1 wherever uniform.

    There is no axis field: the map varies along exactly the axes where an array is not 1.

    >>> a = Affine.of([[2.0], [3.0]], 1.0)
    >>> a(np.ones((2, 2))).tolist()
    [[3.0, 3.0], [4.0, 4.0]]
    """

    scale: Float64
    shift: Float64

    @staticmethod
    def of(scale: npt.ArrayLike, shift: npt.ArrayLike) -> Affine:
        """Build an affine in canonical form: float64, each uniform axis collapsed to size 1."""
        return Affine(collapsed(scale), collapsed(shift))

    def __call__(self, x: npt.ArrayLike) -> Float64:
        return self.scale * np.asarray(x, dtype=np.float64) + self.shift

    def __matmul__(self, inner: Affine) -> Affine:
        return Affine.of(self.scale * inner.scale, self.scale * inner.shift + self.shift)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Affine):
            return NotImplemented
        return _same(self.scale, other.scale) and _same(self.shift, other.shift)

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def scales(self) -> bool:
        """Whether the scale is anything but one."""
        return bool((self.scale != 1.0).any())

    @cached_property
    def shifts(self) -> bool:
        """Whether the shift is anything but zero."""
        return bool((self.shift != 0.0).any())

    @property
    def is_identity(self) -> bool:
        """Whether the map changes nothing."""
        return not (self.scales or self.shifts)

    @property
    def cost(self) -> int:
        """Elementwise passes that the map costs where it has to be computed at run time."""
        return int(self.scales) + int(self.shifts)

    @property
    def scaling(self) -> Affine:
        """The map without its shift: the part that is applied first."""
        return Affine(self.scale, np.zeros(()))

    @property
    def shifting(self) -> Affine:
        """The map without its scale: the part that is applied last."""
        return Affine(np.ones(()), self.shift)

    @property
    def nonnegative(self) -> bool:
        """Whether no element of the scale is negative, so that order is preserved."""
        return bool((self.scale >= 0.0).all())

    @property
    def finite(self) -> bool:
        """Whether every coefficient is a finite number."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    @property
    def shape(self) -> tuple[int, ...]:
        """The common shape of scale and shift."""
        return np.broadcast_shapes(self.scale.shape, self.shift.shape)

    def axes(self, rank: int) -> frozenset[int]:
        """Return the axes, counted from the front of a value of `rank`, along which the map varies."""
        return varying(self.scale, rank) | varying(self.shift, rank)

    def at(self, rank: int) -> Affine:
        """Return the same map with arrays of exactly `rank` axes."""
        return Affine(ranked(self.scale, rank), ranked(self.shift, rank))

    def map(self, move: Callable[[Float64], npt.ArrayLike]) -> Affine:
        """Apply one function to both coefficient arrays, as a move of elements does."""
        return Affine.of(move(self.scale), move(self.shift))


def varying(array: Float64, rank: int) -> frozenset[int]:
    """Return the axes, counted from the front of a value of `rank`, along which `array` is not 1."""
    return frozenset(axis for axis, size in enumerate(array.shape, rank - array.ndim) if size != 1)


def ranked(array: Float64, rank: int) -> Float64:
    """Return `array` reshaped to `rank` axes by adding or dropping leading axes of size 1."""
    extra = array.ndim - rank
    if extra > 0 and any(size != 1 for size in array.shape[:extra]):
        raise ValueError(f"a coefficient of shape {array.shape} does not fit a value of rank {rank}")
    shape = array.shape[extra:] if extra >= 0 else (1,) * -extra + array.shape
    return array.reshape(shape)


def along(vector: npt.ArrayLike, axis: int, rank: int) -> Float64:
    """Place a vector of coefficients along one axis of a value of `rank`."""
    array = np.asarray(vector, dtype=np.float64).reshape(-1)
    return array.reshape([-1 if position == axis else 1 for position in range(rank)])


def _same(left: Float64, right: Float64) -> bool:
    rank = max(left.ndim, right.ndim)
    return np.array_equal(ranked(left, rank), ranked(right, rank))


IDENTITY = Affine(np.ones(()), np.zeros(()))
