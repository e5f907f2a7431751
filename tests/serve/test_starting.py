"""Coming up: what is wrong is said in a line; what is right is counted, over TLS too, on a disk that is read-only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnfold.serve
from bnfold.errors import UsageError
from bnfold.serve.settings import Settings
from bnfold.serve.supervise import serve
from tests.conftest import REPOSITORY
from tests.serve import zoo
from tests.serve.conftest import PATIENCE, Server

Launch = Callable[..., Server]


def fails(*words: object) -> tuple[int, str]:
    """Exit code and last line of a server that can't start."""
    command = [sys.executable, "-m", "bnfold", "serve", *(str(word) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=REPOSITORY)
    assert "Traceback" not in done.stderr
    *before, last = done.stderr.strip().splitlines()
    assert not [line for line in before if last.removeprefix("bnfold: ") in line], "it is said twice"
    return done.returncode, last


FREE = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


@pytest.mark.parametrize("taken", ["--http-port", "--grpc-port", "--metrics-port"])
def test_a_port_in_use(tmp_path: Path, taken: str) -> None:
    path = zoo.write(zoo.times(2.0), tmp_path)
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        place.listen()
        port = place.getsockname()[1]
        code, line = fails(path, *FREE, taken, port)
    assert code == 4 and line.startswith(f"bnfold: 127.0.0.1:{port}: ") and "in use" in line


WRONG: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no such file": (("nowhere.onnx",), 4, "no such file"),
    "an empty folder": (("empty",), 4, "holds no model"),
    "not a model": (("{garbage}",), 4, "is not an ONNX model"),
    "a pipe": (("{pipe}",), 4, "is not a file that can be read"),
    "a bad name": (("{model}", "--name", "a/b"), 2, "--name a/b"),
    "a name for a repository": (("{root}", "--name", "a"), 2, "is a repository"),
    "a provider that is not there": (("{model}", "--provider", "nonsense"), 4, "provider 'nonsense'"),
    "an address that is not ours": (("{model}", "--host", "192.0.2.1"), 4, "192.0.2.1"),
    "a certificate without key": (("{model}", "--tls-cert", "x"), 2, "go together"),
    "no certificate": (("{model}", "--tls-cert", "x", "--tls-key", "y"), 4, "x, y"),
    "no token": (("{model}", "--token-file", "x"), 4, "x: the token can't be read"),
    "a short token": (("{model}", "--token-file", "{short}"), 4, "at least 16"),
    "threads": (("{model}", "--threads", "0"), 2, "--threads"),
    "a port": (("{model}", "--http-port", "70000"), 2, "--http-port"),
}


def test_a_port_asked_for_twice(tmp_path: Path) -> None:
    path = zoo.write(zoo.times(2.0), tmp_path)
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    code, line = fails(path, "--http-port", port, "--grpc-port", 0, "--metrics-port", port)
    assert code == 4 and line.startswith(f"bnfold: 127.0.0.1:{port}: ") and "in use" in line


@pytest.mark.parametrize("case", WRONG)
def test_what_can_not_be_started_says_why(tmp_path: Path, case: str, bnfold: Callable[..., Any]) -> None:
    """In this process, which is the worker's part; its parent passes code and lines on, as the ports' cases show."""
    words, code, text = WRONG[case]
    (tmp_path / "empty").mkdir()
    (tmp_path / "short").write_text("abc")
    model = zoo.write(zoo.times(2.0), tmp_path / "root" / "double")
    (tmp_path / "garbage").write_text("garbage " * 100)
    os.mkfifo(tmp_path / "pipe")
    places = {"model": model, **{name: tmp_path / name for name in ("root", "short", "garbage", "pipe")}}
    filled = [str(tmp_path / "empty") if word == "empty" else word.format(**places) for word in words]
    done = bnfold("serve", "--no-supervise", *FREE, *filled)
    *before, line = done.err.strip().splitlines()
    assert (done.code, text in line, "Traceback" in done.err) == (code, True, False), done
    assert not [said for said in before if line.removeprefix("bnfold: ") in said], "it is said twice"


def test_a_disk_that_can_not_be_written_is_not_needed(launch: Launch, tmp_path: Path) -> None:
    """The model's folder is read-only, and so is the temporary one: serving writes nothing."""
    path = zoo.write(zoo.times(2.0), tmp_path / "double")
    path.chmod(0o444)
    path.parent.chmod(0o555)
    before = sorted(tmp_path.rglob("*"))
    server = launch(tmp_path)
    np.testing.assert_array_equal(server.infer("double", x=[[1, 2, 3]])["y"], [[2, 4, 6]])
    assert server.stop() == 0 and sorted(tmp_path.rglob("*")) == before
    path.parent.chmod(0o755)


def test_tls(launch: Launch, tmp_path: Path) -> None:
    import ssl
    import urllib.request

    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", str(key), "-out", str(cert)],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("no openssl here")
    import tritonclient.grpc as rpc

    server = launch(zoo.repository(tmp_path / "r", "double"), "--tls-cert", cert, "--tls-key", key)
    context = ssl.create_default_context(cafile=str(cert))
    with urllib.request.urlopen(f"https://127.0.0.1:{server.http}/v2/health/ready", context=context) as answer:
        assert answer.status == 200
    with rpc.InferenceServerClient(f"localhost:{server.grpc}", ssl=True, root_certificates=str(cert)) as client:
        tensor = rpc.InferInput("x", [1, 3], "FP32").set_data_from_numpy(np.ones((1, 3), np.float32))
        assert client.infer("double", [tensor]).as_numpy("y")[0, 0] == 2
    with pytest.raises(OSError):
        server.call("GET", "/v2")
    assert server.stop() == 0


def test_counters_are_the_clients(launch: Launch, tmp_path: Path) -> None:
    """Statistics, own metrics and Triton's, over both transports: each says what the clients counted."""
    import tritonclient.grpc as rpc

    server = launch(zoo.repository(tmp_path, "double"), "--max-batch", 4)
    good, bad = 37, 11
    for number in range(good):
        server.infer("double", x=np.ones((1 + number % 3, 3)))
    for _ in range(bad):
        assert server.post("/v2/models/double/infer", {"inputs": [{}]})[0] == 400
        assert server.post("/v2/models/double/infer", {"inputs": []})[0] == 400
    with rpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        tensor = rpc.InferInput("x", [2, 3], "FP32").set_data_from_numpy(np.ones((2, 3), np.float32))
        for _ in range(5):
            client.infer("double", [tensor])
        over_grpc = client.get_inference_statistics("double", as_json=True)["model_stats"][0]
    rows = sum(1 + number % 3 for number in range(good)) + 10
    stats = server.get("/v2/models/double/stats")[1]["model_stats"][0]
    assert stats["inference_stats"]["success"]["count"] == good + 5
    assert stats["inference_stats"]["fail"]["count"] == bad  # the ones that were no inference request are nobody's
    assert (stats["inference_count"], int(over_grpc["inference_count"])) == (rows, rows)
    assert stats["execution_count"] == good + 5 == sum(b["compute_infer"]["count"] for b in stats["batch_stats"])
    text = server.call("GET", "/metrics", port=server.metrics)[2].decode()
    labels = 'model="double",version="1"'
    for line in (
        f"nv_inference_request_success{{{labels}}} {good + 5}.0",
        f"nv_inference_request_failure{{{labels}}} {bad}.0",
        f"nv_inference_count{{{labels}}} {rows}.0",
        f"bnfold_request_seconds_count{{{labels}}} {good + 5}.0",
        f'bnfold_request_seconds_bucket{{le="+Inf",{labels}}} {good + 5}.0',
        f"bnfold_current_version{{{labels}}} 1.0",
        "bnfold_pending_requests 0.0",
        "bnfold_ready 1.0",
    ):
        assert line in text, line
    assert server.stop() == 0


def test_serving_needs_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A plain install has no gRPC: one line says what to install, from the supervised worker too."""
    for module in ("app", "listeners", "grpc"):  # as if nobody had imported them
        monkeypatch.delitem(sys.modules, f"bnfold.serve.{module}", raising=False)
        monkeypatch.delattr(bnfold.serve, module, raising=False)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(UsageError, match=r'serving needs grpc: pip install "bnfold\[serve\]"'):
        serve(Settings(zoo.write(zoo.times(2.0), tmp_path)))
    monkeypatch.undo()
    (tmp_path / "grpc.py").write_text("raise ModuleNotFoundError('no gRPC here', name='grpc')\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for options in ((), ("--no-supervise",)):
        assert fails("model.onnx", *FREE, *options) == (2, 'bnfold: serving needs grpc: pip install "bnfold[serve]"')


@pytest.mark.parametrize("options", [(), ("--no-supervise",)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_start_can_be_interrupted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals, options: tuple[str, ...]
) -> None:
    """A terminal interrupts the worker as well, here before its parent could end it, in the middle of an import."""
    first = "" if number == signal.SIGTERM or options else "signal.raise_signal(signal.SIGINT)"
    importing = f"import signal, time\nprint('importing', flush=True)\n{first}\ntime.sleep(60)\n"
    (tmp_path / "grpc.py").write_text(importing, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, "-m", "bnfold", "serve", "model.onnx", *FREE, *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, start_new_session=True
    )
    assert process.stdout is not None and process.stdout.readline() == "importing\n"
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number, said
    assert len(said.strip().splitlines()) <= 1 and "Traceback" not in said
    with pytest.raises(ProcessLookupError):  # nobody is left
        os.killpg(process.pid, 0)
