"""A random graph under construction: values with shapes and types, operators as their opset writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.graphs import DTYPES
from tests.makers import Draw

TYPES = {
    "double": TensorProto.DOUBLE,
    "float": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
# The opset from which on an operator takes these numbers as inputs instead of attributes.
AS_INPUTS = {
    "Slice": 10, "Pad": 11, "Clip": 11, "Squeeze": 13, "Unsqueeze": 13, "Split": 13, "ReduceSum": 13,
    "ReduceMean": 18, "ReduceMax": 18, "ReduceMin": 18, "ReduceL2": 18,
}  # fmt: skip
LARGEST = 1000


@dataclass(frozen=True)
class Value:
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass
class Builder:
    """A graph under construction; a body shares names, constants and random choices with the graph around it.

    `families` says of every node which families of the generator made it.
    """

    draw: Draw
    dtype: str
    opset: int
    values: list[Value] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    families: dict[str, frozenset[str]] = field(default_factory=dict)
    within: frozenset[str] = frozenset()
    count: list[int] = field(default_factory=lambda: [0])

    @contextmanager
    def family(self, name: str) -> Iterator[None]:
        """Whatever is added in the block belongs to the family too."""
        outer, self.within = self.within, self.within | {name}
        try:
            yield
        finally:
            self.within = outer

    def inner(self, kind: str) -> Builder:
        """A builder for a body, in which no other body begins."""
        return Builder(
            self.draw, self.dtype, self.opset, [], [], self.constants, set(), self.functions, self.families,
            self.within | {"body", kind}, self.count,
        )  # fmt: skip

    def name(self, stem: str) -> str:
        self.count[0] += 1
        return f"{stem}{self.count[0]}"

    def chance(self, one_in: int) -> bool:
        return self.draw.size(1, one_in) == 1

    def constant(self, array: Any, dtype: str | None = None) -> str:
        """A new constant; floats become `dtype`, the model's own by default, all others stay as they are."""
        array = np.asarray(array)
        name = self.name("k")
        self.constants[name] = array.astype(DTYPES[dtype or self.dtype]) if array.dtype.kind == "f" else array
        return name

    def normal(self, *shape: int, spread: float = 1.0) -> np.ndarray[Any, Any]:
        return self.draw.rng.normal(size=shape) * spread

    def weight(self, shape: Sequence[int], fan_in: int, dtype: str) -> str:
        """A new weight, or one of that shape and type that another layer has."""
        for name, array in self.constants.items():
            if array.shape == tuple(shape) and len(shape) > 1 and array.dtype == DTYPES[dtype] and self.chance(2):
                return name
        return self.constant(self.normal(*shape, spread=fan_in**-0.5), dtype)

    def pick(self, *ranks: int) -> Value | None:
        """A value of one of `ranks` and not too large, most often a recent one."""
        fits = [value for value in self.values if not ranks or len(value.shape) in ranks]
        found = [value for value in fits if np.prod(value.shape) <= LARGEST]
        if not found:
            return None
        return found[-1] if self.draw.of(True, True, False) else self.draw.of(*found)

    def like(self, x: Value) -> list[Value]:
        """The values of the type of `x`."""
        return [value for value in self.values if value.dtype == x.dtype]

    def add(
        self, op: str, x: Value, inputs: Sequence[str], shape: Sequence[int], *,
        dtype: str | None = None, **attributes: Any,
    ) -> Value:  # fmt: skip
        """A node of one output, of the type of `x` unless `dtype` says otherwise."""
        return self.multiple(op, x, inputs, [shape], dtype=dtype, **attributes)[0]

    def multiple(
        self, op: str, x: Value, inputs: Sequence[str], shapes: Sequence[Sequence[int]], *,
        dtype: str | None = None, domain: str = "", **attributes: Any,
    ) -> list[Value]:  # fmt: skip
        outputs = [Value(self.name("v"), tuple(shape), dtype or x.dtype) for shape in shapes]
        name = self.name(op)
        names = [value.name for value in outputs]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=name, domain=domain, **attributes))
        self.families[name] = self.within
        self.used.update(inputs)
        self.values += outputs
        return outputs

    def hidden(self, op: str, inputs: Sequence[str], shape: Sequence[int], dtype: str, **attributes: Any) -> Value:
        """A node whose value no other family picks: an integer, or a weight."""
        value = self.add(op, Value("", (), dtype), inputs, shape, **attributes)
        self.values.pop()
        return value

    def numbered(
        self, op: str, x: Value, shapes: Sequence[Sequence[int]], numbers: dict[str, Any], **attributes: Any
    ) -> list[Value]:
        """A node with numbers that are attributes or, from some opset on, constant inputs; None leaves one out."""
        if self.opset < AS_INPUTS[op]:
            given = {key: np.asarray(value).tolist() for key, value in numbers.items() if value is not None}
            return self.multiple(op, x, [x.name], shapes, **given, **attributes)
        operands = ["" if value is None else self.constant(np.asarray(value), x.dtype) for value in numbers.values()]
        while operands and not operands[-1]:
            operands.pop()
        return self.multiple(op, x, [x.name, *operands], shapes, **attributes)

    def arithmetic(self, op: str, x: Value, array: Any, *, swapped: bool = False) -> Value:
        """`x op constant`; before opset 7 broadcasting has to be asked for, and starts at an axis that is named."""
        array = np.asarray(array)
        legacy: dict[str, int] = {}
        if self.opset < 7:
            swapped, legacy = False, {"broadcast": 1}
            if array.ndim:
                axis = next((k for k, size in enumerate(array.shape) if size != 1), 0)
                last = max((k for k, size in enumerate(array.shape) if size != 1), default=axis)
                legacy["axis"] = axis + len(x.shape) - array.ndim
                array = array.reshape(array.shape[axis : last + 1])
        operands = [x.name, self.constant(array, x.dtype)]
        return self.add(op, x, operands[::-1] if swapped else operands, x.shape, **legacy)


Family = Callable[[Builder], Any]
