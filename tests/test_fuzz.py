"""Mutated and truncated model files: a valid result, or one BnfoldError and no file; never anything else, never a hang.

`BNFOLD_FUZZ_FILES` sets how many files are made (CI: 2,000), `BNFOLD_FUZZ_SEED` picks other ones. A failure names the
seed of its file: `python -m tests.test_fuzz SEED PATH` writes that file to PATH.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from bnfold import io
from bnfold.errors import BnfoldError
from bnfold.pipeline import optimize
from tests.cases import CASES
from tests.conftest import conv_bn

FILES = int(os.environ.get("BNFOLD_FUZZ_FILES", "2000"))
FIRST = int(os.environ.get("BNFOLD_FUZZ_SEED", "0"))
BATCH = 100
SECONDS = 20

Random = random.Random
INTEGERS = (0, 1, -1, 2, 3, 7, 16, 127, 255, 1 << 20, 2**31 - 1, -(2**31), 2**32, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-5, 1e30, -1e38, float("inf"), float("-inf"), float("nan"))
LIMITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
EXTERNAL = "w.data"


@cache
def bases() -> tuple[bytes, ...]:
    """Small valid models of every kind: the table of fold cases, and one with external data."""
    models = [conv_bn(), *(graph.model() for row in CASES for graph in (row.graph, row.twin))]
    return (_external().SerializeToString(), *(model.SerializeToString() for model in models))


def _external() -> onnx.ModelProto:
    model = conv_bn(layers=1)
    for tensor in model.graph.initializer[:2]:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", EXTERNAL), ("offset", 64), ("length", len(tensor.raw_data))):
            tensor.external_data.add(key=key, value=str(value))
        tensor.ClearField("raw_data")
    return model


def _span(random: Random, data: bytes, longest: int = 64) -> tuple[int, int]:
    start = random.randrange(len(data))
    return start, min(len(data), start + 1 + random.randrange(longest))


def _flipped(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _replaced(random: Random, data: bytes) -> bytes:
    start, end = _span(random, data, 4)
    return data[:start] + bytes(random.choice((0, 1, 0x7F, 0x80, 0xFF)) for _ in range(end - start)) + data[end:]


def _truncated(random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data))]


def _without(random: Random, data: bytes) -> bytes:
    start, end = _span(random, data)
    return data[:start] + data[end:]


def _repeated(random: Random, data: bytes) -> bytes:
    start, end = _span(random, data)
    return data[:end] + data[start:end] * random.choice((1, 3)) + data[end:]


def _exchanged(random: Random, data: bytes) -> bytes:
    start, end = _span(random, data, 16)
    other = random.randrange(len(data))
    changed = bytearray(data)
    changed[start:end], changed[other : other + end - start] = changed[other : other + end - start], changed[start:end]
    return bytes(changed)


def _spliced(random: Random, data: bytes) -> bytes:
    donor = random.choice(bases())
    start, end = _span(random, donor, 256)
    at = random.randrange(len(data))
    return data[:at] + donor[start:end] + data[at + random.choice((0, end - start)) :]


BYTES = (_flipped, _replaced, _truncated, _without, _repeated, _exchanged, _spliced)


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else (value,):
                yield from _messages(part)


def _altered(random: Random, data: bytes) -> bytes:
    """Change a few fields, of any message, to values of their types: sizes, types, names, edges, attributes."""
    model = onnx.ModelProto.FromString(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        message = random.choice(list(_messages(model)))
        present = [field for field, _ in message.ListFields()]
        fields = present if present and random.random() < 0.8 else list(message.DESCRIPTOR.fields)
        field = random.choice(fields)
        if field.is_repeated:
            _alter_items(random, model, getattr(message, field.name), field)
        elif field.message_type is not None:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, _another(random, model, field, getattr(message, field.name)))
    return model.SerializeToString()


def _alter_items(random: Random, model: onnx.ModelProto, items: Any, field: Any) -> None:
    how = random.choice(("drop", "twice", "swap", "change", "change"))
    if how == "drop" and items:
        del items[random.randrange(len(items))]
    elif how == "twice" and items:
        items.append(random.choice(items))
    elif how == "swap" and len(items) > 1:
        order = random.sample(range(len(items)), len(items))
        copies = [_copied(item) for item in items]
        del items[:]
        items.extend(copies[index] for index in order)
    elif field.message_type is not None:
        items.add()
    elif items:
        index = random.randrange(len(items))
        items[index] = _another(random, model, field, items[index])
    else:
        blank = b"" if field.type == field.TYPE_BYTES else "" if field.type == field.TYPE_STRING else 0
        items.append(_another(random, model, field, blank))


def _copied(item: Any) -> Any:
    return type(item).FromString(item.SerializeToString()) if isinstance(item, Message) else item


def _another(random: Random, model: onnx.ModelProto, field: Any, value: Any) -> Any:
    if field.enum_type is not None:
        return random.choice([entry.number for entry in field.enum_type.values])
    if field.cpp_type in LIMITS:
        low, high = LIMITS[field.cpp_type]
        number = random.choice((value + 1, value - 1, 2 * value, random.randrange(30), *INTEGERS))
        return min(max(number, low), high)
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return random.choice(FLOATS)
    if field.type == field.TYPE_BYTES:
        return random.choice((b"", value[:-1], value + b"\0", value[: len(value) // 2], b"\xff" * len(value)))
    names = [name for node in model.graph.node for name in (*node.input, *node.output, node.op_type)]
    return random.choice(("", "x", "y", "é", "/", "../w.data", *names))


def mutant(seed: int) -> bytes:
    """The file of a seed: half of them changed in their bytes, half in their fields."""
    random = Random(seed)
    data = random.choice(bases())
    return random.choice(BYTES)(random, data) if seed % 2 else _altered(random, data)


def survives(data: bytes, folder: Path) -> bool:
    """Optimize one file; return whether it was accepted. Whatever is neither a result nor a user's error is raised."""
    path, out = folder / "in.onnx", folder / "out.onnx"
    path.write_bytes(data)
    before = set(folder.iterdir())
    try:
        optimize(path, verify=False, simplify="never").save(out)
    except BnfoldError as error:
        assert error.exit_code == 4
        assert "\n" not in str(error)
        assert set(folder.iterdir()) == before
        return False
    onnx.checker.check_model(out)
    io.load(out)
    for written in set(folder.iterdir()) - before:
        written.unlink()
    return True


@contextmanager
def watched(seconds: int) -> Iterator[None]:
    """Python that hangs is interrupted; C++ that hangs ends the process, with a traceback that shows the caller."""

    def expired(*_: object) -> None:
        raise TimeoutError(f"still at work after {seconds} s")

    handler = signal.signal(signal.SIGALRM, expired)
    signal.alarm(seconds)
    faulthandler.dump_traceback_later(3 * seconds, exit=True)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("first", range(FIRST, FIRST + FILES, BATCH))
def test_a_broken_file_gives_a_valid_result_or_one_error(first: int, tmp_path: Path) -> None:
    (tmp_path / EXTERNAL).write_bytes(bytes(4096))
    accepted = 0
    for seed in range(first, min(first + BATCH, FIRST + FILES)):
        # If the process dies, this says on which file.
        (tmp_path / "seed").write_text(str(seed))
        try:
            with watched(SECONDS):
                accepted += survives(mutant(seed), tmp_path)
        except Exception as error:
            raise AssertionError(f"file {seed}: {type(error).__name__}: {error}") from error
    assert 0 < accepted < BATCH, "the files are all broken, or all whole"


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(mutant(int(sys.argv[1])))
