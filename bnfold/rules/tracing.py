"""Tracing coefficients through a change of shape, axis by axis and never by a coincidence of sizes."""

from __future__ import annotations

import numpy as np

from bnfold.affine import ranked
from bnfold.arrays import Float64
from bnfold.graph import Shape
from bnfold.rules.base import Reason, Refusal


class Untraceable(Exception):
    """The coefficients can't follow this move; carries the refusal."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.refusal = Refusal(reason, detail=detail)


def known(shape: Shape | None, what: str) -> Shape:
    if shape is None:
        raise Untraceable(Reason.UNKNOWN_SHAPE, f"the rank of the {what} is not known")
    return shape


def sized(dim: int | str | None) -> int:
    if not isinstance(dim, int):
        raise Untraceable(Reason.UNKNOWN_SHAPE, f"the affine varies along a dimension of unknown size ({dim})")
    return dim


def _groups(source: Shape, target: Shape) -> list[tuple[slice, slice]]:
    """Pair the axes of two row-major views of the same elements: the shortest runs whose sizes agree from an end.

    What neither end reaches, because a size is unknown, is one run in the middle.
    """
    front = _runs(source, target)
    i, j = (front[-1][0].stop, front[-1][1].stop) if front else (0, 0)
    back = _runs(source[i:][::-1], target[j:][::-1])
    mirrored = [
        (slice(len(source) - a.stop, len(source) - a.start), slice(len(target) - b.stop, len(target) - b.start))
        for a, b in reversed(back)
    ]
    end_i, end_j = (mirrored[0][0].start, mirrored[0][1].start) if mirrored else (len(source), len(target))
    middle = [(slice(i, end_i), slice(j, end_j))] if (i, j) != (end_i, end_j) else []
    return front + middle + mirrored


def _runs(source: Shape, target: Shape) -> list[tuple[slice, slice]]:
    runs: list[tuple[slice, slice]] = []
    i, j = 0, 0
    while i < len(source) and j < len(target):
        a, b = source[i], target[j]
        m, n = i + 1, j + 1
        if not (isinstance(a, int) and isinstance(b, int)):
            if a is None or a != b:
                break
        else:
            left, right = a, b
            while left != right:
                more = source[m] if left < right else target[n]
                if not isinstance(more, int):
                    return runs
                if left < right:
                    left, m = left * more, m + 1
                else:
                    right, n = right * more, n + 1
        runs.append((slice(i, m), slice(j, n)))
        i, j = m, n
    return runs


def regroup(a: Float64, source: Shape, target: Shape) -> Float64:
    """Move coefficients of a value of shape `source` to its row-major reshape `target`."""
    if a.size == 1:
        return a.reshape([1] * len(target))
    if 0 in (*source, *target):
        raise Untraceable(Reason.AXIS, "the value has no elements")
    a = ranked(a, len(source))
    full: list[int] = []
    result: list[int] = []
    for left, right in _groups(source, target):
        block = a.shape[left]
        if all(size == 1 for size in block):
            full += block
            result += [1] * (right.stop - right.start)
        elif left.stop - left.start == 1 == right.stop - right.start:
            full += block
            result += block
        else:
            full += [sized(dim) for dim in source[left]]
            result += [sized(dim) for dim in target[right]]
    return np.broadcast_to(a, full).reshape(result)
