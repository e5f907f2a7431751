"""Servers as processes of their own, and the look at one after whatever was done to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tritonclient.http")
pytest.importorskip("uvicorn")

from tests.serve import zoo

PATIENCE = 60.0
# `make soak` runs the full sizes; without it they are such that CI can bear them.
SOAK = bool(os.environ.get("BNFOLD_SOAK"))


def size(small: int, full: int) -> int:
    """A size for CI, and the one for the soak."""
    return full if SOAK else small


def until(true: Callable[[], bool]) -> None:
    """Wait for it; it must become true."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@dataclass
class Server:
    """A `bnfold serve` that runs, and what its log said."""

    process: subprocess.Popen[str]
    lines: list[dict[str, Any]] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    _news: queue.Queue[str | None] = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._news.put(line)
        self._news.put(None)

    def wait_for(self, message: str, patience: float = PATIENCE) -> dict[str, Any]:
        """The next log line with this message; fails if the process ends before."""
        deadline = time.monotonic() + patience
        while True:
            line = self._news.get(timeout=max(0.01, deadline - time.monotonic()))
            assert line is not None, f"ended before it said {message!r}: {self.raw[-20:]}"
            self.raw.append(line)
            with contextlib.suppress(ValueError):
                self.lines.append(json.loads(line))
                if self.lines[-1]["message"] == message:
                    return self.lines[-1]

    def rest(self) -> str:
        """What was logged and not yet read; the process must have ended."""
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        while (line := self._news.get(timeout=1)) is not None:
            self.raw.append(line)
        return "".join(self.raw)

    @property
    def started(self) -> dict[str, Any]:
        return [line for line in self.lines if line["message"] == "bnfold serves"][-1]

    @property
    def http(self) -> int:
        return int(self.started["http"])

    @property
    def grpc(self) -> int:
        return int(self.started["grpc"])

    @property
    def metrics(self) -> int:
        return int(self.started["metrics"])

    @property
    def worker(self) -> int:
        """The process that does the work: the supervisor's child, or the process itself."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else self.process.pid

    def rss(self) -> float:
        """Resident memory of the worker in MiB."""
        return int(Path(f"/proc/{self.worker}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def held(self) -> int:
        """Bytes of requests and answers that count against the budget."""
        found = re.search(rb"^bnfold_held_bytes (\S+)$", self.call("GET", "/metrics")[2], re.M)
        assert found is not None
        return int(float(found[1]))

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.worker}/fd"))

    def call(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None,
        port: int | None = None, timeout: float = PATIENCE,
    ) -> tuple[int, dict[str, str], bytes]:  # fmt: skip
        """One request on a connection of its own: status, headers by lower-case name, body."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.http, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def post(self, path: str, content: Any = None, **headers: str) -> tuple[int, Any]:
        """Post a JSON document; status and the JSON of the answer."""
        body = b"" if content is None else json.dumps(content).encode()
        status, _, data = self.call("POST", path, body, headers)
        return status, json.loads(data)

    def get(self, path: str) -> tuple[int, Any]:
        status, _, data = self.call("GET", path)
        return status, json.loads(data)

    def infer(self, name: str, **arrays: Any) -> dict[str, Any]:
        """Outputs of a model of FP32 by name, through JSON."""
        inputs = []
        for key, value in arrays.items():
            array = np.asarray(value, np.float32)
            inputs.append({"name": key, "shape": array.shape, "datatype": "FP32", "data": array.ravel().tolist()})
        status, answer = self.post(f"/v2/models/{name}/infer", {"inputs": inputs})
        assert status == 200, answer
        return {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in answer["outputs"]}

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.process.wait()
            self._reader.join(PATIENCE)
            assert self.process.stderr is not None
            self.process.stderr.close()


def start(source: Path, *options: object, ready: str = "ready", patience: float = PATIENCE) -> Server:
    """Run `bnfold serve SOURCE` on free ports and wait until it says that it is ready."""
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--log-format", "json"]
    words = [sys.executable, "-m", "bnfold", "serve", source, *ports, *options]
    process = subprocess.Popen([str(word) for word in words], stderr=subprocess.PIPE, text=True)
    server = Server(process)
    try:
        server.wait_for(ready, patience)
    except BaseException:
        server.stop(signal.SIGKILL)
        raise
    return server


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start servers that are stopped at the session's end at the latest."""
    running: list[Server] = []

    def call(*args: Any, **kwargs: Any) -> Server:
        running.append(start(*args, **kwargs))
        return running[-1]

    yield call
    for server in running:
        server.stop()


@pytest.fixture(scope="session")
def shared(launch: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The server that most tests talk to; use `server`, which looks after it."""
    return launch(zoo.repository(tmp_path_factory.mktemp("repository")), "--queue", "64")


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """The shared server; after the test it lives, was not restarted, and computes what it did before."""
    worker = shared.worker
    yield shared
    assert_sound(shared, worker)


def assert_sound(server: Server, worker: int) -> None:
    """Live and ready, the same process, a good request is still exact over HTTP and gRPC, and no memory is reserved."""
    assert server.get("/v2/health/live")[0] == 200
    assert server.get("/v2/health/ready")[0] == 200
    assert server.worker == worker, "the worker was restarted"
    x = np.array([[1.0, -2.0, 0.5]], np.float32)
    np.testing.assert_array_equal(server.infer("double", x=x)["y"], 2 * x)
    import tritonclient.grpc as triton

    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        tensor = triton.InferInput("x", x.shape, "FP32").set_data_from_numpy(x)
        np.testing.assert_array_equal(client.infer("double", [tensor]).as_numpy("y"), 2 * x)
    deadline = time.monotonic() + 10
    while (held := server.held()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert held == 0
