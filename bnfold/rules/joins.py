"""Joins: several values become one, so their affines must fit together.

    Add, Sum, Sub   hoist: the scale to every operand, the shift to one (negated on Sub's second)
                    sink:  equal scales s;  B = (s, Σ ± tᵢ)
    Mean            as Sum, its shifts divided by the number n of operands: hoisted, one of them takes n·t
    Mul             hoist: a scale to one operand · sink: scales multiply
    Where           the whole affine to both branches; sink: equal facts
    Max, Min        as Where, for s ≥ 0; else s = σ·|s| with σ = ±1: |s| passes and σ stays behind
    Concat          hoist: each input takes its slice · sink: facts are concatenated

On an operand that broadcasts, the affine must be uniform along the axes that are repeated.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bnfold.affine import IDENTITY, Affine
from bnfold.arrays import Float64
from bnfold.graph import Op, tensor
from bnfold.rules.base import Facts, Judgement, Outcome, Reason, Refusal, Rule, Step, Table, signs
from bnfold.rules.selections import concatenated
from bnfold.rules.tracing import Untraceable


def _fitting(op: Op, slot: int, affine: Affine) -> Affine | Refusal:
    """Express an affine of the output on one operand; a constant operand may grow, a variable one may not."""
    value, known = op.input(slot), op.shape(slot)
    if tensor(value) is not None:
        return affine
    for axis, size in enumerate(affine.shape, -len(affine.shape)):
        if size == 1:
            continue
        if known is None:
            return Refusal(Reason.UNKNOWN_SHAPE).on(value)
        if -axis > len(known) or known[axis] == 1:
            return Refusal(Reason.AXIS, detail=f"{op.type} broadcasts this operand along axis {axis}").on(value)
        if known[axis] != size:
            return Refusal(Reason.UNKNOWN_SHAPE, detail=f"axis {axis} may broadcast").on(value)
    return affine.at(len(known or ()))


def _share(op: Op, slot: int) -> float:
    """The factor with which an operand enters a sum."""
    return 1.0 / len(op.node.inputs) if op.type == "Mean" else -1.0 if op.type == "Sub" and slot == 1 else 1.0


def _sum_hoist(op: Op, demands: Facts) -> Outcome | list[Step]:
    """The shift may go to any operand: one alternative each, constants (which cost nothing) first."""
    wanted = demands[0]
    slots = range(len(op.node.inputs))
    scaled = {}
    for slot in slots:
        part = _fitting(op, slot, wanted.scaling)
        if isinstance(part, Refusal):
            return part
        scaled[slot] = part
    if not wanted.shifts:
        return Step(passed=scaled)
    alternatives: list[Step] = []
    refusals: list[Refusal] = []
    for slot in sorted(slots, key=lambda s: tensor(op.input(s)) is None):
        shifted = _fitting(op, slot, Affine.of(wanted.scale, wanted.shift / _share(op, slot)))
        if isinstance(shifted, Refusal):
            refusals.append(shifted)
        else:
            alternatives.append(Step(passed={**scaled, slot: shifted}))
    return alternatives or refusals[0]


def _sum_sink(op: Op, facts: Facts) -> Outcome:
    """Operands whose scales differ keep them, computed before the join; shifts always combine."""
    slots = range(len(op.node.inputs))
    carried = {slot: facts.get(slot, IDENTITY) for slot in slots}
    scales = [affine.scaling for affine in carried.values()]
    equal = all(scale == scales[0] for scale in scales)
    total = IDENTITY.shift
    for slot, affine in carried.items():
        total = total + _share(op, slot) * affine.shift
    if equal:
        return Step(passed={0: Affine.of(scales[0].scale, total)})
    rest = {slot: affine.scaling for slot, affine in facts.items() if affine.scales}
    return Step(passed={0: Affine.of(1.0, total)}, rest=rest)


def _product_hoist(op: Op, demands: Facts) -> Outcome | list[Step]:
    wanted = demands[0]
    rest = {0: wanted.shifting} if wanted.shifts else {}
    if not wanted.scales:
        return Refusal(Reason.SHIFT, detail="a product passes no shift")
    parts = {slot: _fitting(op, slot, wanted.scaling) for slot in (0, 1)}
    steps = [Step(passed={slot: part}, rest=rest) for slot, part in parts.items() if isinstance(part, Affine)]
    refusals = [part for part in parts.values() if isinstance(part, Refusal)]
    return steps or refusals[0]


def _product_sink(op: Op, facts: Facts) -> Outcome:
    if any(affine.shifts for affine in facts.values()):
        return Refusal(Reason.SHIFT, detail="a product passes no shift").on(op.output())
    total = IDENTITY
    for affine in facts.values():
        total = total @ affine
    return Step(passed={0: total})


def _quotient_hoist(op: Op, demands: Facts) -> Outcome:
    """x / y: a scale goes to the numerator."""
    wanted = demands[0]
    if not wanted.scales:
        return Refusal(Reason.SHIFT, detail="a quotient passes no shift")
    part = _fitting(op, 0, wanted.scaling)
    if isinstance(part, Refusal):
        return part
    return Step(passed={0: part}, rest={0: wanted.shifting} if wanted.shifts else {})


def _quotient_sink(op: Op, facts: Facts) -> Outcome:
    if set(facts) != {0} or facts[0].shifts:
        return Refusal(Reason.SHIFT, detail="a quotient passes only a scale of its numerator").on(op.output())
    return Step(passed={0: facts[0]})


def _choice(op: Op) -> range:
    """The operands among which the operator chooses, element by element."""
    return range(1 if op.type == "Where" else 0, len(op.node.inputs))


def _ordering(op: Op, affine: Affine) -> tuple[Affine, Affine, Refusal | None]:
    """Split s·x + t into a sign and what Max and Min pass: σ·(|s|·x + σ·t); Where passes any sign."""
    if op.type == "Where" or affine.nonnegative:
        return IDENTITY, affine, None
    sign = signs(affine.scale)
    return sign, sign @ affine, Refusal(Reason.SIGN, detail=f"{op.type} passes no negative scale")


def _choice_hoist(op: Op, demands: Facts) -> Outcome:
    sign, wanted, blocked = _ordering(op, demands[0])
    if blocked is not None and wanted.is_identity:
        return blocked
    passed = {}
    for slot in _choice(op):
        part = _fitting(op, slot, wanted)
        if isinstance(part, Refusal):
            return part
        passed[slot] = part
    return Step(passed=passed, rest={0: sign}, blocked=blocked)


def _choice_sink(op: Op, facts: Facts) -> Outcome:
    first, *others = (facts.get(slot, IDENTITY) for slot in _choice(op))
    if any(fact != first for fact in others):
        return Refusal(Reason.UNEQUAL, detail=f"the operands of {op.type} carry different affines").on(op.output())
    sign, _, blocked = _ordering(op, first)
    passed = first if blocked is None else Affine.of(np.abs(first.scale), first.shift)
    return Step(passed={0: passed}, rest=dict.fromkeys(facts, sign), blocked=blocked)


def _concat_axis(op: Op) -> tuple[int, int]:
    ranks = [len(known) for known in map(op.shape, range(len(op.node.inputs))) if known is not None]
    if not ranks:
        raise Untraceable(Reason.UNKNOWN_SHAPE, "the rank of the concatenated values is not known")
    return int(op.attr("axis", 1)) % ranks[0], ranks[0]


def _concat_hoist(op: Op, demands: Facts) -> Outcome:
    try:
        axis, rank = _concat_axis(op)
        wanted, start, passed = demands[0].at(rank), 0, {}
        for slot in range(len(op.node.inputs)):
            if axis not in wanted.axes(rank):
                passed[slot] = wanted
                continue
            known = op.shape(slot)
            size = known[axis] if known is not None else None
            if not isinstance(size, int):
                raise Untraceable(Reason.UNKNOWN_SHAPE, f"the size of input {slot} along axis {axis} is not known")
            passed[slot] = wanted.map(_taking(axis, range(start, start + size)))
            start += size
        return Step(passed=passed)
    except Untraceable as stop:
        return stop.refusal.on(op.output())


def _taking(axis: int, index: range) -> Callable[[Float64], Float64]:
    return lambda a: a if a.shape[axis] == 1 else a.take(index, axis=axis)


def _concat_sink(op: Op, facts: Facts) -> Outcome:
    try:
        axis, rank = _concat_axis(op)
        parts = []
        for slot in range(len(op.node.inputs)):
            known = op.shape(slot)
            parts.append((facts.get(slot, IDENTITY), known[axis] if known is not None else None))
        return Step(passed={0: concatenated(parts, axis, rank)})
    except Untraceable as stop:
        return stop.refusal.on(op.output())


def _numpy(judgement: Judgement) -> Judgement:
    """Refuse the broadcasting of opset 6, which lays the second operand along an axis that it names."""

    def judge(op: Op, facts: Facts) -> Outcome | list[Step]:
        if op.attr("broadcast", 0):
            return Refusal(Reason.BARRIER, detail=f"{op.type} broadcasts as before opset 7").on(op.output())
        return judgement(op, facts)

    return judge


TABLE: Table = {
    "Add": Rule("joins", _numpy(_sum_hoist), _numpy(_sum_sink)),
    "Sum": Rule("joins", _sum_hoist, _sum_sink),
    "Mean": Rule("joins", _sum_hoist, _sum_sink),
    "Sub": Rule("joins", _numpy(_sum_hoist), _numpy(_sum_sink)),
    "Mul": Rule("joins", _numpy(_product_hoist), _numpy(_product_sink)),
    "Div": Rule("joins", _numpy(_quotient_hoist), _numpy(_quotient_sink)),
    "Where": Rule("joins", _choice_hoist, _choice_sink),
    "Max": Rule("joins", _choice_hoist, _choice_sink),
    "Min": Rule("joins", _choice_hoist, _choice_sink),
    "Concat": Rule("joins", _concat_hoist, _concat_sink),
}
