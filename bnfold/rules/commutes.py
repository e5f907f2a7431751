"""Operators that commute with an affine under a guard: they compare elements, or leave them alone.

elementwise   f(s·x + t) = s·f(x) + t for the s and t that the row admits
order         Relu, LeakyRelu, PRelu: s ≥ 0, no shift · Abs: |s·x| = |s|·|x|
rows          what moves or drops whole rows (ReverseSequence, Compress): any affine that is uniform along them
signs         where only s ≥ 0 passes, s = σ·|s| with σ = ±1: |s| passes and σ stays behind
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnfold.affine import IDENTITY, Affine, ranked
from bnfold.graph import Op, dtype
from bnfold.rules.base import Facts, Outcome, Reason, Refusal, Rule, Step, Table, signs


@dataclass(frozen=True)
class Guard:
    """What one operator admits here: a shift, a negative scale, and the axes it mixes."""

    shift: bool = True
    negative: bool = True
    mixed: frozenset[int] = frozenset()
    drops: bool = False


Row = Callable[[Op], Guard | Refusal]


def _negative(op: Op, affine: Affine) -> Refusal:
    count = int((affine.scale < 0).sum())
    return Refusal(Reason.SIGN, detail=f"{count} of {affine.scale.size} scales are negative at {op.type}")


def _mixed(op: Op, affine: Affine, guard: Guard, rank: int | None) -> Refusal | None:
    """Refuse an affine that varies along an axis that the operator mixes."""
    if guard.mixed and not affine.axes(rank or 0).isdisjoint(guard.mixed):
        axis = min(affine.axes(rank or 0) & guard.mixed)
        return Refusal(Reason.AXIS, detail=f"the affine varies along axis {axis}, which {op.type} mixes")
    return None


def commute(row: Row, family: str = "commutes", through: Callable[[Affine], Affine] = lambda a: a) -> Rule:
    """Build both judgements from a row of guards; `through` maps a sunk affine (|s| for Abs).

    A hoist leaves a blocked shift or sign behind, after the operator; a sink leaves a sign before it, but can't leave
    a shift, which is outermost.
    """

    def hoist(op: Op, demands: Facts) -> Outcome:
        guard = row(op)
        if isinstance(guard, Refusal):
            return guard.on(op.output())
        if set(demands) != {0}:
            return Refusal(Reason.READERS, detail=f"another output of {op.type} carries a demand").on(op.output(1))
        wanted, rest, blocked = demands[0], IDENTITY, None
        if not guard.shift and wanted.shifts:
            wanted, rest = wanted.scaling, wanted.shifting
            blocked = Refusal(Reason.SHIFT, detail=f"{op.type} passes no shift")
        if not guard.negative and not wanted.nonnegative:
            sign = signs(wanted.scale)
            wanted, rest, blocked = sign @ wanted, rest @ sign, _negative(op, wanted)
        if wanted.is_identity:
            return (blocked or Refusal(Reason.NO_GAIN)).on(op.output())
        rank = op.rank(0)
        mixed = _mixed(op, _raised(wanted, guard, rank), guard, rank)
        if mixed:
            return mixed.on(op.output())
        return Step(passed={0: _raised(wanted, guard, rank)}, rest={0: rest}, blocked=blocked)

    def sink(op: Op, facts: Facts) -> Outcome:
        guard = row(op)
        if isinstance(guard, Refusal):
            return guard.on(op.input(0))
        if set(facts) != {0}:
            return Refusal(Reason.VARIABLE, detail=f"a parameter of {op.type} is computed at run time")
        fact, rest, blocked = facts[0], IDENTITY, None
        if fact.shifts and not guard.shift:
            return Refusal(Reason.SHIFT, detail=f"{op.type} passes no shift").on(op.input(0))
        if not guard.negative and not through(fact).nonnegative:
            rest, blocked = signs(fact.scale), _negative(op, fact)
            fact = Affine.of(np.abs(fact.scale), fact.shift)
        mixed = _mixed(op, fact, guard, op.rank(0))
        if mixed:
            return mixed.on(op.input(0))
        return Step(passed={0: through(_lowered(fact, guard, op.rank(0)))}, rest={0: rest}, blocked=blocked)

    return Rule(family, hoist, sink)


def _raised(affine: Affine, guard: Guard, rank: int | None) -> Affine:
    """Give coefficients of an output that lost its mixed axes those axes back, with size 1."""
    if not (guard.drops and rank):
        return affine
    kept = rank - len(guard.mixed)
    return affine.map(lambda a: np.expand_dims(ranked(a, kept), tuple(sorted(guard.mixed))))


def _lowered(affine: Affine, guard: Guard, rank: int | None) -> Affine:
    if not (guard.drops and rank):
        return affine
    return affine.map(lambda a: np.squeeze(ranked(a, rank), tuple(sorted(guard.mixed))))


# Rows --------------------------------------------------------------------------------------------------------------


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
    if not inference(op) or op.used(1):
        return Refusal(Reason.TRAINING_MODE, detail="Dropout is not in inference mode, or its mask is read")
    return Guard()


_WIDTH = {"BFLOAT16": 0, "FLOAT16": 1, "FLOAT": 2, "DOUBLE": 3}


def _cast(wide: int, narrow: int) -> Row:
    """Float to float: `wide` and `narrow` say which end (0 input, 1 output) the affine moves to and comes from."""

    def row(op: Op) -> Guard | Refusal:
        ends = [None if value is None else dtype(value) for value in (op.input(0), op.output())]
        widths = [_WIDTH.get(kind.name) if kind is not None else None for kind in ends]
        target, origin = widths[wide], widths[narrow]
        if target is None or origin is None:
            return Refusal(Reason.NOT_FLOATING, detail="Cast between types that can't both carry an affine")
        if target < origin or {target, origin} == {0, 1}:
            return Refusal(Reason.NARROWING, detail=f"Cast from {ends[0]} to {ends[1]}")
        return Guard()

    return row


def _along(attribute: str, default: int | None) -> Row:
    """Rows of elements along one axis change places or are dropped: what is uniform along it passes."""

    def row(op: Op) -> Guard | Refusal:
        rank = op.rank(0)
        if rank is None:
            return Refusal(Reason.UNKNOWN_SHAPE)
        axis = op.attr(attribute, default)
        if axis is None:  # Compress of the flattened value
            return Refusal(Reason.AXIS, detail=f"{op.type} flattens the value")
        return Guard(mixed=frozenset({int(axis) % rank}))

    return row


def _cumulative(op: Op) -> Guard | Refusal:
    """CumSum: sums of up to all elements along one axis."""
    rank, axis = op.rank(0), op.const(1)
    if rank is None:
        return Refusal(Reason.UNKNOWN_SHAPE)
    mixed = range(rank) if axis is None else [int(axis.reshape(-1)[0]) % rank]
    return Guard(shift=False, mixed=frozenset(mixed))


def _triangle(op: Op) -> Guard | Refusal:
    """Trilu writes zeros, which any scale keeps."""
    return Guard(shift=False)


TABLE: Table = {
    "Identity": commute(_anything),
    "Dropout": commute(_dropout),
    "Cast": Rule("commutes", commute(_cast(wide=0, narrow=1)).hoist, commute(_cast(wide=1, narrow=0)).sink),
    "CastLike": Rule("commutes", commute(_cast(wide=0, narrow=1)).hoist, commute(_cast(wide=1, narrow=0)).sink),
    "Relu": commute(_order),
    "LeakyRelu": commute(_order),
    "PRelu": commute(_order),
    "Abs": commute(_order, through=lambda a: Affine.of(np.abs(a.scale), a.shift)),
    "Trilu": commute(_triangle),
    "CumSum": commute(_cumulative),
    "ReverseSequence": commute(_along("time_axis", 0)),
    "Compress": commute(_along("axis", None)),
}
