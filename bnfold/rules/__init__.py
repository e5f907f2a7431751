"""The rule tables, one family a module; an operator without a row is a barrier."""

from __future__ import annotations

from collections.abc import Callable

from bnfold.graph import Op
from bnfold.rules import (
    bilinear,
    borders,
    commutes,
    einsum,
    joins,
    linear,
    moves,
    norms,
    recurrent,
    selections,
    windows,
)
from bnfold.rules.base import Facts, Judgement, Outcome, Reason, Refusal, Rule, Step, Table


def _either(first: Rule, second: Rule) -> Rule:
    """Join two rules of one operator: the second speaks where the first finds no constant operand."""

    def pick(judgement: Callable[[Rule], Judgement | None]) -> Judgement:
        def judge(op: Op, facts: Facts) -> Outcome | list[Step]:
            law, other = judgement(first), judgement(second)
            assert law is not None and other is not None
            outcome = law(op, facts)
            variable = isinstance(outcome, Refusal) and outcome.reason in (Reason.VARIABLE, Reason.OVERRIDABLE)
            return other(op, facts) if variable else outcome

        return judge

    return Rule(first.family, pick(lambda rule: rule.hoist), pick(lambda rule: rule.sink))


RULES: Table = {
    **linear.TABLE,
    **moves.TABLE,
    **selections.TABLE,
    **commutes.TABLE,
    **windows.TABLE,
    **borders.TABLE,
    **joins.TABLE,
    **recurrent.TABLE,
    **norms.TABLE,
    "MatMul": _either(linear.TABLE["MatMul"], bilinear.TABLE["MatMul"]),
    "Einsum": _either(einsum.CONSTANT, einsum.COMPUTED),
}


def rule_for(op: Op) -> Rule | None:
    """Return the rule of an operator, or None where it is a barrier, as one of another domain than ONNX's own is."""
    return RULES.get(op.type)
