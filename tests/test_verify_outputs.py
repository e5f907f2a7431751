"""The outputs: classes, NaN and infinities, integers, extra limits; and the interface that comes before them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from bnfold.verify import compare, verify
from bnfold.verify.compare import Noises, measure
from tests import nets
from tests.verifying import HEAD, model, normal

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


def stored_as(source: onnx.ModelProto, dtype: Any) -> onnx.ModelProto:
    """The model with all floats in another type."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for part in model.graph.initializer:
        if part.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
            part.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(part).astype(dtype), part.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    del model.graph.value_info[:]
    return model


@pytest.mark.parametrize("scale", [1e-4, 1e-3])
def test_a_float16_fold_that_underflows_is_no_fault(scale: float) -> None:
    """A gamma of 1.5e-6 leaves weights of two digits, and zeros: their rounding is not relative to their size."""
    original = stored_as(nets.NETS["separable"](1, scale), np.float16)
    wide = stored_as(original, np.float32)
    verdict = verify(original, stored_as(nets.fold(wide), np.float16), samples=10)
    assert verdict.status == "pass", verdict
    wrong = nets.fold(wide, fault="scale off by one", where=1)
    assert verify(original, stored_as(wrong, np.float16), samples=10).exit_code == 1


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
