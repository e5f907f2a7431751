"""HTTP connections with the limits that uvicorn leaves out: the time and size of what comes in and goes out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Seconds within which a request's headers must be there; bodies and answers then go at RATE bytes a second at least.
PATIENCE = 8.0
RATE = 16 * 1024
HEADERS = 32 * 1024
CONNECTIONS = 1024
# Where a request's scope has its connection.
CONNECTION = "bnfold.connection"


class Joined:
    """What an answer is written to: its head goes out with what follows it, in one packet where uvicorn makes two."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head, self._begun = b"", False
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Send, after the head that is held; the head, which is what is written first, is held itself."""
        if self._transport.is_closing():
            return  # uvicorn tells only the connection's last request that it is lost: an earlier one still writes
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        elif self._begun or data.startswith(b"HTTP/1.1 100 "):
            self._transport.write(data)
        else:
            self._head, self._begun = data, True

    def end(self) -> None:
        """The answer is complete, though nothing may have followed its head; what is written next is another's."""
        if self._head:
            self.write(b"")
        self._begun = False

    def close(self) -> None:
        """Send what is held, and close."""
        self.end()
        self._transport.close()


class Guarded(HttpToolsProtocol):
    """Closes a connection that is slower or larger than the limits; a fast request costs no timer."""

    limit, most = CONNECTIONS, 1 << 40
    _joined: Joined
    _on_leave: Callable[[], object] | None = None
    _timer: asyncio.TimerHandle | None = None
    _incomplete = True
    _upgrades = False
    _received = _wire = 0
    _headers = 0
    _reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._joined = Joined(transport)
        if len(self.connections) > self.limit:
            self._refuse(503, "too many connections; try again")
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._leave_reader()
        if self._on_leave is not None:
            self._on_leave()
        super().connection_lost(exc)
        if self.scope is not None:
            del self.scope[CONNECTION]  # type: ignore[misc]  # a circle, in which the headers would stay

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._received += len(data)
        self._wire += len(data)
        super().data_received(data)
        if self._incomplete and self._wire > self.most and not self.transport.is_closing():
            self._refuse(413, "the request is too large as it is sent")
            return
        if self._incomplete and self._timer is None:
            self._arm()
        elif not self._incomplete:
            self._disarm()

    @property
    def left(self) -> bool:
        """Whether the client has gone away."""
        return self.transport.is_closing()

    def watch(self, call: Callable[[], object] | None) -> None:
        """Call if the client goes away, until told otherwise; which only shows if what it sends is read."""
        self._on_leave = call
        if call is not None:
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._leave_reader()
        super().resume_writing()

    def on_message_begin(self) -> None:
        self._incomplete, self._headers, self._wire = True, 0, 0
        super().on_message_begin()
        self.scope[CONNECTION] = self  # type: ignore[literal-required]

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and self.parser.get_method() == b"POST":
            # The parser takes what follows for another protocol, so that the body would be lost.
            self._upgrades = True
            raise ValueError("an upgrade is asked for")  # see `_count`
        super().on_headers_complete()
        self.cycle.transport = self._joined  # type: ignore[assignment]

    def on_response_complete(self) -> None:
        self._joined.end()
        super().on_response_complete()

    def on_message_complete(self) -> None:
        self._incomplete = False
        super().on_message_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Idle for too long; an answer that nobody reads is dropped with the connection."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        if self._upgrades:
            self._refuse(501, "this speaks HTTP/1.1 and no other: send no Upgrade header (Java: version(HTTP_1_1))")
        elif self._headers > HEADERS:
            self._refuse(431, f"the headers have more than {HEADERS} bytes")
        else:
            self._refuse(400, "this is not HTTP/1.1")

    def _count(self, size: int) -> None:
        self._headers += size
        if self._headers > HEADERS:
            # Raised through the parser, which makes a 400 of it and closes.
            raise ValueError("the headers are too large")

    def _arm(self) -> None:
        self._received = 0
        self._timer = self.loop.call_later(PATIENCE, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        # Held back by ourselves, or large and on its way.
        if self.flow.read_paused or self._received >= PATIENCE * RATE:
            self._arm()
        else:
            self.transport.abort()

    def _watch_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._reader = self.loop.call_later(PATIENCE, self._unread, left)

    def _leave_reader(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    def _unread(self, before: int) -> None:
        if before - self.transport.get_write_buffer_size() < PATIENCE * RATE:
            self.transport.abort()
        else:
            self._watch_reader()

    def _refuse(self, status: int, text: str) -> None:
        body = json.dumps({"error": text}).encode()
        phrase = HTTPStatus(status).phrase.encode()
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
            % (status, phrase, len(body), body)
        )
        self.transport.close()


def guarded(limit: int, body: int) -> type[Any]:
    """The protocol with its own number of connections and size of a body, of which half may be the chunks' frames."""
    return type("Guarded", (Guarded,), {"limit": limit, "most": 2 * body + HEADERS})
