"""The product of two computed values, and the average that an attention is.

    bilinear   (s·L)·R = s·(L·R) for a scale of rows; L·(R·s) = (L·R)·s for one of columns; a uniform one to either
    average    P·(s·V + t) = s·(P·V) + t where the rows of P sum to one: P *is* a Softmax over the contracted axis

Only Identity, inference Dropout and Transpose may stand between the Softmax and the product; whatever else does,
such as a Where that zeroes rows, is a barrier, because the rows then need not sum to one.
"""

from __future__ import annotations

from bnfold.affine import IDENTITY, Affine
from bnfold.graph import Op
from bnfold.rules.base import Facts, Outcome, Reason, Refusal, Rule, Step, Table
from bnfold.rules.commutes import inference


def _ranks(op: Op) -> tuple[int, int] | Refusal:
    """The ranks of both operands; a vector has no law, because the product lacks its axis."""
    left, right = op.rank(0), op.rank(1)
    if left is None or right is None:
        return Refusal(Reason.UNKNOWN_SHAPE, detail="the rank of an operand of MatMul is not known")
    if left < 2 or right < 2:
        return Refusal(Reason.AXIS, detail="a product of a vector contracts it whole")
    return left, right


def softmax_over(op: Op, slot: int, axis: int, rank: int) -> bool:
    """Whether an operand of `rank` is a Softmax over `axis`, counted from the front."""
    while (inner := op.maker(slot)) is not None:
        if inner.type == "Softmax":
            # Before opset 13 all axes from the named one on are taken together.
            since_13 = inner.opset >= 13
            return int(inner.attr("axis", -1 if since_13 else 1)) % rank == axis and (since_13 or axis == rank - 1)
        if inner.type == "Transpose":
            axis = list(inner.attr("perm") or reversed(range(rank)))[axis]
        elif inner.type != "Identity" and not (inner.type == "Dropout" and inference(inner)):
            return False
        op, slot = inner, 0
    return False


def _contracted(slot: int, rank: int) -> int:
    """The axis of an operand of `rank` that the product sums."""
    return rank - 1 if slot == 0 else rank - 2


def _averages(op: Op, slot: int, ranks: tuple[int, int]) -> bool:
    """Whether the operand in `slot` is a Softmax over the axis that the product contracts."""
    return softmax_over(op, slot, _contracted(slot, ranks[slot]), ranks[slot])


def _operand(op: Op, slot: int, affine: Affine, ranks: tuple[int, int]) -> Affine | None:
    """Express an affine of the product on one operand, if it varies along the operand's kept axis and batch only."""
    rank, mine, known = max(ranks), ranks[slot], op.shape(slot) or ()
    for axis in affine.axes(rank) - {rank - 2 if slot == 0 else rank - 1}:
        origin = axis - rank + mine
        if not (0 <= origin < mine - 2 and isinstance(size := known[origin], int) and size != 1):
            return None
    return affine.at(mine)


def _hoist(op: Op, demands: Facts) -> Outcome | list[Step]:
    ranks, wanted = _ranks(op), demands[0]
    if isinstance(ranks, Refusal):
        return ranks
    for slot in (1, 0):
        whole = _operand(op, slot, wanted, ranks)
        if whole is not None and _averages(op, 1 - slot, ranks):
            return Step(passed={slot: whole})
    if not wanted.scales:
        return Refusal(Reason.SHIFT, detail="a product of two values passes no shift")
    parts = {slot: _operand(op, slot, wanted.scaling, ranks) for slot in (0, 1)}
    steps = [Step(passed={slot: part}, rest={0: wanted.shifting}) for slot, part in parts.items() if part is not None]
    return steps or Refusal(Reason.AXIS, detail="neither operand of MatMul has the axes of the affine")


def _sink(op: Op, facts: Facts) -> Outcome:
    ranks, total = _ranks(op), IDENTITY
    if isinstance(ranks, Refusal):
        return ranks
    for slot, fact in facts.items():
        if _contracted(slot, ranks[slot]) in fact.axes(ranks[slot]):
            return Refusal(Reason.AXIS, detail="the affine varies along the contracted axis").on(op.input(slot))
        if fact.shifts and not _averages(op, 1 - slot, ranks):
            return Refusal(Reason.SHIFT, detail="a product of two values passes no shift").on(op.input(slot))
        total = total @ fact
    return Step(passed={0: total})


TABLE: Table = {"MatMul": Rule("bilinear", _hoist, _sink)}
