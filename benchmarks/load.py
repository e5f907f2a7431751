"""A client that costs little: prepared bytes over blocking connections, and how many answers came in how much time.

    python benchmarks/load.py http PORT CONNECTIONS SECONDS < request
    python benchmarks/load.py grpc PORT CONNECTIONS SECONDS < message

Prints a JSON object: answers per second and latency percentiles. Run by `serving.py`, in a process of its own, so that
the interpreter of what is measured is not shared with what measures.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Callable

Call = Callable[[], None]
WARM_S = 1.0


def http(port: int, request: bytes) -> Call:
    """One connection that is kept; each call sends the request and reads the whole answer."""
    place = socket.create_connection(("127.0.0.1", port))
    place.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def call() -> None:
        place.sendall(request)
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += _received(place)
        head = data[:end].lower()
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(data[:500])
        length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])
        left = end + 4 + length - len(data)
        while left > 0:
            left -= len(_received(place))

    return call


def grpc(port: int, message: bytes) -> Call:
    """One channel; messages go as they are."""
    import grpc

    channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)])
    method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    return lambda: method(message)


def _received(place: socket.socket) -> bytes:
    data = place.recv(1 << 20)
    if not data:
        raise RuntimeError("the server closed the connection")
    return data


def main() -> None:
    kind, port, connections, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    request = sys.stdin.buffer.read()
    found: list[list[float]] = [[] for _ in range(connections)]
    failures: list[str] = []
    start = time.perf_counter() + WARM_S
    end = start + seconds

    def work(times: list[float]) -> None:
        try:
            call = {"http": http, "grpc": grpc}[kind](port, request)
            while (before := time.perf_counter()) < end:
                call()
                if before >= start:
                    times.append(time.perf_counter() - before)
        except Exception as error:  # whatever it is, it is the result
            failures.append(repr(error)[:500])

    threads = [threading.Thread(target=work, args=(times,)) for times in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    times = sorted(time for some in found for time in some)
    result = {"rate": len(times) / seconds, "failures": failures}
    if times:
        result |= {"p50": times[len(times) // 2], "p99": times[int(len(times) * 0.99)]}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
