"""Surgery: fresh names, new constants, one value in another's place, and an end to what nothing reads."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from bnfold.graph.access import home, lists_initializers


@dataclass
class Names:
    """Every name of a model, to find fresh ones."""

    taken: set[str] = field(default_factory=set)

    @staticmethod
    def of(model: ir.Model) -> Names:
        names = Names()
        for graph in (*model.graphs(), *(function.graph for function in model.functions.values())):
            names.taken.update(value.name or "" for value in (*graph.inputs, *graph.initializers.values()))
            for node in graph:
                names.taken.add(node.name or "")
                names.taken.update(value.name or "" for value in node.outputs)
        return names

    def fresh(self, base: str) -> str:
        """Return `base`, or `base_1`, `base_2` …: the first that nothing bears."""
        name, count = base, 0
        while name in self.taken:
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name)
        return name

    def folded(self, base: str | None) -> str:
        """Return a fresh name for what comes to stand in another's place, however often that happens."""
        return self.fresh(re.sub(r"_folded(_\d+)?$", "", base or "") + "_folded")


def constant(tensor: ir.TensorProtocol, name: str, graph: ir.Graph | ir.Function | None) -> ir.Value:
    """Register a new initializer in a graph."""
    assert isinstance(graph, ir.Graph)
    graph = home(graph)
    tensor.name = name
    assert isinstance(tensor.shape, ir.Shape)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    if lists_initializers(graph):
        graph.inputs.append(value)
    return value


def take_over(new: ir.Value, old: ir.Value, names: Names) -> None:
    """Let `new` take the name and every reader of `old`, whose meaning it has, and remove what computed `old`."""
    name = old.name or ""
    old.name = names.fresh(f"{name}_merged")
    new.name, new.type, new.shape, new.doc_string = name, old.type, old.shape, old.doc_string
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    drop_unread([old])


def drop_unread(values: Iterable[ir.Value]) -> None:
    """Remove those of the values that nothing reads, with what computed them and whatever only that read."""
    work = list(dict.fromkeys(values))
    while work:
        value = work.pop()
        if value.uses() or value.is_graph_output():
            continue
        producer = value.producer()
        if value.is_initializer():
            _drop_initializer(value)
        elif producer is not None and producer.graph is not None:
            if any(output.uses() or output.is_graph_output() for output in producer.outputs):
                continue
            work += [operand for operand in producer.inputs if operand is not None]
            producer.graph.remove(producer, safe=True)


def _drop_initializer(value: ir.Value) -> None:
    """Remove an initializer, unless a caller may feed it."""
    graph, name, listed = value.graph, value.name or "", lists_initializers(value.graph)
    if graph is None or name not in graph.initializers or (value.is_graph_input() and not listed):
        return
    del graph.initializers[name]
    if listed and isinstance(graph, ir.Graph):
        graph.inputs.remove(value)
