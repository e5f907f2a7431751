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
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the nodes of the model's graph and of its functions, control-flow bodies included."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def node_count(model: ir.Model, *types: str) -> int:
    """Number of nodes, or of those that are one of these operators, in a model's graph and its control-flow bodies."""
    return sum(not types or is_op(node, *types) for node in model.graph.all_nodes())


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
