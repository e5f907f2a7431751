"""gRPC's messages on their way in and answers on their way out: bounded like HTTP's, though gRPC does not say so."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from bnfold.serve import grpc as rpc
from bnfold.serve import intake
from bnfold.serve.errors import Refused
from bnfold.serve.intake import Intake
from bnfold.serve.memory import Budget
from bnfold.serve.messages import MESSAGES
from bnfold.serve.settings import Settings
from tests.serve import zoo
from tests.serve.conftest import Server, assert_sound
from tests.serve.frames import Calls

MIB = 1 << 20
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


class Context:
    """A call whose message is there after some seconds; None is for never."""

    def __init__(self, *after: float | None, message: Any = b"it") -> None:
        self.after, self.sent = list(after), message

    async def read(self) -> Any:
        after = self.after.pop(0) if self.after else None
        await asyncio.sleep(1000 if after is None else after)
        return self.sent


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"PROMPT": 0.05, "ARRIVAL": 0.4, "IDLE": 0.2}.items():
        monkeypatch.setattr(intake, name, seconds)


def received(places: int, *contexts: Context) -> list[Any]:
    """What comes of reading all at once: the messages, and the reasons of what was refused."""

    async def story() -> list[Any]:
        door = Intake(places)
        found = await asyncio.gather(*(door.message(context) for context in contexts), return_exceptions=True)
        again = await door.message(Context(0.2))  # every place is free again
        assert again == b"it"
        await asyncio.sleep(2 * intake.PROMPT)
        assert (door._awaited, door._slow, door._looking) == ({}, set(), False)
        return [item.reason if isinstance(item, Refused) else item for item in found]

    return asyncio.run(story())


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("contexts", "expected"),
    [
        ([Context(0.0)] * 1 + [Context(0.01) for _ in range(9)], [b"it"] * 10),
        ([Context(0.2), Context(0.25), Context(0.2), Context(0.0)], [b"it", b"it", "memory", b"it"]),
        ([Context(None), Context(0.2)], ["timeout", b"it"]),
        ([Context(0.0, message=grpc.aio.EOF)], ["invalid"]),
    ],
    ids=["small ones need no place", "the third large one", "one that never comes", "a call without a message"],
)
def test_messages(contexts: list[Context], expected: list[Any]) -> None:
    assert received(2, *contexts) == expected


@pytest.mark.usefixtures("quick")
def test_a_loop_that_was_held_up_blames_no_message() -> None:
    """All are there when it comes to look, though none was prompt by the clock."""

    async def story() -> None:
        door, ready = Intake(1), asyncio.Event()

        class Ready:
            async def read(self) -> bytes:
                await ready.wait()
                for _ in range(5):  # as gRPC takes, from its socket to us
                    await asyncio.sleep(0)
                return b"it"

        reading = [asyncio.ensure_future(door.message(Ready())) for _ in range(8)]
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(ready.set)
        time.sleep(0.2)
        assert await asyncio.gather(*reading) == [b"it"] * 8

    asyncio.run(story())


@pytest.mark.usefixtures("quick")
def test_a_stream_that_is_idle_ends_and_frees_its_place() -> None:
    async def story() -> None:
        door = Intake(1)
        first = door.messages(Context(0.0, 0.01, None))
        assert [await anext(first), await anext(first)] == [b"it", b"it"]
        with pytest.raises(Refused, match="1 streams are open already"):
            await anext(door.messages(Context(0.0)))
        with pytest.raises(Refused, match="nothing came"):
            await anext(first)
        assert await anext(door.messages(Context(0.0))) == b"it"

    asyncio.run(story())


def test_a_probe_is_answered_while_no_memory_is_left(tmp_path: Path) -> None:
    """Whoever is alive but full must not be restarted for it."""

    async def call(method: str, data: bytes, remaining: float | None) -> bytes:
        return data

    async def ask(channel: Any, path: str) -> bytes | str:
        try:
            return bytes(await channel.unary_unary(path)(b"probe"))
        except grpc.RpcError as error:
            return str(error.code().name)

    async def story() -> list[bytes | str]:
        server, port = rpc.server(Settings(tmp_path), call, Budget(0), None, "127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            paths = ("/grpc.health.v1.Health/Check", "/inference.GRPCInferenceService/ServerLive",
                     "/inference.GRPCInferenceService/ModelInfer")  # fmt: skip
            found = [await ask(channel, path) for path in paths]
        await server.stop(None)
        return found

    assert asyncio.run(story()) == [b"probe", b"probe", "UNAVAILABLE"]


@pytest.fixture(scope="module")
def small(launch: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Four messages of 4 MiB are all that it has memory for."""
    root = zoo.repository(tmp_path_factory.mktemp("small"), "double", "slow")
    return launch(root, "--max-body", 4, "--max-pending", 16, "--concurrency", 1, "--max-connections", 100)


def test_messages_that_never_end_are_held_within_the_budget(small: Server) -> None:
    """40 calls begin a message of 4 MiB and never end it: four are waited for, and what the others send is dropped."""
    before, worker, calls = small.rss(), small.worker, Calls(small.grpc)
    streams = range(1, 81, 2)
    try:
        for stream in streams:
            calls.begin(stream, 4 * MIB)
        deadline = time.monotonic() + 10
        while len(calls.ended) < 36 and time.monotonic() < deadline:
            calls.listen(0.1)
        assert len(calls.ended) == 36
        for stream in streams:
            calls.send(stream, bytes(4 * MIB - 1000))
        assert_sound(small, worker)
        assert small.rss() - before < 4 * 4 + 40
    finally:
        calls.close()


def test_as_many_streams_as_there_is_memory_for(small: Server) -> None:
    calls = Calls(small.grpc)
    try:
        for stream in range(1, 13, 2):
            calls.begin(stream, 100, STREAM)
        deadline = time.monotonic() + 10
        while len(calls.ended) < 2 and time.monotonic() < deadline:
            calls.listen(0.1)
        assert calls.ended == {9, 11}
    finally:
        calls.close()


def test_what_waits_counts_against_the_memory_of_all_requests(small: Server) -> None:
    """Ten times 3 MiB that wait for a slow model are more than 16 MiB; nothing stays reserved."""
    import tritonclient.grpc as triton

    x = np.ones((MIB // 4, 3), np.float32)
    inputs = [triton.InferInput("x", x.shape, "FP32").set_data_from_numpy(x),
              triton.InferInput("n", (), "INT64").set_data_from_numpy(np.array(3000))]  # fmt: skip

    def ask(_: int) -> str:
        with triton.InferenceServerClient(f"127.0.0.1:{small.grpc}") as client:
            try:
                np.testing.assert_array_equal(client.infer("slow", inputs).as_numpy("y"), x)
            except triton.InferenceServerException as error:
                return str(error.message())
            return "exact"

    with ThreadPoolExecutor(10) as pool:
        found = set(pool.map(ask, range(10)))
    assert found == {"exact", "too many large requests at once; try again"}
    assert ask(0) == "exact"


def test_an_answer_that_nobody_reads_counts_until_its_connection_ends(small: Server) -> None:
    x = np.zeros((340_000, 3), np.float32)
    message = MESSAGES["ModelInferRequest"](model_name="double", raw_input_contents=[x.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=x.shape)
    data, calls = message.SerializeToString(), Calls(small.grpc, answer=0)
    good = np.ones((100_000, 3), np.float32)
    try:
        for stream in range(1, 11, 2):
            calls.begin(stream, len(data))
            calls.send(stream, data, last=True)
        deadline = time.monotonic() + 20
        while _status(small, good) == 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _status(small, good) == 503 and not calls.received
    finally:
        calls.close()
    deadline = time.monotonic() + 20
    while _status(small, good) != 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _status(small, good) == 200


def _status(server: Server, x: Any) -> int:
    tensor = {"name": "x", "shape": x.shape, "datatype": "FP32", "data": x.ravel().tolist()}
    return server.post("/v2/models/double/infer", {"inputs": [tensor]})[0]


def test_connections_are_limited(small: Server) -> None:
    """And who comes once they are gone is served again."""
    worker = small.worker
    places = [socket.create_connection(("127.0.0.1", small.grpc)) for _ in range(150)]
    closed = 0
    for place in places:
        place.settimeout(0.5 if not closed else 0.01)
        try:
            closed += place.recv(9) == b""
        except ConnectionResetError:
            closed += 1
        except TimeoutError:
            pass
    for place in places:
        place.close()
    assert closed >= 50
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):  # until they are gone
            assert_sound(small, worker)
            break
        time.sleep(0.1)
    assert_sound(small, worker)
