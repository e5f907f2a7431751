"""What serving costs: answers per second as a ratio to calling the ONNX Runtime session in-process in one thread.

    python benchmarks/serving.py [--rounds 5] [--seconds 3] [--connections 16] [--peer NAME=PYTHON]…

Two models, a tiny one (three multiplications) and a small CNN (the convolutions of ResNet-20 for 32×32 images), over
HTTP with JSON and with binary tensors and over gRPC. `--peer kserve=/envs/kserve/bin/python` adds another server, run
by an interpreter that has it: mlserver, kserve, litserve, or `bare`, which is uvicorn and gRPC around the model and
nothing else. In each round everything is measured once, one after the other, and divided by that round's in-process
rate, so that a machine which others use hurts all alike; the medians over the rounds are printed. The client's
processor time counts against the servers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

HERE = Path(__file__).resolve().parent
HEAD = '<ir_version: 9, opset_import: ["": 19]> g '
SHAPES = {"tiny": (1, 3), "CNN": (1, 3, 32, 32)}
WAYS = ("HTTP JSON", "HTTP binary", "gRPC")
# What a server has no protocol for.
LACKS = {("mlserver", "HTTP binary"), ("litserve", "HTTP binary"), ("litserve", "gRPC")}

IN_PROCESS = """
import sys, time, numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options)
x = np.random.default_rng(0).random([int(n) for n in sys.argv[3].split("x")], np.float32)
for _ in range(50):
    session.run(None, {"x": x})
count, start = 0, time.perf_counter()
while (now := time.perf_counter()) < start + float(sys.argv[2]):
    session.run(None, {"x": x})
    count += 1
print(count / (now - start))
"""


def tiny() -> onnx.ModelProto:
    return parser.parse_model(HEAD + "(float[N,3] x) => (float[N,3] y) { c = Constant <value_float = 2.0> ()"
                                     "  y = Mul(x, c) }")  # fmt: skip


def cnn() -> onnx.ModelProto:
    """18 convolutions 3×3 with ReLU, 16, 32 and 64 channels on 32², 16² and 8², then the average and ten classes."""
    random, lines, weights = np.random.default_rng(0), [], []
    value, width = "x", 3
    for layer in range(18):
        channels, stride = 16 << (layer // 6), 2 if layer in (6, 12) else 1
        weight = random.normal(0, (2 / (9 * width)) ** 0.5, (channels, width, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        lines.append(f"c{layer} = Conv <pads = [1,1,1,1], strides = [{stride},{stride}]> ({value}, w{layer})")
        lines.append(f"r{layer} = Relu(c{layer})")
        value, width = f"r{layer}", channels
    weights.append(numpy_helper.from_array(random.normal(0, 0.1, (64, 10)).astype(np.float32), "w"))
    lines.append(f"p = GlobalAveragePool({value})  f = Flatten(p)  y = MatMul(f, w)")
    model = parser.parse_model(HEAD + f"(float[N,3,32,32] x) => (float[N,10] y) {{ {'  '.join(lines)} }}")
    model.graph.initializer.extend(weights)
    return model


def requests(shape: tuple[int, ...]) -> dict[str, bytes]:
    """What is sent over each way: whole HTTP requests, and the message of gRPC."""
    from bnfold.serve.messages import MESSAGES

    x = np.random.default_rng(0).random(shape, np.float32)
    tensor = {"name": "x", "shape": shape, "datatype": "FP32"}
    text = json.dumps({"inputs": [{**tensor, "data": x.ravel().tolist()}]}).encode()
    raw = {**tensor, "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [raw], "parameters": {"binary_data_output": True}}).encode()
    message = MESSAGES["ModelInferRequest"](model_name="model", raw_input_contents=[x.tobytes()])
    message.inputs.add(**tensor)
    return {
        "HTTP JSON": _post(text, "Content-Type: application/json"),
        "HTTP binary": _post(head + x.tobytes(), "Content-Type: application/octet-stream",
                             f"Inference-Header-Content-Length: {len(head)}"),
        "gRPC": message.SerializeToString(),
    }  # fmt: skip


def _post(body: bytes, *headers: str, path: str = "/v2/models/model/infer") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


@contextmanager
def serving(name: str, python: str, model: Path) -> Iterator[tuple[int, int]]:
    """Run a server on free ports until it answers; yields them."""
    http, grpc = _free_port(), _free_port()
    command: list[str | Path] = [python, HERE / "peers.py", name, model, str(http), str(grpc)]
    if name == "bnfold":
        command = [python, "-m", "bnfold", "serve", model, "--name", "model", "--metrics-port", "0"]
        command += ["--http-port", str(http), "--grpc-port", str(grpc)]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    log = model.with_name(f"{name}.log").open("wb+")
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        ready = "/health" if name == "litserve" else "/v2/health/ready"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{http}{ready}", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None:
                    break
                time.sleep(0.2)
        else:
            process.kill()
        if process.poll() is not None:
            log.seek(0)
            raise SystemExit(f"{name} did not start:\n{log.read().decode()[-2000:]}")
        yield http, grpc
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):  # some leave workers of their own behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def _free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port: int = place.getsockname()[1]
        return port


def in_process(model: Path, shape: tuple[int, ...], seconds: float) -> float:
    """Runs per second of a session in one thread."""
    words = [sys.executable, "-c", IN_PROCESS, str(model), str(seconds), "x".join(map(str, shape))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return float(subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout)


def load(port: int, way: str, request: bytes, connections: int, seconds: float) -> float:
    """Answers per second."""
    kind = "grpc" if way == "gRPC" else "http"
    words = [sys.executable, HERE / "load.py", kind, str(port), str(connections), str(seconds)]
    found = json.loads(subprocess.run(words, input=request, capture_output=True, check=True).stdout)
    if found["failures"]:
        raise RuntimeError(found["failures"][0])
    return float(found["rate"])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=3.0)
    options.add_argument("--connections", type=int, default=16)
    options.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    asked = options.parse_args()
    pythons = {"bnfold": sys.executable, **dict(peer.split("=", 1) for peer in asked.peer)}
    for title, make in {"tiny": tiny, "CNN": cnn}.items():
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            path = Path(folder) / "model.onnx"
            onnx.save(make(), path)
            ports = {name: stack.enter_context(serving(name, python, path)) for name, python in pythons.items()}
            report(title, path, ports, asked)


def report(title: str, path: Path, ports: dict[str, tuple[int, int]], asked: argparse.Namespace) -> None:
    sent = requests(SHAPES[title])
    rates: list[float] = []
    ratios: dict[tuple[str, str], list[float]] = {}
    for _ in range(asked.rounds):
        rates.append(in_process(path, SHAPES[title], asked.seconds))
        for way in WAYS:
            for name, (http, grpc) in ports.items():
                if (name, way) in LACKS:
                    continue
                request = sent[way].replace(b"/v2/models/model/infer", b"/predict") if name == "litserve" else sent[way]
                port = grpc if way == "gRPC" else http
                try:
                    rate = load(port, way, request, asked.connections, asked.seconds)
                except RuntimeError as error:
                    log = path.with_name(f"{name}.log").read_text(errors="replace")
                    raise SystemExit(f"{name}, {way}: {error}\n{log[-2000:]}") from None
                ratios.setdefault((way, name), []).append(rate / rates[-1])
    print(f"\n{title}: in-process {statistics.median(rates):,.0f} runs/s in one thread = 1; "
          f"{asked.connections} connections, medians of {asked.rounds} rounds of {asked.seconds:g} s")  # fmt: skip
    print(f"{'':14}" + "".join(f"{name:>12}" for name in ports))
    for way in WAYS:
        cells = [ratios.get((way, name)) for name in ports]
        print(f"{way:14}" + "".join(f"{'-':>12}" if c is None else f"{statistics.median(c):12.3f}" for c in cells))


if __name__ == "__main__":
    main()
