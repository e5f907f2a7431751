"""What a model declares to take and give, and the check of a request against it before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.arrays import Array
from bnfold.errors import ModelError
from bnfold.serve.errors import Refused
from bnfold.serve.request import Tensor
from bnfold.serve.tensors import DTYPES, TEXT

_FROM_ONNX: dict[ir.DataType, str] = {
    ir.DataType.FLOAT: "FP32",
    ir.DataType.DOUBLE: "FP64",
    ir.DataType.FLOAT16: "FP16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.STRING: "BYTES",
    **{kind: kind.name for kind in map(ir.DataType, range(1, 14)) if kind.name.startswith(("INT", "UINT", "BOOL"))},
}

# A fixed size, a symbol that has one size within a request, or None: any size.
Size = int | str | None


@dataclass(frozen=True)
class Port:
    """One declared input or output; `shape` is None where the model does not even state the rank."""

    name: str
    datatype: str
    shape: tuple[Size, ...] | None

    @property
    def is_plain(self) -> bool:
        """Whether any request would do: floating-point, of known sizes but for the leading one."""
        known = self.shape is not None and all(isinstance(size, int) for size in self.shape[1:])
        return known and self.datatype in ("FP16", "BF16", "FP32", "FP64")

    def sample(self, random: np.random.Generator) -> Array:
        """Values of the smallest shape; 0 and 1 where they are no numbers of any size."""
        shape = [size if isinstance(size, int) else 1 for size in self.shape or ()]
        if self.datatype == TEXT:
            return np.full(shape, "a", object)
        dtype = DTYPES[self.datatype]
        if dtype.kind in "fV":
            return np.asarray(random.standard_normal(shape)).astype(dtype)
        return random.integers(0, 2, shape).astype(dtype)

    @property
    def dims(self) -> list[int]:
        """The shape as the protocol writes it, −1 for what is open."""
        return [size if isinstance(size, int) else -1 for size in self.shape or ()]


@dataclass(frozen=True)
class Contract:
    """The inputs that a caller must feed and the outputs that it gets, in the model's order."""

    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]

    @property
    def has_rows(self) -> bool:
        """Whether the leading axis of all inputs and outputs is one and the same open dimension: the batch."""
        ports = [*self.inputs.values(), *self.outputs.values()]
        leading = {port.shape[0] if port.shape else 0 for port in ports}
        return len(leading) == 1 and not isinstance(next(iter(leading)), int)

    def feeds(self, tensors: Sequence[Tensor]) -> dict[str, Array]:
        """Return the arrays by input name, or raise `Refused` for the first thing that does not fit."""
        feeds: dict[str, Array] = {}
        sizes: dict[str, tuple[int, str]] = {}
        for tensor in tensors:
            port = self.inputs.get(tensor.name)
            if port is None:
                raise Refused(f"there is no input {tensor.name!r:.80}; the model has {_names(self.inputs)}")
            if tensor.name in feeds:
                raise Refused(f"input {tensor.name!r} is given twice")
            if tensor.datatype != port.datatype:
                raise Refused(f"input {tensor.name!r} is {port.datatype}, not {tensor.datatype:.40}")
            _check_shape(port, tensor.array.shape, sizes)
            feeds[tensor.name] = tensor.array
        if len(feeds) < len(self.inputs):
            raise Refused(f"missing input {_names(name for name in self.inputs if name not in feeds)}")
        return feeds

    def wanted(self, names: Sequence[str]) -> tuple[str, ...]:
        """The outputs to return, all if none is named; raises `Refused` for one that is not there, or there twice."""
        for name in names:
            if name not in self.outputs:
                raise Refused(f"there is no output {name!r:.80}; the model has {_names(self.outputs)}")
        if len(set(names)) < len(names):
            raise Refused("an output is asked for twice")
        return tuple(names) or tuple(self.outputs)


def contract(model: ir.Model, name: str) -> Contract:
    """Read a model's contract; raises `ModelError` for an input or output that no request can carry."""
    constants = model.graph.initializers
    inputs = [value for value in model.graph.inputs if value.name not in constants]
    return Contract(
        {str(value.name): _port(value, name) for value in inputs},
        {str(value.name): _port(value, name) for value in model.graph.outputs},
    )


def _port(value: ir.Value, model: str) -> Port:
    datatype = None if not isinstance(value.type, ir.TensorType) else _FROM_ONNX.get(value.type.dtype)
    if datatype is None:
        raise ModelError(f"{model}: {value.name!r} is {value.type}, which the protocol can't carry; use a tensor of a "
                         f"type that it has")  # fmt: skip
    if value.shape is None:
        return Port(str(value.name), datatype, None)
    return Port(str(value.name), datatype, tuple(s if isinstance(s, int) else s.value for s in value.shape))


def _check_shape(port: Port, shape: tuple[int, ...], sizes: dict[str, tuple[int, str]]) -> None:
    if port.shape is None:
        return
    where = f"input {port.name!r}"
    if len(shape) != len(port.shape):
        raise Refused(f"{where} has {len(port.shape)} dimensions {_text(port.shape)}, not {len(shape)} {list(shape)}")
    for axis, (size, declared) in enumerate(zip(shape, port.shape, strict=True)):
        if isinstance(declared, str):
            known, first = sizes.setdefault(declared, (size, port.name))
            if size != known:
                raise Refused(f"{where}: {declared} is {size} on axis {axis}, but {known} in input {first!r}")
        elif declared is not None and size != declared:
            raise Refused(f"{where} has shape {_text(port.shape)}, not {list(shape)}: axis {axis} must be {declared}")


def _text(shape: Sequence[Size]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _names(names: Any) -> str:
    return ", ".join(repr(name) for name in names) or "none"
