"""What inference finds out about a model's values, noted beside them."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from bnfold.graph.access import DTYPE, HOME, OPSET, SHAPE, forget_constants, size
from bnfold.graph.operators import bodies, nodes_within
from bnfold.graph.shapes import refine
from bnfold.graph.skeleton import inferred


def annotate(model: ir.Model) -> None:
    """Note beside the model the shapes and types that ONNX shape inference finds, and each graph's opset."""
    for graph in model.graphs():
        # Before IR version 4 an initializer is an input of its graph as well, of which the body of an If has none.
        graph.meta[HOME] = model.graph if model.ir_version < 4 else None
        graph.meta[OPSET] = model.opset_imports.get("", 1)
    annotate_graph(model.graph, inferred(model))
    refine(model.graph)
    for node in nodes_within(model.graph):
        forget_constants(node)


def annotate_graph(graph: ir.Graph, proto: onnx.GraphProto, key: str = SHAPE) -> None:
    """Note beside a graph's values, and its bodies', the types of one with shapes inferred; the shapes under `key`."""
    found = {info.name: info.type.tensor_type for info in (*proto.value_info, *proto.output)}
    for node, twin in zip(graph, proto.node, strict=True):
        for value in node.outputs:
            kind = found.get(value.name or "")
            if kind is not None and kind.elem_type:
                value.meta[DTYPE] = ir.DataType(kind.elem_type)
                if kind.HasField("shape"):
                    value.meta[key] = tuple(
                        size(dim.dim_value if dim.HasField("dim_value") else ir.SymbolicDim(dim.dim_param or None))
                        for dim in kind.shape.dim
                    )
        protos = [attribute for attribute in twin.attribute if attribute.HasField("g") or attribute.graphs]
        inner = [
            body for attribute in protos for body in ((attribute.g,) if attribute.HasField("g") else attribute.graphs)
        ]
        for body, body_proto in zip(bodies(node), inner, strict=True):
            annotate_graph(body, body_proto, key)
