"""HTTP as it is on the wire: what goes out together, in which order, and what happens when something breaks."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnfold.serve import documents, http
from bnfold.serve.connections import CONNECTION, Joined
from bnfold.serve.core import Core
from bnfold.serve.settings import Settings
from tests.serve import zoo
from tests.serve.conftest import Server

INFER = "/v2/models/double/infer"
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}).encode()


def packet(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def talk(server: Server, *packets: bytes) -> bytes:
    """Send each once the one before was answered at all; everything that came until the connection was closed."""
    with socket.create_connection(("127.0.0.1", server.http), timeout=30) as place:
        found = b""
        for sent in packets:
            place.sendall(sent)
            found += place.recv(1 << 16)
        while piece := place.recv(1 << 16):
            found += piece
    return found


class Transport:
    """Writes down what is sent at one time."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.lost = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def writelines(self, parts: tuple[bytes, ...]) -> None:
        self.sent.append(b"".join(parts))

    def close(self) -> None: ...

    def is_closing(self) -> bool:
        return self.lost


HEAD = b"HTTP/1.1 200 OK\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


END = None  # of an answer


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ([HEAD, b"body", END], [HEAD + b"body"]),
        ([HEAD, b"bo", b"dy", END], [HEAD + b"bo", b"dy"]),
        ([CONTINUE, HEAD, b"body", END], [CONTINUE, HEAD + b"body"]),
        ([HEAD, END], [HEAD]),
        ([HEAD, b"", END], [HEAD]),
        ([HEAD, b"a", END, HEAD, b"b", END], [HEAD + b"a", HEAD + b"b"]),
        ([HEAD, HEAD, HEAD, END, HEAD, END], [HEAD + HEAD, HEAD, HEAD]),
    ],
    ids=["one piece", "two pieces", "asked to go on", "no body", "an empty body", "two answers", "heads as contents"],
)
def test_a_head_goes_out_with_its_body(written: list[bytes | None], sent: list[bytes]) -> None:
    transport = Transport()
    joined = Joined(transport)  # type: ignore[arg-type]
    for data in written:
        if data is END:
            joined.end()
        else:
            joined.write(data)
    assert transport.sent == sent
    transport.lost = True
    joined.write(HEAD)
    joined.write(b"body")
    joined.end()
    assert transport.sent == sent


def test_requests_in_one_packet_are_answered_in_order(server: Server) -> None:
    found = talk(
        server,
        packet("POST", INFER, BODY, "X-Request-ID: 1") + packet("HEAD", "/v2/health/live", b"", "X-Request-ID: 2")
        + packet("POST", INFER, b"{", "X-Request-ID: 3") + packet("GET", INFER, b"", "X-Request-ID: 4")
        + packet("POST", INFER, BODY, "X-Request-ID: 5", "Connection: close"),
    )  # fmt: skip
    statuses = re.findall(rb"HTTP/1.1 (\d+)", found)
    assert statuses == [b"200", b"200", b"400", b"405", b"200"], found
    assert re.findall(rb"x-request-id: (\d)", found) == [b"1", b"2", b"3", b"5"]
    assert found.count(b'"data":[2.0,4.0,6.0]') == 2 and found.count(b'{"live":true}') == 0


def test_a_client_that_asks_before_it_sends_is_told_to_go_on(server: Server) -> None:
    head, body = packet("POST", INFER, BODY, "Expect: 100-continue", "Connection: close").split(b"\r\n\r\n", 1)
    found = talk(server, head + b"\r\n\r\n", body)
    assert found.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK") and b"[2.0,4.0,6.0]" in found


def test_a_client_that_would_rather_speak_http_2_is_told(server: Server) -> None:
    """Java's asks for it by itself; where there is no body, an answer over HTTP/1.1 is what it expects."""
    wish = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAA")
    found = talk(server, packet("POST", INFER, BODY, *wish))
    assert found.startswith(b"HTTP/1.1 501 ") and b"send no Upgrade header" in found and b"400" not in found
    status, _, answer = server.call("GET", "/v2/health/live", headers={"Connection": "Upgrade", "Upgrade": "h2c"})
    assert (status, answer) == (200, b'{"live":true}')


def ask(core: Core, method: str, path: str, body: bytes = b"", root: str = "") -> tuple[int, dict[str, str], Any]:
    """One request to the application itself."""
    told: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        told.append(message)

    async def story() -> None:
        await core.start()
        headers = [(b"x-request-id", b"seven")]
        scope = {"type": "http", "method": method, "path": path, "root_path": root, "query_string": b"",
                 "headers": headers, "server": ("a", 80)}  # fmt: skip
        await http.app(core)(scope, receive, send)
        await core.close()

    asyncio.run(story())
    data = b"".join(message.get("body", b"") for message in told)
    fields = {name.decode(): value.decode() for name, value in told[0]["headers"]}
    return told[0]["status"], fields, json.loads(data)


@pytest.fixture
def core(tmp_path: Path) -> Core:
    return Core(Settings(zoo.repository(tmp_path, "double")))


@pytest.mark.parametrize("path", [INFER, "/v2/models/double/versions/1/infer"])
@pytest.mark.parametrize("root", ["", "/behind"])
def test_inference_is_found_with_and_without_routes(core: Core, path: str, root: str) -> None:
    """Behind a proxy that strips a part of the address, which routes know of, and at the root, where none is asked."""
    status, headers, answer = ask(core, "POST", root + path, BODY, root)
    assert (status, headers["x-request-id"]) == (200, "seven")
    assert answer["outputs"][0]["data"] == [2, 4, 6]


class Connection:
    """Of a client that goes away once its request waits in the queue, or stays."""

    def __init__(self, goes: bool) -> None:
        self.left = goes
        self.on_leave: Callable[[], object] | None = None

    def watch(self, call: Callable[[], object] | None) -> None:
        self.on_leave = call
        if call is not None and self.left:
            asyncio.get_running_loop().call_soon(call)


@pytest.mark.parametrize("goes", [True, False])
def test_a_queued_request_leaves_with_its_client(core: Core, goes: bool) -> None:
    connection = Connection(goes)

    async def story() -> None:
        await core.start()
        batcher = core.versions("double").pick().batcher
        batcher._running, allowed = batcher.limits.concurrency, batcher._running  # no thread is free
        asked = asyncio.ensure_future(inferred(core, connection))
        while not batcher.depth:
            await asyncio.sleep(0)
        batcher._running = allowed
        if not goes:
            assert connection.on_leave is not None
            batcher._pump()
        assert await asked == (499 if goes else 200)
        stats = batcher.stats
        assert (stats.cancelled, stats.success.count, batcher.depth, core.pending) == (int(goes), int(not goes), 0, 0)
        assert connection.on_leave is None  # which would hold the answer until the connection's next request
        await core.close()

    asyncio.run(story())


async def inferred(core: Core, connection: Connection) -> int:
    told: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": BODY}

    async def send(message: Any) -> None:
        told.append(message)

    scope = {"type": "http", "method": "POST", "path": INFER, "headers": [], CONNECTION: connection}
    await http.app(core)(scope, receive, send)
    return int(told[0]["status"])


def broken(*_: Any) -> Any:
    raise ZeroDivisionError


@pytest.mark.parametrize(("method", "path"), [("POST", INFER), ("GET", "/v2")])
def test_what_fails_is_told_of_and_logged(
    core: Core, method: str, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(core, "submit", broken)
    monkeypatch.setattr(documents, "server", broken)
    status, headers, answer = ask(core, method, path, BODY)
    assert (status, headers["x-request-id"], list(answer)) == (500, "seven", ["error"])
    assert "ZeroDivisionError" in caplog.text and "Zero" not in answer["error"]
