"""The gate: what is the same passes, what differs fails, and what proves nothing is never a pass."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import bnfold
from bnfold.errors import InputError, ModelError, UsageError
from bnfold.folding.fold import fold
from bnfold.inputs.feeds import generated
from bnfold.io import load
from bnfold.verify import Verdict, verify
from bnfold.verify.bisection import bisect
from bnfold.verify.certificate import check
from bnfold.verify.local import Local
from bnfold.verify.options import LOCAL_KINDS
from bnfold.verify.reference import Evaluator
from bnfold.verify.windows import Windows
from tests import light, nets
from tests.verifying import model, normal, own

REAL = Path(__file__).resolve().parent.parent.parent / "shared" / "real" / "version-RFB-320.onnx"
# Seeds of each fault in each net; `make soak` takes more.
SEEDS = int(os.environ.get("BNFOLD_VERIFY_SEEDS", "1"))


# --- The null suite: legitimate folds pass.


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("net", nets.NETS)
def test_a_legitimate_fold_passes(net: str, scale: float) -> None:
    for seed in range(SEEDS):
        original = nets.NETS[net](seed, scale)
        for dtype in (np.float64, np.float32):
            verdict = verify(original, nets.fold(original, dtype=dtype), seed=seed)
            assert verdict.status == "pass", f"{net} {seed} {dtype}: {verdict}"
            assert not verdict.certificate["applies"]
        verdict = verify(original, own(original), seed=seed)
        assert verdict.status == "pass", verdict
        assert verdict.certificate["applies"] and verdict.certificate["recomputed"] > 0


@pytest.mark.parametrize("net", nets.NETS)
def test_a_model_is_itself(net: str) -> None:
    original = nets.NETS[net](3, 1.0)
    assert verify(original, original).status == "pass"


def test_a_softmax_that_underflows_passes() -> None:
    """float64 still sees values whose squares vanish, where float32 has only zero."""
    text = "(float[n, 4] x) => (float[n, 4] y) { a = Mul (x, w) y = Softmax <axis = 1> (a) }"
    original = model(text, w=[[300.0, -300.0, 0.0, 1.0]])
    verdict = verify(original, original, inputs={"x": np.array([[1.0, 1.0, -500.0, 0.0]], np.float32)})
    assert not any(cell.status == "mismatch" for cell in verdict.cells), verdict


def test_the_same_seed_gives_the_same_verdict() -> None:
    original = nets.plain(0)
    first, second = (verify(original, nets.fold(original), seed=7).to_dict() for _ in range(2))
    assert first == second


# --- The fault suite.


def faults(seeds: int) -> list[tuple[str, str, int]]:
    return [(fault, net, seed) for fault in nets.FAULTS for net in nets.NETS for seed in range(seeds)]


def same_weights(a: onnx.ModelProto, b: onnx.ModelProto) -> bool:
    """Whether a fault changed nothing: a sign dropped where every gamma is positive, say."""
    mine, other = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (a, b))
    return all(np.array_equal(mine[name], other[name]) for name in mine)


def test_faults_of_a_third_partys_fold_are_found_and_named() -> None:
    """Constants, layers and outputs together; a layer is named by the local error alone."""
    missed, misnamed, injected = [], [], 0
    for fault, net, seed in faults(SEEDS):
        original = nets.NETS[net](seed, 1.0)
        faulty = nets.fold(original, fault=fault, where=seed, seed=seed)
        if same_weights(faulty, nets.fold(original)):
            continue
        injected += 1
        verdict = verify(original, faulty, seed=seed)
        if verdict.exit_code != 1:
            missed.append(f"{fault} in {net} {seed}: {verdict}")
        norms = [node.output[0] for node in original.graph.node if node.op_type == "BatchNormalization"]
        windows = Windows(load(original), load(faulty), trusted=False)
        local = Local(windows, ("cpu",), 2.0**-24)
        kinds = {sample.kind: sample for sample in generated(windows.models[0], seed=seed, samples=10)}
        drawn = [kinds[kind] for kind in LOCAL_KINDS]
        for sample in drawn:
            local.run(Evaluator(windows.models[0]), sample)
        if [layer.name for layer in local.faulty(drawn)] != [norms[seed % len(norms)]]:
            misnamed.append(f"{fault} in {net} {seed}")
    assert injected > 60 * SEEDS
    assert len(missed) <= 0.05 * injected, missed
    assert len(misnamed) <= 0.05 * injected, misnamed


@pytest.mark.parametrize("net", nets.NETS if SEEDS > 1 else ["plain"])
def test_the_verdict_is_the_same_for_every_seed(net: str) -> None:
    original = nets.NETS[net](0, 1.0)
    right = nets.fold(original)
    named = [*nets.FAULTS] if SEEDS > 1 else ["epsilon outside the root"]
    wrong = [w for fault in named if not same_weights(w := nets.fold(original, fault=fault, where=1), right)]
    for seed in range(20 if SEEDS > 1 else 3):
        assert verify(original, nets.fold(original, dtype=np.float32), seed=seed).exit_code == 0
        assert [verify(original, each, seed=seed).exit_code for each in wrong] == [1] * len(wrong) != []


def test_every_fault_in_an_own_fold_is_found() -> None:
    """V1: no input is needed, and nothing is too small."""
    for fault, net, seed in faults(SEEDS):
        original = nets.NETS[net](seed, 1.0)
        faulty = nets.fold(original, fault=fault, where=seed, seed=seed)
        if same_weights(faulty, nets.fold(original)):
            continue
        candidate = own(original)
        wrong = {str(n.output[0]): n for n in faulty.graph.node}
        tensors = {t.name: numpy_helper.to_array(t) for t in faulty.graph.initializer}
        for node in candidate.graph:
            if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
                for value, name in zip(node.inputs[1:], wrong[str(node.outputs[0].name)].input[1:], strict=True):
                    assert value is not None
                    value.const_value = ir.tensor(tensors[name], name=value.name)
        found = check(load(original), candidate)
        assert found.applies and found.problems, f"{fault} in {net} {seed}"


def test_a_border_fault_of_a_padded_convolution_shows() -> None:
    """BN → padded Conv folded as if padding were transparent: only the border is wrong."""
    w, shift = normal(4, 3, 3, 3) / 5, normal(3, seed=1)
    text = """(float[1,3,12,12] x) => (float[1,4,12,12] y) {
        n = BatchNormalization (x, one, shift, zero, one)
        y = Conv <pads = [1,1,1,1]> (n, w) }"""
    original = model(text, w=w, shift=shift, one=np.ones(3), zero=np.zeros(3))
    s = 1 / np.sqrt(np.float64(1) + np.float64(np.float32(1e-5)))
    candidate = model(
        "(float[1,3,12,12] x) => (float[1,4,12,12] y) { y = Conv <pads = [1,1,1,1]> (x, w, b) }",
        w=(w * s), b=(w.astype(np.float64) * shift.reshape(1, 3, 1, 1)).sum(axis=(1, 2, 3)),
    )  # fmt: skip
    assert verify(original, candidate).exit_code == 1


# --- Inputs and shapes.


def test_dynamic_dimensions_are_varied_and_refused_sizes_left_out() -> None:
    text = "(float[N,3,H,W] x) => (float[N,4,P,Q] y) { y = Conv <strides=[2,2]> (x, w) }"
    m = model(text, w=normal(4, 3, 3, 3))
    verdict = verify(m, m)
    assert verdict.status == "pass"
    with pytest.raises(UsageError, match=r"no dynamic dimension 'K'"):
        verify(m, m, dims={"K": 3})
    assert verify(m, m, dims={"H": 40, "x:3": 24}).status == "pass"


def test_a_model_that_refuses_every_size_says_which_dimension() -> None:
    text = """(float[1,K] x) => (float[a,b] y) {
        sizes = Constant <value = int64[2] {7, 143}> ()  y = Reshape (x, sizes) }"""
    m = model(text)
    with pytest.raises(InputError, match=r"no size tried for K runs"):
        verify(m, m)
    assert verify(m, m, dims={"K": 1001}).status == "pass"


def test_inputs_from_npz(tmp_path: Path) -> None:
    original = nets.plain(0)
    np.savez(tmp_path / "x.npz", x=normal(5, 3, 12, 12))
    verdict = verify(original, nets.fold(original), inputs=tmp_path / "x.npz")
    assert verdict.status == "pass" and verdict.settings["samples"] == 5
    np.savez(tmp_path / "y.npz", y=normal(5, 3, 12, 12))
    with pytest.raises(InputError, match="no array named 'x'"):
        verify(original, original, inputs=tmp_path / "y.npz")


def test_a_candidate_that_does_not_run_is_a_mismatch() -> None:
    good = model("(float[N,4] x) => (float[N,4] y) { y = Add (x, w) }", w=normal(1))
    bad = model("(float[N,4] x) => (float[N,4] y) { y = Add (x, w) }", w=normal(2, 4))
    verdict = verify(good, bad, inputs={"x": normal(3, 4)}, samples=1)
    assert verdict.exit_code == 1


def test_errors_name_the_model(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"text")
    with pytest.raises(ModelError, match=r"no\.onnx"):
        verify(tmp_path / "no.onnx", nets.plain(0))


# --- The result.


def test_a_verdict_is_json_and_reads_well() -> None:
    original = nets.plain(0)
    verdict = verify(original, own(original))
    found = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert found["status"] == "pass" and found["version"] == 1 and found["exit_code"] == 0
    assert {cell["level"] for cell in found["cells"]} == {"off", "deployed"}
    assert str(verdict).startswith("pass: worst error 0.") and "bit for bit" in str(verdict)
    assert 0 < verdict.ratio <= 1
    worse = verify(original, nets.fold(original, fault="scale off by one"), keep_going=True)
    assert json.loads(json.dumps(worse.to_dict(), allow_nan=False))["ratio"] > 1
    assert any("times the limit" in reason for reason in worse.reasons)
    assert math.isnan(Verdict("inconclusive").ratio)


def test_progress_is_told() -> None:
    said: list[str] = []
    verify(nets.plain(0), nets.plain(0), samples=2, progress=said.append)
    assert "evaluating in float64, 2 of 2" in said


def test_models_are_left_as_they_are() -> None:
    original, candidate = load(nets.plain(0)), own(nets.plain(0))
    before = [ir.to_proto(m).SerializeToString(deterministic=True) for m in (original, candidate)]
    verify(original, candidate, samples=2)
    assert before == [ir.to_proto(m).SerializeToString(deterministic=True) for m in (original, candidate)]


# --- Models that nobody here made.


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_light_models_as_shipped_are_inconclusive(name: str) -> None:
    """Their weights are constant, so that the output ignores the input."""
    assert verify(light.path(name), light.path(name), samples=2).exit_code == 3


@pytest.mark.parametrize("name", ["resnet50", "shufflenet"])
def test_light_models_with_weights_pass_folded(name: str) -> None:
    original = light.filled(name)
    verdict = verify(original, own(original), samples=1)
    assert verdict.status == "pass", verdict
    assert verdict.certificate["applies"]


@pytest.mark.skipif(not REAL.exists(), reason="the shared real model is not here")
def test_the_real_detector_passes_folded() -> None:
    candidate = load(REAL).clone()
    fold(candidate, freeze_initializers=True)
    verdict = verify(REAL, candidate, samples=4)
    assert verdict.status == "pass" and verdict.certificate["folds"] > 0, verdict


# --- Models that were built or edited in memory.


def _dangling(m: ir.Model) -> None:
    m.graph[0].replace_input_with(1, ir.Value(name="nowhere"))


def _misspelt(m: ir.Model) -> None:
    m.graph[0].op_type = "Konv"


def _too_short(m: ir.Model) -> None:
    m.graph[0].resize_inputs(1)


@pytest.mark.parametrize("change", [_dangling, _misspelt, _too_short])
@pytest.mark.parametrize(
    "used",
    [
        lambda wrong, fine: verify(wrong, fine),
        lambda wrong, fine: verify(fine, wrong),
        lambda wrong, fine: bisect(fine, wrong),
        lambda wrong, fine: bnfold.optimize(wrong),
        lambda wrong, fine: bnfold.inspect(wrong),
    ],
)
def test_a_model_that_is_none_is_the_users_error(change: Any, used: Any) -> None:
    wrong = load(nets.plain(0)).clone()
    change(wrong)
    with pytest.raises(ModelError, match="is not a valid ONNX model"):
        used(wrong, nets.plain(0))
