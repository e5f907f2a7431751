"""Bench: ratios that mean something, of models that take the same inputs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from bnfold import bench as module
from bnfold import runtime
from bnfold.bench import bench
from bnfold.errors import InputError, ProviderError, UsageError
from tests import nets


def test_ratios_are_against_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a runtime that takes known times by a clock that nothing else moves, the ratio is theirs."""
    seconds = {"fast": 0.0005, "slow": 0.001}
    now = 0.0

    def run(session: Any, feeds: Any) -> dict[str, Any]:
        nonlocal now
        now += seconds[session]
        return {}

    opened = iter(["slow", "fast"])
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    monkeypatch.setattr(runtime, "session", lambda *a, **k: next(opened))
    monkeypatch.setattr(runtime, "run", run)
    report = bench([nets.plain(0), nets.plain(0)], rounds=12)
    assert report.rows[0].ratio == 1.0
    assert report.ratio == report.rows[1].ratio
    assert report.ratio == pytest.approx(0.5)
    assert (report.rows[1].ratio_low, report.rows[1].ratio_high) == pytest.approx((0.5, 0.5))
    assert report.rows[0].p10_us == pytest.approx(1000.0) and report.hint is None


@pytest.mark.parametrize(("spread", "rounds"), [(0.01, None), (0.3, 270), (30.0, 300)])
def test_a_wide_interval_says_how_to_narrow_it(spread: float, rounds: int | None) -> None:
    narrow = module.Row("a", 10.0, 10.0, 10.0, 1.0, 1.0, 1.0)
    wide = module.Row("b", 9.0, 9.0, 9.0, 1.0, 1.0 - spread / 2, 1.0 + spread / 2)
    hint = module.BenchReport((narrow, wide, narrow), "cpu", 1, 30, {}, "").hint
    assert hint is None if rounds is None else (hint is not None and f"--rounds {rounds}" in hint and " b " in hint)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_position_is_taken_equally_often(count: int) -> None:
    orders = list(module.orders(count, 12 * count))
    assert all(sorted(order) == list(range(count)) for order in orders)
    for place in range(count):
        assert set(Counter(order[place] for order in orders).values()) == {12}


def test_real_models_are_timed(tmp_path: Path) -> None:
    original = nets.plain(0)
    onnx.save(original, tmp_path / "a.onnx")
    onnx.save(nets.fold(original), tmp_path / "b.onnx")
    said: list[str] = []
    report = bench([tmp_path / "a.onnx", str(tmp_path / "b.onnx")], rounds=3, batch=2, progress=said.append)
    assert [row.name for row in report.rows] == ["a.onnx", "b.onnx"]
    assert report.inputs == {"x": (2, 3, 12, 12)}
    assert "round 3 of 3" in said
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["version"] == 1 and found["ratio"] == report.ratio
    assert "a.onnx" in str(report) and "ratio" in str(report)


def test_a_single_model_needs_no_list() -> None:
    assert bench(nets.perceptron(0), rounds=1, dims={"N": 4}).rows[0].name == "model 1"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one model"):
        bench([])
    with pytest.raises(UsageError, match="rounds"):
        bench(nets.plain(0), rounds=0)
    with pytest.raises(UsageError, match="no dynamic batch"):
        bench(nets.residual(0), batch=4)
    with pytest.raises(InputError, match="model 2 takes other inputs than model 1"):
        bench([nets.plain(0), other_input()])
    if runtime.usable("dml") is not None:
        with pytest.raises(ProviderError):
            bench(nets.plain(0), provider="dml")


def other_input() -> onnx.ModelProto:
    """The plain net with its input renamed."""
    model = nets.plain(0)
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"
    return model


def test_the_interval_covers_the_ratio_of_noisy_times() -> None:
    rng = np.random.default_rng(0)
    first = 1e-3 * rng.lognormal(0, 0.1, 60)
    row = module.row("m", 0.8 * first * rng.lognormal(0, 0.05, 60), first, 0)
    assert row.ratio_low < 0.8 < row.ratio_high and row.ratio_high - row.ratio_low < 0.1
