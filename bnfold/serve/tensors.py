"""Tensors between the Open Inference Protocol and numpy: its binary form, its JSON form, and nothing lenient.

Text is an object array of `str`; bfloat16 is ml_dtypes'. Whatever does not fit exactly is `Refused`.
"""

from __future__ import annotations

import marshal
import math
import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

import ml_dtypes
import numpy as np

from bnfold.arrays import Array
from bnfold.serve.errors import Refused

Buffer = bytes | bytearray | memoryview

TEXT = "BYTES"
# The protocol's name, numpy's type as it travels (little-endian), and ONNX Runtime's name.
_TABLE: tuple[tuple[str, Any, str], ...] = (
    ("BOOL", "?", "tensor(bool)"),
    ("UINT8", "u1", "tensor(uint8)"),
    ("UINT16", "<u2", "tensor(uint16)"),
    ("UINT32", "<u4", "tensor(uint32)"),
    ("UINT64", "<u8", "tensor(uint64)"),
    ("INT8", "i1", "tensor(int8)"),
    ("INT16", "<i2", "tensor(int16)"),
    ("INT32", "<i4", "tensor(int32)"),
    ("INT64", "<i8", "tensor(int64)"),
    ("FP16", "<f2", "tensor(float16)"),
    ("FP32", "<f4", "tensor(float)"),
    ("FP64", "<f8", "tensor(double)"),
    ("BF16", ml_dtypes.bfloat16, "tensor(bfloat16)"),
    (TEXT, "O", "tensor(string)"),
)
DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(kind) for name, kind, _ in _TABLE}
FROM_RUNTIME: dict[str, str] = {runtime: name for name, _, runtime in _TABLE}

# The Python types that a JSON value of each kind may have; `bool` is no number here, though Python says so.
_JSON_TYPES: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "u": frozenset({int}),
    "i": frozenset({int}),
    "f": frozenset({int, float}),
    "V": frozenset({int, float}),  # how numpy sees bfloat16
    "O": frozenset({str}),
}
_MAX_RANK, _MAX_SIZE = 64, 1 << 58  # numpy's: the bytes of an array, were it not empty, fit into 63 bits
# How marshal writes a list of floats: a tag and the length, then for each a tag and the value.
_MARSHAL_HEAD = 5
_MARSHALLED = np.dtype([("tag", "u1"), ("value", "<f8")])


def shape_of(value: Any, name: str) -> tuple[int, ...]:
    """The dimensions that a request states, each a whole number from 0."""
    if not isinstance(value, (list, tuple)) or len(value) > _MAX_RANK:
        raise Refused(f"input {name!r}: shape must be a list of at most {_MAX_RANK} whole numbers")
    for size in value:
        if type(size) is not int or size < 0:
            raise Refused(f"input {name!r}: {size!r:.40} is not a size; give whole numbers from 0")
    if math.prod(size or 1 for size in value) > _MAX_SIZE:
        raise Refused(f"input {name!r}: no tensor can have the shape {list(value)!s:.80}")
    return tuple(value)


def dtype_of(name: Any, tensor: str) -> np.dtype[Any]:
    """The numpy type of a datatype's name."""
    if not isinstance(name, str) or name not in DTYPES:
        raise Refused(f"input {tensor!r}: datatype {name!r:.40} is none of {', '.join(DTYPES)}")
    return DTYPES[name]


def from_binary(name: str, datatype: str, shape: tuple[int, ...], data: Buffer) -> Array:
    """Read the raw form: little-endian and row-major; text as (4-byte length, UTF-8) each. No copy if aligned."""
    dtype = dtype_of(datatype, name)
    count = math.prod(shape)
    if datatype == TEXT:
        return _texts(name, shape, data)
    if len(data) != count * dtype.itemsize:
        raise Refused(
            f"input {name!r}: {len(data)} bytes, but {datatype} of shape {list(shape)} has {count * dtype.itemsize}"
        )
    if datatype == "BOOL" and count and int(np.frombuffer(data, np.uint8).max()) > 1:
        raise Refused(f"input {name!r}: a BOOL is a byte of 0 or 1")
    array = np.frombuffer(data, dtype).reshape(shape)
    return array if array.flags.aligned else array.copy()


def to_binary(array: Array, datatype: str) -> bytes:
    """Write the raw form."""
    if datatype != TEXT:
        return np.ascontiguousarray(array, DTYPES[datatype]).tobytes()
    parts = []
    for text in array.flat:
        encoded = str(text).encode()
        parts += [struct.pack("<I", len(encoded)), encoded]
    return b"".join(parts)


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Array:
    """Read the JSON form: a flat list of all values, or lists nested as the shape says."""
    dtype = dtype_of(datatype, name)
    if not isinstance(data, list):
        raise Refused(f"input {name!r}: data must be a list")
    flat = _flat(name, shape, data) if data and type(data[0]) is list else data
    if dtype.kind in "fV" and (doubles := _doubles(flat)) is not None:
        return _rounded(name, datatype, shape, doubles)
    kinds = set(map(type, flat))
    if not kinds <= _JSON_TYPES[dtype.kind]:
        wrong = sorted(kind.__name__ for kind in kinds - _JSON_TYPES[dtype.kind])
        raise Refused(f"input {name!r}: a value that is {' or '.join(wrong)} is no {datatype}")
    return from_values(name, datatype, shape, flat)


def from_values(name: str, datatype: str, shape: tuple[int, ...], flat: Sequence[Any]) -> Array:
    """Make an array of values of the right Python type, each in the range of `datatype`."""
    dtype = DTYPES[datatype]
    if datatype == TEXT:
        _check_count(name, shape, len(flat))
        array = np.empty(len(flat), object)
        array[:] = [_encodable(name, text) for text in flat]
        return array.reshape(shape)
    try:
        if dtype.kind in "fV":
            return _rounded(name, datatype, shape, np.array(flat, np.float64))
        _check_count(name, shape, len(flat))
        return np.array(flat, dtype).reshape(shape)
    except OverflowError:
        raise Refused(f"input {name!r}: a value is out of the range of {datatype}") from None


def to_json(array: Array) -> Array | list[Any]:
    """All values, row-major, as the JSON writer takes them; each reads back as the same number of the tensor's type."""
    if array.dtype.kind == "O":
        texts: list[Any] = array.ravel().tolist()
        return texts
    return np.ascontiguousarray(array.astype(np.float32) if array.dtype.kind == "V" else array).ravel()


def _doubles(flat: list[Any]) -> Array | None:
    """The values of a list that holds floats and nothing else, None for any other list.

    marshal writes a float as its tag and eight bytes, so that one pass in C checks the types and copies the values: a
    third of what a set of the types and numpy's own reading of the list take. The tags stand where they should only if
    everything before them was a float, so nothing else can pass for one.
    """
    if not flat or type(flat[0]) is not float or type(flat[-1]) is not float:
        return None
    try:
        written = np.frombuffer(marshal.dumps(flat, 2), np.uint8)[_MARSHAL_HEAD:]
    except ValueError:  # nested too deep
        return None
    if len(written) != len(flat) * _MARSHALLED.itemsize:
        return None
    records = written.view(_MARSHALLED)
    return records["value"].copy() if bool((records["tag"] == ord("g")).all()) else None


def _rounded(name: str, datatype: str, shape: tuple[int, ...], exact: Array) -> Array:
    _check_count(name, shape, len(exact))
    dtype = DTYPES[datatype]
    with np.errstate(over="ignore", invalid="ignore"):
        array = exact.astype(dtype)
    # A number too large for the type is a mistake; an infinity that was sent is not.
    if not np.array_equal(np.isinf(array), np.isinf(exact)):
        raise Refused(f"input {name!r}: a value is out of the range of {datatype}")
    return array.reshape(shape)


def _check_count(name: str, shape: tuple[int, ...], count: int) -> None:
    if count != math.prod(shape):
        raise Refused(f"input {name!r}: {count} values, but shape {list(shape)} has {math.prod(shape)}")


def _flat(name: str, shape: tuple[int, ...], data: list[Any]) -> list[Any]:
    """Flatten level by level, without recursion: a hostile depth ends at the rank."""
    level: list[Any] = [data]
    for axis, size in enumerate(shape):
        if any(type(part) is not list or len(part) != size for part in level):
            raise Refused(f"input {name!r}: the nested data is not {size} long everywhere on axis {axis}")
        level = list(chain.from_iterable(level))
    return level


def _texts(name: str, shape: tuple[int, ...], data: Buffer) -> Array:
    count = math.prod(shape)
    # Each takes four bytes at least: a shape can't make us reserve more than was sent.
    if count * 4 > len(data):
        raise Refused(f"input {name!r}: {len(data)} bytes hold no {count} texts")
    view, position, texts = memoryview(data), 0, []
    for _ in range(count):
        if position + 4 > len(view):
            raise Refused(f"input {name!r}: the data ends before its {count} texts do")
        (length,) = struct.unpack_from("<I", view, position)
        position += 4
        if position + length > len(view):
            raise Refused(f"input {name!r}: a text of {length} bytes goes beyond the data")
        texts.append(_decoded(name, bytes(view[position : position + length])))
        position += length
    if position != len(view):
        raise Refused(f"input {name!r}: {len(view) - position} bytes are left after its {count} texts")
    array = np.empty(count, object)
    array[:] = texts
    return array.reshape(shape)


def _decoded(name: str, text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise Refused(f"input {name!r}: a text is not UTF-8, and ONNX has no other") from None


def _encodable(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refused(f"input {name!r}: a text holds half a surrogate pair") from None
    return text
