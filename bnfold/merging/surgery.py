"""Graph surgery: put one value in another's place, and remove what nothing reads any more."""

from __future__ import annotations

import onnx_ir as ir

from bnfold.folding.commit import Names
from bnfold.graph import lists_initializers


def take_over(new: ir.Value, old: ir.Value, names: Names) -> None:
    """Let `new` take the name and every reader of `old`, whose meaning it has, and remove what computed `old`."""
    name, producer = old.name or "", old.producer()
    assert producer is not None
    old.name = names.fresh(f"{name}_merged")
    new.name, new.type, new.shape, new.doc_string = name, old.type, old.shape, old.doc_string
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    drop_unread(producer)


def drop_unread(node: ir.Node) -> None:
    """Remove a node that nothing reads, and whatever only it read."""
    work = [node]
    while work:
        node = work.pop()
        graph = node.graph
        if graph is None or any(value.uses() or value.is_graph_output() for value in node.outputs):
            continue
        operands = dict.fromkeys(value for value in node.inputs if value is not None)
        graph.remove(node, safe=True)
        for value in operands:
            producer = value.producer()
            if producer is not None:
                work.append(producer)
            elif value.is_initializer():
                _drop_initializer(value)


def _drop_initializer(value: ir.Value) -> None:
    graph = value.graph
    listed = lists_initializers(graph)
    if graph is None or value.uses() or value.is_graph_output() or (value.is_graph_input() and not listed):
        return
    del graph.initializers[value.name or ""]
    if listed and isinstance(graph, ir.Graph):
        graph.inputs.remove(value)
