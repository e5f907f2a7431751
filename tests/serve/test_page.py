"""The status page: what it says is what is, and it is safe to show."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from starlette.applications import Starlette

from bnfold.serve import documents, http
from bnfold.serve.core import Core
from bnfold.serve.model import Model
from bnfold.serve.observe import Observer
from bnfold.serve.page import _bars, _latency, _span, page
from bnfold.serve.request import Request, Tensor
from bnfold.serve.settings import Settings
from bnfold.serve.shadow import Shadow
from bnfold.serve.stats import Recent
from bnfold.serve.versions import Versions
from tests.conftest import conv_bn
from tests.serve import zoo


def text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html.split("<body>")[1]))


def get(app: Starlette, token: str = "") -> tuple[int, dict[str, str], str]:
    """What a browser gets at /."""
    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers}
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, sent[1]["body"].decode()


def test_seconds_behind_us_are_drawn_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.5]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    recent = Recent(4)
    for second, count in {1000: 3, 1001: 0, 1002: 28}.items():
        now[0] = second + 0.5
        for _ in range(count):
            recent.add()
    now[0] = 1003.5
    assert recent.history() == [3, 0, 28]
    assert _bars(recent.history()) == [{"place": 0, "height": 3}, {}, {"place": 2, "height": 28}]
    assert _bars([0, 0]) == [{}, {}]


def test_it_says_what_is(tmp_path: Path) -> None:
    onnx.save(conv_bn(channels=8), tmp_path / "cnn.onnx")
    shadow = Shadow(tmp_path / "cnn.onnx", 1.0)
    core = Core(Settings(tmp_path / "cnn.onnx"), [shadow])

    async def story() -> str:
        await core.start()
        for _ in range(3):
            await core.infer(Request("cnn", "", (Tensor("x", "FP32", np.ones((1, 3, 8, 8), np.float32)),)))
            await shadow.idle()
        shown = page(core)
        await core.drain()
        assert "Not ready" in text(page(core)) and "the server is going down" in text(page(core))
        await core.close()
        return shown

    shown = text(asyncio.run(story()))
    assert "Ready 1 model served." in shown
    assert "requests answered 3" in shown
    assert "shadow equivalent 0 of 3 compared answers differ from the original" in shown
    assert "certificate none" in shown and "CPUExecutionProvider" in shown


def test_it_needs_nothing_else_and_holds_no_markup_of_others(tmp_path: Path) -> None:
    """A model that can't be loaded puts its own words into the reason."""
    zoo.repository(tmp_path, "double")
    broken = tmp_path / "b" / "1"
    broken.mkdir(parents=True)
    (broken / "model.onnx").write_bytes(b"<script>alert(1)</script>")
    core = Core(Settings(tmp_path))
    asyncio.run(core.start())
    core.names["b"].reason += "<script>alert(1)</script>"
    status, headers, shown = get(http.app(core))
    assert status == 200 and headers["content-type"].startswith("text/html") and headers["refresh"] == "5"
    assert "<script" not in shown and "&lt;script&gt;" in shown
    assert not re.search(r"(src|href)=|url\(|@import", shown)


class Foreign(Observer):
    """Of somebody else: it has its own words."""

    def status(self, model: Model) -> Mapping[str, Any]:
        return {"theirs": {"seen": 3}}


class Broken(Observer):
    def status(self, model: Model) -> Mapping[str, Any]:
        raise ZeroDivisionError("made up by a test")


def test_whatever_the_models_are_in(tmp_path: Path) -> None:
    """Loading, failed with a path that is no UTF-8, rolled back, unloaded, and watched by observers of others."""
    zoo.repository(tmp_path, "double")
    core = Core(Settings(tmp_path), [Broken(), Foreign()])
    core.names["a"], core.names["b"] = Versions("a"), Versions("b")
    core.names["a"].begin()
    core.names["b"].begin()
    core.names["b"].fail("/srv/\udcff/model.onnx: no such file")

    async def story() -> list[str]:
        shown = [page(core)]
        await core.start()
        zoo.write(zoo.times(3.0), tmp_path / "double", 2)
        await core.load("double")
        core.roll_back("double", "asked for")
        shown.append(page(core))
        assert documents.model(core, "double")["parameters"]["theirs"] == {"seen": 3}
        await core.unload("double")
        shown.append(page(core))
        await core.close()
        return shown

    loading, rolled, unloaded = (text(shown.encode().decode()) for shown in asyncio.run(story()))
    assert "a loading" in loading and "/srv/\\udcff/model.onnx" in loading
    assert "asked for" in rolled and "theirs {&#39;seen&#39;: 3}" in rolled
    assert "double unloaded" in unloaded
    assert core.observer_errors == 3  # once a version on the one page that shows them, and in the metadata


def test_no_file_is_read_for_it(tmp_path: Path) -> None:
    """Connections may have taken every descriptor of the process."""
    core = Core(Settings(zoo.repository(tmp_path, "double")))
    lowest, (soft, hard) = os.open(os.devnull, os.O_RDONLY), resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        assert "Nothing is served." in page(core)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_asks_for_the_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef")
    core = Core(Settings(zoo.repository(tmp_path / "models", "double"), token_file=str(tmp_path / "token")))
    assert get(http.app(core))[0] == 401
    assert get(http.app(core), "0123456789abcdef")[0] == 200


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0025, "≤ 2.5 ms"), (2.5, "≤ 2.5 s"), (float("inf"), "over 10 s"), (float("nan"), "–")]
)
def test_latencies(seconds: float, shown: str) -> None:
    assert _latency(seconds) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(5, "5 s"), (90, "1.5 min"), (5400, "1.5 h"), (129600, "1.5 d")])
def test_spans(seconds: float, shown: str) -> None:
    assert _span(seconds) == shown


def test_the_rate_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    recent = Recent()
    for _ in range(120):
        recent.add()
    now += 10
    assert recent.rate() == 12.0
    now += 45
    recent.add()
    assert recent.rate() == pytest.approx(121 / 55)
    now += 30
    assert recent.rate() == pytest.approx(1 / 60)
