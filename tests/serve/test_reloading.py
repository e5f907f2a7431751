"""Loading and unloading without end: no deadlock, and nothing is left behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.serve import zoo
from tests.serve.conftest import PATIENCE, SOAK, Server, assert_sound, size
from tests.serve.test_limits import GOOD

Launch = Callable[..., Server]


def test_loading_and_unloading_from_many_threads(launch: Launch, tmp_path: Path) -> None:
    """32 threads over two models: no deadlock; whatever is answered is right."""
    server = launch(zoo.repository(tmp_path, "double", "pair"))
    failures: list[Any] = []

    def work(number: int) -> None:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=PATIENCE)
        for turn in range(size(16, 1024)):
            name, verb = ("double", "pair")[turn % 2], ("load", "unload", "infer", "index")[(number + turn) % 4]
            path = {"infer": "/v2/models/double/infer", "index": "/v2/repository/index"}.get(
                verb, f"/v2/repository/models/{name}/{verb}"
            )
            connection.request("POST", path, GOOD if verb == "infer" else b"")
            answer = connection.getresponse()
            data = answer.read()
            if answer.status not in ((200, 503) if verb == "infer" else (200,)):
                failures.append((path, answer.status, data))
        connection.close()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE if not SOAK else 3600)
    assert not any(thread.is_alive() for thread in threads) and failures == []
    assert server.post("/v2/repository/models/double/load")[0] == 200
    assert_sound(server, server.worker)
    assert server.stop() == 0


def test_reloads_leave_nothing_behind(launch: Launch, tmp_path: Path) -> None:
    path = tmp_path / "double" / "1" / "model.onnx"
    zoo.repository(tmp_path, "double")
    server = launch(tmp_path)

    def reload(count: int) -> None:
        for number in range(count):
            zoo.write(zoo.times(2.0), tmp_path / "double")
            os.utime(path, ns=(number * 10**9, number * 10**9))
            assert server.post("/v2/repository/models/double/load")[0] == 200
            server.infer("double", x=[[1, 2, 3]])

    reload(20)
    memory, descriptors = server.rss(), server.descriptors()
    reload(size(80, 2000))
    assert server.rss() - memory < size(20, 100)
    assert server.descriptors() <= descriptors + 3  # a connection that is just being closed
    assert_sound(server, server.worker)
    assert server.stop() == 0
