"""What looks on: it sees a planted fault, and is silent on ten thousand clean requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold.arrays import Array
from bnfold.audit import audit
from bnfold.errors import ModelError, OutputError
from bnfold.serve import capture as capture_module
from bnfold.serve import drift as drift_module
from bnfold.serve.background import Background, alive
from bnfold.serve.capture import Capture
from bnfold.serve.core import Core
from bnfold.serve.drift import Drift
from bnfold.serve.errors import Refused
from bnfold.serve.observe import Finished, Observer
from bnfold.serve.request import Request, Tensor
from bnfold.serve.settings import Settings
from bnfold.serve.shadow import Shadow
from bnfold.serve.watchers import watchers
from tests.conftest import conv_bn
from tests.serve.conftest import size

Story = Callable[[Core], Coroutine[Any, Any, None]]


def digits() -> Array:
    from sklearn.datasets import load_digits

    images = load_digits().images.astype(np.float32)[:, None] / 16.0
    return np.repeat(images, 3, axis=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose BatchNorms describe the digits, folded, and folded wrongly in one channel."""
    folder = tmp_path_factory.mktemp("models")
    onnx.save(conv_bn(channels=8), folder / "random.onnx")
    audit(folder / "random.onnx", data={"x": digits()[:1200]}, recalibrate=True).save(folder / "original.onnx")
    bnfold.optimize(folder / "original.onnx", verify_options={"samples": 2}).save(folder / "folded.onnx")
    wrong = onnx.load(folder / "folded.onnx")
    bias = min(wrong.graph.initializer, key=lambda t: len(t.raw_data))
    values = numpy_helper.to_array(bias).copy()
    values[3] *= 1.001
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    del wrong.metadata_props[:]
    onnx.save(wrong, folder / "wrong.onnx")
    return folder


def story(source: Path, observers: Sequence[Observer], tell: Story) -> None:
    async def go() -> None:
        core = Core(Settings(source, name=None if source.is_dir() else "m", threads=1), observers)
        async with asyncio.timeout(300):
            await core.start()
            await tell(core)
            await core.drain()
            await core.close()

    asyncio.run(go())


async def ask(core: Core, x: Array) -> None:
    await core.infer(Request("m", "", (Tensor("x", "FP32", x),)))


async def settled(core: Core) -> None:
    for observer in core.observers:
        assert isinstance(observer, Background)
        await observer.idle()
    await asyncio.sleep(0)


def test_clean_requests_raise_no_alarm(models: Path, tmp_path: Path) -> None:
    """Held-out digits, most of which both observers really look at."""
    capture = Capture(tmp_path)
    shadow = Shadow(models / "original.onnx", 0.2, capture=capture)
    drift = Drift(0.2, capture)
    images, count = digits()[1200:], size(2_000, 10_000)

    async def tell(core: Core) -> None:
        rng = np.random.default_rng(0)
        for _ in range(count):
            await ask(core, images[rng.integers(len(images), size=1)])
        await settled(core)
        model = core.versions("m").pick().model
        seen, frozen = shadow.status(model)["shadow"], drift.status(model)["drift"]
        assert seen["state"] == "equivalent" and seen["differ"] == seen["argmax_flips"] == 0
        assert seen["compared"] > 0.02 * count and seen["judged"] >= 4 and 0.0 < seen["worst_ratio"] < 1.0
        assert frozen["windows"] == 0 or frozen["state"] == "as frozen"
        assert shadow.failures == drift.failures == core.observer_errors == 0

    story(models / "folded.onnx", [shadow, drift], tell)
    assert not list(tmp_path.iterdir())


def test_a_channel_that_is_off_is_an_alarm(models: Path, tmp_path: Path) -> None:
    shadow = Shadow(models / "original.onnx", 1.0, capture=Capture(tmp_path))
    images = digits()[1200:]

    async def tell(core: Core) -> None:
        for image in images[:20]:
            await ask(core, image[None])
            await settled(core)
        model = core.versions("m").pick().model
        seen = shadow.status(model)["shadow"]
        assert seen["state"] == "alarm" and seen["differ"] >= 2 and seen["worst_ratio"] > 1.0
        (alarm,) = [f for f in shadow.metrics() if f.name == "bnfold_shadow_alarm"]
        assert [s.value for s in alarm.samples] == [1.0]

    story(models / "wrong.onnx", [shadow], tell)
    kept = sorted(tmp_path.glob("*.npz"))
    assert kept
    verdict = bnfold.verify(models / "original.onnx", models / "wrong.onnx", inputs=kept[0])
    assert verdict.status == "mismatch"


@pytest.mark.parametrize("roll_back", [True, False])
def test_a_version_that_differs_is_rolled_back(models: Path, tmp_path: Path, roll_back: bool) -> None:
    """Each version has its original beside it; the second's model is not what that says."""
    for version, name in ((1, "folded"), (2, "wrong")):
        place = tmp_path / "m" / str(version)
        place.mkdir(parents=True)
        (place / "model.onnx").write_bytes((models / f"{name}.onnx").read_bytes())
        (place / "original.onnx").write_bytes((models / "original.onnx").read_bytes())
    (tmp_path / "m" / "2").rename(tmp_path / "later")
    shadow = Shadow(None, 1.0, roll_back=roll_back)
    images = digits()[1200:]

    async def tell(core: Core) -> None:
        (tmp_path / "later").rename(tmp_path / "m" / "2")
        await core.load("m")
        assert core.versions("m").pick().model.version == "2"
        for image in images[:20]:
            await ask(core, image[None])
            await settled(core)
        assert core.versions("m").pick().model.version == ("1" if roll_back else "2")
        assert ("differs from its original" in core.versions("m").reason) == roll_back

    story(tmp_path, [shadow], tell)


def test_inverted_images_are_drift(models: Path, tmp_path: Path) -> None:
    drift = Drift(1.0, Capture(tmp_path))
    images = digits()[1200:]

    async def tell(core: Core) -> None:
        model = core.versions("m").pick().model

        async def show(shown: Array) -> dict[str, Any]:
            for start in range(0, 512, 32):
                await ask(core, shown[start : start + 32])
                await settled(core)
            return dict(drift.status(model)["drift"])

        clean = await show(images)
        assert clean["state"] == "as frozen" and clean["windows"] == 512 // drift_module.WINDOW
        inverted = await show(1.0 - images)
        assert inverted["state"] == "drifted" and inverted["distance"] > clean["distance"]
        assert (await show(images))["state"] == "as frozen"

    story(models / "folded.onnx", [drift], tell)
    assert len(list(tmp_path.glob("*.npz"))) == 1


def test_another_model_is_no_original(models: Path, tmp_path: Path) -> None:
    onnx.save(conv_bn(channels=5), tmp_path / "other.onnx")
    core = Core(Settings(models / "folded.onnx", name="m"), [Shadow(tmp_path / "other.onnx", 1.0)])
    with pytest.raises((ModelError, Refused), match="is not the original of"):
        asyncio.run(core.start())


@pytest.mark.parametrize(("stamp", "is_source"), [("", True), ("exported on another day", False)])
def test_a_shadow_says_whether_it_is_the_source(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, stamp: str, is_source: bool
) -> None:
    """The same network in another file is a good shadow, but not the file that the certificate names."""
    shadow = Shadow(tmp_path / "original.onnx", 1.0)
    content = onnx.load(models / "original.onnx")
    if stamp:
        content.doc_string = stamp
        onnx.save(content, tmp_path / "original.onnx")
    else:
        (tmp_path / "original.onnx").write_bytes((models / "original.onnx").read_bytes())

    async def tell(core: Core) -> None:
        current = core.versions("m").current
        assert current is not None and shadow.status(current.model)["shadow"]["is_source"] is is_source

    story(models / "folded.onnx", [shadow], tell)
    told = [record for record in caplog.records if "is not the file that this model was made of" in record.message]
    assert len(told) == (not is_source)


def test_the_folder_of_captures_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "MOST_FILES", 2)
    kept = [Capture(tmp_path).keep("a/b", "1", {"x": np.zeros(3)}) for _ in range(3)]
    assert kept[2] is None and len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(capture_module, "MOST_BYTES", 100)
    assert Capture(tmp_path / "new").keep("m", "1", {"x": np.zeros(100)}) is None
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't be kept there"):
        Capture(tmp_path / "file")


class Slow(Background):
    """Looks at a batch until it is let go."""

    def __init__(self) -> None:
        super().__init__(0.5)
        self.seen: list[Finished] = []
        self.go = threading.Event()

    def look(self, batch: Finished) -> None:
        self.seen.append(batch)
        assert self.go.wait(30)


def test_a_busy_observer_skips_and_holds_nobody_up(models: Path) -> None:
    slow = Slow()

    async def tell(core: Core) -> None:
        for _ in range(21):
            await ask(core, digits()[:1])
        assert len(slow.seen) == 1 and slow.skipped == 9
        slow.go.set()
        await slow.idle()

    story(models / "folded.onnx", [slow], tell)


def test_settings_choose_the_watchers(tmp_path: Path) -> None:
    def kinds(**options: Any) -> list[str]:
        return [type(watcher).__name__ for watcher in watchers(Settings(tmp_path, **options))]

    assert kinds() == ["Shadow", "Drift"]
    assert kinds(shadow_rate=0.0, drift_rate=0.0) == []
    assert kinds(shadow_rate=0.0, capture=str(tmp_path / "kept")) == ["Drift"] and (tmp_path / "kept").is_dir()


def test_a_scrape_survives_a_load() -> None:
    """The loading thread adds a version whenever it gets its turn; one that has gone is not listed."""

    class Version:
        pass

    class Interrupted(dict[Any, Any]):
        def items(self) -> Any:
            for pair in super().items():
                yield pair
                late.append(Version())
                seen[late[-1]] = -1

    late: list[Version] = []
    kept = [Version() for _ in range(5)]
    seen: WeakKeyDictionary[Any, int] = WeakKeyDictionary({version: number for number, version in enumerate(kept)})
    seen.data = Interrupted(seen.data)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="changed size"):
        list(seen.items())
    del kept[3:]
    assert [number for _, number in alive(seen) if number >= 0] == [0, 1, 2]
