"""Committing: apply a plan to the graph, so that no name comes to mean another value.

A value keeps its name iff its meaning is unchanged. On a hoist the source's name goes to the value that now equals
its output; on a sink it disappears. Every re-scaled value gets a fresh name, and edits make new initializers, so
that a shared weight keeps serving its other readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from bnfold.arrays import Float64
from bnfold.derived import Derived
from bnfold.folding.numbering import Numbering
from bnfold.folding.walk import Emission, Plan
from bnfold.graph import Op, dtype, label, note
from bnfold.graph.surgery import Names, constant


@dataclass(frozen=True)
class Change:
    """One new initializer or attribute that a commit made, for the fold map."""

    node: str
    slot: int | str
    old: str
    new: str | float
    formula: str


@dataclass(frozen=True)
class Committed:
    """What a commit changed: constants, nodes left to compute the rest, and nodes whose surroundings changed."""

    changes: tuple[Change, ...]
    emitted: tuple[ir.Node, ...]
    touched: frozenset[ir.Node]


def commit(plan: Plan, names: Names, order: Numbering) -> Committed:
    """Apply `plan` to the graph of its source, giving every new node its place in `order`."""
    touched = {node for value in plan.rescaled for node in _readers(value)} | set(plan.route) | {plan.source}
    touched |= {user for node, _ in plan.removed for user in _readers(node.outputs[0])}
    changes = _edit(plan, names)
    labels = {value: value.name for value in plan.rescaled}
    finals = {source.outputs[0].name for source in (plan.source, *plan.together)}
    for value in plan.rescaled:
        if value.name not in finals:
            value.name = names.folded(value.name)
    emitted: list[ir.Node] = []
    for emission in plan.emitted:
        touched |= _readers(emission.value)
        emitted += _emit(emission, plan, labels, names, order)
    for node, slot in plan.removed:
        touched |= _bypass(node, slot, names, order, keeps_name=plan.judgement == "hoist")
    return Committed(tuple(changes), tuple(emitted), frozenset(touched - {n for n, _ in plan.removed}) | set(emitted))


def _readers(value: ir.Value) -> set[ir.Node]:
    return {use.node for use in value.uses()}


def _edit(plan: Plan, names: Names) -> list[Change]:
    changes = []
    for edit in plan.edits:
        node, slot, value = edit.node, edit.slot, edit.value
        if isinstance(slot, str):
            assert isinstance(value, (int, float))
            old = str(node.attributes[slot].value) if slot in node.attributes else ""
            changes.append(Change(label(node), slot, old, value, edit.formula))
            node.attributes[slot] = ir.AttrInt64(slot, value) if isinstance(value, int) else ir.AttrFloat32(slot, value)
            continue
        assert not isinstance(value, (int, float))
        before = Op(node).input(slot)
        old = "" if before is None else str(before.name)
        name = names.folded(old or node.outputs[0].name)
        new = constant(value, name, node.graph)
        if slot >= len(node.inputs):
            node.resize_inputs(slot + 1)
        node.replace_input_with(slot, new)
        changes.append(Change(label(node), slot, old, name, edit.formula))
    return changes


def _emit(
    emission: Emission, plan: Plan, labels: Mapping[ir.Value, str | None], names: Names, order: Numbering
) -> list[ir.Node]:
    """Compute what remains of an affine on a value, as Mul and Add, for the uses that want it."""
    graph = plan.source.graph
    assert isinstance(graph, ir.Graph)
    kind = dtype(emission.value)
    assert kind is not None
    current, nodes = emission.value, []
    stem = emission.value.name
    parts: list[tuple[str, str, Float64, bool]] = [
        ("Mul", "scale", emission.affine.scale, emission.affine.scales),
        ("Add", "shift", emission.affine.shift, emission.affine.shifts),
    ]
    for op_type, what, coefficients, needed in parts:
        if not needed:
            continue
        operand = constant(Derived(_trimmed(coefficients), kind), names.fresh(f"{stem}_{what}"), graph)
        node = ir.Node("", op_type, [current, operand], name=names.fresh(f"{stem}_{op_type}"))
        node.outputs[0].name = names.fresh(f"{stem}_{op_type.lower()}")
        note(node.outputs[0], emission.value)
        _place(node, current, graph, order)
        nodes.append(node)
        current = node.outputs[0]
    for user, slot in emission.uses:
        user.replace_input_with(slot, current)
    if emission.whole:
        old = labels.get(emission.value, emission.value.name)
        if emission.value.name == old:
            emission.value.name = names.folded(old)
        current.name = old
    if emission.output:
        _stand_in(graph, emission.value, current)
    return nodes


def _trimmed(array: Float64) -> Float64:
    """Drop leading axes of size 1, which broadcasting puts back."""
    leading = next((axis for axis, size in enumerate(array.shape) if size != 1), array.ndim)
    return array.reshape(array.shape[leading:])


def _place(node: ir.Node, after: ir.Value, graph: ir.Graph, order: Numbering) -> None:
    """Put a node right behind the producer of its operand, or first in the graph."""
    producer = _producer(after, graph)
    if producer is None:
        graph.insert_before(next(iter(graph)), node)
    else:
        graph.insert_after(producer, node)
    order.behind(node, producer)


def _bypass(node: ir.Node, slot: int, names: Names, order: Numbering, keeps_name: bool) -> set[ir.Node]:
    """Remove a source: its readers see its operand. Return who else read that."""
    graph, out, operand = node.graph, node.outputs[0], node.inputs[slot]
    assert isinstance(graph, ir.Graph)
    assert operand is not None
    label, readers = out.name, _readers(operand)
    renamed = keeps_name and _producer(operand, graph) is not None and not operand.is_graph_output()
    if out.is_graph_output() and not renamed:
        copy = ir.Node("", "Identity", [operand], name=names.fresh(f"{label}_Identity"))
        _place(copy, operand, graph, order)
        note(copy.outputs[0], out)
        operand, renamed = copy.outputs[0], True
    out.name = names.fresh(f"{label}_removed")
    if renamed:
        operand.name = label
    if out.is_graph_output():
        _stand_in(graph, out, operand)
    for use in out.uses():
        use.node.replace_input_with(use.idx, operand)
    graph.remove(node, safe=True)
    return readers


def _producer(value: ir.Value, graph: ir.Graph) -> ir.Node | None:
    """Return what computes a value in this very graph: a body's operands may come from around it."""
    producer = value.producer()
    return producer if producer is not None and producer.graph is graph else None


def _stand_in(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Let `new` be the graph output that `old` was, with its declared type and shape."""
    note(new, old)
    new.doc_string = old.doc_string
    for index, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[index] = new
