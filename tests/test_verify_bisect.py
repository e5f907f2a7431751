"""Bisection: the layers in which two models differ, in one pass or by hybrids, and a reproducer of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bnfold
from bnfold import report, runtime
from bnfold.errors import OutputError, UsageError
from bnfold.inputs.feeds import generated
from bnfold.io import load
from bnfold.verify.bisection import bisect
from bnfold.verify.splice import spliced
from tests import nets
from tests.verifying import cut, tensor


def test_hybrids_are_the_models_at_both_ends() -> None:
    original = nets.residual(0)
    candidate = nets.fold(original, fault="two biases swapped")
    windows = cut(original, candidate)
    x = generated(load(original), samples=1)[0].feeds
    for replaced, whole in (([], original), ([w.name for w in windows.changed], candidate)):
        hybrid = spliced(windows, replaced)
        onnx.checker.check_model(ir.to_proto(hybrid), full_check=True)
        ours, theirs = (runtime.run(runtime.session(m, optimize=False), x)["y"] for m in (hybrid, whole))
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("method", ["local", "splice"])
@pytest.mark.parametrize("net", nets.NETS)
def test_the_faulty_layer_is_named(net: str, method: Any) -> None:
    original = nets.NETS[net](0, 1.0)
    norms = [node.output[0] for node in original.graph.node if node.op_type == "BatchNormalization"]
    for where in range(len(norms)):
        found = bisect(original, nets.fold(original, fault="bias off by one", where=where), method=method)
        assert [layer.name for layer in found.layers] == [norms[where]] and found.exit_code == 1
    assert bisect(original, nets.fold(original), method=method).exit_code == 0


def test_splicing_takes_a_logarithm_of_runs() -> None:
    builder = nets.Builder(0, 3)
    for _ in range(16):
        builder.conv(4).norm().relu()
    original = builder.model([1, 3, 6, 6])
    found = bisect(original, nets.fold(original, fault="scale off by one", where=11))
    assert len(found.layers) == 1 and found.windows == 16 and found.runs <= 6


def test_several_faults_are_all_named() -> None:
    original = nets.residual(0)
    right, both = nets.fold(original), nets.fold(original)
    for where in (0, 3):
        for part in nets.fold(original, fault="bias off by one", where=where).graph.initializer:
            if part.raw_data != tensor(right, part.name).raw_data:
                tensor(both, part.name).CopyFrom(part)
    for method in ("local", "splice"):
        found = bisect(original, both, method=method)  # type: ignore[arg-type]
        assert [layer.name for layer in found.layers] == ["batchnormalization1", "batchnormalization9"]


def test_a_fold_map_needs_one_pass() -> None:
    original = nets.plain(0)
    candidate = bnfold.optimize(original, simplify="never", verify=False).model
    value = next(v for v in candidate.graph.initializers.values() if v.name and v.name.endswith("_folded"))
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.01), name=value.name)
    found = bisect(original, candidate)
    assert found.method == "local" and found.runs == 0 and len(found.layers) == 1


def test_a_reproducer_shows_the_fault_by_itself(tmp_path: Path, bnfold: Any) -> None:
    original = nets.residual(0)
    onnx.save(original, tmp_path / "a.onnx")
    onnx.save(nets.fold(original, fault="beta dropped in a channel", where=2), tmp_path / "b.onnx")
    folder = tmp_path / "found"
    outcome = bnfold("bisect", tmp_path / "a.onnx", tmp_path / "b.onnx", "-o", folder, "--json")
    assert outcome.code == 1
    document = json.loads(outcome.out)
    jsonschema.validate(document, report.schema("bisect"))
    assert document["layers"][0]["output"] == "batchnormalization7" and document["output"] == str(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["README.txt", "candidate.onnx", "inputs.npz", "reference.onnx"]
    assert sum(p.stat().st_size for p in folder.glob("*.onnx")) < 10_000
    command = (folder / "README.txt").read_text().splitlines()[-1].split()
    assert command[:2] == ["bnfold", "verify"]
    paths = [folder / part if "." in part else part for part in command[1:]]
    assert bnfold(*paths).code == 1
    assert bnfold("bisect", tmp_path / "a.onnx", tmp_path / "b.onnx", "-o", folder).code == 4  # it is there already


def test_nothing_is_written_where_nothing_differs(tmp_path: Path) -> None:
    original = nets.plain(0)
    found = bisect(original, nets.fold(original))
    with pytest.raises(UsageError, match="nothing to reproduce"):
        found.save(tmp_path / "x")
    wrong = bisect(original, nets.fold(original, fault="bias off by one"))
    with pytest.raises(OutputError, match="no folder"):
        wrong.save(tmp_path / "no" / "x")
    assert list(tmp_path.iterdir()) == []


def test_models_that_are_called_differently_are_not_bisected() -> None:
    found = bisect(nets.plain(0), nets.perceptron(0))
    assert found.exit_code == 3 and any("rank 2 instead of 4" in reason for reason in found.reasons)
