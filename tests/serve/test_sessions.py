"""Which requests are run in one thread: those that are over before others would have been woken."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnfold import runtime
from bnfold.serve import sessions
from bnfold.serve.errors import Refused
from bnfold.serve.model import Model, open_model
from bnfold.serve.runner import Runner
from bnfold.serve.settings import Settings
from tests.serve import zoo

FIXED = "(float[2,3] x) => (float[2,3] y) { y = Relu(x) }"


def opened(folder: Path, name: str, **settings: Any) -> Model:
    model = zoo.parse(FIXED) if name == "fixed" else zoo.MODELS[name]()
    return open_model(name, "1", zoo.write(model, folder / name), Settings(folder, **settings))


def threads(run: Runner | None) -> int:
    return 0 if run is None else int(run._session.get_session_options().intra_op_num_threads)


@pytest.mark.parametrize(
    ("name", "asked", "took", "main", "alone"),
    [
        ("cnn", None, [0.001, 0.0005], 4, 1),
        ("cnn", 3, [], 3, 0),
        ("cnn", None, [0.003], 4, 0),
        ("cnn", None, [0.001, 0.003], 4, 0),
        ("fixed", None, [0.001, 0.001], 1, 0),
        ("pair", None, [], 4, 0),
        ("slow", None, [], 4, 0),
    ],
    ids=["short", "told", "long", "short with all", "one size", "rows of any length", "not only floats"],
)
def test_a_row_is_timed_with_all_threads_and_with_one(
    tmp_path: Path, name: str, asked: int | None, took: list[float], main: int, alone: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sessions, "cores", lambda: 4)
    monkeypatch.setattr(sessions, "seconds", lambda run, feeds: took.pop(0))
    found = opened(tmp_path, name, threads=asked).run
    assert (threads(found.shared), threads(found.single), found.threads, took) == (main, alone, main, [])
    if alone:
        assert found.most == pytest.approx(4)


def test_large_weights_are_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "cores", lambda: 4)
    assert opened(tmp_path, "cnn").run.single is not None
    monkeypatch.setattr(sessions, "TWICE", 100)
    assert opened(tmp_path, "cnn").run.single is None


class Told:
    """A runner that says that it was asked, and how often it was stopped."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.stopped = 0

    def __call__(self, feeds: Any) -> dict[str, Any]:
        self.rows.append(len(feeds["x"]))
        return {}

    def stop(self) -> None:
        self.stopped += 1


def test_few_rows_go_to_one_thread_and_many_to_all() -> None:
    many, few = Told(), Told()
    run = sessions.Sessions(None, many, 4, few, 2.5, ("x",))  # type: ignore[arg-type]
    for rows in (0, 1, 2, 3, 64):
        run({"x": np.zeros((rows, 3)), "other": np.zeros((9, 9)), "scalar": np.zeros(())})
    assert (few.rows, many.rows) == ([0, 1, 2], [3, 64])
    run.stop()
    assert (many.stopped, few.stopped) == (1, 1)


def test_both_answer_alike_and_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "cores", lambda: 2)
    run = opened(tmp_path, "double").run
    assert run.single is not None
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for way in (run, run.shared, run.single):
        np.testing.assert_array_equal(way({"x": x})["y"], 2 * x)
    run.stop()
    for way in (run.shared, run.single):
        with pytest.raises(Refused, match="going down"):
            way({"x": x})


@pytest.mark.parametrize(("short", "times"), [(0.0, 1), (60.0, 5)])
def test_what_is_long_is_timed_once(short: float, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load must not wait for the fifth run of a model that takes seconds."""
    monkeypatch.setattr(sessions, "SHORT", short)
    run = Told()
    sessions.seconds(run, {"x": [1]})  # type: ignore[arg-type]
    assert len(run.rows) == times


def test_a_run_that_fails_is_not_short(tmp_path: Path) -> None:
    path = zoo.write(zoo.MODELS["double"](), tmp_path / "double")
    run = Runner(runtime.session(path, optimize=True), bind=False)
    assert 0 < sessions.seconds(run, {"x": np.ones((1, 3), np.float32)}) < 60
    assert sessions.seconds(run, {"x": np.ones(3, np.float32)}) == inf
