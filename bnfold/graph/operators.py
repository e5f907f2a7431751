"""A model's nodes, and which operator a node is.

In another domain than ONNX's own the same operator name may mean anything. That domain has two names, "" and "ai.onnx".
onnx_ir calls nodes by the first whichever the file has, but not the opsets that a model imports; nor does onnx's
checker know the second. So a model is renamed when it is loaded, and nothing else needs to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import onnx_ir as ir

BATCH_NORM = "BatchNormalization"
_OTHER_NAME = "ai.onnx"


class Named(Protocol):
    """What onnx's and onnx_ir's nodes have in common."""

    @property
    def domain(self) -> str: ...
    @property
    def op_type(self) -> str: ...


def is_op(node: Named, *types: str) -> bool:
    """Whether a node is one of these operators of ONNX's own domain."""
    return not node.domain and node.op_type in types


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs that the node's attributes hold: branches and loop bodies."""
    for attribute in node.attributes.data.values():  # its own `values` takes five times as long
        kind = attribute.type
        if kind is ir.AttributeType.GRAPH and not attribute.is_ref():
            yield attribute.as_graph()
        elif kind is ir.AttributeType.GRAPHS and not attribute.is_ref():
            yield from attribute.as_graphs()


def nodes_within(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """Yield the nodes of a graph in order, each before those of the bodies that it holds."""
    for node in graph:
        yield node
        for body in bodies(node):
            yield from nodes_within(body)


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the nodes of the model's graph and of its functions, control-flow bodies included."""
    yield from nodes_within(model.graph)
    for function in model.functions.values():
        yield from nodes_within(function)


def node_count(model: ir.Model, *types: str) -> int:
    """Number of nodes, or of those that are one of these operators, in a model's graph and its control-flow bodies."""
    return sum(not types or is_op(node, *types) for node in nodes_within(model.graph))


def in_one_domain(model: ir.Model) -> ir.Model:
    """Return the model with ONNX's own domain imported by its empty name; where it is already, the model itself."""
    if not any(_OTHER_NAME in versions for versions in _imports(model)):
        return model
    model = model.clone()
    for versions in _imports(model):
        if _OTHER_NAME in versions:
            versions[""] = versions.pop(_OTHER_NAME)
    return model


def _imports(model: ir.Model) -> list[dict[str, int]]:
    return [model.opset_imports, *(function.opset_imports for function in model.functions.values())]
