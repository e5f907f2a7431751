"""Samples side by side, as many as fit, each on one core, with the results they have alone; large models in parts."""

from __future__ import annotations

import threading
import time
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from bnfold import runtime
from bnfold.io import load, save
from bnfold.verify import abreast, formulas, sessions, sides, verify
from bnfold.verify.bisection import bisect
from bnfold.verify.recompute import recompute
from bnfold.verify.reference import Evaluator, Noise
from bnfold.verify.windows import Windows
from tests import nets


def blas_threads() -> set[int]:
    return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def two_blas_threads() -> Any:
    """Whatever the tests run with, so that a limit of one can be seen."""
    with threadpool_limits(2, user_api="blas"):
        if blas_threads() != {2}:
            pytest.skip("this BLAS has one thread or can't be told how many to use")
        yield


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[set[int], str]]:
    """For each evaluation in float64, how many threads BLAS had, and in which thread it ran."""
    found: list[tuple[set[int], str]] = []
    honest = Evaluator.runs

    def runs(self: Evaluator, *given: Any) -> Any:
        found.append((blas_threads(), threading.current_thread().name))
        return honest(self, *given)

    monkeypatch.setattr(Evaluator, "runs", runs)
    return found


@pytest.mark.parametrize("net", ["plain", "residual"])
def test_how_many_run_at_once_changes_nothing(net: str, monkeypatch: pytest.MonkeyPatch, seen: Any) -> None:
    original = nets.NETS[net](0, 1.0)
    results = []
    for cores in (1, 3):
        monkeypatch.setattr(abreast, "_cores", lambda cores=cores: cores)
        seen.clear()
        results.append(verify(original, nets.fold(original, dtype=np.float32)).to_dict())
        assert (len({thread for _, thread in seen}) > 1) == (cores > 1)
    assert results[0] == results[1]


def test_products_stay_on_one_core_and_blas_gets_its_threads_back(seen: Any) -> None:
    original = nets.plain(0)
    verify(original, nets.fold(original))
    bisect(original, nets.fold(original))
    assert seen and all(threads == {1} for threads, _ in seen)
    assert blas_threads() == {2}
    with pytest.raises(ZeroDivisionError), abreast.one_core_products(0):
        1 / 0  # noqa: B018
    assert blas_threads() == {2}


def test_the_limit_ends_with_the_last_who_asked_for_it() -> None:
    first, second = abreast.one_core_products(0), abreast.one_core_products(0)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert blas_threads() == {1}
    second.__exit__(None, None, None)
    assert blas_threads() == {2}


def test_a_large_model_is_evaluated_sample_by_sample_by_all_cores(monkeypatch: pytest.MonkeyPatch, seen: Any) -> None:
    monkeypatch.setattr(abreast, "LARGE_BYTES", 100)
    monkeypatch.setattr(abreast, "_cores", lambda: 3)
    original = nets.plain(0)
    assert verify(original, nets.fold(original)).status == "pass"
    assert {thread for _, thread in seen} == {threading.current_thread().name}
    assert all(threads == {2} for threads, _ in seen)


def test_weights_of_a_large_model_are_perturbed_once_for_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are too large to be kept, so that each use draws them anew; the verdict is the same to the last bit."""
    drawn: list[str] = []
    honest = Noise.__call__
    monkeypatch.setattr(Noise, "__call__", lambda self, *given: (drawn.append(given[0].name), honest(self, *given))[1])
    monkeypatch.setattr(sides, "Evaluator", partial(Evaluator, cache_bytes=0))
    original, results, counts = nets.plain(0), [], []
    for large in (1 << 28, 100):
        monkeypatch.setattr(abreast, "LARGE_BYTES", large)
        drawn.clear()
        results.append(verify(original, nets.fold(original)).to_dict())
        counts.append(len(drawn))
    assert results[0] == results[1]
    assert counts[0] == 16 * counts[1] == 16 * 3 * len({*drawn})


def test_of_a_large_model_one_session_is_open_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "OPEN_BYTES", 0)
    opened: list[Any] = []
    honest = runtime.session

    def session(*given: Any, **options: Any) -> Any:
        assert [made for made in opened if made() is not None] == []
        made = honest(*given, **options)
        opened.append(weakref.ref(made))
        return made

    monkeypatch.setattr(runtime, "session", session)
    original = nets.plain(0)
    assert verify(original, nets.fold(original)).status == "pass"
    assert len(opened) > 6


@pytest.mark.parametrize("net", nets.NETS)
@pytest.mark.parametrize("fault", [None, "scale off by one"])
def test_a_large_weight_is_compared_in_parts(net: str, fault: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    original = nets.NETS[net](0, 1.0)
    candidate = nets.fold(original, fault=fault, dtype=np.float32)

    def judged() -> list[dict[str, Any] | None]:
        windows = Windows(load(original), load(candidate), trusted=False)
        return [None if made is None else made.to_dict() for _, made in recompute(windows, own=False)]

    whole = judged()
    monkeypatch.setattr(formulas, "PART", 50)
    assert judged() == whole and any(whole)


def test_samples_together_hold_what_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abreast, "_cores", lambda: 8)
    third = abreast.LIVE_BYTES // 3
    assert [abreast.room(peak, 0) for peak in (0, 1, third, 10 * third)] == [1, 8, 3, 1]
    assert abreast.room(1, abreast.LARGE_BYTES + 1) == 1
    third = abreast.TOGETHER_BYTES // 3
    assert [abreast.together(peak, abreast.LARGE_BYTES + 1) for peak in (0, third, 10 * third)] == [1, 3, 1]
    assert abreast.together(1, 0) == 1
    assert abreast.parts(range(5), 2) == [range(2), range(2, 4), range(4, 5)]


def test_an_evaluation_says_what_it_held() -> None:
    evaluator = Evaluator(load(nets.plain(0)))
    assert evaluator.peak == 0
    evaluator.run({"x": np.zeros((5, 3, 12, 12), np.float32)})
    # A convolution's result beside its BatchNormalization's, 8 channels each.
    assert evaluator.peak == 2 * 5 * 8 * 12 * 12 * 8


def test_results_come_in_order() -> None:
    turn = threading.Barrier(3)

    def late(n: int) -> int:
        turn.wait(timeout=60)
        return n * n

    assert abreast.each(late, range(3), 3) == [0, 1, 4]


def test_threads_do_not_open_a_mapped_weight_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each evaluator widens weights for itself, but they come from one tensor."""
    save(load(nets.plain(0)), tmp_path / "m.onnx", external=True)
    model, honest = load(tmp_path / "m.onnx"), ir.ExternalTensor._load
    monkeypatch.setattr(ir.ExternalTensor, "_load", lambda self: (time.sleep(0.002), honest(self))[1])
    feeds = {"x": np.ones((1, 3, 12, 12), np.float32)}
    evaluators = [Evaluator(model) for _ in range(4)]
    results = abreast.each(lambda evaluator: evaluator.run(feeds)["y"], evaluators, 4)
    assert all(np.array_equal(results[0], result) for result in results)
