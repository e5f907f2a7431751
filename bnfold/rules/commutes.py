"""Operators that commute with an affine under a guard: they compare elements, or leave them alone.

elementwise   f(s·x + t) = s·f(x) + t for the s and t that the row admits
order         Relu, LeakyRelu, PRelu: s ≥ 0, no shift · Abs: |s·x| = |s|·|x|
rows          what moves or drops elements along an axis (ReverseSequence, Compress, GatherElements): any affine that
              is uniform along it
signs         where only s ≥ 0 passes, s = σ·|s| with σ = ±1: |s| passes and σ stays behind
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnfold.affine import IDENTITY, Affine, ranked
from bnfold.graph import Op, dtype
from bnfold.rules.base import Facts, Law, Outcome, Reason, Refusal, Rule, Step, Table, signs


@dataclass(frozen=True)
class Guard:
    """What one operator admits here: a shift, a negative scale, and the axes it mixes.

    `drops` is the rank of an input whose mixed axes the output lacks.
    """

    shift: bool = True
    negative: bool = True
    mixed: frozenset[int] = frozenset()
    drops: int | None = None


Row = Callable[[Op], Guard | Refusal]


def _negative(op: Op, affine: Affine) -> Refusal:
    count = int((affine.scale < 0).sum())
    return Refusal(Reason.SIGN, detail=f"{count} of {affine.scale.size} scales are negative at {op.type}")


def _mixed(op: Op, affine: Affine, guard: Guard) -> Refusal | None:
    """Refuse an affine that varies along an axis that the operator mixes."""
    along = affine.axes(op.rank(0) or 0) & guard.mixed
    if along:
        return Refusal(Reason.AXIS, detail=f"the affine varies along axis {min(along)}, which {op.type} mixes")
    return None


def commute(row: Row, family: str = "commutes", through: Callable[[Affine], Affine] = lambda a: a) -> Law:
    """Build both judgements from a row of guards; `through` maps a sunk affine (|s| for Abs).

    A hoist leaves a blocked shift or sign behind, after the operator; a sink leaves a sign before it, but can't leave
    a shift, which is outermost.
    """

    def hoist(op: Op, demands: Facts) -> Outcome:
        guard = row(op)
        if isinstance(guard, Refusal):
            return guard
        if set(demands) != {0}:
            return Refusal(Reason.READERS, detail=f"another output of {op.type} carries a demand").on(op.output(1))
        wanted, rest, blocked = demands[0], IDENTITY, None
        if not guard.shift and wanted.shifts:
            blocked = Refusal(Reason.SHIFT, detail=f"{op.type} passes no shift")
            if not wanted.scales:
                return blocked
            wanted, rest = wanted.scaling, wanted.shifting
        if not guard.negative and not wanted.nonnegative:
            sign = signs(wanted.scale)
            wanted, rest, blocked = sign @ wanted, rest @ sign, _negative(op, wanted)
            if wanted.is_identity:
                return blocked
        raised = _raised(wanted, guard)
        return _mixed(op, raised, guard) or Step(passed={0: raised}, rest={0: rest}, blocked=blocked)

    def sink(op: Op, facts: Facts) -> Outcome:
        guard = row(op)
        if isinstance(guard, Refusal):
            return guard
        if set(facts) != {0}:
            return Refusal(Reason.VARIABLE, detail=f"a parameter of {op.type} is computed at run time")
        fact, rest, blocked = facts[0], IDENTITY, None
        if fact.shifts and not guard.shift:
            return Refusal(Reason.SHIFT, detail=f"{op.type} passes no shift")
        if not guard.negative and not through(fact).nonnegative:
            rest, blocked = signs(fact.scale), _negative(op, fact)
            fact = Affine.of(np.abs(fact.scale), fact.shift)
        mixed = _mixed(op, fact, guard)
        return mixed or Step(passed={0: through(_lowered(fact, guard))}, rest={0: rest}, blocked=blocked)

    return Law(family, hoist, sink)


def _raised(affine: Affine, guard: Guard) -> Affine:
    """Give coefficients of an output that lost its mixed axes those axes back, with size 1."""
    if guard.drops is None:
        return affine
    kept = guard.drops - len(guard.mixed)
    return affine.map(lambda a: np.expand_dims(ranked(a, kept), tuple(sorted(guard.mixed))))


def _lowered(affine: Affine, guard: Guard) -> Affine:
    if guard.drops is None:
        return affine
    rank = guard.drops
    return affine.map(lambda a: np.squeeze(ranked(a, rank), tuple(sorted(guard.mixed))))


def _anything(op: Op) -> Guard | Refusal:
    return Guard()


def _order(op: Op) -> Guard | Refusal:
    return Guard(shift=False, negative=False)


def inference(op: Op) -> bool:
    """Whether a Dropout leaves its input alone: since opset 7 unless asked to train, before only where told to."""
    if op.opset < 7:
        return bool(op.attr("is_test", 0))
    return not op.has(2) or bool(op.const(2) == 0)


def _dropout(op: Op) -> Guard | Refusal:
    """The mask of a Dropout that drops nothing says nothing of the values."""
    return Guard() if inference(op) else Refusal(Reason.TRAINING_MODE, detail="Dropout is not in inference mode")


# Significant bits and bits of the exponent: one type is as wide as another if both are.
_WIDTHS: dict[ir.DataType | None, tuple[int, int]] = {
    ir.DataType.BFLOAT16: (8, 8), ir.DataType.FLOAT16: (11, 5), ir.DataType.FLOAT: (24, 8), ir.DataType.DOUBLE: (53, 11)
}  # fmt: skip
_WIDEST = _WIDTHS[ir.DataType.DOUBLE]


def _cast(wide: int, narrow: int) -> Row:
    """Float to float: `wide` and `narrow` say which end (0 input, 1 output) the affine moves to and comes from."""

    def row(op: Op) -> Guard | Refusal:
        ends = dtype(op.input(0)), dtype(op.output())
        target, origin = _WIDTHS.get(ends[wide]), _WIDTHS.get(ends[narrow], _WIDEST)
        if target is None:
            return Refusal(Reason.NOT_FLOATING, detail="Cast between types that can't both carry an affine")
        if target[0] < origin[0] or target[1] < origin[1]:
            return Refusal(Reason.NARROWING, detail=f"Cast from {ends[0]} to {ends[1]}")
        return Guard()

    return row


def _along(attribute: str, default: int | None) -> Row:
    """Rows of elements along one axis change places or are dropped: what is uniform along it passes.

    Without an axis, Compress takes elements of the flattened value: only what is uniform passes.
    """

    return lambda op: _one_axis(op, op.attr(attribute, default))


def _one_axis(op: Op, axis: int | None, shift: bool = True) -> Guard | Refusal:
    """Mix one axis, or all where it is not known."""
    rank = op.rank(0)
    if rank is None:
        return Refusal(Reason.UNKNOWN_SHAPE)
    return Guard(shift=shift, mixed=frozenset(range(rank) if axis is None else [int(axis) % rank]))


def _cumulative(op: Op) -> Guard | Refusal:
    """CumSum: sums of up to all elements along one axis."""
    axis = op.const(1)
    return _one_axis(op, None if axis is None else axis.item(), shift=False)


def _picked(op: Op) -> Guard | Refusal:
    """GatherElements picks along one axis, and along each other keeps the first elements, or all of them."""
    before, after = op.shape(0), op.shape(1)
    if before is None or after is None:
        return Refusal(Reason.UNKNOWN_SHAPE)
    cut = {axis for axis, size in enumerate(before) if size is None or size != after[axis]}
    return Guard(mixed=frozenset({int(op.attr("axis", 0)) % len(before), *cut}))


def _triangle(op: Op) -> Guard | Refusal:
    """Trilu writes zeros, which any scale keeps."""
    return Guard(shift=False)


RELU = commute(_order)

TABLE: Table = {
    "Identity": commute(_anything),
    "Dropout": commute(_dropout),
    "Cast": Rule("commutes", commute(_cast(wide=0, narrow=1)).hoist, commute(_cast(wide=1, narrow=0)).sink),
    "CastLike": Rule("commutes", commute(_cast(wide=0, narrow=1)).hoist, commute(_cast(wide=1, narrow=0)).sink),
    "Relu": RELU,
    "LeakyRelu": RELU,
    "PRelu": RELU,
    "Abs": commute(_order, through=lambda a: Affine.of(np.abs(a.scale), a.shift)),
    "Trilu": commute(_triangle),
    "CumSum": commute(_cumulative),
    "ReverseSequence": commute(_along("time_axis", 0)),
    "Compress": commute(_along("axis", None)),
    "GatherElements": commute(_picked),
}
