"""Layer by layer: pairing, windows, recomputed constants, teacher-forced errors, bisection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

import bnfold
from bnfold import report, runtime
from bnfold.arrays import Array
from bnfold.errors import OutputError, UsageError
from bnfold.inputs.feeds import generated
from bnfold.io import load
from bnfold.verify import verify
from bnfold.verify.bisection import bisect
from bnfold.verify.layererror import measure
from bnfold.verify.local import Local, perturbed
from bnfold.verify.magnitude import Bounded, bounded, gamma
from bnfold.verify.recompute import recompute
from bnfold.verify.reference import Evaluator
from bnfold.verify.splice import spliced
from bnfold.verify.windows import Windows
from tests import nets

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def model(text: str, **constants: Array | float) -> onnx.ModelProto:
    made = parser.parse_model(f"{HEAD} g {text}")
    for name, value in constants.items():
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    return made


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cut(original: onnx.ModelProto, candidate: onnx.ModelProto | ir.Model, trusted: bool = False) -> Windows:
    return Windows(load(original), load(candidate), trusted=trusted)


def tensor(made: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in made.graph.initializer if t.name == name)


def layers(windows: Windows, samples: int = 2) -> dict[str, float]:
    """The ratio of each changed window on some samples."""
    local = Local(windows, ("cpu",), 2.0**-24)
    evaluator = Evaluator(windows.models[0])
    for sample in generated(windows.models[0], samples=samples):
        local.run(evaluator, sample)
    return {name: layer.ratio for name, layer in local.layers.items()}


# --- Pairing and windows.

CONV = """(float[1,2,6,6] x) => (float[1,3,6,6] y) {
    a = Conv <pads = [1,1,1,1]> (x, w)
    b = BatchNormalization (a, g, h, m, v)
    y = Relu (b) }"""
PARTS = {
    "w": normal(3, 2, 3, 3), "g": normal(3, seed=1), "h": normal(3, seed=2), "m": normal(3, seed=3), "v": np.ones(3),
}  # fmt: skip
S = PARTS["g"] / np.sqrt(np.float32(1.0) + np.float32(1e-5))


def folded(names: tuple[str, str] = ("b", "y"), **changes: Any) -> onnx.ModelProto:
    """CONV as somebody might fold it, with the convolution's output under any name."""
    text = "(float[1,2,6,6] x) => (float[1,3,6,6] y) { b = Conv <pads = [1,1,1,1]> (x, k, c) y = Relu (b) }"
    made = {"k": PARTS["w"] * S.reshape(-1, 1, 1, 1), "c": PARTS["h"] - S * PARTS["m"], **changes}
    return model(text.replace("b =", f"{names[0]} =").replace("(b)", f"({names[0]})"), **made)


def test_windows_are_named_by_what_both_compute() -> None:
    windows = cut(model(CONV, **PARTS), folded())
    assert [(w.name, w.changed, len(w.original.nodes), len(w.candidate.nodes)) for w in windows.listed] == [
        ("b", True, 2, 1), ("y", False, 1, 1),
    ]  # fmt: skip


def test_a_name_that_moved_across_the_fold_is_not_taken() -> None:
    """The folded convolution under the name that its output had before: what reads it has changed."""
    windows = cut(model(CONV, **PARTS), folded(("a", "y")))
    # The weight says which layer it is.
    assert [w.name for w in windows.changed] == ["b"]
    assert verify(model(CONV, **PARTS), folded(("a", "y"))).status == "pass"


def test_names_of_a_stranger_are_found_by_structure() -> None:
    windows = cut(model(CONV, **PARTS), folded(("some_other", "y")))
    assert [(w.name, w.candidate.result.name) for w in windows.changed] == [("b", "some_other")]


def test_equal_parts_are_unchanged_whatever_their_names() -> None:
    """Constants by another way, and constant arithmetic, are the same constants."""
    one = model("(float[2,4] x) => (float[2,4] y) { y = Mul (x, w) }", w=normal(4))
    two = model("(float[2,4] x) => (float[2,4] y) { k = Neg (u) y = Mul (x, k) }", u=-normal(4))
    assert [w.changed for w in cut(one, two).listed] == [False]


def test_bodies_are_compared() -> None:
    text = """(float[2] x, bool c) => (float[2] y) {{
        y = If (c) <then_branch = t () => (float[2] a) {{ a = Mul (x, w) }},
                    else_branch = f () => (float[2] b) {{ b = {} (x) }}> }}"""
    one, two = (model(text.format(op), w=normal(2)) for op in ("Neg", "Abs"))
    assert [w.changed for w in cut(one, one).listed] == [False]
    assert [w.changed for w in cut(one, two).listed] == [True]
    assert {v.name for v in cut(one, two).listed[0].original.feeds} == {"c", "x"}


# --- V1 without a fold map.


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("net", nets.NETS)
def test_correct_formulas_are_within_the_limits(net: str, dtype: Any) -> None:
    original = nets.NETS[net](1, 1.0)
    found = dict(recompute(cut(original, nets.fold(original, dtype=dtype)), own=False))
    assert found and all(layer is not None and 0 < layer.ratio < 1 for layer in found.values())


@pytest.mark.parametrize("net", nets.NETS)
@pytest.mark.parametrize("fault", nets.FAULTS)
def test_recomputing_names_the_faulty_layer(net: str, fault: str) -> None:
    original = nets.NETS[net](2, 1.0)
    faulty = nets.fold(original, fault=fault, where=1, seed=2)
    right = {t.name: numpy_helper.to_array(t) for t in nets.fold(original).graph.initializer}
    if all(np.array_equal(numpy_helper.to_array(t), right[t.name]) for t in faulty.graph.initializer):
        pytest.skip("this fault changes nothing here")
    norms = [node.output[0] for node in original.graph.node if node.op_type == "BatchNormalization"]
    found = {n: r.ratio for n, r in recompute(cut(original, faulty), own=False) if r is not None and r.ratio > 1}
    assert list(found) == [norms[1]]


MERGED = """(float[1,3,7,7] x) => (float[1,3,7,7] y) {
    a = Conv <pads = [1,1,1,1]> (x, w3)  b = BatchNormalization (a, g, h, m, v)
    c = Conv (x, w1)  d = BatchNormalization (c, h, g, m, v)
    e = BatchNormalization (x, g, m, h, v)
    f = Add (b, d)  y = Add (f, e) }"""
BRANCHES = {
    "w3": normal(3, 3, 3, 3), "w1": normal(3, 3, 1, 1, seed=5), "g": normal(3, seed=1), "h": normal(3, seed=2),
    "m": normal(3, seed=3), "v": np.ones(3),
}  # fmt: skip



@pytest.mark.parametrize(("weight", "status"), [("1, 2, 3, 4", "pass"), ("1, 2, 3, 5", "mismatch")])
def test_a_body_brings_its_own_weights(weight: str, status: str) -> None:
    text = """(bool c, float[1,2,4,4] x) => (float[1,2,4,4] y) {{ y = If (c) <
        then_branch = t () => (float[1,2,4,4] a) <float[2,2,1,1] {0} = {{{1}}}> {{ a = Conv (x, {0}) }},
        else_branch = e () => (float[1,2,4,4] b) {{ b = Relu (x) }}> }}"""
    verdict = verify(model(text.format("w", "1, 2, 3, 4")), model(text.format("v", weight)), keep_going=True)
    assert verdict.status == status, verdict
    assert [layer["status"] for layer in verdict.layers] == [status]


def merged() -> onnx.ModelProto:
    """Three branches of RepVGG as one convolution, by hand in float64."""
    p = {k: np.asarray(v, np.float64) for k, v in BRANCHES.items()}
    root = np.sqrt(1.0 + np.float64(np.float32(1e-5)))
    g, h = p["g"] / root, p["h"] / root
    kernel = p["w3"] * g.reshape(-1, 1, 1, 1)
    kernel[:, :, 1:2, 1:2] += p["w1"] * h.reshape(-1, 1, 1, 1)
    kernel[np.arange(3), np.arange(3), 1, 1] += g
    bias = (p["h"] - g * p["m"]) + (p["g"] - h * p["m"]) + (p["m"] - g * p["h"])
    return model("(float[1,3,7,7] x) => (float[1,3,7,7] y) { y = Conv <pads = [1,1,1,1]> (x, k, c) }", k=kernel, c=bias)


def test_merged_branches_are_probed_with_their_own_scale() -> None:
    original, candidate = model(MERGED, **BRANCHES), merged()
    ((_, found),) = recompute(cut(original, candidate), own=False)
    assert found is not None and 0 < found.ratio < 1
    # Two branches that cancel leave a small weight of large terms: its rounding is theirs.
    value = numpy_helper.to_array(tensor(candidate, "k")).copy()
    value[0, 0, 0, 0] *= 1.0 + 1e-5
    tensor(candidate, "k").CopyFrom(numpy_helper.from_array(value, "k"))
    ((_, found),) = recompute(cut(original, candidate), own=False)
    assert found is not None and found.weight > 1 and found.bias < 1


def test_layers_in_a_row_may_each_round_once() -> None:
    """A stream scaled by s between two layers: both weights are rounded, and the window is their product."""
    text = "(float[2,16] x) => (float[2,16] y) {{ {0} = MatMul (x, w)  y = MatMul ({0}, v) }}"
    w, v, s = np.diag(normal(16)), np.diag(normal(16, seed=1)), np.linspace(0.3, 1.7, 16, dtype=np.float32)
    original = model(text.format("a"), w=w, v=v)
    for more, least, most in ((1.0, 0.5, 1.0), (1.0 + 1e-6, 2.0, 10.0)):
        candidate = model(text.format("b"), w=w * s, v=v / s[:, None] * np.float64(more))
        ((_, found),) = recompute(cut(original, candidate, trusted=True), own=True)
        assert found is not None and least < found.ratio < most


def test_a_reader_may_take_an_affine_that_others_still_read() -> None:
    """The layer then reads another value than before, and is not held against what it made of the old one."""
    head = '<ir_version: 8, opset_import: ["": 17]> g (float[N,4] x) => (float[N,3] y, float[N,4] z)'
    random = np.random.default_rng(0)
    a, w = random.uniform(0.5, 2.0, 4).astype(np.float32), random.normal(size=(4, 3)).astype(np.float32)

    def made(text: str, **constants: Any) -> onnx.ModelProto:
        model = onnx.parser.parse_model(f"{head} {{ {text} }}")
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
        return model

    original = made("v = Mul (x, a) y = MatMul (v, w) z = Tanh (v)", a=a, w=w)
    folded = made("v = Mul (x, a) y = MatMul (x, aw) z = Tanh (v)", a=a, aw=a[:, None] * w)
    verdict = verify(original, folded, samples=4)
    assert verdict.status == "pass", verdict
    wrong = made("v = Mul (x, a) y = MatMul (x, aw) z = Tanh (v)", a=a, aw=a[:, None] * w * np.float32(1.001))
    assert verify(original, wrong, samples=4).status == "mismatch"


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_a_result_whose_leading_axis_is_no_batch_is_not_probed(factor: float) -> None:
    """Three impulses at once would meet one row each of s, and a fault anywhere else in it would pass for proven."""
    s, t = normal(3, 3), normal(3, seed=1)
    product = s * t
    product[0, 1] *= np.float32(factor)
    original = model("(float[1,3] x) => (float[3,3] y) { a = Mul (x, s) y = Mul (a, t) }", s=s, t=t)
    candidate = model("(float[1,3] x) => (float[3,3] y) { y = Mul (x, st) }", st=product)
    verdict = verify(original, candidate, samples=4)
    assert verdict.certificate["unproven"] == ["y"]
    assert verdict.status == ("pass" if factor == 1.0 else "mismatch"), verdict


def test_a_shift_pushed_through_padding_is_seen_at_the_border() -> None:
    text = """(float[1,3,7,7] x) => (float[1,3,7,7] y) {
        a = BatchNormalization (x, g, h, m, v)  y = Conv <pads = [1,1,1,1]> (a, w3) }"""
    parts = {name: BRANCHES[name] for name in ("w3", "g", "h", "m", "v")}
    s = parts["g"] / np.sqrt(1.0 + np.float64(np.float32(1e-5)))
    shift = parts["h"] - s * parts["m"]
    candidate = model(
        "(float[1,3,7,7] x) => (float[1,3,7,7] y) { y = Conv <pads = [1,1,1,1]> (x, k, c) }",
        k=parts["w3"] * s.reshape(1, 3, 1, 1), c=(parts["w3"] * shift.reshape(1, 3, 1, 1)).sum(axis=(1, 2, 3)),
    )  # fmt: skip
    ((_, found),) = recompute(cut(model(text, **parts), candidate), own=False)
    assert found is not None and found.weight < 1 < found.bias


@pytest.mark.parametrize("net", ["plain", "perceptron"])
def test_the_witness_reaches_the_worst_case(net: str) -> None:
    """At x = ±B·sign(W′ − W*) the difference in float64 is the one in closed form, and no other input exceeds it."""
    original = nets.NETS[net](0, 1.0)
    windows = cut(original, nets.fold(original, dtype=np.float32))
    name, worst = next((n, r) for n, r in recompute(windows, own=False) if r is not None)
    window = next(w for w in windows.changed if w.name == name)
    local = Local(windows, (), 0.0)
    shape = (3, 3, 3) if net == "plain" else (20,)
    feed = window.original.feeds[0].name
    sides = local.sides(window, {str(feed): np.zeros((1, *shape))})
    bound = 7.0

    def difference(x: Array) -> float:
        y, c = (Evaluator(s).run({str(feed): x[None]})[name] for s in (sides.original, sides.candidate))
        at = (0, worst.channel, 1, 1) if net == "plain" else (0, worst.channel)
        return abs(float((c - y)[at]))

    reached = max(difference(sign * worst.witness(bound).reshape(shape)) for sign in (1.0, -1.0))
    assert reached == pytest.approx(worst.slope * bound + worst.offset, rel=1e-6)
    rng = np.random.default_rng(0)
    assert all(difference(bound * rng.uniform(-1, 1, shape)) < reached for _ in range(20))


def test_a_layer_scaled_where_the_next_one_takes_it_back_is_no_fault() -> None:
    """Cross-layer equalization keeps every name; only wider windows show that nothing has changed."""
    text = "(float[2,4] x) => (float[2,3] y) { a = Gemm (x, w, b)  r = Relu (a)  y = MatMul (r, u) }"
    parts = {"w": normal(4, 8), "b": normal(8, seed=1), "u": normal(8, 3, seed=2)}
    gain = np.abs(normal(8, seed=3)) + 0.5
    other = {"w": parts["w"] * gain, "b": parts["b"] * gain, "u": parts["u"] / gain[:, None]}
    verdict = verify(model(text, **parts), model(text, **other))
    assert verdict.status == "pass", verdict
    found = bisect(model(text, **parts), model(text, **other))
    assert found.status == "same" and found.windows == verdict.certificate["changed"] == 1
    broken = {**other, "u": parts["u"] / gain[::-1, None]}
    assert verify(model(text, **parts), model(text, **broken)).exit_code == 1


# --- V2.


def test_magnitudes_are_the_sums_of_absolute_terms() -> None:
    """M = |s|(|W|∗|x| + |b| + |μ|) + |β|, and γ_K·M holds what float32 does."""
    parts = {**PARTS, "k": normal(3, seed=9)}
    made = model(CONV.replace("(x, w)", "(x, w, k)").replace("y = Relu (b)", "y = Identity (b)"), **parts)
    x = normal(1, 2, 6, 6, seed=4)
    found = bounded(Evaluator(load(made)), {"x": x})
    absolute = {"w": np.abs(parts["w"]), "k": np.abs(parts["k"])}
    text = "(float[1,2,6,6] x) => (float[1,3,6,6] a) { a = Conv <pads = [1,1,1,1]> (x, w, k) }"
    sums = Evaluator(load(model(text, **absolute))).run({"x": np.abs(x)})["a"]
    per = [np.asarray(v, np.float64).reshape(1, 3, 1, 1) for v in (S, parts["m"], parts["h"])]
    np.testing.assert_allclose(found.m, np.abs(per[0]) * (sums + np.abs(per[1])) + np.abs(per[2]), rtol=1e-6)
    assert found.proves and found.k >= 18
    o = runtime.run(runtime.session(made, optimize=False), {"x": x})["y"]
    assert (np.abs(o - found.y) <= gamma(found.k + 8, 2.0**-24) * found.m).all()


@pytest.mark.parametrize("net", nets.NETS)
def test_no_layer_of_a_correct_model_is_accused(net: str) -> None:
    original = nets.NETS[net](4, 1.0)
    own = bnfold.optimize(original, verify=False).model
    for candidate, trusted in ((nets.fold(original, dtype=np.float32), False), (own, True)):
        found = layers(cut(original, candidate, trusted), samples=12)
        assert found and max(found.values()) < 1, found


def test_a_channel_of_few_elements_may_round_to_nothing_by_luck() -> None:
    """Two elements that o happens to get right do not make c's usual rounding a fault; 64 such elements do."""
    unit, y = 2.0**-24, np.ones((1, 3, 64))
    error = np.zeros_like(y)
    error[:, 1] = 6.0 * unit

    def ratio(size: int) -> float:
        part = (slice(None), slice(None), slice(size))
        found = Bounded(y[part], np.ones_like(y[part]), 576, True)
        return measure(found, y[part], (y + error)[part], unit, 1).channel

    assert ratio(2) == pytest.approx(6 / 16) and ratio(64) == pytest.approx(6 / 4)


def test_a_channel_in_which_few_elements_are_alive_is_one_of_few() -> None:
    """Behind a ReLU only they round; the others are zero in all three."""
    unit, y, error = 2.0**-24, np.zeros((1, 1, 64)), np.zeros((1, 1, 64))
    y[..., :2] = 1.0
    error[..., :2] = unit
    found = Bounded(y, y, 576, True)
    assert measure(found, y + error, y + 6 * error, unit, 1).channel == pytest.approx(6 / 16)
    dense = Bounded(y + 1.0, y + 1.0, 576, True)
    assert measure(dense, dense.y + unit, dense.y + 6 * unit, unit, 1).channel > 1.0
    empty = Bounded(y[..., :0], y[..., :0], 576, True)
    assert measure(empty, empty.y, empty.y, unit, 1).ratio == 0.0


def test_where_magnitudes_are_not_followed_perturbed_weights_tell_them() -> None:
    """A sine after many turns is nearly zero: |y| says nothing of what rounding the weights does to it."""
    made = load(model("(float[1,2] x) => (float[1,2] y) { a = MatMul (x, w)  y = Sin (a) }", w=normal(2, 2)))
    feeds = {"x": np.linalg.solve(normal(2, 2).astype(np.float64).T, np.full(2, 1000.0 * np.pi))[None]}
    found = bounded(Evaluator(made), feeds)
    assert not found.traced and (found.m < 1e-5).all()
    assert (perturbed(found, made, feeds).m > 1.0).all()



def test_what_is_as_good_as_zero_is_no_fault() -> None:
    """A softmax far behind: where y is subnormal or less, a runtime may clamp to the smallest normal number."""
    y = np.full((1, 2, 64), 1e-43)
    found = Bounded(y, y, 1, True)
    least = np.finfo(np.float32).smallest_normal
    zero, normal, more = (np.full(y.shape, value, np.float32) for value in (0.0, least, 1e-36))
    assert measure(found, zero, normal, 2.0**-24, 1).ratio < 1.0 < measure(found, zero, more, 2.0**-24, 1).ratio
    assert measure(found, zero, normal, 2.0**-24, 1).proof < 1.0 < measure(found, zero, more, 2.0**-24, 1).proof


def test_a_fault_that_the_output_hides_is_found_and_proven() -> None:
    """A channel that no later weight reads: the output is right, the layer is not."""
    text = "(float[4,4] x) => (float[4,2] y) { a = Gemm (x, w, b)  r = Relu (a)  y = MatMul (r, u) }"
    parts = {"w": normal(4, 4), "b": normal(4, seed=1), "u": normal(4, 2, seed=2) * np.array([[1], [1], [1], [0]])}
    wrong = {**parts, "b": parts["b"] + np.array([0, 0, 0, 0.01])}
    verdict = verify(model(text, **parts), model(text, **wrong), keep_going=True)
    assert verdict.exit_code == 1 and all(cell.status == "pass" for cell in verdict.cells)
    (layer,) = (x for x in verdict.layers if x["status"] == "mismatch")
    assert layer["output"] == "a" and layer["proven"]


def test_the_first_mismatch_ends_it_unless_all_is_asked_for() -> None:
    original = nets.plain(0)
    faulty = nets.fold(original, fault="scale off by one")
    first, whole = verify(original, faulty), verify(original, faulty, keep_going=True)
    assert not first.cells and not first.layers and all(text.startswith("certificate:") for text in first.reasons)
    assert whole.cells and {x["status"] for x in whole.layers} == {"pass", "mismatch"}
    assert set(first.reasons) < set(whole.reasons)


def test_nothing_acquits_a_layer_whose_constants_are_wrong() -> None:
    """The layers behind it may hide a small fault; its own weights don't."""
    original = nets.residual(1)
    faulty = nets.fold(original, fault="epsilon outside the root", where=1, seed=1)
    verdict = verify(original, faulty, seed=1, keep_going=True)
    assert [x["output"] for x in verdict.layers if x["status"] == "mismatch"] == ["batchnormalization4"]
    assert [x.name for x in bisect(original, faulty, seed=1, method="local").layers] == ["batchnormalization4"]


# --- Bisection.


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
