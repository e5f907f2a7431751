"""What onnx's checker lets pass, though it means nothing and the next to read it would fail, or never come back."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from bnfold.errors import ModelError
from bnfold.graph.operators import bodies, nodes_within
from bnfold.graph.tensors import nbytes

# A few functions that each call the next twice are a model of billions of nodes, to us and to ONNX Runtime.
MOST_CALLS = 10_000


def check_functions(model: ir.Model, name: str) -> None:
    """Raise `ModelError` for a function that would be inlined more than `MOST_CALLS` times."""
    functions = model.functions
    if not functions:
        return

    def calls(nodes: Iterator[ir.Node]) -> Counter[ir.OperatorIdentifier]:
        return Counter(found for node in nodes if (found := node.op_identifier()) in functions)

    within = {identifier: calls(nodes_within(function)) for identifier, function in functions.items()}
    level, total = calls(nodes_within(model.graph)), Counter[ir.OperatorIdentifier]()
    for _ in functions:  # no chain of calls is longer, unless it is a circle, which is not inlined
        total.update(level)
        for called in level:
            if total[called] > MOST_CALLS:
                label = "::".join(called[:2])
                raise ModelError(
                    f"{name}: function {label} would be inlined more than {MOST_CALLS:,} times; export it flat"
                )
        deeper = Counter[ir.OperatorIdentifier]()
        for caller, times in level.items():
            for called, inside in within[caller].items():
                deeper[called] += times * inside
        level = deeper


def check_nodes(model: ir.Model) -> None:
    """Raise ValueError for an attribute that has no value, or text that is none.

    onnx's shape inference does not come back from an Einsum whose equation is not UTF-8.
    """
    for function in model.functions.values():
        for node in _nodes(function):
            _check_node(node, formal=True)
    for node in _nodes(model.graph):
        _check_node(node, formal=False)


def check_stored(tensor: ir.TensorProtocol) -> None:
    """Raise ValueError for a tensor in the model file whose data is not what its dimensions and type say."""
    if not isinstance(tensor, ir.TensorProtoTensor):
        return
    proto = tensor.raw
    if any(size < 0 for size in proto.dims):
        raise ValueError(f"tensor {tensor.name!r} has the dimensions {list(proto.dims)}")
    if not proto.HasField("raw_data"):
        tensor.numpy()  # which counts the values
    elif len(proto.raw_data) != (needed := nbytes(tensor)):
        raise ValueError(f"tensor {tensor.name!r} holds {len(proto.raw_data)} bytes of {needed}")


def check_external(tensor: ir.ExternalTensor, name: str, path: Path | None) -> None:
    """Data comes from the model's own folder only, and all of it is there (ONNX spec, ExternalData.md)."""
    location = str(tensor.location)
    if path is None:
        raise ModelError(f"{name} refers to external data in {location!r}; pass the model's path instead")
    what = f"{name}: the external data of tensor {tensor.name!r}"
    if not location or "\0" in location:
        raise ModelError(f"{what} has no file: its location is {location!r}; export it again")
    tensor.base_dir = folder = path.absolute().parent
    file = Path(tensor.path)
    if os.path.isabs(location) or not _real(file).is_relative_to(_real(folder)):
        raise ModelError(f"{what} is at {location!r}, outside the model's folder; move it into that folder")
    if os.path.lexists(file) and not file.is_file():
        raise ModelError(f"{what} is at {location!r}, where no regular file is; put the file itself there")
    if not file.is_file():
        raise ModelError(f"{what} is missing; put {location!r} beside the model")
    status = file.stat()
    needed = (tensor.offset or 0) + max(tensor.length or 0, tensor.nbytes)
    if status.st_size < needed:
        found = f"{location!r} has {status.st_size} of {needed} bytes"
        raise ModelError(f"{what} is cut short: {found}; copy it again")
    if status.st_nlink > 1:
        # onnx_ir refuses to map such a file, since the link may lead out of the folder.
        raise ModelError(f"{what} is in {location!r}, which has several hard links; make a plain copy of it")


def _real(path: Path) -> Path:
    """Where symbolic links lead, even in a circle; `Path.resolve` raises there before Python 3.13."""
    return Path(os.path.realpath(path))


def _nodes(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    if isinstance(graph.name, bytes):
        raise ValueError(f"the name {graph.name!r} is not valid UTF-8")
    for node in graph:
        yield node
        for body in bodies(node):
            yield from _nodes(body)


def _check_node(node: ir.Node, *, formal: bool) -> None:
    """`formal` says that attributes may be parameters of the function that the node is in."""
    if any(isinstance(text, bytes) for text in (node.op_type, node.domain, node.name)):
        raise ValueError(f"the operator {node.op_type!r} or the name {node.name!r} is not valid UTF-8")
    for attr in node.attributes.values():
        what = f"attribute {attr.name!r} of {node.op_type} {node.name or ''}".rstrip()
        if attr.is_ref() and not formal:
            raise ValueError(f"{what} is a parameter of a function, but outside of one")
        if isinstance(attr.value, bytes) and not node.domain:
            raise ValueError(f"{what} is not valid UTF-8")
    if any(device.configuration is None for device in node.device_configurations):
        raise ValueError(f"{node.op_type} {node.name or ''} is placed on devices by a configuration without a name")
