"""A model without its large weights: all that onnx's shape inference and checker read, within protobuf's limits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import onnx
import onnx.shape_inference
import onnx_ir as ir

from bnfold.derived import is_external, release
from bnfold.graph.operators import all_nodes, is_op
from bnfold.graph.tensors import nbytes

# Inference reads shapes and indices from the values of small constants.
STORED_BYTES = 1 << 10
# Operators for which ONNX infers no shape though they keep that of their input.
UNINFERRED = ("GroupNormalization",)
VECTOR = 1 << 24


def inferred(model: ir.Model, size: Callable[[str, int, str], int] | None = None) -> onnx.GraphProto:
    """Return the main graph with the types and shapes that ONNX infers; where it gives up, with those declared.

    `size` says how large a dynamic dimension of an input is to be taken, by the input's name, axis and symbol.
    """
    proto = skeleton(model)
    for info in proto.graph.input if size is not None else ():
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if size is not None and not dim.HasField("dim_value"):
                dim.dim_value = size(info.name, axis, dim.dim_param)
    for node in proto.graph.node:
        if is_op(node, *UNINFERRED):
            node.op_type = "Identity"
            del node.input[1:], node.attribute[:]
    with contextlib.suppress(onnx.shape_inference.InferenceError, RuntimeError):
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=not _has_endless_vector(proto.graph))
    return proto.graph


def check(model: ir.Model) -> None:
    """Run onnx's checker on the model's skeleton; its weights are checked where they are read.

    The GroupNormalization of opset 18, which was withdrawn but is in files, is checked as the InstanceNormalization
    that takes the same operands.

    Raises `onnx.checker.ValidationError`.
    """
    proto = skeleton(model)
    if withdrawn(model):
        for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
            _stand_in(nodes)
    onnx.checker.check_model(proto)


def withdrawn(model: ir.Model) -> bool:
    """Whether onnx's checker would refuse the model for nothing but the GroupNormalization of opset 18 to 20."""
    if not 18 <= model.opset_imports.get("", 1) < 21:
        return False
    return any(is_op(node, "GroupNormalization") for node in all_nodes(model))


def _stand_in(nodes: Iterable[onnx.NodeProto]) -> None:
    for node in nodes:
        if is_op(node, "GroupNormalization"):
            node.op_type = "InstanceNormalization"
            kept = [attribute for attribute in node.attribute if attribute.name == "epsilon"]
            del node.attribute[:]
            node.attribute.extend(kept)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                _stand_in(graph.node)


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """Return the model with its larger initializers declared as inputs but not stored."""
    proto = onnx.ModelProto(ir_version=model.ir_version)
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    graph = proto.graph
    graph.name = model.graph.name or "graph"
    for node in model.graph:
        ir.serde.serialize_node_into(graph.node.add(), node)
        _embed(node, graph.node[-1])
        for value in node.outputs:
            if value.name and value.type is not None:
                ir.serde.serialize_value_into(graph.value_info.add(), value)
    for value in model.graph.inputs:
        ir.serde.serialize_value_into(graph.input.add(), value)
    for value in model.graph.outputs:
        ir.serde.serialize_value_into(graph.output.add(), value)
    for value in model.graph.initializers.values():
        held = value.const_value
        if held is not None and nbytes(held) <= STORED_BYTES:
            ir.serde.serialize_tensor_into(graph.initializer.add(), _stored(held))
            # The tensor of a Constant that became an initializer may have a name of its own.
            graph.initializer[-1].name = value.name or ""
        elif not value.is_graph_input():
            ir.serde.serialize_value_into(graph.input.add(), value)
    proto.functions.extend(ir.serde.serialize_function(function) for function in model.functions.values())
    return proto


def _embed(node: ir.Node, proto: onnx.NodeProto) -> None:
    """Put external tensors of attributes and bodies into the proto: its reader does not know where their files are."""
    for attr, twin in zip(node.attributes.values(), proto.attribute, strict=True):
        if attr.is_ref():
            continue
        if attr.type == ir.AttributeType.TENSOR and is_external(attr.value):
            twin.t.CopyFrom(ir.serde.serialize_tensor(_stored(attr.value)))
        elif attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            graphs = [attr.as_graph()] if attr.type == ir.AttributeType.GRAPH else attr.as_graphs()
            for body, inner in zip(graphs, [twin.g] if twin.HasField("g") else twin.graphs, strict=True):
                for held, stored in zip(body.initializers.values(), inner.initializer, strict=True):
                    if is_external(held.const_value):
                        stored.CopyFrom(ir.serde.serialize_tensor(_stored(held.const_value)))
                for child, copy in zip(body, inner.node, strict=True):
                    _embed(child, copy)


def _stored(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Read an external tensor into memory, and let go of its file."""
    if not is_external(tensor):
        return tensor
    held = ir.Tensor(tensor.numpy().copy(), tensor.dtype, name=tensor.name)
    release(tensor)
    return held


def _has_endless_vector(graph: onnx.GraphProto) -> bool:
    """Whether a declared vector is so long that onnx's data propagation, which visits every element, takes for ever."""
    declared = (info.type.tensor_type.shape.dim for info in (*graph.input, *graph.value_info))
    return any(len(dims) == 1 and dims[0].dim_value > VECTOR for dims in declared)
