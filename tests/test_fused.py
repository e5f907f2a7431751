"""What runtimes compute in one step keeps its constants, and the twin that is no such thing loses them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from tests.graphs import build, exact, feeds, folded, operators

GELU = "(T[N,8] x) => (T[n,c] y) { s = Div(x, 1.5)  e = Erf(s)  g = Add(e, 1.0)  "
NORM = (
    "(T[N,8] x) => (T[n,c] y) { m = ReduceMean <axes = [-1]> (x)  d = Sub(x, m)  p = Mul(d, d)"
    "  v = ReduceMean <axes = [-1]> (p)  w = Add(v, 0.25)  r = Sqrt(w)  n = Div(d, r)  "
)
LINEAR = "y = MatMul(h, k[8,4]) }"
CASES = {
    "the half behind": (f"{GELU} a = Mul(x, g)  h = Mul(a, 0.5)  {LINEAR}", "g = Add(e, 1.0)", "g = Add(e, 2.0)"),
    "a half that is multiplied": (f"{GELU} a = Mul(x, g)  h = Mul(a, 0.5)  {LINEAR}", "h = Mul", "h = Div"),
    "the half in front": (f"{GELU} a = Mul(x, 0.5)  h = Mul(a, g)  {LINEAR}", "0.5", "0.25"),
    "tanh": (f"{GELU} a = Mul(g, x)  h = Mul(0.5, a)  {LINEAR}".replace("Erf", "Tanh"), "Tanh", "Sigmoid"),
    "the half inside": (f"{GELU} a = Mul(g, 0.5)  h = Mul(a, x)  {LINEAR}", "e, 1.0", "e, 2.0"),
    "a gate that is no sum": (f"{GELU} a = Mul(x, g)  h = Mul(a, 0.5)  {LINEAR}", "Add(e", "Sub(e"),
    "gamma": (f"{NORM} h = Mul(n, q[8])  {LINEAR}", "n = Div(d, r)", "n = Div(r, d)"),
    "gamma and beta": (f"{NORM} a = Mul(q[8], n)  h = Add(a, z[8])  {LINEAR}", "Sqrt", "Exp"),
}


def same(model: ModelProto, result: ModelProto) -> None:
    inputs = feeds(model)
    np.testing.assert_allclose(exact(result, inputs)["y"], exact(model, inputs)["y"], rtol=2.0**-40, atol=2.0**-40)


@pytest.mark.parametrize(("text", "old", "new"), CASES.values(), ids=CASES)
def test_a_fused_constant_stays(text: str, old: str, new: str) -> None:
    model = build(text)
    result, _ = folded(model)
    assert operators(result) == operators(model)
    assert old in text
    twin = build(text.replace(old, new))
    result, _ = folded(twin)
    assert len(operators(result)) < len(operators(twin))
    same(twin, result)


@pytest.mark.parametrize("reader", ["h = Add(a, g)", "h = Mul(a, e)", "b = Mul(a, g)  h = Mul(b, a)"])
def test_a_half_that_no_gate_multiplies_goes(reader: str) -> None:
    model = build(f"{GELU} w = MatMul(x, u[8,8])  a = Mul(w, 0.5)  {reader}  y = Relu(h) }}")
    result, _ = folded(model)
    assert operators(result).count("Mul") == operators(model).count("Mul") - 1
    same(model, result)


def test_a_norm_in_front_of_a_gelu_leaves_it_whole() -> None:
    model = build(
        "(T[N,4] x) => (T[n,c] y) { w = MatMul(x, u[4,8])  b = BN(w, A.8)  s = Div(b, 1.5)  e = Erf(s)  g = Add(e, 1.0)"
        "  a = Mul(b, g)  y = Mul(a, 0.5) }"
    )
    result, _ = folded(model)
    assert operators(result)[-5:] == ["Div", "Erf", "Add", "Mul", "Mul"]
    same(model, result)


def test_a_norm_behind_a_gelu_goes_the_other_way() -> None:
    text = GELU + "a = Mul(x, g)  h = Mul(a, 0.5)  b = BN(h, A.8)  y = MatMul(b, k[8,4]) }"
    model = build(text)
    result, report = folded(model)
    assert report.folded == 1 and operators(result)[:5] == operators(model)[:5]
    same(model, result)


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("c = Conv(x, w[4,4,1,1])  r = Relu(c)  b = BN+(r, A.4)  y = Conv <pads = [1,1,1,1]> (b, v[4,4,3,3])", 1),
        ("c = Conv(x, w[4,4,1,1])  r = Relu(c)  b = BN(r, A.4)  y = Conv(b, v[4,4,3,3])", 0),
        ("c = Conv(x, w[4,4,1,1])  r = Relu(c)  b = BN+(r, A.4)  y = LeakyRelu(b)", 0),
    ],
    ids=["in front of a padded convolution", "of one that absorbs it", "and of an activation"],
)
def test_a_norm_in_blocked_feature_maps_is_no_dearer_than_an_addition(body: str, kept: int) -> None:
    model = build(f"(T[N,4,8,8] x) => (T[n,c,h,w] y) {{ {body} }}")
    result, report = folded(model)
    assert report.kept == kept == operators(result).count("BatchNormalization")
    same(model, result)
