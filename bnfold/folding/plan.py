"""Planning: walk the region that one affine reaches and say what absorbing it would change.

`plan_hoist` and `plan_sink` are pure. Each returns a `Plan`, or the `Refusal` that stopped it first. The cost that a
plan must lower counts elementwise passes: 2 for a BatchNormalization, 1 for a Mul, Add, Sub, Div or Neg. Where a
branch of the route is blocked, what remains of the affine is computed there ("emitted"), if that still pays.

All uses of a value must agree on what is asked of it. A use that asks nothing, a graph output and a read inside the
body of an If, Loop or Scan want the value as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from bnfold.affine import IDENTITY, Affine
from bnfold.derived import values
from bnfold.folding.agreement import disagreement, in_parts
from bnfold.folding.numbering import Numbering
from bnfold.folding.walk import Plan, Use, Walk
from bnfold.graph import Op, derive, is_floating, tensor
from bnfold.graph.constants import FAULTS
from bnfold.rules import rule_for
from bnfold.rules.base import Edit, Outcome, Reason, Refusal, Step
from bnfold.rules.fused import fused
from bnfold.rules.sources import Source, source

# Operands of which only the shape or the type is read: what they mean does not matter.
INDIFFERENT = {("Shape", 0), ("Size", 0), ("CastLike", 1)}


def _indifferent(node: ir.Node, slot: int) -> bool:
    return (Op(node).type, slot) in INDIFFERENT


@dataclass(frozen=True)
class Answer:
    """A plan or a refusal, with every node that the walk looked at.

    `silent` are the readers that asked nothing of a value on the way, or what computes the operands that brought
    nothing into a join: these stopped it.
    """

    result: Plan | Refusal
    visited: frozenset[ir.Node]
    silent: tuple[Op | None, ...] = ()


Starts = Mapping[ir.Node, Source]


def plan_hoist(starts: Starts, order: Numbering) -> Answer:
    """Plan to meet the demands of sources on their inputs by editing their producers.

    Where an operator offers alternatives (which operand of an Add takes the shift), the likeliest is tried first and
    each other one alone after it.
    """
    walk, best = _tried(starts, order, {})
    visited = walk.visited
    for fork, count in walk.forks.items():
        for pick in range(1, count):
            if isinstance(best, Plan) and not best.emitted:
                return Answer(best, visited)
            other, found = _tried(starts, order, {fork: pick})
            best, visited = better(best, found), visited | other.visited
    return Answer(best, visited, tuple(walk.silent))


def _tried(starts: Starts, order: Numbering, picks: Mapping[ir.Node, int]) -> tuple[Walk, Plan | Refusal]:
    """Walk as far as it goes, and again up to the joins behind which all that is left costs less."""
    walk = _hoist(starts, order, picks)
    best, stops = walk.finish(), walk.stops()
    return walk, better(best, _hoist(starts, order, picks, stops).finish()) if stops else best


def plan_sink(starts: Starts, order: Numbering) -> Answer:
    """Plan to delete sources and let their consumers take the facts.

    What an absorber passes on (the response of a bias-free product to a shift) may travel further or be computed at
    once; both are tried.
    """
    walk = _sink(starts, order, settle=False)
    best, visited = walk.finish(), walk.visited
    if not isinstance(best, Plan) or best.emitted:
        other = _sink(starts, order, settle=True)
        best, visited = better(best, other.finish()), visited | other.visited
    return Answer(best, visited, tuple(walk.silent))


def better(first: Plan | Refusal, second: Plan | Refusal) -> Plan | Refusal:
    """Return the plan with the larger gain, then the fewer nodes; the first of equals."""
    if isinstance(first, Refusal):
        return second if isinstance(second, Plan) else first
    if isinstance(second, Refusal):
        return first
    return second if (second.gain, second.nodes_removed) > (first.gain, first.nodes_removed) else first


def _hoist(
    starts: Starts, order: Numbering, picks: Mapping[ir.Node, int], stops: frozenset[ir.Node] = frozenset()
) -> Walk:
    walk = Walk("hoist", starts, order)
    for node, found in starts.items():
        walk.remove(node, found)
        _demand(walk, (node, found.slot), found.affine)
    while walk.heap:
        producer, asked = walk.pop()
        if producer in starts:
            return walk.chained(producer)
        if producer in stops:
            walk.emit_each(asked, Refusal(Reason.NO_GAIN).on(producer.outputs[0]))
            continue
        demands = _agreed(walk, producer, asked)
        if not demands:
            continue
        op, walked = Op(producer), [item for item in asked if item[0].index() in demands]
        walk.route.append(producer)
        met = source(op)
        if isinstance(met, Source):
            walk.remove(producer, met)
            _demand(walk, (producer, met.slot), demands[0] @ met.affine)
            walk.rescaled.update(dict.fromkeys(producer.outputs[:1]))
            continue
        step = _judge(walk, op, "hoist", demands, picks)
        if isinstance(step, Refusal):
            walk.route.pop()
            walk.emit_each(walked, step.on(op.output()))
            continue
        _take(walk, op, step)
        if step.blocked is not None:
            walk.blocks.append(step.blocked.on(op.output()))
        for index in demands:
            value = producer.outputs[index]
            walk.rescaled[value] = None
            walk.emit(value, step.rest.get(index, IDENTITY), [use for v, use, _ in walked if v is value])
        for slot, affine in step.passed.items():
            _demand(walk, (producer, slot), affine)
    return walk


def _demand(walk: Walk, use: Use, affine: Affine) -> None:
    """Ask the operand in `use` to become `affine` of what it was."""
    node, slot = use
    value = node.inputs[slot]
    if affine.is_identity:
        return
    assert value is not None
    held = tensor(value)
    if held is not None and node not in walk.starts:
        if math.prod(held.shape.numpy()) == 1 and _unmoved(affine, held):
            return  # such as the -∞ or the zero that a mask writes
        walk.edits.append(Edit(node, slot, derive(value, affine, ((), held.dtype)), "s·c + t"))
        walk.absorbers.append(node)
        return
    producer = value.producer()
    if producer is None or producer.graph is not walk.start.graph:
        inner = value.graph is not walk.start.graph
        walk.emit_each([(value, use, affine)], Refusal(Reason.BODY if inner else Reason.GRAPH_INPUT).on(value))
        return
    walk.push(producer, value, use, affine)


def _unmoved(affine: Affine, held: ir.TensorProtocol) -> bool:
    """Whether a constant of one element is what the affine makes of it, everywhere."""
    value = values(held)
    with np.errstate(invalid="ignore"):
        return bool(np.all(affine(value) == value))


def _agreed(walk: Walk, producer: ir.Node, asked: list[tuple[ir.Value, Use, Affine]]) -> dict[int, Affine]:
    """Return the demand on each output on which all uses agree; where they don't, the affine is computed there."""
    demands: dict[int, Affine] = {}
    for index, value in enumerate(producer.outputs):
        mine = [item for item in asked if item[0] is value]
        if not mine:
            continue
        covered = {use for _, use, _ in mine}
        others = [
            (use.node, use.idx) for use in value.uses()
            if (use.node, use.idx) not in covered and not _indifferent(*use)
        ]  # fmt: skip
        walk.seen.update(node for node, _ in others)
        refusal = disagreement(value, mine, others)
        if refusal is None:
            demands[index] = mine[0][2]
            continue
        whole = None if value.is_graph_output() else in_parts([*mine, *((value, use, IDENTITY) for use in others)])
        if whole is not None:
            demands[index] = whole
            continue
        walk.silent += [Op(node) for node, _ in others] if refusal.reason is Reason.READERS else []
        walk.emit_each(mine, refusal)
    return demands


def _sink(starts: Starts, order: Numbering, settle: bool) -> Walk:
    walk = Walk("sink", starts, order)
    for node, found in starts.items():
        walk.remove(node, found)
        _spread(walk, node.outputs[0], found.affine)
    while walk.heap:
        consumer, carried = walk.pop()
        if consumer in starts:
            return walk.chained(consumer)
        op = Op(consumer)
        facts = {use[1]: affine for _, use, affine in carried}
        met = source(op)
        if isinstance(met, Source):
            walk.route.append(consumer)
            walk.remove(consumer, met)
            _spread(walk, consumer.outputs[0], met.affine @ facts[met.slot], settled=settle and bool(walk.absorbers))
            continue
        step = _judge(walk, op, "sink", facts, {})
        walk.silent += [
            op.maker(slot) for slot, value in enumerate(consumer.inputs)
            if slot not in facts and is_floating(value) and tensor(value) is None
        ]  # fmt: skip
        if isinstance(step, Refusal):
            walk.emit_each(carried, step.on(carried[0][0]))
            continue
        walk.route.append(consumer)
        _take(walk, op, step)
        if step.blocked is not None:
            walk.blocks.append(step.blocked.on(carried[0][0]))
        for value, use, _ in carried:
            rest = step.rest.get(use[1], IDENTITY)
            walk.emit(value, rest, [use], whole=rest == facts[use[1]])
        for index, fact in step.passed.items():
            if not fact.is_identity:
                walk.rescaled[consumer.outputs[index]] = None
                _spread(walk, consumer.outputs[index], fact, settled=settle and step.absorbs)
    return walk


def _spread(walk: Walk, value: ir.Value, affine: Affine, settled: bool = False) -> None:
    """Tell every reader of `value` that it stands for `affine` of what is now there.

    `settled` computes the affine at once, unless the only reader is a constant operator that can take it over.
    """
    uses = [(use.node, use.idx) for use in value.uses() if not _indifferent(*use)]
    if affine.is_identity:
        return
    if settled and not (len(uses) == 1 and isinstance(source(Op(uses[0][0])), Source)):
        walk.emit(value, affine, uses, output=value.is_graph_output(), whole=True)
        return
    if value.is_graph_output():
        # One computation serves the output and every reader, so nothing travels further.
        walk.blocks.append(Refusal(Reason.GRAPH_OUTPUT).on(value))
        walk.emit(value, affine, uses, output=True, whole=True)
        return
    for node, slot in uses:
        if node.graph is not walk.start.graph:
            walk.emit_each([(value, (node, slot), affine)], Refusal(Reason.BODY).on(value))
        else:
            walk.push(node, value, (node, slot), affine)


def _judge(
    walk: Walk, op: Op, judgement: Literal["hoist", "sink"], facts: Mapping[int, Affine], picks: Mapping[ir.Node, int]
) -> Outcome:
    refused = fused(op)
    if refused is not None:
        return refused
    rule = rule_for(op)
    law = getattr(rule, judgement, None)
    if law is None:
        return Refusal(Reason.BARRIER, detail=_without_law(op)).on(op.output())
    try:
        outcome: Outcome | list[Step] = law(op, facts)
    except FAULTS as error:
        return Refusal(Reason.MALFORMED, detail=f"{op.type}: {error}").on(op.output())
    if isinstance(outcome, list):
        walk.forks[op.node] = len(outcome)
        return outcome[picks.get(op.node, 0)]
    return outcome


def _take(walk: Walk, op: Op, step: Step) -> None:
    walk.edits += step.edits
    for edit in step.edits:
        # A dequantized weight is rescaled with its scale, and so is what transposes it on the way to its reader.
        node = edit.node
        while node is not op.node:
            walk.rescaled[node.outputs[0]] = None
            node = next(iter(node.outputs[0].uses())).node
    if step.absorbs:
        walk.absorbers.append(op.node)


def _without_law(op: Op) -> str:
    if op.type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
        return f"the value is quantized here ({op.type}); fold before quantizing"
    return f"no law for {op.node.domain or 'ai.onnx'}::{op.node.op_type}"
