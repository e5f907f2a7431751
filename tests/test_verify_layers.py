"""Layer by layer (V2): pairing, windows, teacher-forced errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from bnfold import runtime
from bnfold.inputs.feeds import generated
from bnfold.io import load
from bnfold.verify import verify
from bnfold.verify.bisection import bisect
from bnfold.verify.layererror import measure
from bnfold.verify.local import Local, perturbed
from bnfold.verify.magnitude import Bounded, bounded, gamma
from bnfold.verify.reference import Evaluator
from bnfold.verify.windows import Windows
from tests import nets
from tests.verifying import cut, model, normal


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
