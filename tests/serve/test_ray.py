"""`--engine ray`: the real client gets the same answers, changes reach every replica, and one that is killed is missed
by the requests it had.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnfold.errors import BnfoldError, UsageError
from bnfold.serve import supervise
from bnfold.serve.settings import Settings
from tests.serve import zoo
from tests.serve.conftest import SOAK, Server, size, start
from tests.serve.test_queue import raw, slow_body

X = np.array([[1.0, -2.0, 0.5]], np.float32)
REPLICAS = 2
ON_RAY = ("--engine", "ray")
PATIENCE = 300  # Ray is half a dozen processes, which a busy machine starts slowly


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("bnfold.serve.cluster", "bnfold.serve.replica"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BnfoldError, match=r'--engine ray needs ray: pip install "bnfold\[serve,ray\]"') as raised:
        supervise.cluster(Settings(zoo.write(zoo.times(2.0), tmp_path), engine="ray"))
    assert raised.value.exit_code == 4


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no such model": ({"source": Path("nowhere.onnx")}, "nowhere.onnx: no such file"),
    "fewer than": ({"min_replicas": 3, "max_replicas": 2}, "--max-replicas 2 is less than --min-replicas 3"),
    "half of TLS": ({"tls_cert": "cert.pem"}, "--tls-cert and --tls-key go together"),
    "HAProxy": ({"HA_PROXY": "1"}, "say so: --host 0.0.0.0"),
    "HAProxy, TLS": ({"HA_PROXY": "1", "host": "0.0.0.0", "tls_cert": "cert.pem"}, "Ray's HAProxy has no TLS"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_is_refused_before_ray_starts(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray.serve")
    options, message = REFUSED[case]
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", options.pop("HA_PROXY", "0"))
    ports = dict.fromkeys(("http_port", "grpc_port", "metrics_port"), 0)
    given = {"source": zoo.write(zoo.times(2.0), tmp_path), **ports, **options}
    with pytest.raises(BnfoldError, match=re.escape(message)) as raised:
        supervise.cluster(Settings(**given))
    assert isinstance(raised.value, UsageError) == (case != "no such model")


def test_a_fleet_is_one_server(tmp_path: Path) -> None:
    """One test, since Ray takes its time to start; what it is made of stands below, in that order."""
    pytest.importorskip("ray.serve")
    root = zoo.repository(tmp_path, "double", "slow")
    server = start(root, *ON_RAY, "--min-replicas", REPLICAS, "--max-replicas", REPLICAS, patience=PATIENCE)
    try:
        for way in ("json", "binary", "grpc"):
            a_real_client_gets_what_it_sent(server, way)
        its_first_lines_say_what_is_served_where(server)
        errors_and_streams_are_those_of_one_server(server)
        changes_reach_every_replica(server, root)
        the_metrics_are_all_replicas(server)
        a_killed_replica_loses_what_it_had_and_no_more(server)
        sigterm_loses_nothing_that_was_accepted(server)
    finally:
        server.stop()


def replicas(server: Server) -> set[int]:
    """The processes of this server's replicas: they belong to Ray's daemon, which is a child of the server."""
    table = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()[1:]]
    daemons = {pid for pid, parent, _ in rows if parent == str(server.process.pid)}
    return {int(pid) for pid, parent, name in rows if parent in daemons and name.startswith("ray::ServeReplica")}


def infer(server: Server, way: str) -> Callable[[], Any]:
    """A client of this kind, and a call of it that must be exact."""
    import tritonclient.grpc as grpc
    import tritonclient.http as http

    client: Any = (grpc if way == "grpc" else http).InferenceServerClient(
        f"127.0.0.1:{server.grpc if way == 'grpc' else server.http}"
    )
    tensor = (grpc if way == "grpc" else http).InferInput("x", X.shape, "FP32")
    tensor.set_data_from_numpy(X, **({"binary_data": way == "binary"} if way != "grpc" else {}))
    return lambda: client.infer("double", [tensor]).as_numpy("y")


def served(server: Server) -> list[str]:
    """What each of some requests finds of the model `double`, over both transports."""
    import tritonclient.grpc as grpc

    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        rows: list[Any] = [item for _ in range(4) for item in client.get_model_repository_index().models]
    found = [f"{row.version} {row.state}" for row in rows if row.name == "double"]
    for _ in range(4):
        _, index = server.post("/v2/repository/index")
        found += [f"{row['version']} {row['state']}" for row in index if row["name"] == "double"]
    return sorted(set(found))


def a_real_client_gets_what_it_sent(fleet: Server, way: str) -> None:
    ask = infer(fleet, way)
    for _ in range(4):
        np.testing.assert_array_equal(ask(), 2 * X)


def its_first_lines_say_what_is_served_where(fleet: Server) -> None:
    line = fleet.started
    assert line["engine"] == "ray" and line["replicas"] == f"{REPLICAS}–{REPLICAS}" and line["host"] == "127.0.0.1"
    told = {row["model"]: row["replicas"] for row in fleet.lines if row["message"] == "served"}
    assert told == {"double": REPLICAS, "slow": REPLICAS}


def errors_and_streams_are_those_of_one_server(fleet: Server) -> None:
    import tritonclient.grpc as grpc

    status, answer = fleet.post("/v2/models/nothing/infer", {"inputs": []})
    assert status == 404 and "there is no model 'nothing'" in answer["error"]
    with grpc.InferenceServerClient(f"127.0.0.1:{fleet.grpc}") as client:
        tensor = grpc.InferInput("x", (1, 2), "FP32").set_data_from_numpy(np.zeros((1, 2), np.float32))
        with pytest.raises(grpc.InferenceServerException, match="axis 1 must be 3") as raised:
            client.infer("double", [tensor])
        assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
        answers: list[tuple[Any, Any]] = []
        came = threading.Semaphore(0)
        client.start_stream(lambda result, error: (answers.append((result, error)), came.release()))  # type: ignore[func-returns-value]
        client.async_stream_infer("double", [tensor])
        client.async_stream_infer("double", [grpc.InferInput("x", X.shape, "FP32").set_data_from_numpy(X)])
        assert came.acquire(timeout=30) and came.acquire(timeout=30)
        client.stop_stream()
    assert answers[0][0] is None and "axis 1 must be 3" in str(answers[0][1])
    np.testing.assert_array_equal(answers[1][0].as_numpy("y"), 2 * X)


def changes_reach_every_replica(fleet: Server, root: Path) -> None:
    zoo.write(zoo.times(2.0), root / "double", 2)
    assert fleet.post("/v2/repository/models/double/load")[0] == 200
    assert served(fleet) == ["1 READY", "2 READY"]
    assert fleet.post("/v2/repository/models/double/unload")[0] == 200
    assert served(fleet) == [" UNAVAILABLE"]
    assert fleet.post("/v2/repository/models/double/load")[0] == 200
    assert served(fleet) == ["2 READY"]


def the_metrics_are_all_replicas(fleet: Server) -> None:
    ask = infer(fleet, "binary")
    for _ in range(8):
        ask()
    _, _, text = fleet.call("GET", "/metrics", port=fleet.metrics)
    found = re.findall(r'^bnfold_build_info\{replica="(\w+)",version=', text.decode(), re.M)
    assert len(set(found)) == len(found) == REPLICAS


def a_killed_replica_loses_what_it_had_and_no_more(fleet: Server) -> None:
    """Twelve clients over all ways: at most one failure each, answers go on within a second, another replica comes."""
    clients, stop = size(6, 12), threading.Event()
    ended: list[float] = []
    failed: list[str] = []
    before = replicas(fleet)
    assert len(before) == REPLICAS

    def work(way: str) -> None:
        ask = infer(fleet, way)
        while not stop.is_set():
            try:
                np.testing.assert_array_equal(ask(), 2 * X)
                ended.append(time.monotonic())
            except AssertionError:
                raise
            except Exception as error:  # each client has its own for a lost connection
                failed.append(repr(error)[:300])

    threads = [threading.Thread(target=work, args=(("json", "binary", "grpc")[i % 3],)) for i in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(size(1, 5))
    for _ in range(size(1, 3)):
        victims = replicas(fleet)
        deadline = time.monotonic() + 60
        while len(victims) < REPLICAS and time.monotonic() < deadline:
            time.sleep(0.2)
            victims = replicas(fleet)
        os.kill(min(victims), signal.SIGKILL)
        time.sleep(size(3, 10))
    stop.set()
    for thread in threads:
        thread.join(60)
    assert len(failed) <= clients * size(1, 3), failed
    # CI's machine may stand still for longer than a replica does.
    assert max(later - earlier for earlier, later in pairwise(ended)) < size(20, 1)
    deadline = time.monotonic() + 60
    while len(replicas(fleet)) < REPLICAS and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(replicas(fleet)) == REPLICAS and replicas(fleet) != before


def sigterm_loses_nothing_that_was_accepted(fleet: Server) -> None:
    """What is under way is answered, and the exit code is 0."""

    async def story() -> list[tuple[int, bytes]]:
        body = slow_body(20_000)
        flying = [asyncio.ensure_future(raw(fleet.http, "/v2/models/slow/infer", body)) for _ in range(8)]
        pending = 0
        while pending < 8 and not any(f.done() for f in flying):
            _, text = await raw(fleet.metrics, "/metrics", None)
            pending = sum(int(float(n)) for n in re.findall(rb"^bnfold_pending_requests\{.*\} (\S+)$", text, re.M))
        assert pending == 8
        fleet.process.send_signal(signal.SIGTERM)
        return await asyncio.gather(*flying)

    answers = asyncio.run(story())
    assert [status for status, _ in answers] == [200] * 8
    assert fleet.process.wait(PATIENCE) == 0
    assert not replicas(fleet)


@pytest.mark.skipif(not SOAK, reason="starts Ray three times more")
@pytest.mark.parametrize("case", ["a broken model", "HAProxy", "autoscaling"])
def test_in_the_soak(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.serve")
    if case == "a broken model":
        path = tmp_path / "model.onnx"
        path.write_bytes(b"garbage")
        ports = [word for name in ("http", "grpc", "metrics") for word in (f"--{name}-port", "0")]
        words = [sys.executable, "-m", "bnfold", "serve", str(path), *ON_RAY, *ports]
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == 4 and "is not an ONNX model" in done.stderr.splitlines()[-1]
        return
    options: tuple[object, ...] = ("--max-replicas", 2)
    if case == "HAProxy":
        monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
        options = ("--min-replicas", 2, "--host", "0.0.0.0")
    server = start(zoo.repository(tmp_path, "double", "slow"), *ON_RAY, *options, patience=PATIENCE)
    try:
        np.testing.assert_array_equal(infer(server, "binary")(), 2 * X)
        if case == "autoscaling":
            asyncio.run(_load(server))
            assert len(replicas(server)) == 2
    finally:
        assert server.stop() == 0


async def _load(server: Server) -> None:
    async def work() -> None:
        while time.monotonic() < end:
            status, text = await raw(server.http, "/v2/models/slow/infer", slow_body(500))
            assert status == 200, text

    end = time.monotonic() + 25
    await asyncio.gather(*(work() for _ in range(10)))
