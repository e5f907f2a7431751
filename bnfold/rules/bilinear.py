"""The product of two computed values, and the average that an attention is.

    bilinear   (s·L)·R = s·(L·R) for a scale of rows; L·(R·s) = (L·R)·s for one of columns; a uniform one to either
    average    P·(s·V + t) = s·(P·V) + t where the rows of P sum to one: P *is* a Softmax over the contracted axis

Only Identity, inference Dropout and Transpose may stand between the Softmax and the product; whatever else does,
such as a Where that zeroes rows, is a barrier, because the rows then need not sum to one.
"""

from __future__ import annotations

import onnx_ir as ir

from bnfold.affine import Affine
from bnfold.graph import Op, shape
from bnfold.rules.base import Facts, Outcome, Reason, Refusal, Rule, Step, Table


def _rank(op: Op) -> int | None:
    known = op.out_shape()
    return None if known is None else len(known)


def softmax_over(value: ir.Value | None, axis: int) -> bool:
    """Whether the value is a Softmax over `axis`, counted from the front."""
    known = shape(value)
    if value is None or known is None:
        return False
    while (producer := value.producer()) is not None and producer.domain in ("", "ai.onnx"):
        inner = Op(producer)
        if inner.type == "Softmax":
            rank = inner.rank(0)
            default = -1 if inner.opset >= 13 else 1
            over = int(inner.attr("axis", default)) % len(known)
            return rank == len(known) and over == axis and (inner.opset >= 13 or axis == rank - 1)
        if inner.type == "Transpose":
            axis = list(inner.attr("perm") or reversed(range(len(known))))[axis]
        elif not (inner.type == "Identity" or (inner.type == "Dropout" and _inference(inner))):
            return False
        source = inner.input(0)
        if source is None:
            return False
        value = source
    return False


def _sums_to_one(op: Op, slot: int) -> bool:
    """Whether the operand in `slot` is a Softmax over the axis that the product contracts."""
    known = op.shape(slot)
    if known is None or len(known) < 2:
        return False
    return softmax_over(op.input(slot), len(known) - (1 if slot == 0 else 2))


def _inference(op: Op) -> bool:
    training = op.const(2)
    return op.opset >= 7 and (not op.has(2) or (training is not None and not training.any()))


def _operand(op: Op, slot: int, affine: Affine) -> Affine | Refusal:
    """Express an affine of the product on one operand: it may vary along the operand's kept axis and its batch."""
    value, rank = op.input(slot), _rank(op)
    known = shape(value)
    if known is None or rank is None or len(known) < 2:
        return Refusal(Reason.UNKNOWN_SHAPE).on(value)
    kept = rank - 2 if slot == 0 else rank - 1
    for axis in affine.axes(rank):
        origin = axis - (rank - len(known))
        if axis != kept and (
            axis >= rank - 2 or origin < 0 or not isinstance(known[origin], int) or known[origin] == 1
        ):
            return Refusal(Reason.AXIS, detail=f"operand {slot} of MatMul has no axis {axis} of its product").on(value)
    return affine.at(rank).at(len(known))


def _hoist(op: Op, demands: Facts) -> Outcome | list[Step]:
    wanted = demands[0]
    for slot in (1, 0):
        if wanted.shifts and _sums_to_one(op, 1 - slot):
            whole = _operand(op, slot, wanted)
            return whole if isinstance(whole, Refusal) else Step(passed={slot: whole})
    if not wanted.scales:
        return Refusal(Reason.SHIFT, detail="a product of two values passes no shift").on(op.output())
    rest = {0: wanted.shifting} if wanted.shifts else {}
    parts = [(slot, _operand(op, slot, wanted.scaling)) for slot in (0, 1)]
    steps = [Step(passed={slot: part}, rest=rest) for slot, part in parts if isinstance(part, Affine)]
    return steps or next(part for _, part in parts if isinstance(part, Refusal))


def _sink(op: Op, facts: Facts) -> Outcome:
    rank = _rank(op)
    if rank is None:
        return Refusal(Reason.UNKNOWN_SHAPE).on(op.output())
    total = Affine.of(1.0, 0.0)
    for slot, fact in facts.items():
        known = shape(op.input(slot))
        if known is None:
            return Refusal(Reason.UNKNOWN_SHAPE).on(op.input(slot))
        if len(known) < 2:
            return Refusal(Reason.AXIS, detail="a product of a vector contracts it whole").on(op.input(slot))
        contracted = len(known) - (1 if slot == 0 else 2)
        if contracted in fact.axes(len(known)):
            return Refusal(Reason.AXIS, detail="the affine varies along the contracted axis").on(op.input(slot))
        if fact.shifts and (len(facts) > 1 or not _sums_to_one(op, 1 - slot)):
            return Refusal(Reason.SHIFT, detail="a product of two values passes no shift").on(op.input(slot))
        total = total @ fact.at(len(known))
    return Step(passed={0: total})


TABLE: Table = {"MatMul": Rule("bilinear", _hoist, _sink)}
