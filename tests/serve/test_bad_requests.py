"""What a client may get wrong: each is a 4xx that says what, never a 5xx, and the server is as it was."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.serve import zoo
from tests.serve.conftest import Server

X: dict[str, Any] = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
A: dict[str, Any] = {"name": "a", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
B: dict[str, Any] = {**A, "name": "b"}


def x(**changes: Any) -> dict[str, Any]:
    """A request with one thing changed in its good input; a None takes the key out."""
    return {"inputs": [{key: value for key, value in {**X, **changes}.items() if value is not None}]}


# The model, and a request that is wrong in one way. A string or bytes is sent as it is.
BAD: dict[str, tuple[str, Any]] = {
    "empty body": ("double", b""),
    "no JSON": ("double", b"hello"),
    "half of it": ("double", b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2'),
    "two documents": ("double", json.dumps(x()).encode() * 2),
    "trailing comma": ("double", b'{"inputs":[],}'),
    "not UTF-8": ("double", b'{"inputs":"\xff\xfe"}'),
    "half of UTF-16": ("double", json.dumps(x()).encode("utf-16-le")[:-1]),
    "UTF-16": ("double", json.dumps(x()).encode("utf-16")),
    "a list": ("double", [X]),
    "a number": ("double", 5),
    "null": ("double", b"null"),
    "no inputs": ("double", {}),
    "inputs null": ("double", {"inputs": None}),
    "inputs an object": ("double", {"inputs": X}),
    "inputs of numbers": ("double", {"inputs": [1]}),
    "inputs empty": ("double", {"inputs": []}),
    "no name": ("double", x(name=None)),
    "name a number": ("double", x(name=3)),
    "unknown name": ("double", x(name="z")),
    "name in another case": ("double", x(name="X")),
    "no shape": ("double", x(shape=None)),
    "shape a number": ("double", x(shape=3)),
    "shape of text": ("double", x(shape=["1", "3"])),
    "shape of booleans": ("double", x(shape=[True, 3])),
    "shape of floats": ("double", x(shape=[1.0, 3])),
    "shape nested": ("double", x(shape=[[1, 3]])),
    "dim -1": ("double", x(shape=[-1, 3])),
    "dim 2^62": ("double", x(shape=[2**62, 3])),
    "dim 2^62, and another of none": ("double", x(shape=[2**62, 0], data=[])),
    "dim 2^64": ("double", x(shape=[2**64, 3])),
    "dims whose product overflows": ("double", x(shape=[2**32, 2**32])),
    "rank 0": ("double", x(shape=[], data=[1])),
    "rank 1": ("double", x(shape=[3])),
    "rank 3": ("double", x(shape=[1, 1, 3])),
    "rank 1000": ("double", x(shape=[1] * 1000)),
    "wrong fixed dim": ("double", x(shape=[1, 4], data=[1, 2, 3, 4])),
    "no datatype": ("double", x(datatype=None)),
    "datatype null": ("double", b'{"inputs":[{"name":"x","shape":[1,3],"datatype":null,"data":[1,2,3]}]}'),
    "datatype a list": ("double", x(datatype=["FP32"])),
    "unknown datatype": ("double", x(datatype="FP8")),
    "datatype in numpy's words": ("double", x(datatype="float32")),
    "another datatype": ("double", x(datatype="FP64")),
    "an integer type": ("double", x(datatype="INT32")),
    "no data": ("double", x(data=None)),
    "data null": ("double", b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":null}]}'),
    "data a number": ("double", x(data=1)),
    "data an object": ("double", x(data={"0": 1})),
    "data text": ("double", x(data="123")),
    "a number beyond a double": ("double", json.dumps(x()).replace("[1, 2", "[1e400, 2").encode()),
    "more inputs than are read": ("double", {"inputs": [X] * 1025}),
    "too few values": ("double", x(data=[1, 2])),
    "too many values": ("double", x(data=[1, 2, 3, 4])),
    "no values": ("double", x(data=[])),
    "ragged": ("double", x(shape=[2, 3], data=[[1, 2, 3], [4, 5]])),
    "ragged to the right count": ("double", x(shape=[2, 3], data=[[1, 2], [3, 4, 5, 6]])),
    "half nested": ("double", x(shape=[2, 3], data=[[1, 2, 3], 4, 5, 6])),
    "nested too deep": ("double", x(data=[[[1, 2, 3]]])),
    "nested the other way": ("double", x(data=[[1], [2], [3]])),
    "a text among numbers": ("double", x(data=[1, "2", 3])),
    "a boolean among numbers": ("double", x(data=[1, True, 3])),
    "null among numbers": ("double", x(data=[1, None, 3])),
    "too large for FP32": ("double", x(data=[1, 1e39, 3])),
    "an integer too large for FP32": ("double", x(data=[1, 10**400, 3])),
    "an integer of 5,000 digits": ("double", b'{"inputs":[{"name":"x","data":[' + b"9" * 5000 + b"]}]}"),
    "the input twice": ("double", {"inputs": [X, X]}),
    "another input too": ("double", {"inputs": [X, {**X, "name": "y"}]}),
    "one input missing": ("pair", {"inputs": [A]}),
    "a symbol of two sizes": ("pair", {"inputs": [A, {**B, "shape": [2, 1]}]}),
    "rows that differ": ("pair", {"inputs": [A, {**B, "shape": [2, 2], "data": [1, 2, 3, 4]}]}),
    "an unknown output": ("double", {"inputs": [X], "outputs": [{"name": "z"}]}),
    "an output twice": ("double", {"inputs": [X], "outputs": [{"name": "y"}, {"name": "y"}]}),
    "outputs an object": ("double", {"inputs": [X], "outputs": {"name": "y"}}),
    "an output without name": ("double", {"inputs": [X], "outputs": [{}]}),
    "outputs null": ("double", {"inputs": [X], "outputs": None}),
    "binary_data not a flag": ("double", {"inputs": [X], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}),
    "parameters a list": ("double", {"inputs": [X], "parameters": []}),
    "id a number": ("double", {"inputs": [X], "id": 7}),
    "timeout negative": ("double", {"inputs": [X], "parameters": {"timeout": -1}}),
    "timeout text": ("double", {"inputs": [X], "parameters": {"timeout": "1"}}),
    "binary size without the header": ("double", x(data=None, parameters={"binary_data_size": 12})),
    "data and binary size": ("double", x(parameters={"binary_data_size": 0})),
    "negative for UINT8": ("id_uint8", x(shape=[1, 2], datatype="UINT8", data=[-1, 0])),
    "256 for UINT8": ("id_uint8", x(shape=[1, 2], datatype="UINT8", data=[256, 0])),
    "2^63 for INT64": ("id_int64", x(shape=[1, 2], datatype="INT64", data=[2**63, 0])),
    "a float for INT64": ("id_int64", x(shape=[1, 2], datatype="INT64", data=[1.0, 0])),
    "NaN for INT64": ("id_int64", b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"INT64","data":[NaN,0]}]}'),
    "1 for BOOL": ("id_bool", x(shape=[1, 2], datatype="BOOL", data=[1, 0])),
    "too large for FP16": ("id_fp16", x(shape=[1, 2], datatype="FP16", data=[65536, 0])),
    "a number for BYTES": ("id_bytes", x(shape=[1, 2], datatype="BYTES", data=[1, 0])),
    "half a surrogate": ("id_bytes", x(shape=[1, 2], datatype="BYTES", data=["\ud800", ""])),
    "an index out of range": ("gather", x(shape=[1], datatype="INT64", data=[3])),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_a_400(server: Server, case: str) -> None:
    model, content = BAD[case]
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    status, _, data = server.call("POST", f"/v2/models/{model}/infer", body)
    answer = json.loads(data)
    assert status == 400, answer
    assert list(answer) == ["error"] and answer["error"] and "Traceback" not in answer["error"]


Body = tuple[bytes, dict[str, str]]


def binary(change: int = 0, header: str | None = None, size: Any = 12, datatype: str = "FP32") -> Body:
    """A binary request: raw bytes more or fewer than it says, and any header."""
    head = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": datatype, "parameters": {"binary_data_size": size}}]}
    text = json.dumps(head).encode()
    raw = np.array([1, 2, 3], "<f4").tobytes()
    raw = raw[:change] if change < 0 else raw + b"\0" * change
    return text + raw, {"Inference-Header-Content-Length": str(len(text)) if header is None else header}


BAD_BINARY = {
    **{f"header {h!r}": binary(header=h) for h in ("abc", "-1", "+5", "1e2", "0x10", "", " ", "1.5", "9" * 30, "٣")},
    "header beyond the body": binary(header="100000"),
    "header 0": binary(header="0"),
    "header one short": binary(header=str(len(binary()[0]) - 13)),
    "header one long": binary(header=str(len(binary()[0]) - 11)),
    "one byte short": binary(-1),
    "one byte long": binary(1),
    "nothing raw": binary(-12),
    **{f"size {s!r}": binary(size=s) for s in (11, 13, -1, 0, 2**62, "12", 12.0, True, [12], {})},
    "another type": binary(datatype="FP64"),
}


@pytest.mark.parametrize("case", BAD_BINARY)
def test_binary_lengths_that_do_not_fit(server: Server, case: str) -> None:
    body, headers = BAD_BINARY[case]
    status, _, data = server.call(
        "POST", "/v2/models/double/infer", body, {k: v.encode().decode("latin-1") for k, v in headers.items()}
    )
    assert status == 400 and json.loads(data)["error"]


TEXTS = {
    "length beyond the data": b"\x09\0\0\0ab" + b"\0" * 4,
    "length 2^32-1": b"\xff\xff\xff\xff" + b"ab",
    "cut in a length": b"\x01\0\0\0a\x01\0",
    "bytes left over": b"\0\0\0\0" * 2 + b"a",
    "not UTF-8": b"\x01\0\0\0\xff\0\0\0\0",
    "nothing": b"",
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts_that_do_not_fit(server: Server, case: str) -> None:
    raw = TEXTS[case]
    parameters = {"binary_data_size": len(raw)}
    text = json.dumps(
        {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "BYTES", "parameters": parameters}]}
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    assert server.call("POST", "/v2/models/id_bytes/infer", text + raw, headers)[0] == 400


def test_a_bool_is_0_or_1(server: Server) -> None:
    text = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"BOOL","parameters":{"binary_data_size":2}}]}'
    headers = {"Inference-Header-Content-Length": str(len(text))}
    assert server.call("POST", "/v2/models/id_bool/infer", text + b"\x01\x02", headers)[0] == 400
    assert server.call("POST", "/v2/models/id_bool/infer", text + b"\x01\x00", headers)[0] == 200


@pytest.mark.parametrize("depth", [120, 250_000])
@pytest.mark.parametrize("kind", ["lists", "objects", "open lists"])
def test_depth(server: Server, depth: int, kind: str) -> None:
    text = {
        "lists": "[" * depth + "]" * depth,
        "objects": '{"a":' * depth + "1" + "}" * depth,
        "open lists": "[" * depth,
    }[kind]
    for content in (text, '{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":' + text + "}]}"):
        assert server.call("POST", "/v2/models/double/infer", content.encode())[0] == 400


UNSUPPORTED: dict[str, Any] = {
    "sequence": {"inputs": [X], "parameters": {"sequence_id": 5}},
    "shared memory in": x(parameters={"shared_memory_region": "r"}),
    "shared memory out": {"inputs": [X], "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]},
    "classification": {"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": 2}}]},
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_supported_says_so(server: Server, case: str) -> None:
    status, answer = server.post("/v2/models/double/infer", UNSUPPORTED[case])
    assert status == 501 and "not supported" in answer["error"]


def test_names_stay_in_the_repository(server: Server) -> None:
    for name in ("..", "%2e%2e", "..%2f..%2fetc", "%2fetc%2fpasswd", "double%2f1", "double%00", ".hidden", "a" * 300):
        for path in (f"/v2/repository/models/{name}/load", f"/v2/models/{name}/infer"):
            status, _, data = server.call("POST", path, b"{}")
            assert status in (400, 404) and b"error" in data, (name, status, data)


def test_no_file_contents_over_the_load_api(server: Server) -> None:
    import tritonclient.grpc as rpc
    import tritonclient.http as web
    from tritonclient.utils import InferenceServerException

    model = zoo.times(9.0).SerializeToString()
    for module, port in ((web, server.http), (rpc, server.grpc)):
        with module.InferenceServerClient(f"127.0.0.1:{port}") as client, pytest.raises(InferenceServerException):
            client.load_model("double", config="{}", files={"file:1/model.onnx": model})
