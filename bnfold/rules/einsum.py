"""Einsum: each label of an operand is an axis that coefficients can follow.

    constant   W is one operand: linear, as a matrix product is
    computed   (s·L)⊛R = s·(L⊛R) where s varies along labels of L that the sum keeps; and where R is a Softmax over the
               one label that is summed, a shift passes too

An equation without an arrow keeps the labels that occur once, in alphabetic order; an ellipsis stands for labels of its
own, on an operand that is not constant.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnfold.affine import Affine, ranked
from bnfold.arrays import Float64
from bnfold.graph import Op
from bnfold.rules.base import Facts, Outcome, Reason, Refusal, Rule, Step
from bnfold.rules.bilinear import softmax_over
from bnfold.rules.linear import View, hoisting, sinking
from bnfold.rules.quantized import either_weight


@dataclass(frozen=True)
class Equation:
    """The labels of two operands and of their product, one letter an axis."""

    operands: tuple[str, str]
    product: str

    def __str__(self) -> str:
        return f"{','.join(self.operands)}->{self.product}"


def _equation(op: Op) -> Equation | Refusal:
    written = str(op.attr("equation", "")).replace(" ", "")
    left, arrow, product = written.partition("->")
    operands = left.split(",")
    refusal = Refusal(Reason.BARRIER, detail=f"no law for the Einsum {written!r}").on(op.output())
    if len(operands) != 2:
        return refusal
    if not arrow:
        letters = [label for label in left if label.isalpha()]
        product = "..." * ("..." in left) + "".join(sorted(label for label in letters if letters.count(label) == 1))
    extra = 0
    for slot, labels in enumerate(operands):
        rank = op.rank(slot)
        if "..." in labels:
            if rank is None or any("..." in other for other in operands[:slot]):
                return refusal
            extra = rank - (len(labels) - 3)
    spare = "".join(label for label in string.ascii_letters if label not in written)[: max(extra, 0)]
    terms = [term.replace("...", spare) for term in (*operands, product)]
    if any(len(set(term)) != len(term) for term in terms):
        return refusal
    return Equation((terms[0], terms[1]), terms[2])


def _follow(a: Float64, source: str, target: str) -> Float64:
    """Bring coefficients along the labels `source`, uniform along those that `target` lacks, to those of `target`."""
    a = ranked(a, len(source))
    order = [source.index(label) for label in target if label in source]
    rest = [axis for axis in range(len(source)) if axis not in order]
    kept = np.transpose(a, rest + order)[(0,) * len(rest)]
    sizes = dict(zip((label for label in target if label in source), kept.shape, strict=True))
    shaped: Float64 = kept.reshape([sizes.get(label, 1) for label in target])
    return shaped


def _following(source: str, target: str) -> Callable[[Float64], Float64]:
    return lambda a: _follow(a, source, target)


def _view(op: Op) -> View | Refusal:
    """Einsum of two operands, one of them constant."""
    equation = _equation(op)
    if isinstance(equation, Refusal):
        return equation
    found = either_weight(op)
    if isinstance(found, Refusal):
        return found
    held, slot = found
    x, w, y = equation.operands[1 - slot], equation.operands[slot], equation.product
    sizes = dict(zip(w, held.shape, strict=True))
    if any(label not in y and sizes.get(label, 1) == 1 != _size(op, 1 - slot, x, label) for label in x):
        return Refusal(Reason.AXIS, detail="Einsum sums an axis that the constant lacks").on(op.output())

    def respond(t: Float64) -> Float64:
        t = ranked(t, len(x))
        full = np.broadcast_to(t, [max(size, sizes.get(label, 1)) for size, label in zip(t.shape, x, strict=True)])
        operands = (full, held.values()) if slot == 1 else (held.values(), full)
        response: Float64 = np.einsum(str(equation), *operands)
        return response

    return View(
        held, x=1 - slot, slot=slot, x_rank=len(x), y_rank=len(y),
        x_axes=frozenset(axis for axis, label in enumerate(x) if label in w),
        y_axes=frozenset(axis for axis, label in enumerate(y) if label in w),
        out=lambda a: _follow(a, y, w), into=lambda a: _follow(a, x, w), respond=respond,
    )  # fmt: skip


def _averages(op: Op, equation: Equation, slot: int) -> bool:
    """Whether the operand in `slot` is a Softmax over the only label that the sum drops, as long in both operands."""
    mine, other = equation.operands[slot], equation.operands[1 - slot]
    summed = sorted(set(mine + other) - set(equation.product))
    if len(summed) != 1 or summed[0] not in mine:
        return False
    length = _size(op, slot, mine, summed[0])
    same = length is not None and length == _size(op, 1 - slot, other, summed[0])
    return same and softmax_over(op, slot, mine.index(summed[0]), len(mine))


def _size(op: Op, slot: int, labels: str, label: str) -> int | str | None:
    """The size of an operand along one of its labels, as far as it is known; 1 where it has no such label."""
    known = op.shape(slot)
    return 1 if label not in labels else None if known is None else known[labels.index(label)]


def _hoist(op: Op, demands: Facts) -> Outcome | list[Step]:
    """A scale goes to either operand that has its labels, a shift to the one that the other averages."""
    equation, wanted = _equation(op), demands[0]
    if isinstance(equation, Refusal):
        return equation
    y, steps = equation.product, []
    axes = wanted.axes(len(y))
    for slot, labels in enumerate(equation.operands):
        if any(_size(op, slot, labels, y[axis]) in (1, None) for axis in axes):
            continue  # an operand of one element along a label, or without it, broadcasts there
        whole = _averages(op, equation, 1 - slot)
        part = wanted if whole else wanted.scaling
        if part.is_identity:
            continue
        rest = {} if whole else {0: wanted.shifting}
        steps.append(Step(passed={slot: part.map(_following(y, labels))}, rest=rest))
    if not steps:
        reason = Reason.AXIS if wanted.scales else Reason.SHIFT
        return Refusal(reason, detail="neither operand of Einsum can take the affine of their product").on(op.output())
    return sorted(steps, key=lambda step: len(step.rest))


def _sink(op: Op, facts: Facts) -> Outcome:
    equation = _equation(op)
    if isinstance(equation, Refusal):
        return equation
    total = Affine.of(1.0, 0.0)
    for slot, fact in facts.items():
        labels = equation.operands[slot]
        if any(labels[axis] not in equation.product for axis in fact.axes(len(labels))):
            return Refusal(Reason.AXIS, detail="the affine varies along a label that Einsum sums").on(op.input(slot))
        if fact.shifts and not _averages(op, equation, 1 - slot):
            return Refusal(Reason.SHIFT, detail="a product of two values passes no shift").on(op.input(slot))
        total = total @ fact.map(_following(labels, equation.product))
    return Step(passed={0: total})


CONSTANT = Rule("linear", hoisting(_view), sinking(_view))
COMPUTED = Rule("bilinear", _hoist, _sink)
