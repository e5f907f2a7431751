"""Messages of gRPC that are wrong, every address, random bodies, and what is not HTTP: no crash, no 5xx."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from tests.serve.conftest import Server, size
from tests.serve.test_bad_requests import A, B, X, binary, x


def _request(**changes: Any) -> Any:
    from tritonclient.grpc import service_pb2

    request = service_pb2.ModelInferRequest(model_name="double")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    raw = [np.array([1, 2, 3], "<f4").tobytes()]
    for key, value in changes.items():
        if key == "raw":
            raw = value
        elif key == "shape":
            tensor.ClearField("shape")
            tensor.shape.extend(value)
        elif key == "contents":
            for field, values in value.items():
                getattr(tensor.contents, field).extend(values)
        elif key == "outputs":
            for name in value:
                request.outputs.add(name=name)
        elif key == "twice":
            request.inputs.append(tensor)
            raw = raw * 2
        elif key == "parameter":
            request.parameters[value[0]].int64_param = value[1]
        else:
            setattr(tensor if key in ("name", "datatype") else request, key, value)
    request.raw_input_contents.extend(raw)
    return request


GRPC: dict[str, tuple[dict[str, Any], str]] = {
    "unknown model": ({"model_name": "nobody"}, "NOT_FOUND"),
    "unknown version": ({"model_version": "5"}, "NOT_FOUND"),
    "unknown input": ({"name": "z"}, "INVALID_ARGUMENT"),
    "another type": ({"datatype": "INT32"}, "INVALID_ARGUMENT"),
    "unknown type": ({"datatype": "X"}, "INVALID_ARGUMENT"),
    "dim -1": ({"shape": [-1, 3]}, "INVALID_ARGUMENT"),
    "dim 2^62": ({"shape": [2**62, 3]}, "INVALID_ARGUMENT"),
    "dim 2^62, and another of none": ({"shape": [2**62, 0], "raw": [b""]}, "INVALID_ARGUMENT"),
    "rank": ({"shape": [3]}, "INVALID_ARGUMENT"),
    "raw short": ({"raw": [b"abc"]}, "INVALID_ARGUMENT"),
    "raw missing": ({"raw": []}, "INVALID_ARGUMENT"),
    "raw twice": ({"raw": [b"", b""]}, "INVALID_ARGUMENT"),
    "both contents": ({"contents": {"fp32_contents": [1, 2, 3]}}, "INVALID_ARGUMENT"),
    "contents short": ({"raw": [], "contents": {"fp32_contents": [1, 2]}}, "INVALID_ARGUMENT"),
    "contents elsewhere": ({"raw": [], "contents": {"int_contents": [1, 2, 3]}}, "INVALID_ARGUMENT"),
    "input twice": ({"twice": True}, "INVALID_ARGUMENT"),
    "unknown output": ({"outputs": ["z"]}, "INVALID_ARGUMENT"),
    "output twice": ({"outputs": ["y", "y"]}, "INVALID_ARGUMENT"),
    "sequence": ({"parameter": ("sequence_id", 4)}, "UNIMPLEMENTED"),
    "timeout": ({"parameter": ("timeout", -4)}, "INVALID_ARGUMENT"),
}


@pytest.mark.parametrize("case", GRPC)
def test_a_bad_message(server: Server, case: str) -> None:
    from tritonclient.grpc import service_pb2_grpc

    changes, code = GRPC[case]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        with pytest.raises(grpc.RpcError) as raised:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(_request(**changes))
        assert raised.value.code().name == code, raised.value.details()


METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE")
PATHS = (
    "/", "/v2", "/v2/", "/v2/health/live", "/v2/health/ready", "/v2/models", "/v2/models/", "/v2/models/double",
    "/v2/models/double/infer", "/v2/models/double/versions/1/infer", "/v2/models/double/versions/x/infer",
    "/v2/models/double/versions/1", "/v2/models/double/stats", "/v2/models/..%2f..%2fetc%2fpasswd",
    "/v2/models/%00/infer", "/v2/models/%ff/infer", "/v2/repository/index", "/v2/repository/models/..%2f/load",
    "/v2/repository/models/nobody/unload", "/v2/models/double/infer?x=%zz", "/metrics", "//v2//models",
)  # fmt: skip


def test_every_method_at_every_address(server: Server) -> None:
    for path in PATHS:
        for method in METHODS:
            status, _, _ = server.call(method, path)
            assert status < 500, (method, path, status)


def fuzz_bodies(count: int) -> Iterator[bytes]:
    """Good bodies with bytes changed, cut, doubled, or noise."""
    rng = random.Random(0)
    good = [json.dumps(c).encode() for c in (x(), {"inputs": [A, B]}, {"inputs": [X], "outputs": [{"name": "y"}]})]
    good += [binary()[0]]
    for _ in range(count):
        body = bytearray(rng.choice(good))
        for _ in range(rng.choice((1, 1, 2, 5, 20))):
            if not body:
                break
            place, kind = rng.randrange(len(body)), rng.randrange(4)
            if kind == 0:
                body[place] = rng.choice(b'{}[]",:0123456789-.eENaItrufls\\ \x00\xff')
            elif kind == 1:
                del body[place : place + rng.randrange(1, 8)]
            elif kind == 2:
                body[place:place] = body[place : place + rng.randrange(1, 30)]
            else:
                body[place:place] = rng.randbytes(rng.randrange(1, 9))
        yield bytes(body) if rng.random() < 0.95 else rng.randbytes(rng.randrange(200))


def test_random_bodies_crash_nothing(server: Server) -> None:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=30)
    length = len(binary()[0]) - 12
    for number, body in enumerate(fuzz_bodies(size(1500, 10_000))):
        headers = {"Inference-Header-Content-Length": str(length)} if number % 4 == 0 else {}
        connection.request("POST", f"/v2/models/{('double', 'pair')[number % 2]}/infer", body, headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (200, 400), (answer.status, body)
    connection.close()


def test_random_grpc_messages_crash_nothing(server: Server) -> None:
    rng = random.Random(1)
    good = _request().SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(size(300, 3000)):
            body = bytearray(good)
            for _ in range(rng.choice((1, 2, 5))):
                body[rng.randrange(len(body))] = rng.randrange(256)
            try:
                call(bytes(body))
            except grpc.RpcError as error:
                assert error.code().name in ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"), error


RAW = {
    "no HTTP": b"hello\r\n\r\n",
    "binary": bytes(range(256)),
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 40,
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "length and chunks": b"POST /v2/models/double/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
                         b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "length -1": b"POST /v2 HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    "chunk size zz": b"POST /v2/models/double/infer HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a header of 100 kB": b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    "10,000 headers": b"GET /v2 HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X%d: a\r\n" % k for k in range(10_000)) + b"\r\n",
    "an address of 100 kB": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "a header with NUL": b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("case", RAW)
def test_what_is_not_http(server: Server, case: str) -> None:
    with socket.create_connection(("127.0.0.1", server.http), timeout=20) as connection:
        start = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(RAW[case])
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                data += piece
        assert time.monotonic() - start < 15
    assert data == b"" or data.startswith(b"HTTP/1.1 4"), data[:200]
