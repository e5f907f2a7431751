"""What the rules ask of a graph: constants, attributes, uses and static shapes.

Shapes that inference adds stay beside the model, in `Value.meta`, so that analysing a model never changes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.affine import Affine
from bnfold.arrays import Array, Float64
from bnfold.derived import Derived, foldable_dtype, values
from bnfold.graph.constants import EVALUATE, attr, evaluated

CONSTANT_BYTES = 64 << 20
SHAPE, OPSET, DTYPE, _CONSTANT = "bnfold.shape", "bnfold.opset", "bnfold.dtype", "bnfold.constant"
HOME, ASSUMED_SHAPE = "bnfold.home", "bnfold.assumed"

Shape = tuple[int | str | None, ...]


def noted(value: ir.Value, known: Shape) -> None:
    """Note a shape beside a value; where its stored shape has a size or a name, that remains."""
    value.meta[SHAPE] = known


def note(value: ir.Value, like: ir.Value, sizes: Mapping[int, int] | None = None) -> None:
    """Give a new value the stored and the noted shape and type of an existing one; `sizes` replaces some axes'."""

    def resized(known: Any) -> Any:
        return None if known is None else tuple((sizes or {}).get(axis, size) for axis, size in enumerate(known))

    kept = not sizes or like.shape is None
    value.type, value.shape = like.type, like.shape if kept else ir.Shape(resized(like.shape))
    value.meta[DTYPE] = like.meta.get(DTYPE)
    value.meta.update({key: resized(like.meta.get(key)) for key in (SHAPE, ASSUMED_SHAPE)})


def dtype(value: ir.Value | None) -> ir.DataType | None:
    """Return the element type, stored or inferred."""
    return None if value is None else value.dtype or value.meta.get(DTYPE)


def shape(value: ir.Value | None) -> Shape | None:
    """Return the shape as sizes, symbol names and None for what is unknown; None if even the rank is."""
    if value is None:
        return None
    stored: ir.Shape | None = value.shape
    inferred: Shape | None = value.meta.get(SHAPE)
    if stored is None:
        return inferred
    if inferred is None or len(inferred) != len(stored):
        return tuple(size(dim) for dim in stored)
    return tuple(b if isinstance(b, int) else size(a) or b for a, b in zip(stored, inferred, strict=True))


def size(dim: int | ir.SymbolicDimProtocol) -> int | str | None:
    """Return the size or the symbol; older exporters wrote -1 where any size is meant, which ONNX Runtime accepts."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return dim.value


def label(node: ir.Node) -> str:
    """Return what reports call a node: its name, or that of its first output."""
    return node.name or (node.outputs[0].name if node.outputs else None) or node.op_type


def is_floating(value: ir.Value | None) -> bool:
    """Whether the value is of a type that can carry an affine."""
    return foldable_dtype(dtype(value))


def tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor that the value always holds, or None if it may change from run to run.

    Initializers that are also graph inputs may be overridden by the caller, so they are no constants.
    """
    if value is None:
        return None
    if value.is_initializer():
        return None if overridable(value) else value.const_value
    producer = value.producer()
    if producer is None or producer.domain:
        return None
    if producer.op_type == "Constant":
        return _constant_attribute(producer)
    if producer.op_type == "CastLike":
        return _cast_like(producer)
    if producer.op_type == "Shape" and (known := _sizes(producer)) is not None:
        return known
    if producer.op_type in EVALUATE:
        return _evaluated(value, producer)
    return None


def const(value: ir.Value | None) -> Array | None:
    """Return the value's constant array: float64, exact, where it is floating; else as stored."""
    held = tensor(value)
    if held is None:
        return None
    return values(held) if foldable_dtype(held.dtype) else held.numpy()


def overridable(value: ir.Value | None) -> bool:
    """Whether the value is an initializer that the caller may override as a graph input.

    Before IR version 4 every initializer had to be listed among the inputs, and none could be overridden.
    """
    return (
        value is not None and value.is_initializer() and value.is_graph_input() and not lists_initializers(value.graph)
    )


def lists_initializers(graph: ir.Graph | ir.Function | None) -> bool:
    """Whether the graph is of an IR version that lists every initializer among its inputs."""
    return graph is not None and graph.meta.get(HOME) is graph


def home(graph: ir.Graph) -> ir.Graph:
    """Return the graph that holds new initializers for nodes of `graph`: itself, or the main graph around it."""
    found: ir.Graph | None = graph.meta.get(HOME)
    return found or graph


def _constant_attribute(node: ir.Node) -> ir.TensorProtocol | None:
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            return attribute.as_tensor()
        if name in ("value_float", "value_floats"):
            return ir.tensor(np.asarray(attribute.value, dtype=np.float32))
        if name in ("value_int", "value_ints"):
            return ir.tensor(np.asarray(attribute.value, dtype=np.int64))
    return None


def _cast_like(node: ir.Node) -> ir.TensorProtocol | None:
    """Evaluate a constant that takes the type of another value, which need not be constant."""
    held, like = tensor(node.inputs[0]), node.inputs[1]
    kind = dtype(like)
    if held is None or kind is None or held.nbytes > CONSTANT_BYTES:
        return None
    return ir.tensor(held.numpy().astype(kind.numpy()), dtype=kind)


def _sizes(node: ir.Node) -> ir.TensorProtocol | None:
    """Evaluate the Shape of a value that need not be constant: the sizes asked for are known."""
    whole = shape(node.inputs[0]) or ()
    asked = whole[attr(node, "start", 0) : attr(node, "end", None)]
    sizes = [size for size in asked if isinstance(size, int)]
    return ir.tensor(np.array(sizes, np.int64)) if whole and len(sizes) == len(asked) else None


def forget_constants(node: ir.Node) -> None:
    """Have the node's constants evaluated anew: shapes that were unknown may be known by now."""
    if node.op_type in EVALUATE:
        for value in node.outputs:
            value.meta.pop(_CONSTANT, None)


def _evaluated(value: ir.Value, node: ir.Node) -> ir.TensorProtocol | None:
    """Evaluate constant arithmetic as the runtime would, remembering the result beside the value."""
    if _CONSTANT in value.meta:
        known: ir.TensorProtocol | None = value.meta[_CONSTANT]
        return known
    held = [tensor(operand) for operand in node.inputs]
    result = None
    if all(x is None if operand is None else x is not None and x.nbytes <= CONSTANT_BYTES
           for x, operand in zip(held, node.inputs, strict=True)):  # fmt: skip
        array = evaluated(node, [None if x is None else x.numpy() for x in held], value.index() or 0, CONSTANT_BYTES)
        result = None if array is None else ir.tensor(array)
    value.meta[_CONSTANT] = result
    return result


@dataclass(frozen=True, eq=False)
class Op:
    """A node as a rule sees it."""

    node: ir.Node

    @property
    def type(self) -> str:
        """The operator's name, which in another domain than ONNX's own may mean anything and holds the domain."""
        return f"{self.node.domain}::{self.node.op_type}" if self.node.domain else self.node.op_type

    @property
    def opset(self) -> int:
        graph = self.node.graph
        return 1 if graph is None else int(graph.meta.get(OPSET, 1))

    def attr(self, name: str, default: Any = None) -> Any:
        return attr(self.node, name, default)

    def input(self, slot: int) -> ir.Value | None:
        return self.node.inputs[slot] if slot < len(self.node.inputs) else None

    def output(self, index: int = 0) -> ir.Value:
        return self.node.outputs[index]

    def maker(self, slot: int) -> Op | None:
        """Return the operator that computes an input, if one does."""
        value = self.input(slot)
        producer = None if value is None else value.producer()
        return None if producer is None else Op(producer)

    def has(self, slot: int) -> bool:
        return self.input(slot) is not None

    def const(self, slot: int) -> Array | None:
        return const(self.input(slot))

    def tensor(self, slot: int) -> ir.TensorProtocol | None:
        return tensor(self.input(slot))

    def shape(self, slot: int) -> Shape | None:
        return shape(self.input(slot))

    def rank(self, slot: int) -> int | None:
        known = self.shape(slot)
        return None if known is None else len(known)

    def out_shape(self, index: int = 0) -> Shape | None:
        return shape(self.output(index))

    def ints(self, slot: int, name: str) -> list[int] | None:
        """Return integers that newer opsets take as an input and older ones as an attribute."""
        if self.has(slot):
            held = self.const(slot)
            return None if held is None else [int(n) for n in held.reshape(-1)]
        found = self.attr(name)
        return None if found is None else [int(n) for n in found]

    def used(self, index: int) -> bool:
        """Whether anything reads this output."""
        if index >= len(self.node.outputs):
            return False
        value = self.node.outputs[index]
        return bool(value.uses()) or value.is_graph_output()


def derive(value: ir.Value | None, step: Affine, zeros: tuple[tuple[int, ...], ir.DataType]) -> Derived:
    """Return the constant in `value` after one more affine; where there is no value, start from `zeros`."""
    held = tensor(value)
    if isinstance(held, Derived):
        return held.then(step)
    if held is not None:
        return Derived(held, held.dtype, (step,))
    shape, kind = zeros
    blank: Float64 = np.zeros(shape)
    return Derived(blank, kind, (step,))
