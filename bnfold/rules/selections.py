"""Moves that select, part or repeat elements along an axis: Slice, Gather, Split, Expand, Tile.

The law is that of all moves (`moves`): coefficients take the way of the elements. What a selection drops may be
anything, so that several of them that read parts of one value can each ask something else of their own part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bnfold.affine import IDENTITY, Affine, along, ranked
from bnfold.arrays import Array, Float64
from bnfold.graph import Op, Shape
from bnfold.rules.base import Facts, Outcome, Reason, Rule, Step, Table
from bnfold.rules.moves import Move, rule
from bnfold.rules.tracing import Untraceable, known, sized


def _selection(shape: Shape, axis: int, index: Array, out_axes: int) -> Move:
    """Take positions `index` of one axis, whose place `out_axes` axes of the output take."""
    rank = len(shape)

    def forward(a: Float64) -> Float64:
        a = ranked(a, rank)
        if a.shape[axis] == 1:
            return a.reshape(a.shape[:axis] + (1,) * out_axes + a.shape[axis + 1 :])
        return np.take(a, index, axis=axis)

    def backward(a: Float64, fill: float) -> Float64:
        a = ranked(a, rank - 1 + out_axes)
        taken = a.shape[axis : axis + out_axes]
        before, after = a.shape[:axis], a.shape[axis + out_axes :]
        if all(size == 1 for size in taken):
            return a.reshape((*before, 1, *after))
        size = sized(shape[axis])
        values = np.broadcast_to(a, before + index.shape + after).reshape((*before, index.size, *after))
        result = np.full((*before, size, *after), fill)
        np.moveaxis(result, axis, 0)[index.reshape(-1)] = np.moveaxis(values, axis, 0)
        if not np.array_equal(np.take(result, index.reshape(-1), axis=axis), values):
            raise Untraceable(Reason.UNEQUAL, "an element is read twice with different affines")
        return result

    return Move(forward, backward)


def _gather(op: Op) -> Move:
    data, indices = known(op.shape(0), "data"), known(op.shape(1), "indices")
    axis = int(op.attr("axis", 0)) % len(data)
    constant = op.const(1)
    if constant is not None and isinstance(data[axis], int):
        return _selection(data, axis, np.asarray(constant) % int(data[axis] or 1), len(indices))

    def untaken(a: Float64) -> Float64:
        raise Untraceable(Reason.AXIS, "the affine varies along the axis that is indexed at run time")

    def forward(a: Float64) -> Float64:
        a = ranked(a, len(data))
        if a.shape[axis] != 1:
            return untaken(a)
        return a.reshape(a.shape[:axis] + (1,) * len(indices) + a.shape[axis + 1 :])

    def backward(a: Float64, fill: float) -> Float64:
        a = ranked(a, len(data) - 1 + len(indices))
        end = axis + len(indices)
        return a.reshape((*a.shape[:axis], 1, *a.shape[end:])) if set(a.shape[axis:end]) <= {1} else untaken(a)

    return Move(forward, backward)


def _cuts(op: Op) -> dict[int, Array | None]:
    """The positions that a Slice takes along each of its axes; None where only a run tells."""
    shape = known(op.shape(0), "input")
    starts, ends = op.ints(1, "starts"), op.ints(2, "ends")
    named = op.has(3) or "axes" in op.node.attributes
    axes = op.ints(3, "axes") if named else list(range(len(starts if starts is not None else shape)))
    if axes is None:
        raise Untraceable(Reason.NOT_CONSTANT, "the slice's axes are computed at run time")
    axes = [axis % len(shape) for axis in axes]
    steps = op.ints(4, "steps") if op.has(4) else [1] * len(axes)
    if starts is None or ends is None or steps is None:
        return dict.fromkeys(sorted(axes))
    bounds = {axis: slice(s, e, k) for axis, s, e, k in zip(axes, starts, ends, steps, strict=True)}
    sizes = {axis: shape[axis] for axis in sorted(bounds)}
    return {axis: np.arange(n)[bounds[axis]] if isinstance(n, int) else None for axis, n in sizes.items()}


def _slice(op: Op) -> Move:
    shape = known(op.shape(0), "input")
    return _chain([
        _unvarying(axis, len(shape)) if index is None else _selection(shape, axis, index, 1)
        for axis, index in _cuts(op).items()
    ])  # fmt: skip


def part_read(op: Op) -> Float64 | None:
    """Return which elements of its input a Slice or Gather reads, as ones and zeros that broadcast against it.

    None stands for all of them, or any.
    """
    try:
        shape = known(op.shape(0), "input")
        if op.type == "Slice":
            cuts = _cuts(op)
        elif op.type == "Gather" and (index := op.const(1)) is not None:
            axis = int(op.attr("axis", 0)) % len(shape)
            cuts = {axis: np.asarray(index, dtype=np.int64).reshape(-1)}
        else:
            return None
        read = np.ones([1] * len(shape))
        for axis, index in cuts.items():
            if index is not None:
                row = np.zeros(sized(shape[axis]))
                row[index] = 1.0
                read = read * along(row, axis, len(shape))
        return read
    except (Untraceable, IndexError):  # an index out of range reads no part
        return None


def _unvarying(axis: int, rank: int) -> Move:
    def check(a: Float64) -> Float64:
        if ranked(a, rank).shape[axis] != 1:
            raise Untraceable(Reason.AXIS, f"the affine varies along axis {axis}, known at run time only")
        return a

    return Move(check, lambda a, fill: check(a))


def _chain(moves: Sequence[Move]) -> Move:
    def forward(a: Float64) -> Float64:
        for move in moves:
            a = move.forward(a)
        return a

    def backward(a: Float64, fill: float) -> Float64:
        for move in reversed(moves):
            a = move.backward(a, fill)
        return a

    return Move(forward, backward)


def _expand(op: Op) -> Move:
    source, target = known(op.shape(0), "input"), known(op.out_shape(), "output")

    def backward(a: Float64, fill: float) -> Float64:
        a = ranked(a, len(target))
        extra = len(target) - len(source)
        for axis, size in enumerate(a.shape):
            origin = source[axis - extra] if axis >= extra else 1
            if size != 1 and origin != size:
                raise Untraceable(Reason.AXIS, f"the affine varies along axis {axis}, which the broadcast repeats")
        return ranked(a, len(source))

    return Move(lambda a: ranked(a, len(target)), backward)


def _tile(op: Op) -> Move:
    shape, repeats = known(op.shape(0), "input"), op.ints(1, "repeats")
    if repeats is None:
        raise Untraceable(Reason.NOT_CONSTANT, "the repeats are computed at run time")

    def forward(a: Float64) -> Float64:
        a = ranked(a, len(shape))
        return np.tile(a, [n if size != 1 else 1 for n, size in zip(repeats, a.shape, strict=True)])

    def backward(a: Float64, fill: float) -> Float64:
        a = ranked(a, len(shape))
        for axis, (n, size) in enumerate(zip(repeats, a.shape, strict=True)):
            if size == 1:
                continue
            copies = np.split(a, n, axis=axis)
            if not all(np.array_equal(copies[0], copy) for copy in copies):
                raise Untraceable(Reason.UNEQUAL, "an element is read twice with different affines")
            a = copies[0]
        return a

    return Move(forward, backward)


def _split_moves(op: Op) -> list[Move]:
    shape = known(op.shape(0), "input")
    axis = int(op.attr("axis", 0)) % len(shape)
    outputs = len(op.node.outputs)
    given = op.ints(1, "split")
    if not isinstance(shape[axis], int) or (given is None and op.has(1)):
        return [_unvarying(axis, len(shape))] * outputs
    size = sized(shape[axis])
    even = math.ceil(size / outputs)
    parts = given or [min(even, size - even * k) for k in range(outputs)]
    if len(parts) != outputs or sum(parts) != size:
        raise Untraceable(Reason.MALFORMED, f"parts of {parts} are no split of {size}")
    ends = np.cumsum(parts)
    return [_selection(shape, axis, np.arange(end - n, end), 1) for n, end in zip(parts, ends, strict=True)]


def concatenated(parts: Sequence[tuple[Affine, int | str | None]], axis: int, rank: int) -> Affine:
    """Join affines of neighbouring parts, given with their sizes along `axis`, to the affine of the whole.

    Parts that agree need no sizes; raises Untraceable where a size is needed and not known.
    """
    first = parts[0][0]
    if axis not in first.axes(rank) and all(affine == first for affine, _ in parts):
        return first.at(rank)

    def joined(arrays: list[Float64]) -> Float64:
        blocks = []
        for array, (_, size) in zip(arrays, parts, strict=True):
            array = ranked(array, rank)
            blocks.append(np.repeat(array, sized(size), axis=axis) if array.shape[axis] == 1 else array)
        others = np.broadcast_shapes(*((*b.shape[:axis], 1, *b.shape[axis + 1 :]) for b in blocks))
        wide = [np.broadcast_to(b, (*others[:axis], b.shape[axis], *others[axis + 1 :])) for b in blocks]
        return np.concatenate(wide, axis=axis)

    return Affine.of(joined([a.scale for a, _ in parts]), joined([a.shift for a, _ in parts]))


def _split_hoist(op: Op, demands: Facts) -> Outcome:
    """The whole takes each output's demand in its slice; a silent output demands the identity there."""
    try:
        shape = known(op.shape(0), "input")
        axis = int(op.attr("axis", 0)) % len(shape)
        parts = [
            (demands.get(index, IDENTITY), known(shape_of, "output")[axis])
            for index, shape_of in enumerate(map(op.out_shape, range(len(op.node.outputs))))
        ]
        return Step(passed={0: concatenated(parts, axis, len(shape))})
    except Untraceable as stop:
        return stop.refusal.on(op.output())


def _split_sink(op: Op, facts: Facts) -> Outcome:
    try:
        moves = _split_moves(op)
        return Step(passed={index: facts[0].map(move.forward) for index, move in enumerate(moves)})
    except Untraceable as stop:
        return stop.refusal.on(op.input(0))


TABLE: Table = {
    "Gather": rule(_gather),
    "Slice": rule(_slice),
    "Expand": rule(_expand),
    "Tile": rule(_tile),
    "Split": Rule("moves", _split_hoist, _split_sink),
}
