"""Operators over windows and whole axes: pools, reductions and interpolation.

averages   weights sum to one: any affine passes that is uniform along the averaged axes; counted padding adds zeros,
           so that only a scale passes
sums       n elements: s·x + t becomes s·Σx + n·t where n is known, else only a scale passes
order      maxima and minima: s ≥ 0, any shift; norms: s ≥ 0, no shift
"""

from __future__ import annotations

import math

import numpy as np

from bnfold.affine import Affine
from bnfold.arrays import Float64
from bnfold.graph import Op
from bnfold.rules.base import Facts, Outcome, Reason, Refusal, Rule, Step, Table
from bnfold.rules.commutes import Guard, Row, commute
from bnfold.rules.padding import reaches_over


def _spatial(op: Op) -> frozenset[int] | Refusal:
    rank = op.rank(0)
    return Refusal(Reason.UNKNOWN_SHAPE) if rank is None else frozenset(range(2, rank))


def _max_pool(op: Op) -> Guard | Refusal:
    space = _spatial(op)
    if isinstance(space, Refusal):
        return space
    if op.used(1):
        return Refusal(Reason.READERS, detail="the indices of the maxima are read")
    return Guard(negative=False, mixed=space)


def _lp_pool(op: Op) -> Guard | Refusal:
    space = _spatial(op)
    return space if isinstance(space, Refusal) else Guard(shift=False, negative=False, mixed=space)


def _average_pool(op: Op) -> Guard | Refusal:
    """Counted padding averages zeros into the border: the weights on the values no longer sum to one."""
    space = _spatial(op)
    if isinstance(space, Refusal):
        return space
    counted = bool(op.attr("count_include_pad", 0)) or op.opset < 7
    return Guard(shift=not (counted and reaches_over(op, op.attr("kernel_shape", ()))), mixed=space)


def _roi_align(op: Op) -> Guard | Refusal:
    """Bilinear samples, zero outside the value: a scale passes; maxima of them only a scale of one sign."""
    space = _spatial(op)
    if isinstance(space, Refusal):
        return space
    return Guard(shift=False, negative=str(op.attr("mode", "avg")) == "avg", mixed=space)


def _grid_sample(op: Op) -> Guard | Refusal:
    """Weights that sum to one, wherever the grid points; outside the value it reads zeros, or the value again."""
    space = _spatial(op)
    if isinstance(space, Refusal):
        return space
    return Guard(shift=op.attr("padding_mode", "zeros") != "zeros", mixed=space)


def _global_pool(op: Op) -> Guard | Refusal:
    space = _spatial(op)
    return space if isinstance(space, Refusal) else Guard(mixed=space)


def _global_max(op: Op) -> Guard | Refusal:
    space = _spatial(op)
    return space if isinstance(space, Refusal) else Guard(negative=False, mixed=space)


def _reduction(shift: bool, negative: bool) -> Row:
    def row(op: Op) -> Guard | Refusal:
        rank, axes = op.rank(0), op.ints(1, "axes")
        if rank is None:
            return Refusal(Reason.UNKNOWN_SHAPE)
        if axes is None and op.has(1):
            return Refusal(Reason.NOT_CONSTANT, detail="the reduced axes are computed at run time")
        if not axes and op.attr("noop_with_empty_axes", 0):
            return Guard(shift, negative)
        mixed = frozenset(axis % rank for axis in axes or range(rank))
        return Guard(shift, negative, mixed, drops=None if op.attr("keepdims", 1) else rank)

    return row


_MEAN = _reduction(shift=True, negative=True)
_AVERAGE, _SCALED = commute(_MEAN), commute(_reduction(shift=False, negative=True))


def _count(op: Op) -> int | None:
    """How many elements a reduction takes together, if that is known."""
    guard, shape = _MEAN(op), op.shape(0) or ()
    if isinstance(guard, Refusal):
        return None
    sizes = [shape[axis] for axis in guard.mixed]
    known = [size for size in sizes if isinstance(size, int)]
    return math.prod(known) or None if len(known) == len(sizes) else None


def _sum_hoist(op: Op, demands: Facts) -> Outcome | list[Step]:
    count, wanted = _count(op), demands[0]
    return (_AVERAGE if count else _SCALED).hoist(op, {0: Affine.of(wanted.scale, wanted.shift / (count or 1))})


def _sum_sink(op: Op, facts: Facts) -> Outcome | list[Step]:
    count, fact = _count(op), facts[0]
    return (_AVERAGE if count else _SCALED).sink(op, {0: Affine.of(fact.scale, fact.shift * (count or 1))})


def _resize(op: Op) -> Guard | Refusal:
    """Interpolation weights sum to one; tf_crop_and_resize writes a fixed value outside the crop."""
    before, after = op.shape(0), op.out_shape()
    if before is None or after is None:
        return Refusal(Reason.UNKNOWN_SHAPE)
    axes = [axis % len(before) for axis in op.attr("axes") or range(len(before))]
    resized = {axis for axis in axes if before[axis] is None or before[axis] != after[axis]}
    way = op.attr("coordinate_transformation_mode", "half_pixel")
    slot = 1 if op.opset < 11 else 2
    roi = op.const(1)
    scales = np.asarray(op.attr("scales")) if "scales" in op.node.attributes else op.const(slot)
    mixed = set(axes)
    if scales is not None and scales.size == len(axes):
        mixed = {axis for axis, scale in zip(axes, scales, strict=True) if scale != 1.0}
    elif op.has(3) and op.attr("keep_aspect_ratio_policy", "stretch") == "stretch":
        mixed = resized
    if way == "tf_half_pixel_for_nn":
        mixed = set(axes)
    if way != "tf_crop_and_resize":
        return Guard(mixed=frozenset(mixed))
    if op.attr("extrapolation_value", 0.0) != 0.0:
        return Refusal(Reason.PADDING, detail="a fixed value is written outside the crop")
    for axis, start, end in zip(axes, *_halves(roi, len(axes)), strict=True):
        mixed |= set() if (start, end) == (0.0, 1.0) else {axis}
    return Guard(shift=False, mixed=frozenset(mixed))


def _halves(roi: Float64 | None, count: int) -> tuple[Float64, Float64]:
    """Split a region of interest into starts and ends; an unknown one leaves every axis cropped."""
    whole = np.full(2 * count, np.nan) if roi is None else roi
    return whole[:count], whole[count:]


TABLE: Table = {
    "MaxPool": commute(_max_pool),
    "GlobalMaxPool": commute(_global_max),
    "LpPool": commute(_lp_pool),
    "GlobalLpPool": commute(_lp_pool),
    "ReduceL1": commute(_reduction(shift=False, negative=False)),
    "ReduceL2": commute(_reduction(shift=False, negative=False)),
    "ReduceMax": commute(_reduction(shift=True, negative=False)),
    "ReduceMin": commute(_reduction(shift=True, negative=False)),
    "Resize": commute(_resize),
    "Upsample": commute(_resize),
    "RoiAlign": commute(_roi_align),
    "GridSample": commute(_grid_sample),
    "AveragePool": commute(_average_pool, "averages"),
    "GlobalAveragePool": commute(_global_pool, "averages"),
    "ReduceMean": commute(_reduction(shift=True, negative=True), "averages"),
    "ReduceSum": Rule("averages", _sum_hoist, _sum_sink),
}
