"""What a model stores: its tensors, wherever they hang, and how large they are."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from bnfold.derived import is_external
from bnfold.graph.operators import bodies


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every tensor of the model: initializers and attributes, in control-flow bodies and functions too."""
    yield from _held(model.graph)
    for function in model.functions.values():
        yield from _held(function)


def _held(graph: ir.Graph | ir.Function) -> Iterator[ir.TensorProtocol]:
    for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
        if value.const_value is not None:
            yield value.const_value
    for node in graph:
        for attr in node.attributes.data.values():  # as in `bodies`
            if attr.type is ir.AttributeType.TENSOR and not attr.is_ref():
                yield attr.as_tensor()
            elif attr.type is ir.AttributeType.TENSORS and not attr.is_ref():
                yield from attr.as_tensors()
        for body in bodies(node):
            yield from _held(body)


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Yield the tensors that lie in files of their own."""
    for tensor in tensors(model):
        if is_external(tensor):
            yield tensor


def total_bytes(model: ir.Model) -> int:
    """Size of the model's tensors in bytes."""
    return sum(nbytes(tensor) for tensor in tensors(model))


def nbytes(tensor: ir.TensorProtocol) -> int:
    """Size of a tensor's data in bytes; text counts as nothing."""
    kind = tensor.dtype
    if kind is ir.DataType.STRING:
        return 0
    # A tensor of the model file makes a new `Shape` each time it is asked for one.
    dims = tensor.raw.dims if type(tensor) is ir.TensorProtoTensor else tensor.shape.numpy()
    return -(-math.prod(dims) * kind.bitwidth // 8)
