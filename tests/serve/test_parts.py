"""The parts that need no server: tensors, limits, cores, names, logs, statistics."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bnfold.errors import InputError, ModelError, UsageError
from bnfold.serve import log, memory, rpc, tensors, wire
from bnfold.serve.errors import Refused
from bnfold.serve.machine import cores
from bnfold.serve.messages import MESSAGES
from bnfold.serve.repository import repository
from bnfold.serve.request import Response
from bnfold.serve.security import accepted, authorize, compress, decompress, read_token
from bnfold.serve.settings import Settings, parse_settings
from bnfold.serve.stats import Stats, Timings
from tests.serve import zoo

NUMBERS = [name for name in zoo.DTYPES if name not in ("BYTES", "BF16")]


@given(st.data())
def test_every_number_comes_back_to_the_bit(data: Any) -> None:
    """Binary and JSON, both ways, for any array of any type."""
    name = data.draw(st.sampled_from(NUMBERS))
    dtype = tensors.DTYPES[name]
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=4)))
    array = data.draw(arrays.arrays(dtype, shape, elements=arrays.from_dtype(dtype, allow_subnormal=True)))
    raw = tensors.to_binary(array, name)
    assert tensors.from_binary("x", name, shape, raw).tobytes() == array.tobytes()
    response = Response("m", "1", "", {"y": array}, {"y": name})
    (text,), header = wire.render(response, wire.Wishes({}))
    back = tensors.from_json("x", name, shape, wire.parse_object(text, "answer")["outputs"][0]["data"])
    # A NaN's payload is nothing that JSON can say.
    np.testing.assert_array_equal(back, array)
    assert (header is None and back.dtype == array.dtype and np.array_equal(np.signbit(back), np.signbit(array))) or (
        np.isnan(array).any()
    )


@given(st.lists(st.text(), max_size=6))
def test_every_text_comes_back(texts: list[str]) -> None:
    array = np.empty(len(texts), object)
    array[:] = texts
    raw = tensors.to_binary(array, "BYTES")
    assert tensors.from_binary("x", "BYTES", (len(texts),), raw).tolist() == texts
    assert tensors.from_json("x", "BYTES", (len(texts),), json.loads(json.dumps(texts))).tolist() == texts


@given(st.binary(max_size=60), st.integers(0, 8))
def test_any_bytes_are_texts_or_refused(raw: bytes, count: int) -> None:
    try:
        array = tensors.from_binary("x", "BYTES", (count,), raw)
    except Refused:
        return
    assert tensors.to_binary(array, "BYTES") == raw


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)


@given(st.recursive(LEAVES, st.lists, max_leaves=12))
def test_any_json_is_a_tensor_or_refused(data: Any) -> None:
    for name in ("FP32", "INT8", "BOOL", "BYTES"):
        try:
            array = tensors.from_json("x", name, (2, 1), data)
        except Refused:
            continue
        assert array.shape == (2, 1) and array.dtype == tensors.DTYPES[name]


@pytest.mark.parametrize("other", [True, None, "gggg", "g" * 13, [1.0], [], {}, [[1.0]] * 9])
def test_nothing_passes_for_a_float_among_floats(other: Any) -> None:
    """Texts of four letters are, as marshal writes them, as long as a float."""
    with pytest.raises(Refused, match=r"is no FP32"):
        tensors.from_json("x", "FP32", (3,), [1.0, other, 2.0])
    with pytest.raises(Refused):
        tensors.from_json("x", "FP32", (3,), [other, 1.0, 2.0])
    np.testing.assert_array_equal(tensors.from_json("x", "FP64", (3,), [1.0, 2, 3.5]), [1.0, 2.0, 3.5])


def test_a_list_too_deep_for_any_tensor_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(Refused, match="is no FP32"):
        tensors.from_json("x", "FP32", (3,), [1.0, deep, 2.0])


def test_a_huge_shape_reserves_nothing() -> None:
    for name in ("FP32", "BYTES"):
        with pytest.raises(Refused):
            tensors.from_binary("x", name, (2**62, 2**62), b"abc")


def test_messages_are_what_triton_says() -> None:
    """Every field of ours is a field of theirs, of the same number, type and name."""
    from tritonclient.grpc import service_pb2

    theirs = {
        "Empty": "ServerLiveRequest", "NameVersion": "ModelReadyRequest",
        "ModelIndex": "RepositoryIndexResponse.ModelIndex",
        "TensorMetadata": "ModelMetadataResponse.TensorMetadata", "InferTensor": "ModelInferRequest.InferInputTensor",
        "RequestedOutput": "ModelInferRequest.InferRequestedOutputTensor",
        "RepositoryModelRequest": "RepositoryModelLoadRequest",
    }  # fmt: skip
    for name, message in MESSAGES.items():
        if name.startswith("HealthCheck"):
            continue
        if name in ("ModelConfig", "ModelInput", "ModelOutput"):
            from tritonclient.grpc import model_config_pb2 as module
        else:
            module = service_pb2
        other: Any = module
        for part in theirs.get(name, name).split("."):
            other = getattr(other, part)
        for field in message.DESCRIPTOR.fields:
            twin = other.DESCRIPTOR.fields_by_name[field.name]
            assert (field.number, field.is_repeated) == (twin.number, twin.is_repeated), (name, field.name)
            # An enumeration travels as the number that we send.
            assert field.type == twin.type or (twin.type, field.type) == (twin.TYPE_ENUM, field.TYPE_INT32), field.name
    assert all(hasattr(module, "DESCRIPTOR") for module in (service_pb2,)), "both are in one process"


CGROUPS: dict[str, tuple[str, dict[str, str], float]] = {
    "no limit": ("0::/\n", {"cpu.max": "max 100000"}, math.inf),
    "one and a half": ("0::/\n", {"cpu.max": "150000 100000"}, 2),
    "a tenth": ("0::/\n", {"cpu.max": "10000 100000"}, 1),
    "the slice's": ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "100000 100000"}, 1),
    "the host's path": ("0::/kubepods/pod1\n", {"cpu.max": "100000 100000"}, 1),
    "version 1": ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "100000", "cpu/x/cpu.cfs_period_us": "100000"}, 1),
    "version 1, none": ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
    "nonsense": ("0::/\n", {"cpu.max": "what"}, math.inf),
    "nothing": ("", {}, math.inf),
}


@pytest.mark.parametrize("case", CGROUPS)
def test_cores_are_the_containers(tmp_path: Path, case: str) -> None:
    membership, files, limit = CGROUPS[case]
    (tmp_path / "self").write_text(membership)
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    everything = cores(membership=tmp_path / "nothing", root=tmp_path)
    assert cores(membership=tmp_path / "self", root=tmp_path / "root") == min(limit, everything)


def test_tokens(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("  secret-secret-secret\n")
    token = read_token(str(tmp_path / "t"))
    assert token == b"secret-secret-secret" and read_token(None) is None
    authorize(None, None)
    authorize(token, "Bearer secret-secret-secret")
    authorize(token, "bearer secret-secret-secret")
    for header in (None, "", "Bearer", "Bearer ", "Basic secret-secret-secret", "Bearer secret-secret-secre", "é"):
        with pytest.raises(Refused) as raised:
            authorize(token, header)
        assert raised.value.status == 401
    (tmp_path / "t").write_text("two words of it")
    with pytest.raises(InputError):
        read_token(str(tmp_path / "t"))


@given(st.binary(max_size=2000), st.sampled_from(["gzip", "deflate"]))
def test_what_is_compressed_comes_back_or_is_too_large(data: bytes, encoding: str) -> None:
    packed = compress(encoding, data)
    assert decompress(encoding, packed, len(data)) == data
    if data:
        with pytest.raises(Refused) as raised:
            decompress(encoding, packed, len(data) - 1)
        assert raised.value.status == 413


@pytest.mark.parametrize(
    ("header", "expected"),
    [(None, ""), ("", ""), ("gzip", "gzip"), ("br, deflate", "deflate"), ("gzip;q=0, deflate;q=0.5", "deflate"),
     ("*", ""), ("GZIP", "gzip"), ("identity", "")],
)  # fmt: skip
def test_which_encoding(header: str | None, expected: str) -> None:
    assert accepted(header) == expected


@pytest.mark.parametrize("way", ["json", "grpc"])
def test_no_more_inputs_than_can_be_read_in_time(way: str) -> None:
    """They are counted before the first is looked at."""
    message = MESSAGES["ModelInferRequest"]()
    for _ in range(wire.MAX_INPUTS + 1):
        message.inputs.add()
    text = json.dumps({"inputs": [{}] * (wire.MAX_INPUTS + 1)}).encode()
    with pytest.raises(Refused, match="1025 inputs are more than the 1024"):
        rpc.request(message, None) if way == "grpc" else wire.parse("m", "", text, None)


def test_a_budget_is_over_all_requests() -> None:
    budget = memory.Budget(100)
    budget.take(60)
    with pytest.raises(Refused) as raised:
        budget.take(41)
    assert raised.value.status == 503 and budget.held == 60
    budget.give_back(60)
    budget.take(100)


def test_memory_goes_back_to_the_system_once_it_was_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for small requests, not twice for those of one moment, and again for those of a later one."""
    monkeypatch.setattr(memory, "_LATER_S", 0.0)
    trimmed: list[int] = []

    async def story() -> None:
        trimmer = memory.Trimmer(lambda: trimmed.append(1))
        budget = memory.Budget(100 << 20, freed=trimmer.freed)
        for sizes, times in (([1, 3 << 20, 3 << 20], 0), ([3 << 20, 90 << 20, 1], 1), ([90 << 20], 2)):
            for size in sizes:
                budget.take(size)
                budget.give_back(size)
            await asyncio.sleep(0.2)
            assert len(trimmed) == times
        trimmer.close()

    asyncio.run(story())
    memory.trim()  # whatever the C library is


def test_a_repository_is_a_file_or_a_folder(tmp_path: Path) -> None:
    zoo.repository(tmp_path / "r", "double", "pair")
    zoo.write(zoo.times(3.0), tmp_path / "r" / "double", 10)
    (tmp_path / "r" / "double" / "02").mkdir()
    (tmp_path / "r" / "double" / "x").mkdir()
    (tmp_path / "r" / ".git").mkdir()
    (tmp_path / "r" / "readme.txt").write_text("")
    found = repository(tmp_path / "r")
    assert found.names() == ["double", "pair"]
    assert list(found.versions("double")) == ["1", "10"]  # as numbers, and nothing that is none
    file = tmp_path / "r" / "double" / "1" / "model.onnx"
    assert repository(file).names() == ["model"] and repository(file, "a.b-c_1").names() == ["a.b-c_1"]
    odd = tmp_path / "  my model (1).onnx"
    odd.write_bytes(file.read_bytes())
    assert repository(odd).versions(repository(odd).names()[0]) == {"1": odd}
    for name in ("a/b", "..", "", ".a", "é", "a" * 129):
        with pytest.raises(UsageError):
            repository(file, name)
        with pytest.raises(Refused):
            found.versions(name)
    with pytest.raises(ModelError):
        repository(tmp_path / "none")


def test_settings_survive_the_way_to_the_worker() -> None:
    from dataclasses import asdict

    settings = Settings(Path("/a/b"), custom_ops=("x.so",), timeout=1.5, token_file="t")
    handed = json.loads(json.dumps({**asdict(settings), "source": str(settings.source)}))
    assert parse_settings(handed) == settings


def _line(as_json: bool, message: str, **fields: Any) -> str:
    record = logging.LogRecord("bnfold.serve", logging.INFO, "", 0, message, None, None)
    record.fields = fields
    return log.Lines(as_json).format(record)


def test_a_line_is_a_line() -> None:
    """Whatever a client calls itself, it starts no line of its own and steers no terminal."""
    for as_json in (False, True):
        text = _line(as_json, "GET /a\n2026 error fake\x1b[2J", request="x\r\ny", why='say "hi"', n=5)
        assert "\n" not in text and "\r" not in text and "\x1b" not in text
    parsed = json.loads(_line(True, "m", request="x\r\ny", n=5))
    assert (parsed["message"], parsed["request"], parsed["n"], parsed["level"]) == ("m", "x\r\ny", 5, "info")
    assert _line(False, "served", model="m", path="a b").endswith(' info    served model=m path="a b"')


def test_logging_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    class Stuck:
        def __init__(self) -> None:
            self.gate = threading.Event()

        def write(self, text: str) -> None:
            self.gate.wait(30)

        def flush(self) -> None:
            pass

    stuck = Stuck()
    monkeypatch.setattr(sys, "stderr", stuck)
    monkeypatch.setattr(log, "_HELD", 100)
    monkeypatch.setattr(log, "_STUCK_S", 0.1)
    with log.Logging(False, "info"):
        for number in range(1000):
            log.info("line", number=number)
    assert not stuck.gate.is_set()
    stuck.gate.set()


@pytest.mark.parametrize("given", [None, "", "two words", "x" * 129, "a\nb", "é"])
def test_odd_request_ids_are_replaced(given: str | None) -> None:
    assert len(log.request_id(given)) == 16 and log.request_id("r-1/2") == "r-1/2"


def test_statistics() -> None:
    stats = Stats()
    assert math.isnan(stats.percentile(0.5))
    for ms in (0.4, 0.6, 3, 3, 3, 3, 3, 3, 3, 20_000):
        stats.answered(int(ms * 1e6), rows=2, queued=1000)
    stats.ran(4, 2, Timings(1, 2, 3))
    stats.failed(5, "timeout")
    assert (stats.success.count, stats.rows, stats.executions) == (10, 20, 1)
    assert [stats.percentile(q) for q in (0.1, 0.2, 0.5, 0.9, 1.0)] == [0.0005, 0.001, 0.005, 0.005, math.inf]
    assert stats.refused == {"timeout": 1} and stats.batches[4].run.ns == 2
