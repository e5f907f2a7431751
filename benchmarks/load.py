"""A client that costs little: prepared bytes over connections that one thread serves, and how many answers came.

    python benchmarks/load.py http PORT CONNECTIONS SECONDS < request
    python benchmarks/load.py grpc PORT CONNECTIONS SECONDS < message

Each connection has one request under way: the next goes out once the answer is there. Prints a JSON object: answers
per second, latency percentiles and failures. Run by `serving.py` in a process of its own, so that the interpreter of
what is measured is not shared with what measures. gRPC is spoken frame by frame (RFC 9113), since the library's client
takes a quarter of the processor time of what is measured.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from collections.abc import Iterator
from typing import Protocol

WARM_S = 1.0
# HTTP/2: types of frames, flags, and how much a receiver takes before it says that it takes more.
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM = ACK = 1
END_HEADERS = 4
WINDOW = (1 << 31) - 1
FRAME = 16_384


class Talk(Protocol):
    """What is said over one connection."""

    def ask(self) -> bytes: ...

    def hear(self, data: bytes) -> bytes | None:
        """Take what came; return what is to be sent on that, None once the answer is whole."""
        ...


class Http:
    """HTTP/1.1, kept alive."""

    def __init__(self, request: bytes) -> None:
        self._request, self._data, self._end = request, b"", 0

    def ask(self) -> bytes:
        self._data, self._end = b"", 0
        return self._request

    def hear(self, data: bytes) -> bytes | None:
        self._data += data
        if not self._end and (place := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:place].lower()
            if not head.startswith(b"http/1.1 200"):
                raise RuntimeError(self._data[:500])
            self._end = place + 4 + int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        return None if self._end and len(self._data) >= self._end else b""


class Grpc:
    """One unary call after the other over one HTTP/2 connection: of messages below 64 KiB, for it heeds no window.

    A call counts as answered if it brought a message.
    """

    def __init__(self, message: bytes, port: int) -> None:
        fields = {
            ":method": "POST", ":scheme": "http", ":path": "/inference.GRPCInferenceService/ModelInfer",
            ":authority": f"127.0.0.1:{port}", "te": "trailers", "content-type": "application/grpc",
        }  # fmt: skip
        # Literals that nobody is to remember: the simplest of HPACK's forms (RFC 7541, 6.2.2).
        self._headers = b"".join(
            b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
            for name, value in fields.items()
        )
        body = b"\x00" + len(message).to_bytes(4, "big") + message
        self._body = [body[start : start + FRAME] for start in range(0, len(body), FRAME)]
        self._stream, self._data, self._good = -1, b"", False
        self._first = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(
            SETTINGS, 0, 0, b"\x00\x04" + WINDOW.to_bytes(4, "big")
        )

    def ask(self) -> bytes:
        self._stream += 2
        self._good = False
        first, self._first = self._first, b""
        parts = [first, frame(HEADERS, END_HEADERS, self._stream, self._headers)]
        for piece in self._body:
            parts.append(frame(DATA, END_STREAM if piece is self._body[-1] else 0, self._stream, piece))
        return b"".join(parts)

    def hear(self, data: bytes) -> bytes | None:
        self._data += data
        reply = b""
        for kind, flags, stream, content in self._frames():
            if kind == SETTINGS and not flags & ACK:
                reply += frame(SETTINGS, ACK, 0, b"")
            elif kind == PING and not flags & ACK:
                reply += frame(PING, ACK, 0, content)
            elif kind in (RST_STREAM, GOAWAY):
                raise RuntimeError(f"frame {kind}: {content!r}")
            elif kind == DATA:
                self._good |= len(content) > 5
                if content:
                    reply += frame(WINDOW_UPDATE, 0, 0, len(content).to_bytes(4, "big"))
            if kind in (DATA, HEADERS) and flags & END_STREAM and stream == self._stream:
                if not self._good:
                    raise RuntimeError(f"no answer: {content!r}")
                self._first = reply  # goes out with the next request
                return None
        return reply

    def _frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        while len(self._data) >= 9 and len(self._data) >= 9 + (size := int.from_bytes(self._data[:3], "big")):
            head, content = self._data[3:9], self._data[9 : 9 + size]
            self._data = self._data[9 + size :]
            yield head[0], head[1], int.from_bytes(head[2:], "big"), content


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    """One frame of HTTP/2."""
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def run(talks: list[Talk], port: int, seconds: float) -> list[float]:
    """The latencies, in seconds, of the answers that came within `seconds` after the warm-up."""
    times: list[float] = []
    with selectors.DefaultSelector() as selector:
        places = []
        began = {}
        for talk in talks:
            place = socket.create_connection(("127.0.0.1", port))
            place.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(place, selectors.EVENT_READ, talk)
            places.append(place)
        start = time.perf_counter() + WARM_S
        end = start + seconds
        for place, talk in zip(places, talks, strict=True):
            began[place] = time.perf_counter()
            place.sendall(talk.ask())
        while time.perf_counter() < end:
            for key, _ in selector.select(1.0):
                place, talk = key.fileobj, key.data
                data = place.recv(1 << 20)
                if not data:
                    raise RuntimeError("the server closed the connection")
                reply = talk.hear(data)
                if reply is None:
                    now = time.perf_counter()
                    if began[place] >= start:
                        times.append(now - began[place])
                    began[place] = now
                    reply = talk.ask()
                if reply:
                    place.sendall(reply)
        for place in places:
            place.close()
    return times


def main() -> None:
    kind, port, connections, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    request = sys.stdin.buffer.read()
    failures, times = [], []
    try:
        talks = [Http(request) if kind == "http" else Grpc(request, port) for _ in range(connections)]
        times = sorted(run(talks, port, seconds))
    except (OSError, RuntimeError) as error:
        failures.append(repr(error)[:500])
    result = {"rate": len(times) / seconds, "failures": failures}
    if times:
        result |= {"p50": times[len(times) // 2], "p99": times[int(len(times) * 0.99)]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
