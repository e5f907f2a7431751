"""Calls of gRPC frame by frame, to do what no client library would: HTTP/2 as far as that needs it (RFC 9113)."""

from __future__ import annotations

import socket
import struct
from collections import defaultdict

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 3, 4, 6, 7, 8
_WINDOW, _FRAME = 65_535, 16_384


class Calls:
    """One connection with calls of ModelInfer on it. `answer` is the window that each call's answer is given."""

    def __init__(self, port: int, *, answer: int = _WINDOW) -> None:
        self.place = socket.create_connection(("127.0.0.1", port))
        self.ended: set[int] = set()
        self.received: defaultdict[int, int] = defaultdict(int)
        self._room: defaultdict[int, int] = defaultdict(lambda: _WINDOW)
        self._rest = b""
        self.place.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, struct.pack("!HI", 4, answer)))

    def begin(self, stream: int, size: int, path: str = "/inference.GRPCInferenceService/ModelInfer") -> None:
        """Open a call and announce a message of `size` bytes."""
        fields = ((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "a"), ("te", "trailers"),
                  ("content-type", "application/grpc"))  # fmt: skip
        block = b"".join(b"\0" + bytes([len(k)]) + k.encode() + bytes([len(v)]) + v.encode() for k, v in fields)
        self.place.sendall(_frame(HEADERS, 4, stream, block))
        self.send(stream, struct.pack("!BI", 0, size))

    def send(self, stream: int, data: bytes, *, last: bool = False) -> None:
        """Send of a message as much as the server makes room for; until the call is over."""
        view = memoryview(data)
        while len(view) and stream not in self.ended:
            room = min(len(view), _FRAME, self._room[0], self._room[stream])
            if room <= 0:
                self.listen(10)
                continue
            self.place.sendall(_frame(DATA, int(last and room == len(view)), stream, bytes(view[:room])))
            self._room[0] -= room
            self._room[stream] -= room
            view = view[room:]
            self.listen(0)

    def listen(self, seconds: float) -> bool:
        """Take in what has come, waiting so long for something; False if nothing came."""
        self.place.settimeout(seconds or 1e-4)
        try:
            data = self.place.recv(1 << 20)
        except TimeoutError:
            return False
        assert data, "the server closed the connection"
        self._rest += data
        while len(self._rest) >= 9 and len(self._rest) >= 9 + int.from_bytes(self._rest[:3]):
            size, kind, flags = int.from_bytes(self._rest[:3]), self._rest[3], self._rest[4]
            stream, body = int.from_bytes(self._rest[5:9]), self._rest[9 : 9 + size]
            self._rest = self._rest[9 + size :]
            self._take(kind, flags, stream, body)
        return True

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if kind == WINDOW:
            self._room[stream] += int.from_bytes(body)
        elif kind in (SETTINGS, PING) and not flags & 1:
            self.place.sendall(_frame(kind, 1, 0, body if kind == PING else b""))
        elif kind == DATA:
            self.received[stream] += len(body)
        if kind == RESET or (kind in (HEADERS, DATA) and flags & 1):
            self.ended.add(stream)
        assert kind != GOAWAY, body

    def close(self) -> None:
        self.place.close()


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return len(body).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + body
