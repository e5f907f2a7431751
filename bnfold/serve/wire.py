"""Inference bodies over HTTP: JSON, and after it the raw tensors that its `binary_data_size` parameters announce."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from bnfold.serve.errors import Refused, too_large, unsupported
from bnfold.serve.request import Request, Response, Tensor
from bnfold.serve.tensors import from_binary, from_json, shape_of, to_binary, to_json

HEADER_LENGTH = "inference-header-content-length"
# As Python objects, values take many times the bytes that they have as text: [] is 2 bytes and becomes 64.
MAX_VALUES = 4 * 1024 * 1024
MAX_BRACKETS = 512 * 1024
MAX_INPUTS = 1024

_Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wishes:
    """Which outputs are to be raw: those named in `binary`, or, where the request does not say, `default`."""

    binary: Mapping[str, bool]
    default: bool = False

    def raw(self, output: str) -> bool:
        return self.binary.get(output, self.default)


def header_length(value: str | None, size: int) -> int | None:
    """Where the JSON part of a body of `size` bytes ends; None if all of it is JSON."""
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal()) or len(value) > 15 or int(value) > size:
        raise Refused(f"Inference-Header-Content-Length {value!r:.40} is no length within the body of {size} bytes")
    return int(value)


def parse_object(text: bytes | bytearray | memoryview, what: str) -> _Object:
    """Read one JSON object; NaN and Infinity may stand bare. Too deep, too many values or broken is `Refused`."""
    if len(text) > MAX_BRACKETS:
        data = bytes(text)
        if data.count(b",") + data.count(b":") > MAX_VALUES or data.count(b"[") + data.count(b"{") > MAX_BRACKETS:
            raise too_large(f"the {what} holds more than {MAX_VALUES} values or lists; send binary tensors")
    try:
        result = orjson.loads(text)
    except orjson.JSONDecodeError:
        result = _lenient(bytes(text), what)
    if not isinstance(result, dict):
        raise Refused(f"the {what} is not a JSON object")
    return result


def _lenient(text: bytes, what: str) -> Any:
    """Bare NaN and Infinity, which orjson does not read, and half surrogates; a decade slower."""
    try:
        return json.loads(text.decode(), parse_float=_finite)
    except (ValueError, RecursionError) as error:
        # A deep nesting, an integer of thousands of digits and text that is not UTF-8 end here too.
        said = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise Refused(f"the {what} is not JSON: {said:.200}") from None


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text:.40} is out of the range of a double")
    return value


def parse(model: str, version: str, body: bytes | bytearray, length: str | None) -> tuple[Request, Wishes]:
    """Read an inference request; `length` is the header's text."""
    end = header_length(length, len(body))
    content = parse_object(body if end is None else memoryview(body)[:end], "request")
    raw = memoryview(body)[len(body) if end is None else end :]
    parameters = _parameters(content, "the request")
    if parameters.get("sequence_id", 0) not in (0, ""):
        raise unsupported("sequences are not supported: every request stands alone")
    inputs, position = [], 0
    for item in few_inputs(_objects(content, "inputs")):
        tensor, taken = _input(item, raw[position:])
        inputs.append(tensor)
        position += taken
    if position != len(raw):
        raise Refused(f"{len(raw) - position} bytes follow the last tensor; check the binary_data_size parameters")
    names, binary = _outputs(content)
    request = Request(
        model, version, tuple(inputs), tuple(names), _text(content.get("id", ""), "id"), timeout_of(parameters)
    )
    return request, Wishes(binary, _flag(parameters, "binary_data_output"))


def few_inputs(items: Sequence[Any]) -> Sequence[Any]:
    """The same, if there are not so many that to read them would hold others up; raises `Refused`."""
    if len(items) > MAX_INPUTS:
        raise Refused(f"{len(items)} inputs are more than the {MAX_INPUTS} that a request may have")
    return items


def timeout_of(parameters: Mapping[str, Any]) -> float | None:
    """Seconds from the `timeout` parameter, which is in microseconds; None if there is none, or 0."""
    value = parameters.get("timeout", 0)
    if type(value) is not int or value < 0:
        raise Refused(f"timeout {value!r:.40} is not a whole number of microseconds")
    return value / 1e6 or None


def render(response: Response, wishes: Wishes) -> tuple[list[bytes], int | None]:
    """Write the answer: its parts, and the JSON part's length if others follow it."""
    outputs, raw, finite = [], [], True
    for name, array in response.outputs.items():
        datatype = response.datatypes[name]
        item: _Object = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if wishes.raw(name):
            raw.append(to_binary(array, datatype))
            item["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            item["data"] = to_json(array)
            finite = finite and (array.dtype.kind not in "fV" or bool(np.isfinite(array).all()))
        outputs.append(item)
    content: _Object = {"model_name": response.model, "model_version": response.version}
    if response.id:
        content["id"] = response.id
    content["outputs"] = outputs
    if finite:
        text = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    else:
        # orjson writes null for what is not finite.
        text = json.dumps(content, separators=(",", ":"), default=np.ndarray.tolist).encode()
    return [text, *raw], len(text) if raw else None


def _input(item: _Object, raw: memoryview) -> tuple[Tensor, int]:
    name = _text(item.get("name"), "an input's name")
    parameters = _parameters(item, f"input {name!r}")
    if "shared_memory_region" in parameters:
        raise unsupported(f"input {name!r}: shared memory is not supported; send the tensor")
    shape, datatype = shape_of(item.get("shape"), name), item.get("datatype")
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in item:
            raise Refused(f"input {name!r} has neither data nor binary_data_size")
        return Tensor(name, str(datatype), from_json(name, datatype, shape, item["data"])), 0  # type: ignore[arg-type]
    if "data" in item:
        raise Refused(f"input {name!r} has both data and binary_data_size")
    if type(size) is not int or not 0 <= size <= len(raw):
        raise Refused(f"input {name!r}: binary_data_size {size!r:.40} is not within the {len(raw)} bytes that follow")
    return Tensor(name, str(datatype), from_binary(name, datatype, shape, raw[:size])), size  # type: ignore[arg-type]


def _outputs(content: _Object) -> tuple[list[str], dict[str, bool]]:
    names, binary = [], {}
    for item in _objects(content, "outputs") if "outputs" in content else ():
        name = _text(item.get("name"), "an output's name")
        parameters = _parameters(item, f"output {name!r}")
        for key in ("classification", "shared_memory_region"):
            if parameters.get(key):
                raise unsupported(f"output {name!r}: {key} is not supported")
        names.append(name)
        if "binary_data" in parameters:
            binary[name] = _flag(parameters, "binary_data")
    return names, binary


def _objects(content: _Object, key: str) -> list[_Object]:
    value = content.get(key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Refused(f"the request's {key} must be a list of objects")
    return value


def _parameters(content: _Object, where: str) -> _Object:
    value = content.get("parameters", {})
    if not isinstance(value, dict):
        raise Refused(f"{where}: parameters must be an object")
    return value


def _flag(parameters: _Object, key: str) -> bool:
    value = parameters.get(key, False)
    if not isinstance(value, bool):
        raise Refused(f"{key} must be true or false")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise Refused(f"{what} must be text")
    return value
