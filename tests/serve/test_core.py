"""The core without a transport: observers, admission, roll-back, cancellation, readiness."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnfold.errors import ModelError
from bnfold.serve.core import Core
from bnfold.serve.errors import Refused
from bnfold.serve.model import Model
from bnfold.serve.observe import Finished, Observer
from bnfold.serve.request import Request, Tensor
from bnfold.serve.settings import Settings
from tests.serve import zoo

X = np.array([[1.0, 2.0, 3.0]], np.float32)


def request(model: str = "double", version: str = "") -> Request:
    return Request(model, version, (Tensor("x", "FP32", X),))


def run(core: Core, story: Coroutine[Any, Any, None]) -> None:
    async def go() -> None:
        try:
            async with asyncio.timeout(60):
                await story
        finally:
            await core.drain()
            await core.close()

    asyncio.run(go())


class Watcher(Observer):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.batches: list[Finished] = []

    def attach(self, core: Core) -> None:
        self.told.append("attach")

    def admit(self, model: Model) -> None:
        self.told.append(("admit", model.version))
        model.properties["admitted"] = True

    def serving(self, model: Model) -> None:
        self.told.append(("serving", model.version))

    def retired(self, model: Model) -> None:
        self.told.append(("retired", model.version))

    def finished(self, batch: Finished) -> None:
        self.batches.append(batch)

    def metrics(self) -> Iterable[Any]:
        from prometheus_client.core import GaugeMetricFamily

        return [GaugeMetricFamily("watcher_batches", "Batches seen", len(self.batches))]

    def status(self, model: Model) -> Mapping[str, Any]:
        return {"seen": len(self.batches)}

    async def close(self) -> None:
        self.told.append("close")


def test_an_observer_is_told_of_everything(tmp_path: Path) -> None:
    zoo.repository(tmp_path, "double")
    watcher = Watcher()
    core = Core(Settings(tmp_path), [watcher])

    async def story() -> None:
        await core.start()
        answer = await core.infer(request())
        zoo.write(zoo.times(4.0), tmp_path / "double", 2)
        await core.load("double")
        core.roll_back("double", "an alarm")
        assert (await core.infer(request())).version == "1"
        (first, _), outputs = watcher.batches, answer.outputs
        assert (first.model.version, first.rows, first.requests) == ("1", 1, 1) and first.timings.run > 0
        np.testing.assert_array_equal(first.inputs["x"], X)
        np.testing.assert_array_equal(first.outputs["y"], outputs["y"])
        from bnfold.serve import documents, metrics

        shown = documents.model(core, "double")["parameters"]
        assert shown["admitted"] is True and shown["seen"] == 2
        assert b"watcher_batches 2.0" in metrics.render(metrics.registry(core))

    run(core, story())
    assert watcher.told == [
        "attach", ("admit", "1"), ("serving", "1"), ("admit", "2"), ("retired", "1"), ("serving", "2"),
        ("retired", "2"), ("serving", "1"), "close",
    ]  # fmt: skip


class Broken(Observer):
    """Fails wherever it can."""

    def serving(self, model: Model) -> None:
        raise ZeroDivisionError

    def finished(self, batch: Finished) -> None:
        raise ZeroDivisionError


def test_a_broken_observer_costs_no_request(tmp_path: Path) -> None:
    zoo.repository(tmp_path, "double")
    core = Core(Settings(tmp_path), [Broken()])

    async def story() -> None:
        await core.start()
        for _ in range(3):
            np.testing.assert_array_equal((await core.infer(request())).outputs["y"], 2 * X)
        await asyncio.sleep(0)
        assert core.observer_errors == 4

    run(core, story())


class Strict(Observer):
    """Admits no second version."""

    def admit(self, model: Model) -> None:
        if model.version != "1":
            raise ModelError("its digest is not that of its certificate; fold it again")


def test_a_version_that_is_not_admitted_is_not_served(tmp_path: Path) -> None:
    zoo.repository(tmp_path, "double")
    core = Core(Settings(tmp_path), [Strict()])

    async def story() -> None:
        await core.start()
        zoo.write(zoo.times(4.0), tmp_path / "double", 2)
        with pytest.raises(Refused, match="not that of its certificate") as raised:
            await core.load("double")
        assert raised.value.status == 400
        assert (await core.infer(request())).version == "1" and core.not_ready() == []

    run(core, story())


def test_going_back_needs_somewhere_to_go(tmp_path: Path) -> None:
    zoo.repository(tmp_path, "double")
    core = Core(Settings(tmp_path))

    async def story() -> None:
        await core.start()
        with pytest.raises(Refused, match="no earlier version"):
            core.roll_back("double", "asked for")
        with pytest.raises(Refused, match="no model 'x'"):
            core.roll_back("x", "asked for")

    run(core, story())


def test_a_cancelled_call_leaves_the_queue(tmp_path: Path) -> None:
    zoo.repository(tmp_path, "slow")
    core = Core(Settings(tmp_path, concurrency=1, threads=1))

    def slow(n: int) -> Request:
        return Request("slow", "", (Tensor("x", "FP32", X), Tensor("n", "INT64", np.array(n))))

    async def story() -> None:
        await core.start()
        first = asyncio.ensure_future(core.infer(slow(30_000)))
        others = [asyncio.ensure_future(core.infer(slow(1))) for _ in range(20)]
        await asyncio.sleep(0.02)
        assert core.pending == 21
        for other in others:
            other.cancel()
        await first
        await asyncio.gather(*others, return_exceptions=True)
        stats = core.versions("slow").stats["1"]
        assert (stats.cancelled, stats.executions, core.pending) == (20, 1, 0)

    run(core, story())


def test_a_provider_that_runs_nothing_makes_it_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when ONNX Runtime put every node on the CPU."""
    from bnfold import runtime

    zoo.repository(tmp_path, "double")
    core = Core(Settings(tmp_path))

    async def story() -> None:
        await core.start()
        assert core.not_ready() == [] and core.ready("double")
        serving = core.versions("double").current
        assert serving is not None
        session = runtime.session(tmp_path / "double" / "1" / "model.onnx", optimize=True)
        serving.model.unproven = runtime.unproven(session, "cuda")
        assert core.not_ready() == ["double: no node of the model runs on cuda: 1 run elsewhere"]
        assert not core.ready("double")

    run(core, story())


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_does_not_run_here_is_an_error(tmp_path: Path, provider: str) -> None:
    from bnfold import runtime
    from bnfold.errors import ProviderError

    if provider in runtime.available_providers() and runtime.usable(provider) is None:
        pytest.skip(f"{provider} runs here")
    zoo.repository(tmp_path, "double")
    core = Core(Settings(tmp_path, provider=provider))

    async def story() -> None:
        with pytest.raises((ProviderError, ModelError), match=provider):
            await core.start()

    run(core, story())


def test_an_allowed_library_is_loaded_and_no_other(tmp_path: Path) -> None:
    """It is not a library at all, which only ONNX Runtime can say, once it was allowed."""
    path = zoo.write(zoo.times(2.0), tmp_path / "double")
    library = path.parent / "libops.so"
    library.write_bytes(b"\x7fELF")
    for allowed, text in (((), "allow it by --custom-ops"), ((str(library.resolve()),), "libops.so")):
        core = Core(Settings(tmp_path, custom_ops=allowed))

        async def story(core: Core = core, text: str = text) -> None:
            with pytest.raises(ModelError, match=text):
                await core.start()

        run(core, story())


def test_one_broken_model_is_told_once_and_several_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The error that is raised is not logged as well: whoever catches it says it."""
    for name in ("a", "b"):
        zoo.write(zoo.times(2.0), tmp_path / name).write_bytes(b"garbage")
    core = Core(Settings(tmp_path))

    async def story() -> None:
        with pytest.raises(ModelError, match=str(tmp_path / "a")):
            await core.start()

    run(core, story())
    assert [record.fields["model"] for record in caplog.records if record.message == "not served"] == ["b"]  # type: ignore[attr-defined]
