"""Two models compared piece by piece and bit for bit: nodes, attributes, edges, initializers, interface.

Values are matched by name; order of nodes, documentation and metadata do not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

CHUNK = 1 << 24  # bytes compared at a time
GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def model_differences(expected: ir.Model, found: ir.Model) -> Iterator[str]:
    """Yield each difference of `found` from `expected`, by the name of the node or initializer."""
    ours = {k: v for k, v in expected.graph.opset_imports.items() if v}
    theirs = {k: v for k, v in found.graph.opset_imports.items() if v}
    if ours != theirs:
        yield f"opsets {theirs} instead of {ours}"
    if set(expected.functions) != set(found.functions):
        yield "other local functions"
    for key in set(expected.functions) & set(found.functions):
        yield from graph_differences(expected.functions[key].graph, found.functions[key].graph)
    yield from graph_differences(expected.graph, found.graph)


def graph_differences(expected: ir.Graph, found: ir.Graph) -> Iterator[str]:
    """Yield each difference between two graphs or control-flow bodies."""
    for what in ("inputs", "outputs"):
        ours, theirs = ([_described(v) for v in getattr(g, what)] for g in (expected, found))
        if ours != theirs:
            yield f"{what} {', '.join(theirs)} instead of {', '.join(ours)}"
    yield from _initializer_differences(expected, found)
    nodes, others = _by_output(expected), _by_output(found)
    for name, node in nodes.items():
        if name not in others:
            yield f"no {node.op_type} computes {name!r}"
        else:
            yield from _node_differences(node, others[name])
    for name, node in others.items():
        if name not in nodes:
            yield f"an added {node.op_type} computes {name!r}"


def tensor_difference(expected: ir.TensorProtocol, found: ir.TensorProtocol) -> str | None:
    """Return how two tensors differ, if they do; values are compared as stored bits."""
    if expected.dtype != found.dtype:
        return f"type {found.dtype.name} instead of {expected.dtype.name}"
    if list(expected.shape) != list(found.shape):
        return f"shape {list(found.shape)} instead of {list(expected.shape)}"
    ours, theirs = expected.numpy(), found.numpy()
    if _same_bits(ours, theirs):
        return None
    differ = int(np.count_nonzero((ours != theirs) | (np.signbit(ours) != np.signbit(theirs)))) if _real(ours) else 0
    return f"{differ or 'some'} of {ours.size} values differ"


def _same_bits(ours: Any, theirs: Any) -> bool:
    if ours.dtype == object:
        return np.array_equal(ours, theirs)
    # Compared as integers, without a copy: -0.0 is not 0.0 here, and a NaN is itself.
    bits = [np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in (ours, theirs)]
    return all(
        np.array_equal(bits[0][start : start + CHUNK], bits[1][start : start + CHUNK])
        for start in range(0, bits[0].size, CHUNK)
    )


def _real(array: Any) -> bool:
    return array.dtype.kind in "fiu"


def _by_output(graph: ir.Graph) -> dict[str, ir.Node]:
    return {next((str(v.name) for v in node.outputs if v.name), f"node {node.name!r}"): node for node in graph}


def _described(value: ir.Value) -> str:
    kind = value.dtype.name if value.dtype is not None else "?"
    sizes = "?" if value.shape is None else "×".join(map(str, value.shape.dims))
    return f"{value.name} ({kind} {sizes})"


def _initializer_differences(expected: ir.Graph, found: ir.Graph) -> Iterator[str]:
    ours, theirs = expected.initializers, found.initializers
    for name in ours.keys() | theirs.keys():
        if name not in theirs:
            yield f"initializer {name!r} is missing"
        elif name not in ours:
            yield f"initializer {name!r} is added"
        else:
            a, b = ours[name].const_value, theirs[name].const_value
            text = "no data" if a is None or b is None else tensor_difference(a, b)
            if text is not None:
                yield f"initializer {name!r}: {text}"


def _node_differences(node: ir.Node, other: ir.Node) -> Iterator[str]:
    label = f"{node.op_type} {node.name or node.outputs[0].name!r}"
    if (node.domain, node.op_type) != (other.domain, other.op_type):
        yield f"{label} has become {other.op_type}"
        return
    for what in ("inputs", "outputs"):
        ours, theirs = _edges(getattr(node, what)), _edges(getattr(other, what))
        if ours != theirs:
            yield f"{label}: {what} {theirs} instead of {ours}"
    yield from attribute_differences(node, other)


def attribute_differences(node: ir.Node, other: ir.Node) -> Iterator[str]:
    """Yield each difference between the attributes of two nodes; bodies are compared with them."""
    label = f"{node.op_type} {node.name or node.outputs[0].name!r}"
    for name in sorted(node.attributes.keys() | other.attributes.keys()):
        yield from _attribute_differences(label, name, node.attributes.get(name), other.attributes.get(name))


def _edges(values: Any) -> list[str]:
    names = [str(v.name) if v is not None and v.name else "" for v in values]
    while names and not names[-1]:
        names.pop()
    return names


def _attribute_differences(label: str, name: str, a: ir.Attr | None, b: ir.Attr | None) -> Iterator[str]:
    if a is None or b is None:
        yield f"{label}: attribute {name!r} is {'added' if a is None else 'missing'}"
    elif a.type != b.type:
        yield f"{label}: attribute {name!r} has another type"
    elif a.type in GRAPHS:
        ours, theirs = ([x.as_graph()] if x.type == ir.AttributeType.GRAPH else list(x.as_graphs()) for x in (a, b))
        if len(ours) != len(theirs):
            yield f"{label}: attribute {name!r} holds another number of bodies"
        for one, two in zip(ours, theirs, strict=False):
            yield from graph_differences(one, two)
    elif a.type == ir.AttributeType.TENSOR:
        text = tensor_difference(a.as_tensor(), b.as_tensor())
        if text is not None:
            yield f"{label}: attribute {name!r}: {text}"
    elif _plain(a) != _plain(b):
        yield f"{label}: attribute {name!r} is {_plain(b)} instead of {_plain(a)}"


def _plain(attr: ir.Attr) -> Any:
    """An attribute's value as a file stores it: floats rounded to float32."""
    if attr.is_ref():
        return ("ref", attr.ref_attr_name)
    if attr.type == ir.AttributeType.FLOAT:
        return float(np.float32(attr.as_float()))
    if attr.type == ir.AttributeType.FLOATS:
        return [float(np.float32(v)) for v in attr.as_floats()]
    if attr.type in (ir.AttributeType.INTS, ir.AttributeType.STRINGS):
        return list(attr.value)
    return attr.value if attr.type in (ir.AttributeType.INT, ir.AttributeType.STRING) else str(attr.value)
