"""Other Python model servers around the same file, each as its own documentation shows, and one that does nothing else.

    python benchmarks/peers.py mlserver|kserve|litserve|bare MODEL.onnx HTTP_PORT GRPC_PORT

Run by `serving.py`, with the interpreter of an environment in which that server is installed.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import numpy as np
import onnxruntime

try:
    from litserve import LitAPI
except ImportError:
    LitAPI = object
try:
    from mlserver import MLModel
except ImportError:
    MLModel = object


class MLPredictor(MLModel):
    """Of MLServer."""

    async def load(self) -> bool:
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri)
        return True

    async def predict(self, payload: Any) -> Any:
        from mlserver.codecs import NumpyCodec
        from mlserver.types import InferenceResponse

        x = NumpyCodec.decode_input(payload.inputs[0])
        y = self.session.run(None, {"x": x})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])


def mlserver(path: str, http: int, grpc: int) -> None:
    """MLServer, inference in its own process (`parallel_workers=0`, which is its fastest here)."""
    from mlserver import MLServer, ModelSettings, Settings
    from mlserver.settings import ModelParameters

    settings = Settings(host="127.0.0.1", http_port=http, grpc_port=grpc, metrics_port=http + 1000, parallel_workers=0,
                        debug=False)  # fmt: skip
    # It imports the class by this name, from this file.
    model = ModelSettings(name="model", implementation="peers.MLPredictor", parameters=ModelParameters(uri=path))
    asyncio.run(MLServer(settings).start([model]))


def kserve(path: str, http: int, grpc: int) -> None:
    """KServe's Python SDK."""
    from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer

    class Predictor(Model):
        def __init__(self) -> None:
            super().__init__("model")
            self.session = onnxruntime.InferenceSession(path)
            self.ready = True

        def predict(self, payload: InferRequest, *_: Any, **__: Any) -> InferResponse:
            y = self.session.run(None, {"x": payload.inputs[0].as_numpy()})[0]
            output = InferOutput("y", list(y.shape), "FP32")
            output.set_data_from_numpy(y, binary_data=bool(payload.parameters))
            return InferResponse(payload.id or "", "model", [output])

    ModelServer(http_port=http, grpc_port=grpc, workers=1, enable_docs_url=False).start([Predictor()])


class LitPredictor(LitAPI):
    """On the module's level, because LitServer pickles it into its worker."""

    path: str

    def setup(self, device: str) -> None:
        self.session = onnxruntime.InferenceSession(self.path)

    def decode_request(self, request):  # it reads the annotation, and this must have none
        data = request["inputs"][0]
        return np.array(data["data"], np.float32).reshape(data["shape"])

    def predict(self, x: Any) -> Any:
        return self.session.run(None, {"x": x})[0]

    def encode_response(self, y: Any) -> Any:
        return {"shape": y.shape, "data": y.ravel().tolist()}


def litserve(path: str, http: int, grpc: int) -> None:
    """LitServe, which has a JSON protocol of its own and no gRPC."""
    import litserve

    api = LitPredictor()
    api.path = path
    litserve.LitServer(api, accelerator="cpu").run(host="127.0.0.1", port=http, generate_client_file=False)


def bare(path: str, http: int, grpc: int) -> None:
    """No server: uvicorn and gRPC around the model, with a thread for each core, and the bytes of a tensor alone.

    There is no protocol, no check, no queue, no limit and no count: what is left is what the libraries themselves take.
    """
    import os
    from concurrent.futures import ThreadPoolExecutor

    import grpc.aio as rpc
    import orjson
    import uvicorn
    from grpc import method_handlers_generic_handler, unary_unary_rpc_method_handler

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    shape = [size if isinstance(size, int) else 1 for size in session.get_inputs()[0].shape]
    size = 4 * int(np.prod(shape))
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def run(data: bytes) -> bytes:
        y = session.run(None, {"x": np.frombuffer(data[-size:], np.float32).reshape(shape)})[0]
        return bytes(y.tobytes())

    async def called(data: bytes, context: Any) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(pool, run, data)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        data, more = b"", True
        while more:
            message = await receive()
            data, more = data + message["body"], message["more_body"]
        if dict(scope["headers"]).get(b"content-type") == b"application/json":
            values = orjson.loads(data)["inputs"][0]["data"]
            y = await asyncio.get_running_loop().run_in_executor(pool, run, np.array(values, np.float32).tobytes())
            answer = orjson.dumps({"outputs": [{"data": np.frombuffer(y, np.float32).tolist()}]})
        else:
            answer = await asyncio.get_running_loop().run_in_executor(pool, run, data) if data else b"ready"
        length = (b"content-length", b"%d" % len(answer))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": answer})

    async def serve() -> None:
        server = rpc.server()
        methods = {"ModelInfer": unary_unary_rpc_method_handler(called)}
        server.add_generic_rpc_handlers((method_handlers_generic_handler("inference.GRPCInferenceService", methods),))
        server.add_insecure_port(f"127.0.0.1:{grpc}")
        await server.start()
        await uvicorn.Server(uvicorn.Config(app, port=http, lifespan="off", access_log=False)).serve()

    with asyncio.Runner(loop_factory=uvicorn.Config(app).get_loop_factory()) as runner:
        runner.run(serve())


if __name__ == "__main__":
    {"mlserver": mlserver, "kserve": kserve, "litserve": litserve, "bare": bare}[sys.argv[1]](
        sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    )
