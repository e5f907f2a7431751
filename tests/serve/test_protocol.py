"""The real clients: every transport, every type, JSON and binary, with a version and without; all of it exact."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as rpc
import tritonclient.grpc.aio as rpc_aio
import tritonclient.http as web
import tritonclient.http.aio as web_aio
from tritonclient.utils import InferenceServerException

from bnfold.arrays import Array
from tests.serve import zoo
from tests.serve.conftest import Server

Answer = tuple[Array, dict[str, Any]]


def over_http(server: Server, name: str, x: Array, datatype: str, version: str, binary: bool) -> Answer:
    with web.InferenceServerClient(f"127.0.0.1:{server.http}") as client:
        tensor = web.InferInput("x", list(x.shape), datatype).set_data_from_numpy(x, binary_data=binary)
        output = web.InferRequestedOutput("y", binary_data=binary)
        result = client.infer(name, [tensor], version, outputs=[output], request_id="r1")
        return result.as_numpy("y"), result.get_response()


def over_http_aio(server: Server, name: str, x: Array, datatype: str, version: str, binary: bool) -> Answer:
    async def call() -> Answer:
        async with web_aio.InferenceServerClient(f"127.0.0.1:{server.http}") as client:
            tensor = web_aio.InferInput("x", list(x.shape), datatype).set_data_from_numpy(x, binary_data=binary)
            output = web_aio.InferRequestedOutput("y", binary_data=binary)
            result = await client.infer(name, [tensor], version, outputs=[output], request_id="r1")
            return result.as_numpy("y"), result.get_response()

    return asyncio.run(call())


def _described(result: Any) -> dict[str, Any]:
    response = result.get_response()
    return {"id": response.id, "model_name": response.model_name, "model_version": response.model_version}


def over_grpc(server: Server, name: str, x: Array, datatype: str, version: str, binary: bool) -> Answer:
    with rpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        tensor = rpc.InferInput("x", list(x.shape), datatype).set_data_from_numpy(x)
        result = client.infer(name, [tensor], version, outputs=[rpc.InferRequestedOutput("y")], request_id="r1")
        return result.as_numpy("y"), _described(result)


def over_grpc_aio(server: Server, name: str, x: Array, datatype: str, version: str, binary: bool) -> Answer:
    async def call() -> Answer:
        async with rpc_aio.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
            tensor = rpc_aio.InferInput("x", list(x.shape), datatype).set_data_from_numpy(x)
            result = await client.infer(name, [tensor], version, request_id="r1")
            return result.as_numpy("y"), _described(result)

    return asyncio.run(call())


WAYS: dict[str, tuple[Callable[..., Answer], bool]] = {
    "http-json": (over_http, False),
    "http-binary": (over_http, True),
    "http-aio-json": (over_http_aio, False),
    "http-aio-binary": (over_http_aio, True),
    "grpc": (over_grpc, True),
    "grpc-aio": (over_grpc_aio, True),
}
# What this client itself does not send or read as JSON; `test_every_type_as_json` does.
NOT_AS_JSON = ("FP16", "BF16")


def same(left: Array, right: Array) -> bool:
    """The same values to the bit: NaN equals NaN, and −0 is not 0."""
    if left.dtype == object or right.dtype == object:
        texts = [[t.decode() if isinstance(t, bytes) else t for t in a.ravel()] for a in (left, right)]
        return left.shape == right.shape and texts[0] == texts[1]
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def possible(ways: Iterable[str], datatypes: Iterable[str]) -> list[tuple[str, str]]:
    return [(way, name) for way in ways for name in datatypes if WAYS[way][1] or name not in NOT_AS_JSON]


@pytest.mark.parametrize("version", ["", "1"])
@pytest.mark.parametrize(("way", "datatype"), possible(WAYS, zoo.DTYPES))
def test_a_real_client_gets_what_it_sent(server: Server, way: str, datatype: str, version: str) -> None:
    call, binary = WAYS[way]
    x = zoo.sample(datatype)
    y, described = call(server, f"id_{datatype.lower()}", x, datatype, version, binary)
    assert same(y, x), (y, x)
    assert {key: described[key] for key in ("id", "model_name", "model_version")} == {
        "id": "r1", "model_name": f"id_{datatype.lower()}", "model_version": "1",
    }  # fmt: skip


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("datatype", zoo.DTYPES)
def test_every_type_as_json(server: Server, datatype: str, nested: bool) -> None:
    x = zoo.sample(datatype)
    values = x.astype(np.float64) if datatype in NOT_AS_JSON else x
    data = values.tolist() if nested else values.ravel().tolist()
    tensor = {"name": "x", "shape": list(x.shape), "datatype": datatype, "data": data}
    status, answer = server.post(f"/v2/models/id_{datatype.lower()}/infer", {"inputs": [tensor]})
    assert status == 200, answer
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("y", datatype, list(x.shape))
    assert same(np.array(output["data"], x.dtype).reshape(x.shape), x)


def test_what_is_not_finite_stands_bare_in_json(server: Server) -> None:
    body = b'{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[NaN,Infinity,-Infinity,-0.0]}]}'
    status, headers, data = server.call("POST", "/v2/models/id_fp32/infer", body)
    assert status == 200 and headers["content-type"] == "application/json"
    assert b'"data":[NaN,Infinity,-Infinity,-0.0]' in data


@pytest.mark.parametrize("content_type", [None, "application/json", "application/octet-stream", "text/plain", "?"])
def test_the_content_type_says_nothing(server: Server, content_type: str | None) -> None:
    """tritonclient sends none, others send any."""
    head = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}]}
    text, x = json.dumps(head).encode(), np.array([[1, 2, 3]], "<f4")
    headers = {"Inference-Header-Content-Length": str(len(text))}
    if content_type:
        headers["Content-Type"] = content_type
    status, _, data = server.call("POST", "/v2/models/double/infer", text + x.tobytes(), headers)
    assert status == 200 and json.loads(data)["outputs"][0]["data"] == [2.0, 4.0, 6.0]


@pytest.mark.parametrize("datatype", [name for name in zoo.DTYPES if name not in NOT_AS_JSON])
def test_grpc_takes_typed_contents_too(server: Server, datatype: str) -> None:
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    fields = {"BOOL": "bool", "INT64": "int64", "UINT64": "uint64", "FP32": "fp32", "FP64": "fp64", "BYTES": "bytes"}
    field = fields.get(datatype, "uint" if datatype.startswith("U") else "int")
    x = zoo.sample(datatype)
    request = service_pb2.ModelInferRequest(model_name=f"id_{datatype.lower()}")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=x.shape)
    values = [text.encode() for text in x.ravel()] if datatype == "BYTES" else x.ravel().tolist()
    getattr(tensor.contents, f"{field}_contents").extend(values)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    from bnfold.serve.tensors import to_binary

    assert answer.raw_output_contents[0] == to_binary(x, datatype)


@pytest.mark.parametrize("shape", [(0, 2), (1, 2), (7, 2)])
@pytest.mark.parametrize(
    ("way", "datatype"), possible(("http-json", "http-binary", "grpc"), ("FP32", "FP16", "BOOL", "BYTES", "BF16"))
)
def test_any_number_of_rows(server: Server, way: str, datatype: str, shape: tuple[int, int]) -> None:
    call, binary = WAYS[way]
    x = np.resize(zoo.sample(datatype), shape) if shape[0] else np.empty(shape, zoo.DTYPES[datatype][1])
    assert same(call(server, f"id_{datatype.lower()}", x, datatype, "", binary)[0], x)


@pytest.mark.parametrize("way", WAYS)
def test_a_scalar_and_an_image(server: Server, way: str) -> None:
    call, binary = WAYS[way]
    x = np.array(2.5, np.float32)
    assert same(call(server, "scalar", x, "FP32", "", binary)[0], -x)
    import onnxruntime

    image = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(zoo.MODELS["cnn"]().SerializeToString())
    assert same(call(server, "cnn", image, "FP32", "", binary)[0], session.run(None, {"x": image})[0])


def test_outputs_are_those_asked_for_in_that_order(server: Server) -> None:
    a, b = np.array([[1, 2]], np.float32), np.array([[10, 20]], np.float32)
    arrays = {"b": b, "a": a}
    inputs = [{"name": n, "shape": [1, 2], "datatype": "FP32", "data": v[0].tolist()} for n, v in arrays.items()]
    for names in (["d"], ["s"], ["d", "s"], []):
        content = {"inputs": inputs, "outputs": [{"name": n} for n in names]} if names else {"inputs": inputs}
        status, answer = server.post("/v2/models/pair/infer", content)
        assert status == 200 and [o["name"] for o in answer["outputs"]] == (names or ["s", "d"])
        found = {o["name"]: o["data"] for o in answer["outputs"]}
        assert found.get("s", [11.0, 22.0]) == [11.0, 22.0] and found.get("d", [-9.0, -18.0]) == [-9.0, -18.0]


def test_one_output_raw_and_the_other_as_json(server: Server) -> None:
    with web.InferenceServerClient(f"127.0.0.1:{server.http}") as client:
        x = np.array([[1, 2]], np.float32)
        tensors = [web.InferInput(n, [1, 2], "FP32").set_data_from_numpy(x, binary_data=n == "a") for n in "ab"]
        wanted = [web.InferRequestedOutput("s", binary_data=True), web.InferRequestedOutput("d", binary_data=False)]
        result = client.infer("pair", tensors, outputs=wanted)
        assert same(result.as_numpy("s"), 2 * x) and same(result.as_numpy("d"), 0 * x)
        assert "data" in result.get_output("d") and "data" not in result.get_output("s")


@pytest.mark.parametrize("request_encoding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_encoding", [None, "gzip", "deflate"])
def test_compression(server: Server, request_encoding: str | None, response_encoding: str | None) -> None:
    x = np.random.default_rng(0).integers(0, 3, (400, 3)).astype(np.float32)
    with web.InferenceServerClient(f"127.0.0.1:{server.http}") as client:
        tensor = web.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x)
        result = client.infer("double", [tensor], request_compression_algorithm=request_encoding,
                              response_compression_algorithm=response_encoding)  # fmt: skip
        assert same(result.as_numpy("y"), 2 * x)
    with rpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        tensor = rpc.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x)
        assert same(client.infer("double", [tensor], compression_algorithm=request_encoding).as_numpy("y"), 2 * x)


def test_a_stream_answers_each_request(server: Server) -> None:
    import queue

    answers: queue.Queue[Any] = queue.Queue()
    with rpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for k in range(5):
            x = np.full((1, 3), k, np.float32)
            tensor = rpc.InferInput("x", [1, 3], "FP32").set_data_from_numpy(x)
            client.async_stream_infer("double" if k != 3 else "nobody", [tensor], request_id=str(k))
        found = [answers.get(timeout=30) for _ in range(5)]
        client.stop_stream()
    for k, (result, error) in enumerate(found):
        if k == 3:
            assert result is None and "nobody" in str(error)
        else:
            assert same(result.as_numpy("y"), np.full((1, 3), 2 * k, np.float32)) and result.get_response().id == str(k)


def test_both_transports_say_the_same_of_a_model(server: Server) -> None:
    with web.InferenceServerClient(f"127.0.0.1:{server.http}") as http:
        metadata, index = http.get_model_metadata("cnn"), http.get_model_repository_index()
        config, about = http.get_model_config("cnn"), http.get_server_metadata()
        assert http.is_server_live() and http.is_server_ready() and http.is_model_ready("cnn", "1")
    with rpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("cnn")
        other = client.get_model_metadata("cnn", as_json=True)
        named = {m["name"] for m in client.get_model_repository_index(as_json=True)["models"]}
        assert named == {m["name"] for m in index}
        assert client.get_model_config("cnn", as_json=True)["config"]["input"][0]["data_type"] == "TYPE_FP32"
        assert client.get_server_metadata(as_json=True) == about
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
    assert metadata["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 8, 8, 8]}]
    assert other["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "3", "8", "8"]}]
    assert (metadata["platform"], metadata["versions"]) == (other["platform"], other["versions"])
    assert len(metadata["parameters"]["sha256"]) == 64
    assert config["max_batch_size"] == 0 and config["input"][0]["dims"] == [-1, 3, 8, 8]
    assert {m["name"] for m in index} == set(zoo.MODELS) and all(m["state"] == "READY" for m in index)


def test_grpc_health_is_what_a_probe_asks(server: Server) -> None:
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"") == b"\x08\x01"  # field 1: SERVING


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/nobody", 404), ("/v2/models/cnn/versions/7", 404), ("/v2/models/nobody/ready", 404),
        ("/v2/models/nobody/stats", 404), ("/v2/models/cnn/versions/9/stats", 404), ("/v2/nothing", 404), ("/x", 404),
        ("/v2/systemsharedmemory/status", 501), ("/v2/trace/setting", 501),
    ],
)  # fmt: skip
def test_what_is_not_there(server: Server, path: str, status: int) -> None:
    found, answer = server.get(path)
    assert found == status and answer["error"]


def test_errors_reach_the_client_as_its_own(server: Server) -> None:
    x = np.zeros((1, 3), np.float32)
    for module, port in ((web, server.http), (rpc, server.grpc)):
        with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
            tensor = module.InferInput("x", [1, 3], "FP32").set_data_from_numpy(x)
            with pytest.raises(InferenceServerException, match="there is no model 'nobody'"):
                client.infer("nobody", [tensor])
            with pytest.raises(InferenceServerException, match="no version '8'"):
                client.infer("double", [tensor], "8")
            with pytest.raises(InferenceServerException, match="input 'x' is INT64, not FP32"):
                client.infer("gather", [tensor])


def test_the_request_id_comes_back(server: Server) -> None:
    assert server.call("GET", "/v2", headers={"X-Request-ID": "abc-1"})[1]["x-request-id"] == "abc-1"
    made = server.call("GET", "/v2", headers={"X-Request-ID": "no spaces"})[1]["x-request-id"]
    assert made != "no spaces" and len(made) == 16
