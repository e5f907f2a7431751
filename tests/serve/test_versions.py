"""Changing models: nobody is told anything wrong, and what can not be loaded changes nothing."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.serve import zoo
from tests.serve.conftest import PATIENCE, Server, assert_sound, size
from tests.serve.test_limits import GOOD

Launch = Callable[..., Server]


def test_hot_swaps_under_load(launch: Launch, tmp_path: Path) -> None:
    """16 clients all the while: no error, and each answer is exactly one version's, the new one's after its load."""
    root = zoo.repository(tmp_path, "double")
    server = launch(root, "--concurrency", 2)
    factors, loaded, stop, errors = {1: 2.0}, [1], threading.Event(), []
    seen: Counter[str] = Counter()

    def client(number: int) -> None:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=30)
        while not stop.is_set():
            settled = loaded[-1]
            connection.request("POST", "/v2/models/double/infer", GOOD)
            answer = connection.getresponse()
            content = json.loads(answer.read())
            version = content.get("model_version", "0")
            y = content.get("outputs", [{}])[0].get("data")
            if answer.status != 200 or y != [k * factors.get(int(version), np.nan) for k in (1, 2, 3)]:
                errors.append((answer.status, content))
            if int(version) < settled:
                errors.append((settled, content))
            seen[version] += 1
        connection.close()

    clients = [threading.Thread(target=client, args=(k,)) for k in range(16)]
    for thread in clients:
        thread.start()
    swaps = size(25, 200)
    for version in range(2, swaps + 2):
        factors[version] = version * 2.0
        zoo.write(zoo.times(factors[version]), root / "double", version)
        status, answer = server.post("/v2/repository/models/double/load")
        assert status == 200, answer
        loaded.append(version)
    stop.set()
    for thread in clients:
        thread.join(PATIENCE)
    assert errors == [] and len(seen) > swaps // 2
    assert server.stop() == 0


def test_the_same_version_written_anew(launch: Launch, tmp_path: Path) -> None:
    """A file that is replaced in place is another model; one that is not is not loaded again."""
    path = tmp_path / "m.onnx"
    onnx.save(zoo.times(2.0), path)
    server = launch(path, "--name", "double")
    first = server.get("/v2/models/double")[1]["parameters"]["sha256"]
    assert server.post("/v2/repository/models/double/load")[0] == 200
    assert "bnfold_swaps_total{model=\"double\"} 1.0" in server.call("GET", "/metrics")[2].decode()
    onnx.save(zoo.times(5.0), tmp_path / "new")
    (tmp_path / "new").replace(path)
    assert server.post("/v2/repository/models/double/load")[0] == 200
    assert server.get("/v2/models/double")[1]["parameters"]["sha256"] != first
    np.testing.assert_array_equal(server.infer("double", x=[[1, 2, 3]])["y"], [[5, 10, 15]])
    assert server.post("/v2/repository/models/double/rollback")[0] == 200
    np.testing.assert_array_equal(server.infer("double", x=[[1, 2, 3]])["y"], [[2, 4, 6]])
    assert server.stop() == 0


@pytest.fixture(scope="module")
def changing(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> tuple[Server, Path]:
    root = zoo.repository(tmp_path_factory.mktemp("changing"), "double")
    return launch(root), root


def test_versions_by_number_and_back(changing: tuple[Server, Path]) -> None:
    server, root = changing
    zoo.write(zoo.times(3.0), root / "double", 2)
    assert server.post("/v2/repository/models/double/load")[0] == 200
    answers = [json.loads(server.call("POST", f"/v2/models/double{v}/infer", GOOD)[2]) for v in ("", "/versions/1")]
    assert [a["model_version"] for a in answers] == ["2", "1"]
    assert [a["outputs"][0]["data"] for a in answers] == [[3, 6, 9], [2, 4, 6]]
    assert server.get("/v2/models/double")[1]["versions"] == ["1", "2"]
    status, answer = server.post("/v2/repository/models/double/rollback")
    assert status == 200, answer
    np.testing.assert_array_equal(server.infer("double", x=[[1, 2, 3]])["y"], [[2, 4, 6]])
    index = server.post("/v2/repository/index")[1]
    assert [(m["version"], m["state"]) for m in index] == [("1", "READY"), ("2", "READY")]
    (root / "double" / "2" / "model.onnx").unlink()
    (root / "double" / "2").rmdir()


def test_unloading_and_loading_again(changing: tuple[Server, Path]) -> None:
    server, root = changing
    zoo.write(zoo.pair(), root / "pair")
    assert server.post("/v2/models/pair/infer", {"inputs": []})[0] == 404
    assert server.post("/v2/repository/models/pair/load")[0] == 200
    assert server.get("/v2/models/pair/ready") == (200, {"name": "pair", "ready": True})
    assert server.post("/v2/repository/models/pair/unload")[0] == 200
    assert server.get("/v2/models/pair/ready")[0] == 503
    status, answer = server.post("/v2/models/pair/infer", {"inputs": []})
    assert status == 503 and "unloaded" in answer["error"]
    # What was unloaded on purpose is no reason not to be ready.
    assert server.get("/v2/health/ready")[0] == 200
    states = {m["name"]: (m["state"], m["reason"]) for m in server.post("/v2/repository/index")[1]}
    assert states["pair"] == ("UNAVAILABLE", "unloaded")
    assert all(m["name"] != "pair" for m in server.post("/v2/repository/index", {"ready": True})[1])
    assert server.post("/v2/repository/models/nobody/load")[0] == 404
    assert server.post("/v2/repository/models/nobody/unload")[0] == 404


def empty(place: Path) -> None:
    (place / "model.onnx").write_bytes(b"")


def cut(place: Path) -> None:
    data = zoo.MODELS["cnn"]().SerializeToString()
    (place / "model.onnx").write_bytes(data[: len(data) // 2])


def garbage(place: Path) -> None:
    (place / "model.onnx").write_bytes(os.urandom(1000))


def missing(place: Path) -> None:
    pass


def a_folder(place: Path) -> None:
    (place / "model.onnx").mkdir()


def lfs(place: Path) -> None:
    (place / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _external(place: Path, location: str) -> None:
    model = zoo.times(2.0)
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    model.graph.initializer.append(tensor)
    model.graph.node.add(op_type="Identity", input=["w"], output=["v"])
    (place / "model.onnx").write_bytes(model.SerializeToString())


def no_data(place: Path) -> None:
    _external(place, "weights.bin")


def outside(place: Path) -> None:
    (place.parent.parent.parent / "secret.bin").write_bytes(b"\0" * 12)
    _external(place, "../../../secret.bin")


def absolute(place: Path) -> None:
    _external(place, "/etc/passwd")


def a_link_out(place: Path) -> None:
    other = place.parent.parent.parent / "elsewhere.onnx"
    onnx.save(zoo.times(9.0), other)
    (place / "model.onnx").symlink_to(other)


def an_operator_nobody_has(place: Path) -> None:
    model = zoo.times(2.0)
    model.opset_import.add(domain="com.nobody", version=1)
    model.graph.node[-1].domain, model.graph.node[-1].op_type = "com.nobody", "Nothing"
    (place / "model.onnx").write_bytes(model.SerializeToString())


def a_library(place: Path) -> None:
    onnx.save(zoo.times(9.0), place / "model.onnx")
    (place / "libops.so").write_bytes(b"\x7fELF")


def a_library_in_the_configuration(place: Path) -> None:
    onnx.save(zoo.times(9.0), place / "model.onnx")
    (place.parent / "config.pbtxt").write_text('model_operations { op_library_filename: "ops" }')


def a_sequence(place: Path) -> None:
    onnx.save(zoo.parse("(float[3] x) => (seq(float[3]) y) { y = SequenceConstruct(x) }"), place / "model.onnx")


def never_runs(place: Path) -> None:
    model = zoo.parse("(float[N,3] x) => (float[N,2] y) { s = Constant <value_ints = [7, 2]> ()  y = Reshape(x, s) }")
    onnx.save(model, place / "model.onnx")


BROKEN = {
    f.__name__: f
    for f in (empty, cut, garbage, missing, a_folder, lfs, no_data, outside, absolute, a_link_out, a_library,
              an_operator_nobody_has, a_library_in_the_configuration, a_sequence, never_runs)
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_version_is_refused_and_the_old_one_serves_on(changing: tuple[Server, Path], case: str) -> None:
    server, root = changing
    place = root / "double" / "99"
    place.mkdir()
    BROKEN[case](place)
    try:
        status, answer = server.post("/v2/repository/models/double/load")
        assert status == 400 and answer["error"], answer
        assert len(answer["error"].splitlines()) == 1
        assert_sound(server, server.worker)
        assert server.get("/v2/models/double")[1]["versions"] == ["1"] or "99" not in server.get("/v2/models/double")[1]
    finally:
        for path in (*place.iterdir(), root / "double" / "config.pbtxt"):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        place.rmdir()


def test_a_repository_of_which_one_model_is_broken(launch: Launch, tmp_path: Path) -> None:
    """The others are served; the whole is not ready, and says why."""
    zoo.repository(tmp_path, "double")
    garbage_folder = tmp_path / "broken" / "1"
    garbage_folder.mkdir(parents=True)
    garbage(garbage_folder)
    server = launch(tmp_path, ready="not ready")
    status, answer = server.get("/v2/health/ready")
    assert status == 503 and "broken" in answer["reasons"][0]
    assert server.get("/v2/models/double/ready")[0] == 200
    np.testing.assert_array_equal(server.infer("double", x=[[1, 2, 3]])["y"], [[2, 4, 6]])
    zoo.write(zoo.pair(), tmp_path / "broken")
    assert server.post("/v2/repository/models/broken/load")[0] == 200
    assert server.get("/v2/health/ready")[0] == 200
    assert server.stop() == 0
