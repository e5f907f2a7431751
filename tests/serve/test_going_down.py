"""Going down and being killed: no accepted request is lost, and who dies is replaced."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serve import zoo
from tests.serve.conftest import Server, assert_sound
from tests.serve.test_queue import raw, slow_body

Launch = Callable[..., Server]


def test_sigterm_loses_nothing_that_was_accepted(launch: Launch, tmp_path: Path) -> None:
    """64 in flight: not ready at once, live still, new ones refused, the old ones answered, exit code 0."""
    server = launch(zoo.repository(tmp_path, "slow"), "--concurrency", 1, "--threads", 1)
    accepted = 64

    async def story() -> list[tuple[int, bytes]]:
        bodies = [slow_body(120_000), *[slow_body(20)] * 63]  # the first keeps the others waiting
        flying = [asyncio.ensure_future(raw(server.http, "/v2/models/slow/infer", body)) for body in bodies]
        while True:
            _, text = await raw(server.http, "/metrics", None)
            if b"bnfold_pending_requests 64.0" in text:
                break
            assert not all(f.done() for f in flying)
            await asyncio.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait_for, "going down")
        await asyncio.sleep(0.5)  # it goes on listening, to say so
        status, text = await raw(server.http, "/v2/health/ready", None)
        assert status == 503 and b"going down" in text
        assert (await raw(server.http, "/v2/health/live", None))[0] == 200
        status, text = await raw(server.http, "/v2/models/slow/infer", slow_body(1))
        assert status == 503 and b"going down" in text
        return await asyncio.gather(*flying)

    answers = asyncio.run(story())
    start = time.monotonic()
    assert Counter(status for status, _ in answers) == {200: accepted}
    assert all(json.loads(content)["outputs"][0]["data"] == [1, 2, 3] for _, content in answers)
    assert server.process.wait(30) == 0 and time.monotonic() - start < 30


@pytest.mark.parametrize("options", [(), ("--no-supervise",)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_connections_do_not_hold_it_up(
    launch: Launch, tmp_path: Path, number: signal.Signals, options: tuple[str, ...]
) -> None:
    server = launch(zoo.repository(tmp_path, "double"), *options)
    idle = [socket.create_connection(("127.0.0.1", port)) for port in (server.http, server.grpc, server.metrics)]
    start = time.monotonic()
    assert server.stop(number) == 0
    assert time.monotonic() - start < 10
    for place in idle:
        place.close()


def test_what_can_not_be_finished_is_cut_off(launch: Launch, tmp_path: Path) -> None:
    server = launch(zoo.repository(tmp_path, "slow"), "--concurrency", 1, "--threads", 1, "--drain", "0.5")

    async def story() -> None:
        flying = asyncio.ensure_future(raw(server.http, "/v2/models/slow/infer", slow_body(300_000)))
        await asyncio.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait_for, "not drained in time")
        flying.cancel()

    asyncio.run(story())
    assert server.process.wait(30) == 0


def test_a_worker_that_is_killed_comes_back(launch: Launch, tmp_path: Path) -> None:
    server = launch(zoo.repository(tmp_path, "double"))
    for turn in (1, 2):
        worker = server.worker
        os.kill(worker, signal.SIGKILL)
        start = time.monotonic()
        # Not refused meanwhile: the connection waits until there is somebody to answer it.
        assert server.call("GET", "/v2/health/live")[0] == 200
        server.wait_for("ready")
        assert server.worker != worker
        assert_sound(server, server.worker)
        assert time.monotonic() - start < 10
        assert f"bnfold_worker_restarts_total {turn}.0" in server.call("GET", "/metrics")[2].decode()
    assert server.stop() == 0


def test_a_worker_without_its_parent_goes_down(launch: Launch, tmp_path: Path) -> None:
    server = launch(zoo.repository(tmp_path, "double"))
    worker = server.worker
    server.process.kill()
    server.wait_for("gone")
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
