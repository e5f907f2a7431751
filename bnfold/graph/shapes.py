"""Shapes that a model computes at run time, followed as products of numbers and named dimensions.

Exporters write `x.view(x.size(0), -1)` as Shape, Gather, Concat and Reshape. ONNX's inference gives up where such a
target holds a dimension that is known by name only. Here the elements of shapes are `Size`s, which go through the
operators that compute shapes; the shape of a Reshape or Expand that follows is noted beside its output, and inference
is repeated, node by node, for what comes after it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import shape_inference

from bnfold.arrays import Array
from bnfold.graph.access import Op, Shape, dtype, noted, shape, tensor
from bnfold.graph.constants import EVALUATE, FAULTS
from bnfold.graph.operators import bodies

# Contents of small vectors only: a shape has few elements.
ELEMENTS = 64
_UNNAMED = ("unk__", "?")


@dataclass(frozen=True)
class Size:
    """A number of elements, `number·a·b…` with the names of dimensions in order.

    What has no such form gets a name of its own, the text of its expression, so that equal names are equal numbers.
    """

    number: int
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [str(self.number)] if self.number != 1 or not self.names else []
        return "*".join(parts + list(self.names))

    def __mul__(self, other: Size) -> Size:
        return Size(self.number * other.number, tuple(sorted(self.names + other.names)))

    def __floordiv__(self, other: Size) -> Size:
        if other.number and self.number % other.number == 0 and not Counter(other.names) - Counter(self.names):
            left = Counter(self.names) - Counter(other.names)
            return Size(self.number // other.number, tuple(sorted(left.elements())))
        return self._other("/", other)

    def __add__(self, other: Size) -> Size:
        return Size(self.number + other.number, self.names) if self.names == other.names else self._other("+", other)

    def __sub__(self, other: Size) -> Size:
        return Size(self.number - other.number, self.names) if self.names == other.names else self._other("-", other)

    def _other(self, sign: str, other: Size) -> Size:
        return Size(1, (f"({self}{sign}{other})",))


Contents = Array  # of Size


def refine(graph: ir.Graph) -> None:
    """Note beside the values of a graph and of its bodies the shapes that follow from sizes computed at run time."""
    _Refinement().walk(graph)


class _Refinement:
    def __init__(self) -> None:
        self.contents: dict[ir.Value, Contents] = {}
        self.named: dict[str, Size] = {}
        self.changed: set[ir.Value] = set()

    def walk(self, graph: ir.Graph) -> None:
        for node in graph:
            for body in bodies(node):
                self.walk(body)
            if node.domain:
                continue
            if node.op_type in _CONTENTS:
                self.follow(Op(node))
            found = _SHAPED[node.op_type](self, Op(node)) if node.op_type in _SHAPED else None
            if found is not None:
                self.improve(node.outputs[0], found)
            elif any(value in self.changed for value in node.inputs) and any(map(_vague, node.outputs)):
                self.infer(Op(node))

    # What shape arithmetic computes

    def follow(self, op: Op) -> None:
        if op.type in ("Shape", "Size"):
            sizes = self.sizes(op.input(0))
            if sizes is not None:
                whole = _vector(sizes)
                part = whole[slice(op.attr("start", 0), op.attr("end", None))]
                self.contents[op.output()] = part if op.type == "Shape" else _scalar(math.prod(whole, start=Size(1)))
            return
        count = _CONTENTS[op.type] or len(op.node.inputs)
        if not any(value in self.contents for value in op.node.inputs[:count]):
            return
        held = [self.content(value) for value in op.node.inputs[:count]]
        rest = [tensor(value) for value in op.node.inputs[count:]]
        if any(x is None for x in (*held, *rest)):
            return
        try:
            result = _evaluate(op, held, [x.numpy() for x in rest if x is not None])
        except FAULTS:
            return
        for value, found in zip(op.node.outputs, result if isinstance(result, tuple) else (result,), strict=False):
            self.contents[value] = np.asarray(found, dtype=object)

    def content(self, value: ir.Value | None) -> Contents | None:
        """The sizes that a value holds: followed so far, or those of a constant."""
        if value is None or value in self.contents:
            return None if value is None else self.contents[value]
        held = tensor(value)
        if held is None or not held.dtype.is_integer() or math.prod(held.shape.numpy()) > ELEMENTS:
            return None
        array = held.numpy()
        return _vector([Size(int(n)) for n in array.reshape(-1)]).reshape(array.shape)

    def sizes(self, value: ir.Value | None) -> list[Size] | None:
        """The shape of a value; a dimension of which nothing is known is named after its place."""
        known = shape(value)
        if value is None or known is None:
            return None
        if None in known:
            known = tuple(f"?{value.name}.{axis}" if dim is None else dim for axis, dim in enumerate(known))
            noted(value, known)
        named = (self.named.get(dim, Size(1, (dim,))) if isinstance(dim, str) else Size(dim or 0) for dim in known)
        return list(named)

    # What becomes of the shapes of values

    def improve(self, value: ir.Value, found: Shape) -> None:
        before = shape(value)
        if before is None or len(before) != len(found):
            merged = found if before is None else before
        else:
            pairs = zip(before, found, strict=True)
            merged = tuple(new if isinstance(new, int) or (_unknown(old) and new) else old for old, new in pairs)
        if merged != before:
            noted(value, merged)
            self.changed.add(value)

    def dims(self, sizes: list[Size]) -> Shape:
        """Write sizes as dimensions, remembering what the names stand for."""
        self.named.update({str(size): size for size in sizes if size.names})
        return tuple(str(size) if size.names else size.number for size in sizes)

    def reshaped(self, op: Op) -> Shape | None:
        target, source = self.content(op.input(1)), self.sizes(op.input(0))
        if target is None or source is None or target.ndim != 1 or not any(map(_vague, op.node.outputs)):
            return None
        copies = not op.attr("allowzero", 0)
        sizes = [source[k] if copies and size == Size(0) and k < len(source) else size for k, size in enumerate(target)]
        if sizes.count(Size(-1)) == 1:
            rest = math.prod((size for size in sizes if size != Size(-1)), start=Size(1))
            sizes[sizes.index(Size(-1))] = math.prod(source, start=Size(1)) // rest
        return None if Size(-1) in sizes else self.dims(sizes)

    def expanded(self, op: Op) -> Shape | None:
        target, source = self.content(op.input(1)), self.sizes(op.input(0))
        if target is None or source is None or target.ndim != 1 or not any(map(_vague, op.node.outputs)):
            return None
        rank = max(len(source), len(target))
        left, right = ([Size(1)] * (rank - len(part)) + list(part) for part in (source, target))
        sizes = [b if a in (Size(1), b) else a if b == Size(1) else None for a, b in zip(left, right, strict=True)]
        return tuple(None if size is None else self.dims([size])[0] for size in sizes)

    def resized(self, op: Op) -> Shape | None:
        target = self.content(op.input(3))
        plain = not op.attr("axes") and op.attr("keep_aspect_ratio_policy", "stretch") == "stretch"
        return self.dims(list(target)) if target is not None and plain and any(map(_vague, op.node.outputs)) else None

    def infer(self, op: Op) -> None:
        """Repeat ONNX's inference for one node."""
        kinds = {f"i{k}": _type(value) for k, value in enumerate(op.node.inputs) if value is not None}
        if None in kinds.values() or any(True for _ in bodies(op.node)):
            return
        names = [f"i{k}" if value is not None else "" for k, value in enumerate(op.node.inputs)]
        node = onnx.NodeProto(op_type=op.type, input=names, output=[f"o{k}" for k in range(len(op.node.outputs))])
        node.attribute.extend(ir.serde.serialize_attribute(attribute) for attribute in op.node.attributes.values())
        held = {f"i{k}": tensor(value) for k, value in enumerate(op.node.inputs)}
        data = {
            name: ir.serde.serialize_tensor(x) for name, x in held.items()
            if x is not None and math.prod(x.shape.numpy()) <= ELEMENTS
        }  # fmt: skip
        try:
            schema = onnx.defs.get_schema(op.type, op.opset, "")
            outputs = shape_inference.infer_node_outputs(
                schema, node, {name: kind for name, kind in kinds.items() if kind is not None}, data,
                opset_imports=[onnx.OperatorSetIdProto(domain="", version=op.opset)],
            )  # fmt: skip
        except (onnx.defs.SchemaError, shape_inference.InferenceError, RuntimeError):
            return
        for k, value in enumerate(op.node.outputs):
            kind = outputs.get(f"o{k}")
            if kind is not None and kind.tensor_type.HasField("shape"):
                dims = (d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.tensor_type.shape.dim)
                self.improve(value, tuple(dim if isinstance(dim, int) else dim or None for dim in dims))


def _unknown(dim: int | str | None) -> bool:
    return dim is None or (isinstance(dim, str) and dim.startswith(_UNNAMED))


def _vague(value: ir.Value) -> bool:
    known = shape(value)
    return known is None or any(map(_unknown, known))


def _type(value: ir.Value) -> onnx.TypeProto | None:
    kind, known = dtype(value), shape(value)
    if kind is None:
        return None
    proto = onnx.TypeProto()
    proto.tensor_type.elem_type = kind
    for dim in () if known is None else known:
        place = proto.tensor_type.shape.dim.add()
        if isinstance(dim, int):
            place.dim_value = dim
        elif dim is not None:
            place.dim_param = dim
    if known == ():
        proto.tensor_type.shape.SetInParent()
    return proto


def _vector(sizes: list[Size]) -> Contents:
    result = np.empty(len(sizes), dtype=object)
    result[:] = sizes
    return result


def _scalar(size: Size) -> Contents:
    return np.asarray(size, dtype=object)


def _evaluate(op: Op, held: list[Any], rest: list[Array]) -> Any:
    if op.type == "Cast":
        return held[0] if ir.DataType(op.attr("to", 1)).is_integer() else np.array(None)
    if op.type == "Div":
        return np.floor_divide(*held)
    if op.type == "ReduceProd":
        whole = math.prod(held[0].reshape(-1), start=Size(1))
        return _scalar(whole).reshape([1] * held[0].ndim if op.attr("keepdims", 1) else ())
    return EVALUATE[op.type](op.node, *held, *rest)


# Operators that compute shapes, with the number of operands that hold sizes (0: all); the others say where and how.
_CONTENTS: dict[str, int] = {
    "Shape": 1, "Size": 1, "Identity": 1, "Cast": 1, "Gather": 1, "Slice": 1, "Concat": 0, "Unsqueeze": 1, "Squeeze": 1,
    "Reshape": 1, "Split": 1, "Mul": 2, "Div": 2, "Add": 2, "Sub": 2, "ReduceProd": 1,
}  # fmt: skip

_SHAPED: dict[str, Callable[[_Refinement, Op], Shape | None]] = {
    "Reshape": _Refinement.reshaped, "Expand": _Refinement.expanded, "Resize": _Refinement.resized,
}  # fmt: skip
