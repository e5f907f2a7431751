"""Inference messages of gRPC to requests, and answers back: raw contents or typed ones, as the request has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bnfold.serve import wire
from bnfold.serve.errors import Refused, unsupported
from bnfold.serve.messages import MESSAGES
from bnfold.serve.request import Request, Response, Tensor
from bnfold.serve.tensors import TEXT, dtype_of, from_binary, from_values, shape_of, to_binary

# Triton's numbers of a model configuration's types.
TYPES = {
    f"TYPE_{name}": number
    for number, name in enumerate(
        ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64",
         "STRING", "BF16"), 1
    )
}  # fmt: skip
# Which typed field carries a datatype; the half floats travel raw only.
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def parameters(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A message's parameters as Python values."""
    found = {}
    for name, value in fields.items():
        choice = value.WhichOneof("parameter_choice")
        found[name] = None if choice is None else getattr(value, choice)
    return found


def request(message: Any, remaining: float | None) -> Request:
    """Read a ModelInferRequest; `remaining` is the call's deadline in seconds. Raises `Refused`."""
    general = parameters(message.parameters)
    if general.get("sequence_id", 0) not in (0, ""):
        raise unsupported("sequences are not supported: every request stands alone")
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise Refused(f"{len(raw)} raw contents for {len(message.inputs)} inputs")
    for output in message.outputs:
        _no_shared_memory(output)
    timeout = wire.timeout_of(general)
    if remaining is not None:
        timeout = remaining if timeout is None else min(timeout, remaining)
    items = wire.few_inputs(message.inputs)
    inputs = tuple(_input(item, raw[place] if raw else None) for place, item in enumerate(items))
    outputs = tuple(output.name for output in message.outputs)
    return Request(message.model_name, message.model_version, inputs, outputs, message.id, timeout)


def response(answer: Response) -> Any:
    """Write a ModelInferResponse, with raw contents."""
    message = MESSAGES["ModelInferResponse"](model_name=answer.model, model_version=answer.version, id=answer.id)
    for name, array in answer.outputs.items():
        datatype = answer.datatypes[name]
        message.outputs.add(name=name, datatype=datatype, shape=array.shape)
        message.raw_output_contents.append(to_binary(array, datatype))
    return message


def _input(item: Any, raw: bytes | None) -> Tensor:
    _no_shared_memory(item)
    name, datatype, shape = item.name, item.datatype, shape_of(list(item.shape), item.name)
    dtype_of(datatype, name)
    if raw is not None:
        if item.HasField("contents"):
            raise Refused(f"input {name!r} has both contents and raw contents")
        return Tensor(name, datatype, from_binary(name, datatype, shape, raw))
    field = _CONTENTS.get(datatype)
    if field is None:
        raise Refused(f"input {name!r}: {datatype} must be sent as raw contents")
    filled = [entry.name for entry, _ in item.contents.ListFields()]
    if filled not in ([field], []):
        raise Refused(f"input {name!r}: {datatype} must be in {field}, not in {', '.join(filled)}")
    values = list(getattr(item.contents, field))
    if datatype == TEXT:
        try:
            values = [value.decode() for value in values]
        except UnicodeDecodeError:
            raise Refused(f"input {name!r}: a text is not UTF-8, and ONNX has no other") from None
    return Tensor(name, datatype, from_values(name, datatype, shape, values))


def _no_shared_memory(item: Any) -> None:
    for key in ("shared_memory_region", "classification"):
        if key in item.parameters:
            raise unsupported(f"{item.name!r}: {key} is not supported")
