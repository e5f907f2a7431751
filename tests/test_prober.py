"""Sizes are tried where a crash does no harm."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import onnx
import pytest

from bnfold.inputs import feeds
from bnfold.inputs.isolated import Prober
from bnfold.io import load

TEXT = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N,1,S] x, float[1,1,20] w) => (float[N,1,T] y) { y = Conv (x, w) }"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(TEXT), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_a_prober_says_what_runs(path: Path) -> None:
    with Prober(path) as prober:
        assert prober.attempt({"N": 1, "S": 32}) == 1.0
        assert "does not run" in str(prober.attempt({"N": 1, "S": 16}))
        child = prober._child
        assert child is not None
    assert child.poll() == 0


def test_a_process_that_dies_is_an_answer(path: Path) -> None:
    with Prober(path) as prober:
        prober.attempt({"N": 1, "S": 32})
        assert prober._child is not None
        os.kill(prober._child.pid, signal.SIGFPE)
        prober._child.wait()
        assert prober.attempt({"N": 1, "S": 32}) == "ONNX Runtime ends its process there (SIGFPE)"
        assert prober.attempt({"N": 1, "S": 32}) == 1.0


def test_a_model_from_a_file_is_not_tried_in_this_process(path: Path) -> None:
    drawn = feeds.generated(load(path), attempt=lambda arrays: "not here")
    assert {sample.feeds["x"].shape for sample in drawn} == {(1, 1, 32), (3, 1, 32), (1, 1, 49), (1, 1, 64)}
