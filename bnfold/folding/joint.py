"""Sources that can only go together: each alone is stopped by a reader, or an operand, that asks for nothing.

    hoist   two readers of one value ask the same of it: `A∘f` and `A∘f` want one `f′`
    sink    both operands of a join carry what alone would be unequal: A∘x + A∘z = A∘(x + z)

What stopped a plan says where to look. From each silent reader the search goes on to the next source behind it, from
each silent operand to the next before it; all that are found are planned as one.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from bnfold.folding.numbering import Numbering
from bnfold.folding.plan import Answer, better, plan_hoist, plan_sink
from bnfold.folding.walk import Plan
from bnfold.graph import Op, tensor
from bnfold.rules import rule_for
from bnfold.rules.base import Reason, Refusal
from bnfold.rules.sources import Source, source

# More than a few sources hardly agree, and a value with many readers must not cost a search for each of them.
SOURCES_AT_MOST = 4
NODES_AT_MOST = 32


def plan_jointly(node: ir.Node, found: Source, hoisted: Answer, sunk: Answer, order: Numbering) -> Answer:
    """Plan a source with those that stopped it, given what came of planning it alone; a refusal if there are none."""
    best: Plan | Refusal = Refusal(Reason.NO_GAIN)
    visited = hoisted.visited | sunk.visited
    for answer, plan, judgement in ((hoisted, plan_hoist, "hoist"), (sunk, plan_sink, "sink")):
        starts = {node: found}
        while joining := _joining(answer.silent, judgement, node.graph):
            if joining.keys() <= starts.keys() or len(starts | joining) > SOURCES_AT_MOST:
                break
            starts |= joining
            answer = plan(starts, order)
            visited |= answer.visited
            if isinstance(answer.result, Plan) and answer.result.gain > _gain_alone(starts, order):
                best = better(best, answer.result)
    return Answer(best, visited)


def _gain_alone(starts: Mapping[ir.Node, Source], order: Numbering) -> int:
    """What the sources would gain one by one; going together has to gain more."""
    alone = [{node: found} for node, found in starts.items()]
    plans = [better(plan_hoist(each, order).result, plan_sink(each, order).result) for each in alone]
    return sum(plan.gain for plan in plans if isinstance(plan, Plan))


def _joining(
    silent: tuple[Op | None, ...], judgement: str, graph: ir.Graph | ir.Function | None
) -> dict[ir.Node, Source]:
    """The next sources from each silent operator."""
    result: dict[ir.Node, Source] = {}
    for start in silent[: SOURCES_AT_MOST + 1]:
        work, count = [start], 0
        while work and count < NODES_AT_MOST:
            op, count = work.pop(), count + 1
            if op is None or op.node.graph is not graph:
                continue
            met = source(op)
            if isinstance(met, Source) and tensor(op.output()) is None:
                result[op.node] = met
            elif getattr(rule_for(op), judgement, None) is not None:
                work += map(Op, op.node.successors() if judgement == "hoist" else op.node.predecessors())
    return result
