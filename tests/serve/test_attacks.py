"""Clients that mean harm or take no care, against the queue, the threads and the connections."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import re
import socket
import threading
import time
import tracemalloc
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnfold.serve import grpc as transport
from bnfold.serve import http, listeners
from bnfold.serve.batching import Batcher, Limits
from bnfold.serve.connections import Guarded
from bnfold.serve.core import Core
from bnfold.serve.errors import Refused
from bnfold.serve.intake import Intake
from bnfold.serve.memory import Budget
from bnfold.serve.request import Request, Tensor
from bnfold.serve.service import call
from bnfold.serve.settings import Settings
from bnfold.serve.sockets import bind
from bnfold.serve.stats import Stats
from bnfold.serve.workers import Workers
from tests.serve import zoo
from tests.serve.conftest import Server
from tests.serve.test_queue import slow_body

MIB, PIECE = 1 << 20, 1 << 18  # an answer goes out in pieces of so many bytes
SLOW, INFER = "/v2/models/slow/infer", "/v2/models/double/infer"
GOOD = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}).encode()
LOOPS = {"asyncio": None, "ours": listeners.event_loop()}


@pytest.fixture(scope="module")
def narrow(launch: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """One thread for all models."""
    root = zoo.repository(tmp_path_factory.mktemp("attacks"), "slow", "double", "id_uint8")
    return launch(root, "--concurrency", 1, "--threads", 1, "--queue", 16, "--timeout", 20)


@pytest.fixture
def blocked(narrow: Server) -> Iterator[Server]:
    """The only thread is busy with `slow` for more than a second."""
    with socket.create_connection(("127.0.0.1", narrow.http), timeout=30) as place:
        place.sendall(post(SLOW, slow_body(120_000)))
        wait_for(narrow, 'bnfold_running_batches{model="slow",version="1"}', 1)
        yield narrow
        assert place.recv(12) == b"HTTP/1.1 200"
    wait_for(narrow, "bnfold_pending_requests", 0)


def post(path: str, body: bytes, headers: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: a\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def talk(server: Server, data: bytes) -> bytes:
    """All that the server says until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.http), timeout=10) as place:
        place.sendall(data)
        return b"".join(iter(lambda: place.recv(MIB), b""))


def gauge(server: Server, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", server.call("GET", "/metrics")[2].decode(), re.M)
    return float(found[1]) if found else 0.0


def wait_for(server: Server, name: str, value: float) -> None:
    deadline = time.monotonic() + 20
    while gauge(server, name) != value:
        assert time.monotonic() < deadline, (name, gauge(server, name))
        time.sleep(0.01)


# What goes out


@pytest.mark.parametrize("places", [(), (0,), (PIECE,), (0, PIECE), (0, PIECE, 2 * PIECE)])
def test_contents_that_look_like_a_head_arrive(narrow: Server, places: tuple[int, ...]) -> None:
    """What a client has sent comes back whole, whichever pieces of it begin as an answer does."""
    data = bytearray(random.Random(0).randbytes(2 * PIECE + 100))
    for place in places:
        data[place : place + 17] = b"HTTP/1.1 200 OK\r\n"
    tensor = {
        "name": "x", "shape": [len(data) // 2, 2], "datatype": "UINT8",
        "parameters": {"binary_data_size": len(data)},
    }  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = f"Connection: close\r\nInference-Header-Content-Length: {len(head)}\r\n"
    answer, _, content = talk(narrow, post("/v2/models/id_uint8/infer", head + data, headers)).partition(b"\r\n\r\n")
    length = re.search(rb"\ncontent-length: (\d+)", answer)
    assert length is not None and len(content) == int(length[1])
    assert content.endswith(data)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/v2/health/live", 200), (INFER, 405), ("/nowhere", 404)])
def test_the_answer_to_head_is_sent_before_the_connection_is_closed(
    narrow: Server, path: str, status: int, version: str
) -> None:
    answer = talk(narrow, f"HEAD {path} HTTP/{version}\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 %d " % status) and answer.endswith(b"\r\n\r\n")


# Deadlines and clients that leave


def test_deadlines_that_are_at_once(blocked: Server) -> None:
    """Two in one packet, on eight connections: each is told so, none is an error of the server's."""
    body = slow_body(1, timeout=1)
    both = post(SLOW, body) + post(SLOW, body, "Connection: close\r\n")
    answers: Counter[bytes] = Counter()
    places = [socket.create_connection(("127.0.0.1", blocked.http), timeout=10) for _ in range(8)]
    for place in places:
        place.sendall(both)
    for place in places:
        answers.update(re.findall(rb"HTTP/1\.1 (\d+)", b"".join(iter(lambda p=place: p.recv(MIB), b""))))  # type: ignore[misc]
        place.close()
    assert answers == {b"503": 16}


@pytest.mark.parametrize("size", [400_000, 1_000_000])
def test_a_client_that_leaves_is_noticed_whatever_it_has_sent(blocked: Server, size: int) -> None:
    """The reading from a connection is held back while a large body comes: it must go on while its request waits."""
    before = gauge(blocked, 'bnfold_cancelled_total{model="slow",version="1"}')
    places = [socket.create_connection(("127.0.0.1", blocked.http)) for _ in range(3)]
    for place in places:
        place.sendall(post(SLOW, slow_body(1) + b" " * size))
    wait_for(blocked, 'bnfold_queue_depth{model="slow",version="1"}', 3)
    for place in places:
        place.close()
    wait_for(blocked, "bnfold_pending_requests", 1)
    assert gauge(blocked, 'bnfold_running_batches{model="slow",version="1"}') == 1, "not before it was their turn"
    assert gauge(blocked, 'bnfold_cancelled_total{model="slow",version="1"}') == before + 3


def test_a_deadline_holds_while_another_model_has_all_threads(blocked: Server) -> None:
    status, answer = blocked.post(INFER, {**json.loads(GOOD), "parameters": {"timeout": 50_000}})
    assert gauge(blocked, 'bnfold_running_batches{model="slow",version="1"}') == 1
    assert status == 503 and "timed out" in answer["error"], answer


def test_who_leaves_is_noticed_while_another_model_has_all_threads(blocked: Server) -> None:
    with socket.create_connection(("127.0.0.1", blocked.http)) as place:
        place.sendall(post(INFER, GOOD))
        wait_for(blocked, "bnfold_pending_requests", 2)
    wait_for(blocked, "bnfold_pending_requests", 1)
    assert gauge(blocked, 'bnfold_running_batches{model="slow",version="1"}') == 1, "not before it was its turn"


# The queue by itself


class Machine:
    """y = 2x, behind a gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.ran: list[float] = []

    def __call__(self, feeds: Any) -> dict[str, np.ndarray[Any, Any]]:
        assert self.gate.wait(30)
        self.ran.append(float(feeds["x"][0, 0]))
        return {"y": 2 * feeds["x"]}


@pytest.fixture
def single() -> Iterator[Workers]:
    workers = Workers(1)
    yield workers
    workers.close()


def batcher(run: Any, workers: Workers) -> Batcher:
    return Batcher(run, workers, Limits(), Stats(), lambda *_: None)


def row(value: float) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.full((1, 1), value, np.float32)}


def on(loop: Any, story: Coroutine[Any, Any, None]) -> list[dict[str, Any]]:
    """Run a story; return what the event loop complained of."""
    told: list[dict[str, Any]] = []

    async def go() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        async with asyncio.timeout(60):
            await story
        gc.collect()  # for what was never retrieved

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(go())
    return told


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_one_that_is_cancelled_at_its_deadline_takes_no_other_ones_along(single: Workers, loop: Any) -> None:
    """The event loop was held up: it finds a cancellation and the deadline due in the same turn."""
    machine = Machine()

    async def story() -> None:
        queue = batcher(machine, single)
        first = queue.submit(row(0), 1)
        cancelled, late = (queue.submit(row(k), 1, timeout=wait) for k, wait in ((1, 0.05), (2, 0.1)))
        asyncio.get_running_loop().call_at(cancelled.deadline - 0.002, cancelled.future.cancel)
        time.sleep(0.06)
        with pytest.raises(Refused, match="timed out"):
            await asyncio.wait_for(late.future, 1)
        machine.gate.set()
        await first.future
        await queue.drain()

    assert not on(loop, story())


def test_what_a_request_holds_is_in_no_message(single: Workers) -> None:
    """The event loop writes into the log whose callback failed."""
    machine = Machine()

    async def story() -> None:
        queue = batcher(machine, single)
        jobs = [queue.submit(row(12345), 1) for _ in range(2)]
        assert "12345" not in repr(queue)
        machine.gate.set()
        await asyncio.gather(*(job.future for job in jobs))

    assert not on(None, story())


def test_an_idle_thread_holds_nothing(single: Workers) -> None:
    async def story() -> None:
        queue = batcher(lambda feeds: {"y": feeds["x"]}, single)
        feeds = row(1)
        seen = weakref.ref(feeds["x"])
        job = queue.submit(feeds, 1)
        await job.future
        await queue.drain()
        del feeds, job
        for _ in range(100):
            if seen() is None:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it is still held")

    gc.disable()
    try:
        assert not on(LOOPS["ours"], story())
    finally:
        gc.enable()


# The whole core


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.repository(tmp_path_factory.mktemp("models"), "slow", "double", "gather")


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 1, "queue": 4},
        {"concurrency": 2, "queue": 32, "max_batch": 8, "batch_delay": 0.003},
    ],
    ids=["narrow", "batches"],
)
def test_counters_are_those_of_clients_that_leave_or_are_late(models: Path, options: Any, loop: Any) -> None:
    """Deadlines from 0.4 ms and cancellations, two models on the same threads: each ends in one way, counted once."""
    seen: Counter[str] = Counter()

    async def client(core: Core, number: int) -> None:
        rng = random.Random(number)
        for turn in range(30):
            x = np.full((rng.randint(1, 3), 3), number * 100 + turn, np.float32)
            tensors, factor = [Tensor("x", "FP32", x)], 2
            if name := rng.choice(("slow", "")):
                tensors, factor = [*tensors, Tensor("n", "INT64", np.array(rng.choice((1, 10, 600))))], 1
            limit = rng.choice((None, 0.0004, 0.001, 0.002, 0.01, 0.05, 1.0))
            task = asyncio.ensure_future(core.infer(Request(name or "double", "", tuple(tensors), timeout=limit)))
            if rng.random() < 0.4:
                await asyncio.sleep(rng.choice((0, 0.001, 0.002, 0.01)))
                task.cancel()
            try:
                np.testing.assert_array_equal((await task).outputs["y"], factor * x)
                seen["ok"] += 1
            except Refused as error:
                seen[error.reason] += 1
            except asyncio.CancelledError:
                seen["cancelled"] += 1

    async def story() -> None:
        core = Core(Settings(models, threads=1, **options))
        await core.start()
        await asyncio.gather(*(client(core, k) for k in range(16)))
        await core.drain()
        await core.close()
        counted: Counter[str] = Counter()
        for versions in core.names.values():
            stats = versions.stats["1"]
            counted.update(ok=stats.success.count, cancelled=stats.cancelled, **stats.refused)
            assert stats.fail.count == stats.refused.total()
        assert +counted == +seen and core.pending == 0 and {"ok", "timeout", "cancelled"} <= set(seen), (counted, seen)

    assert not on(loop, story())


class Asked:
    """One request to the ASGI application: its body, and the status that it was answered with."""

    def __init__(self, path: str, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        self.scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": list(headers)}
        self.body, self.status = [body], 0

    async def receive(self) -> dict[str, Any]:
        if not self.body:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": self.body.pop(), "more_body": False}

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)


def test_a_task_that_is_cancelled_takes_its_request_out(models: Path) -> None:
    """Another's listener, such as Ray's proxy, cancels the task when its client goes away."""

    async def story() -> None:
        core = Core(Settings(models, threads=1, concurrency=1))
        await core.start()
        application, stats = http.app(core), core.names["slow"].stats
        tasks = []
        for body in (slow_body(20_000), slow_body(1)):
            asked = Asked(SLOW, body)
            tasks.append(asyncio.ensure_future(application(asked.scope, asked.receive, asked.send)))
            await asyncio.sleep(0.01)
        tasks[1].cancel()
        await asyncio.wait(tasks)
        await core.drain()
        await core.close()
        assert (stats["1"].executions, stats["1"].cancelled, core.pending) == (1, 1, 0)

    assert not on(None, story())


# What is kept


class Context:
    """As much of gRPC's as a call needs."""

    def __init__(self, message: bytes) -> None:
        self.message = [message]

    def invocation_metadata(self) -> None: ...

    def set_trailing_metadata(self, pairs: Any) -> None: ...

    def time_remaining(self) -> None: ...

    async def read(self) -> bytes:
        return self.message.pop()

    async def abort(self, code: Any, text: str) -> None:
        raise RuntimeError(text)


SIZE = 4 * MIB


def _http(core: Core) -> Coroutine[Any, Any, None]:
    parameters = {"binary_data_size": SIZE}
    tensor = {"name": "x", "shape": [SIZE // 8], "datatype": "INT64", "parameters": parameters}
    head = json.dumps({"inputs": [tensor]}).encode()
    length = (b"inference-header-content-length", str(len(head)).encode())

    async def ask() -> None:
        asked = Asked("/v2/models/gather/infer", head + b"\x63" * SIZE, length)
        await http.app(core)(asked.scope, asked.receive, asked.send)
        assert asked.status == 400

    return ask()


def _grpc(core: Core) -> Coroutine[Any, Any, None]:
    message = transport.MESSAGES["ModelInferRequest"](model_name="gather", raw_input_contents=[b"\x63" * SIZE])
    message.inputs.add(name="x", datatype="INT64", shape=[SIZE // 8])
    context = Context(message.SerializeToString())

    async def asked(method: str, data: bytes, remaining: float | None) -> bytes:
        return await call(core, method, data, remaining)

    async def ask() -> None:
        handler = transport._unary(asked, Budget(1 << 30), Intake(8), "ModelInfer", None).stream_unary
        with pytest.raises(RuntimeError, match="does not run on these inputs"):
            await handler(None, context)

    return ask()


@pytest.mark.parametrize("ask", [_http, _grpc])
def test_a_large_request_that_fails_is_forgotten_at_once(models: Path, ask: Any) -> None:
    """Not only once Python looks for cycles, which it does by number and not by size."""

    async def story() -> None:
        core = Core(Settings(models, threads=1, concurrency=1))
        await core.start()
        await ask(core)
        await asyncio.sleep(0.05)
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(5):
                await ask(core)
                await asyncio.sleep(0.05)
            kept = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
            gc.enable()
        await core.drain()
        await core.close()
        assert kept < SIZE, f"{kept / SIZE:.1f} requests are held"

    assert not on(None, story())


@asynccontextmanager
async def served(models: Path) -> AsyncIterator[tuple[Core, int]]:
    """A core behind HTTP in this process, and its port."""
    settings = Settings(models, threads=1, concurrency=1)
    core, place = Core(settings), bind("127.0.0.1", 0)
    await core.start()
    server = listeners.http_server(http.app(core), settings, None)
    task = asyncio.ensure_future(server.serve([place]))
    try:
        yield core, place.getsockname()[1]
    finally:
        await core.drain()
        server.should_exit = True
        await task
        await core.close()


def test_a_connection_that_is_closed_is_forgotten_at_once(models: Path) -> None:
    """With its headers and what was read of a body; Python's own time for cycles may be long in coming."""

    async def once(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(INFER, GOOD))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()
        await writer.wait_closed()

    async def story() -> None:
        async with served(models) as (_, port):
            gc.collect()
            gc.disable()
            try:
                for _ in range(10):
                    await once(port)
                await asyncio.sleep(0.1)
                # By its type: an object of whatever other library may do anything when asked for its class.
                kept = sum(issubclass(type(item), Guarded) for item in gc.get_objects())
            finally:
                gc.enable()
        assert kept == 0

    assert not on(None, story())


def test_who_leaves_two_requests_behind_is_no_error(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    """uvicorn tells of the loss only the last request of a connection, and another one is answered."""

    async def story() -> None:
        async with served(models) as (core, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post(SLOW, slow_body(5_000)) + post(SLOW, slow_body(1)))
            while not core.pending:
                await asyncio.sleep(0.001)
            writer.transport.abort()

    assert not on(None, story())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
