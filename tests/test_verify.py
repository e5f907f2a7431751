"""The gate: what is the same passes, what differs fails, and what proves nothing is never a pass."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

import bnfold
from bnfold import runtime
from bnfold.arrays import Array
from bnfold.errors import InputError, ModelError, ProviderError, UsageError
from bnfold.folding.fold import fold
from bnfold.folding.report import FOLD_MAP
from bnfold.inputs.feeds import generated
from bnfold.io import load, save
from bnfold.verify import Verdict, certificate, compare, verify
from bnfold.verify.bisection import bisect
from bnfold.verify.certificate import check
from bnfold.verify.compare import Noises, measure
from bnfold.verify.local import Local
from bnfold.verify.options import LOCAL_KINDS
from bnfold.verify.reference import Evaluator
from bnfold.verify.windows import Windows
from tests import light, nets

REAL = Path(__file__).resolve().parent.parent.parent / "shared" / "real" / "version-RFB-320.onnx"
HEAD = '<ir_version: 8, opset_import: ["": 17]>'
# Seeds of each fault in each net; `make soak` takes more.
SEEDS = int(os.environ.get("BNFOLD_VERIFY_SEEDS", "1"))


def model(text: str, **constants: Any) -> onnx.ModelProto:
    """A model from ONNX text, with float32 (or given) constants."""
    made = parser.parse_model(f"{HEAD} g {text}")
    for name, value in constants.items():
        value = np.asarray(value)
        value = value.astype(np.float32) if value.dtype == np.float64 else value
        made.graph.initializer.append(numpy_helper.from_array(value, name))
    return made


def own(source: onnx.ModelProto) -> ir.Model:
    """The model as bnfold folds it, with its fold map."""
    folded = load(source).clone()
    fold(folded)
    return folded


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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


@pytest.fixture
def plain_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replay without onnxsim, which takes seconds to find that there is nothing to simplify."""
    monkeypatch.setattr(certificate, "simplify", lambda m, mode: (m, None))


@pytest.mark.usefixtures("plain_replay")
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


# --- The certificate covers the whole candidate.


def changed(change: Callable[[ir.Model], None]) -> tuple[ir.Model, ir.Model]:
    original = load(nets.residual(0))
    candidate = own(ir.to_proto(original))
    change(candidate)
    return original, candidate


def _ulp_of_unfolded(m: ir.Model) -> None:
    value = next(node for node in reversed(m.graph) if node.op_type == "Conv").inputs[1]
    assert value is not None and value.const_value is not None
    array = value.const_value.numpy().copy()
    array.flat[5] = np.nextafter(array.flat[5], np.float32(9))
    value.const_value = ir.tensor(array, name=value.name)


def _attribute(m: ir.Model) -> None:
    node = next(node for node in m.graph if node.op_type == "Conv")
    node.attributes["pads"] = ir.AttrInt64s("pads", [0, 2, 2, 0])


def _edge(m: ir.Model) -> None:
    node = next(node for node in m.graph if node.op_type == "Add")
    node.replace_input_with(0, node.inputs[1])


def _added_node(m: ir.Model) -> None:
    node = next(node for node in m.graph if node.op_type == "Add")
    extra = ir.node("Relu", [node.inputs[0]])
    m.graph.insert_before(node, extra)
    extra.outputs[0].name = "extra"
    node.replace_input_with(0, extra.outputs[0])


@pytest.mark.usefixtures("plain_replay")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_ulp_of_unfolded, "1 of 432 values differ"),
        (_attribute, "attribute 'pads'"),
        (_edge, "inputs"),
        (_added_node, "an added Relu computes 'extra'"),
    ],
)
def test_the_certificate_names_any_other_change(change: Callable[[ir.Model], None], named: str) -> None:
    original, candidate = changed(change)
    verdict = verify(original, candidate)
    assert verdict.exit_code == 1
    assert any(named in reason for reason in verdict.reasons), verdict.reasons
    assert not verdict.cells  # it ends before any input is run


def test_the_certificate_survives_the_file(tmp_path: Path) -> None:
    original = load(nets.plain(1))
    save(own(nets.plain(1)), tmp_path / "folded.onnx", external=True)
    verdict = verify(original, tmp_path / "folded.onnx")
    assert verdict.status == "pass" and verdict.certificate["applies"]


@pytest.mark.usefixtures("plain_replay")
def test_a_candidate_of_another_original_is_a_mismatch_and_says_so() -> None:
    candidate = bnfold.optimize(nets.plain(1), verify=False).model
    verdict = verify(nets.plain(2), candidate)
    assert verdict.exit_code == 1 and any("another file" in w for w in verdict.warnings)


def test_a_fold_map_without_folds_is_inconclusive() -> None:
    original = nets.plain(0)
    claimed = load(original).clone()
    claimed.metadata_props[FOLD_MAP] = own(original).metadata_props[FOLD_MAP]
    verdict = verify(original, claimed)
    assert verdict.exit_code == 3 and "fold map" in verdict.reasons[0]


def test_the_fold_of_another_release_is_judged_by_its_output() -> None:
    original = nets.plain(0)
    candidate = load(own(original)).clone()
    found = json.loads(candidate.metadata_props[FOLD_MAP])
    candidate.metadata_props[FOLD_MAP] = json.dumps({**found, "bnfold": "0.0.1"})
    verdict = verify(original, candidate)
    assert verdict.status == "pass" and not verdict.certificate["applies"]
    assert any("bnfold 0.0.1 folded the candidate" in warning for warning in verdict.warnings)


@pytest.mark.parametrize("text", ["{", "[" * 10**5])
def test_a_fold_map_that_cannot_be_read_is_inconclusive(text: str) -> None:
    original = nets.plain(0)
    candidate = load(nets.fold(original)).clone()
    candidate.metadata_props[FOLD_MAP] = text
    assert verify(original, candidate).exit_code == 3


# --- What proves nothing is inconclusive.


def test_all_nan_is_inconclusive() -> None:
    m = model("(float[N,4] x) => (float[N,4] y) { z = Sub (x, x) y = Div (z, z) }")
    assert verify(m, m).exit_code == 3


def test_nan_in_the_weights_is_inconclusive() -> None:
    w = normal(4, 4)
    w[1, 2] = np.nan
    m = model("(float[N,4] x) => (float[N,4] y) { y = MatMul (x, w) }", w=w)
    verdict = verify(m, m)
    assert verdict.exit_code == 3 and "NaN" in str(verdict)


def test_all_zero_is_inconclusive() -> None:
    m = model("(float[N,4] x) => (float[N,4] y) { y = Mul (x, zero) }", zero=np.zeros(1))
    verdict = verify(m, m)
    assert verdict.exit_code == 3 and "zero for every input" in str(verdict)


def test_a_constant_output_is_inconclusive() -> None:
    m = model("(float[N,4] x) => (float[N,4] y) { z = Mul (x, zero) y = Add (z, w) }", zero=np.zeros(1), w=normal(4))
    verdict = verify(m, m)
    assert verdict.exit_code == 3 and "same for every input" in str(verdict)


def test_an_output_that_no_input_reaches_is_noted_beside_one_that_varies() -> None:
    text = "(float[1,4] x) => (float[1,4] y, float[4] boxes) { y = Mul (x, w) boxes = Identity (w) }"
    m = model(text, w=normal(4))
    verdict = verify(m, m)
    assert verdict.status == "pass" and any("depends on no input" in w for w in verdict.warnings)
    alone = model("(float[1,4] x) => (float[4] boxes) { boxes = Identity (w) }", w=normal(4))
    assert verify(alone, alone).exit_code == 3


def test_one_given_input_cannot_show_that_the_output_depends_on_it() -> None:
    m = model("(float[1,4] x) => (float[1,4] y) { z = Mul (x, zero) y = Add (z, w) }", zero=np.zeros(1), w=normal(4))
    assert verify(m, m, inputs={"x": normal(1, 4)}).exit_code == 3
    fine = nets.plain(0)
    assert verify(fine, nets.fold(fine), inputs={"x": normal(1, 3, 12, 12)}).status == "pass"


def test_an_operator_without_a_float64_kernel_is_inconclusive_by_name() -> None:
    m = model("(float[2,4] x) => (float[2,4] y) { z = RandomNormalLike (x) y = Add (x, z) }")
    verdict = verify(m, m)
    assert verdict.exit_code == 3 and "RandomNormalLike" in str(verdict)


def test_fewer_folds_than_expected_are_inconclusive() -> None:
    original = nets.plain(0)
    assert verify(original, original, expect_folds=1).exit_code == 3
    assert verify(original, nets.fold(original), expect_folds=3).exit_code == 3
    assert verify(original, nets.fold(original), expect_folds=2).status == "pass"


def test_an_optimized_reference_is_inconclusive(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = runtime.session
    monkeypatch.setattr(runtime, "session", lambda *a, **k: honest(*a, **{**k, "optimize": True}))
    original = nets.plain(0)
    verdict = verify(original, original)
    assert verdict.exit_code == 3 and "optimized" in str(verdict)


def test_a_provider_without_proof_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ONNX Runtime does not tell what runs a node, or says that a layer runs elsewhere, the exit code is 4."""
    monkeypatch.setattr(runtime, "unproven", lambda session, provider: f"{provider} is unproven")
    with pytest.raises(ProviderError, match="cpu is unproven"):
        verify(nets.plain(0), nets.plain(0))
    monkeypatch.undo()
    monkeypatch.setattr(runtime, "elsewhere", lambda session, provider: [("Shape", "s"), ("Conv", "c1"), ("Gemm", "")])
    with pytest.raises(ProviderError, match="'c1' and 1 more would not run on cpu"):
        verify(nets.plain(0), nets.plain(0))
    monkeypatch.setattr(runtime, "elsewhere", lambda session, provider: [("Shape", "s")])
    placement = verify(nets.plain(0), nets.plain(0)).settings["placement"]
    assert placement["cpu, reference"]["elsewhere"] == ["s"]


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "dml", "no such"])
def test_a_provider_that_is_not_there_is_refused(provider: str) -> None:
    if provider in runtime.available_providers() and runtime.usable(provider) is None:
        pytest.skip(f"{provider} works here")
    with pytest.raises(ProviderError) as caught:
        verify(nets.plain(0), nets.plain(0), providers=("cpu", provider))
    assert provider in str(caught.value) and "\n" not in str(caught.value) and caught.value.exit_code == 4


def test_weights_that_determine_nothing_are_inconclusive() -> None:
    """A chaotic map: rounding of one weight moves the output by more than a tenth."""
    body = " ".join(
        f"a{n} = Mul (v{n}, w) b{n} = Sub (one, v{n}) v{n + 1} = Mul (a{n}, b{n})" for n in range(60)
    )
    m = model(
        f"(float[8,32] x) => (float[8,32] y) {{ v0 = Sigmoid (x) {body} y = Identity (v60) }}", w=3.99, one=1.0
    )
    verdict = verify(m, m)
    assert verdict.exit_code == 3 and "rounding" in str(verdict)


# --- V4, V5, integers, extra limits.


def test_a_new_nan_is_a_mismatch() -> None:
    good = model("(float[1,64] x) => (float[1,64] y) { a = Abs (x) b = Add (a, w) y = Log (b) }", w=1e-3)
    bad = model("(float[1,64] x) => (float[1,64] y) { c = Add (x, w) y = Log (c) }", w=1e-3)
    verdict = verify(good, bad)
    assert verdict.exit_code == 1 and "new NaN" in str(verdict)


def test_an_infinity_that_folding_removes_is_a_warning() -> None:
    """Products that overflow float32 on the way, but not where the scales are folded into one."""
    text = "(float[1,64] x) => (float[1,64] y) { a = Mul (x, big) y = Mul (a, small) }"
    before = model(text, big=1e38, small=1e-38)
    after = model("(float[1,64] x) => (float[1,64] y) { y = Mul (x, one) }", one=np.float64(1e38) * 1e-38)
    verdict = verify(before, after, inputs={"x": 30 * normal(8, 1, 64)})
    assert verdict.exit_code != 1
    assert any("finite in the candidate" in w for w in verdict.warnings), verdict


def test_the_best_class_is_compared() -> None:
    original = nets.plain(0)
    cell = verify(original, nets.fold(original)).cells[0]
    assert cell.top1["agree"] > 0 and cell.top1["differ"] == 0
    assert sum(cell.top5.values()) == sum(cell.top1.values()) and cell.top5["differ"] == 0
    # One class wins by far, in one column too few for the RMS over a thousand classes to move much.
    w = 1e-3 * normal(8, 1000)
    w[:, 0], w[:, 1] = w[:, 1] + 1, w[:, 1] + 1.00001
    swapped = w.copy()
    swapped[:, [0, 1]] = swapped[:, [1, 0]]
    text = "(float[N,8] x) => (float[N,1000] y) { y = MatMul (x, w) }"
    assert verify(model(text, w=w), model(text, w=swapped)).exit_code == 1


def test_the_best_classes_are_compared_where_float64_decides_them() -> None:
    y = np.array([[9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 0.0]])
    exchanged, inside = y[:, [0, 1, 2, 3, 5, 4, 6]], y[:, [1, 0, 2, 3, 4, 5, 6]]
    agrees, tie, differs = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    assert compare.best(y, exchanged, 0.4, 1) == agrees and compare.best(y, exchanged, 0.4, 5) == differs
    assert compare.best(y, inside, 0.4, 1) == differs and compare.best(y, inside, 0.4, 5) == agrees
    assert compare.best(y, exchanged, 0.6, 5) == tie
    assert compare.best(y.reshape(1, 7, 1, 1), y.reshape(1, 7, 1, 1), 0.4, 5) == agrees


def test_what_it_takes_to_store_an_output_is_no_mismatch() -> None:
    """A cosine of a value with itself is 1 whatever the weights are, so that neither o nor S shows any noise."""
    y, still = np.ones((1, 1)), Noises(np.zeros(1), 3, np.zeros(1), 1)
    one, ulp, more = (np.float32([[1.0 - n * 2.0**-24]]) for n in (0, 1, 40))
    assert measure(y, one, ulp, still).ratio < 1.0 < measure(y, one, more, still).ratio


def test_integers_are_compared_exactly() -> None:
    text = "(float[4,10] x) => (float[4,10] y, int64[4] k) { y = Mul (x, w) k = ArgMax <axis=1, keepdims=0> (y) }"
    m = model(text, w=normal(10))
    assert verify(m, m).status == "pass"
    other = model(text.replace("ArgMax", "ArgMin"), w=normal(10))
    verdict = verify(m, other)
    assert verdict.exit_code == 1 and "output 'k'" in str(verdict)


def test_rtol_and_atol_are_an_extra_limit() -> None:
    original = nets.plain(0)
    assert verify(original, nets.fold(original), rtol=1e-4, atol=1e-4).status == "pass"
    verdict = verify(original, nets.fold(original), rtol=0.0, atol=0.0)
    assert verdict.exit_code == 1 and "rtol" in str(verdict)
    assert verify(original, nets.fold(original, fault="bias off by one"), rtol=1e9).exit_code == 1


@pytest.mark.parametrize("stored", [np.float16, np.float64])
def test_other_storage_types_have_their_own_roundoff(stored: Any) -> None:
    """A float16 model is not held to float32's precision, and a float64 one is not let off with it."""
    kind = {np.float16: "float16", np.float64: "double"}[stored]
    text = f"({kind}[2,64] x) => ({kind}[2,32] y) {{ y = Gemm (x, w, b) }}"
    w, b = normal(64, 32).astype(np.float64), normal(32).astype(np.float64)
    original = parser.parse_model(f"{HEAD} g {text}")
    original.graph.initializer.extend(numpy_helper.from_array(v.astype(stored), n) for n, v in (("w", w), ("b", b)))
    assert verify(original, original).status == "pass"
    off = onnx.ModelProto()
    off.CopyFrom(original)
    off.graph.initializer[1].CopyFrom(numpy_helper.from_array((b * (1 + 1e-6)).astype(stored), "b"))
    assert verify(original, off).exit_code == (0 if stored is np.float16 else 1)


# --- The contract.

BASE = "(float[N,4] x, float[N,4] z) => (float[N,4] y, float[N,4] v) { y = Add (x, z) v = Mul (x, z) }"


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (BASE.replace(" x,", " w,").replace("(x, z)", "(w, z)"), "inputs are named differently"),
        (BASE.replace("float[N,4] y, float[N,4] v", "float[N,4] v, float[N,4] y"), "outputs are in another order"),
        (BASE.replace("float", "double"), "has type DOUBLE instead of FLOAT"),
        (BASE.replace("float[N,4] x", "float[N,4,1] x"), "has rank 3 instead of 2"),
        (BASE.replace("float[N,4] x", "float[2,4] x"), "fixed size 2 on axis 0, which was dynamic"),
        (BASE.replace(", float[N,4] v)", ")").replace("v = Mul (x, z)", ""), "outputs are named differently"),
    ],
)
def test_another_interface_is_a_mismatch_before_any_number(other: str, named: str) -> None:
    verdict = verify(model(BASE), model(other))
    assert verdict.exit_code == 1 and named in str(verdict) and not verdict.cells


def test_initializers_that_are_inputs_are_constants_and_the_report_says_so() -> None:
    m = model("(float[1,4] x, float[4] w) => (float[1,4] y) { y = Mul (x, w) }", w=normal(4))
    verdict = verify(m, m)
    assert verdict.status == "pass" and any("taken as constants" in w for w in verdict.warnings)


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
