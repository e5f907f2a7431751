"""V1 without a fold map: what somebody else made of a layer, recomputed constant by constant."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnfold.verify import verify
from bnfold.verify.bisection import bisect
from bnfold.verify.local import Local
from bnfold.verify.recompute import recompute
from bnfold.verify.reference import Evaluator
from tests import nets
from tests.graphs import Array
from tests.verifying import cut, model, normal, tensor


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
