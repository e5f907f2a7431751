"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import settings
from onnx import helper, numpy_helper

from bnfold import report

REPOSITORY = Path(__file__).resolve().parent.parent

# pytest imports readline, which tells every process that a test starts how wide a terminal is that it has not.
os.environ.pop("COLUMNS", None)
os.unsetenv("COLUMNS")

# A job in the background has Ctrl-C ignored, and so would have every process that a test starts to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A failure prints the blob that reproduces it; a slow machine is no failure.
# CI draws the same examples every time; `HYPOTHESIS_PROFILE=soak` draws new ones and prints how to repeat a failure.
settings.register_profile("bnfold", deadline=None, print_blob=True, derandomize=True)
settings.register_profile("soak", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "bnfold"))


def conv_bn(seed: int = 0, channels: int = 4, layers: int = 2) -> onnx.ModelProto:
    """`layers` times Conv → BatchNormalization → Relu on float32 (batch, 3, 8, 8), with seeded weights."""
    random = np.random.default_rng(seed)
    nodes, initializers = [], []
    value, width = "x", 3
    for layer in range(layers):
        arrays = {
            "w": random.normal(size=(channels, width, 3, 3)) / np.sqrt(9 * width),
            "gamma": random.normal(size=channels),
            "beta": random.normal(size=channels),
            "mean": random.normal(size=channels),
            "var": random.uniform(0.5, 2.0, channels),
        }
        for name, array in arrays.items():
            initializers.append(numpy_helper.from_array(array.astype(np.float32), f"{name}{layer}"))
        statistics = [f"{name}{layer}" for name in ("gamma", "beta", "mean", "var")]
        output = "y" if layer == layers - 1 else f"r{layer}"
        nodes += [
            helper.make_node("Conv", [value, f"w{layer}"], [f"c{layer}"], name=f"conv{layer}", pads=[1] * 4),
            helper.make_node("BatchNormalization", [f"c{layer}", *statistics], [f"b{layer}"], name=f"bn{layer}"),
            helper.make_node("Relu", [f"b{layer}"], [output], name=f"relu{layer}"),
        ]
        value, width = output, channels
    graph = helper.make_graph(
        nodes,
        "conv_bn",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", channels, 8, 8])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture
def model() -> ir.Model:
    """A small model with two BatchNormalizations that both fold."""
    return ir.from_proto(conv_bn())


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    """The same as a file, alone in its folder."""
    folder = tmp_path / "models"
    folder.mkdir()
    path = folder / "model.onnx"
    onnx.save(conv_bn(), path)
    return path


@dataclass(frozen=True)
class Outcome:
    """What a run of the command line left."""

    code: int
    out: str
    err: str


def document(outcome: Outcome, verb: str) -> dict[str, Any]:
    """The one JSON document on stdout, checked against the schema that it names."""
    jsonschema = pytest.importorskip("jsonschema")
    result: dict[str, Any] = json.loads(outcome.out)
    assert result["schema"] == f"bnfold.{verb}/{report.VERSION}"
    jsonschema.validate(result, report.schema(verb), cls=jsonschema.Draft202012Validator)
    return result


@pytest.fixture
def bnfold(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Outcome]]:
    """The command line in this process: `bnfold("inspect", path)`."""
    from bnfold.cli import main

    handler, threshold = signal.getsignal(signal.SIGTERM), gc.get_threshold()

    def call(*args: object) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        captured = capfd.readouterr()
        return Outcome(int(ended.value.code or 0), captured.out, captured.err)

    yield call
    signal.signal(signal.SIGTERM, handler)
    # Otherwise garbage of one test, and what it has to say, would come up in another one long after.
    gc.set_threshold(*threshold)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
