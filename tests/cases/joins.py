"""Joins: several values become one, and their affines must fit together."""

from __future__ import annotations

import numpy as np

from tests.cases.base import Case, case

_JOINED_READ = {"=> (T[n,c,h,w] y": "=> (T[n,p,q,r] d, T[n,c,h,w] y"}
_ONE_VARIABLE = {"e = Conv(z, v[4,3,1,1])": "e = Sigmoid(z)", "T[N,3,8,8] z": "T[N,4,8,8] z"}


def _hoist(
    name: str, call: str, left: str, twin: dict[str, str], kept: str = "", twin_after: str = "", **options: object
) -> Case:
    """Two convolutions to [N,4,8,8], `a` and `e`, joined in `d`, then BN."""
    text = (
        "(T[N,3,8,8] x, T[N,3,8,8] z) => (T[n,c,h,w] y) "
        f"{{ a = Conv(x, w[4,3,1,1])  e = Conv(z, v[4,3,1,1])  {call} }}"
    )
    after = f"Conv Conv {left}"
    return case(f"two Convs, {name}, BN", text, after, "hoist", twin=twin, kept=kept, left=twin_after, **options)


def _sink(
    name: str, call: str, left: str, twin: dict[str, str], kept: str = "", twin_after: str = "", **options: object
) -> Case:
    """Two inputs [N,4,8,8], a join `d`, and a convolution."""
    text = f"(T[N,4,8,8] x, T[N,4,8,8] z) => (T[n,c,h,w] y) {{ {call}  y = Conv(d, w[2,4,3,3]) }}"
    after = f"{left} Conv"
    return case(f"BNs, {name}, Conv", text, after, "sink", twin=twin, kept=kept, left=twin_after, **options)


CASES = (
    # Hoisted.
    _hoist("Add", "d = Add(a, e)  y = BN(d, A.4)", "Add", _JOINED_READ, "graph-output"),
    _hoist("Add of one variable", "d = Add(a, e)  y = BN(d, A.4)", "Add", _ONE_VARIABLE,
           twin_after="Conv Sigmoid Mul Add", exact=False),
    _hoist("Sub", "d = Sub(a, e)  y = BN(d, A.4)", "Sub", _JOINED_READ, "graph-output"),
    _hoist("Sum", "d = Sum(a, e)  y = BN(d, A.4)", "Sum", _JOINED_READ, "graph-output"),
    _hoist("Sum of three", "d = Sum(a, a, e)  y = BN0(d, A.4)", "Sum", _JOINED_READ, twin_after="Conv Conv Sum Mul"),
    _hoist("Mul, scale to either",
           "d = Mul(a, e)  y = BN0(d, A.4)", "Mul", _JOINED_READ, twin_after="Conv Conv Mul Mul"),
    _hoist("Mul, shift left behind", "d = Mul(a, e)  y = BN(d, A.4)", "Mul Add", _JOINED_READ, "graph-output"),
    _hoist("Mul, BN in front of no image's convolution", "d = Mul(a, e)  b = BN(d, A.4)  y = Sigmoid(b)",
           "Mul Add Sigmoid", {"Sigmoid(b)": "Conv <pads = [1,1,1,1]> (b, u[2,4,3,3])"}, "padding", exact=False),
    _hoist("Mul by a variable", "f = Sigmoid(e)  d = Mul(f, a)  y = BN0(d, A.4)", "Sigmoid Mul", _JOINED_READ,
           twin_after="Conv Conv Sigmoid Mul Mul", exact=False),
    _hoist("Div, scale to the numerator", "f = Exp(e)  d = Div(a, f)  y = BN0(d, A.4)", "Exp Div",
           {"Div(a, f)": "Div(z, f)", "T[N,3,8,8] z": "T[N,4,8,8] z", "v[4,3,": "v[4,4,"},
           twin_after="Mul Conv Conv Exp Div", exact=False),
    _hoist("Concat of channels", "d = Concat <axis = 1> (a, e)  y = BN(d, A.8)", "Concat", _ONE_VARIABLE, "barrier",
           exact=False),
    _hoist("Concat of channels, scales", "d = Concat <axis = 1> (a, e)  y = BN0(d, A.8)", "Concat", _JOINED_READ,
           twin_after="Conv Conv Concat Mul"),
    _hoist("Concat of rows", "d = Concat <axis = -2> (a, e)  y = BN(d, A.4)", "Concat", _JOINED_READ, "graph-output"),
    _hoist("Add of a value that broadcasts", "f = GlobalMaxPool(e)  d = Add(a, f)  y = BN+(d, A.4)",
           "GlobalMaxPool Add", {"v[4,3,1,1]": "v[1,3,1,1]"}, "axis"),
    _hoist("Mul by a value that broadcasts", "f = Softplus(e)  d = Mul(f, a)  y = BN0(d, A.4)", "Softplus Mul",
           {"Conv(x, w[4,3,1,1])": "Sigmoid(x)", "T[N,3,8,8] x": "T[N,4,8,8] x", "v[4": "v[1"},
           twin_after="Sigmoid Mul Conv Softplus Mul", exact=False),
    case("Conv, Where, BN",
         "(T[N,3,8,8] x, bool[N,1,8,8] p) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,1,1])  d = Where(p, a, k[4,1,1])"
         "  y = BN(d, A.4) }", "Conv Where", "hoist", twin={"k[4,1,1]": "k", "x, bool": "x, T[4,1,1] k, bool"},
         kept="graph-input"),
    case("MatMul, Where of a mask, scale",
         "(T[N,5,3] x, bool[N,5,5] p) => (T[n,t,c] y) { a = MatMul(x, w[3,5])  d = Where(p, a, k)  y = Mul(d, 0.5) }",
         "MatMul Where", constants={"k": np.array(-np.inf)}, twin={"Mul(d, 0.5)": "Mul(d, -0.5)"}),
    case("two Convs, Concat of unknown numbers of rows, BN",
         "(T[N,3,H,8] x, T[N,3,G,8] z) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,1,1])  e = Conv(z, v[4,3,1,1])"
         "  d = Concat <axis = 2> (a, e)  y = BN(d, A.4) }", "Conv Conv Concat", "hoist", twin=_JOINED_READ,
         kept="graph-output"),
    case("Conv, Concat with a constant, BN",
         "(T[2,3,8,8] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,1,1])  d = Concat <axis = 1> (a, k[2,2,8,8])"
         "  y = BN(d, A.6) }", "Conv Concat", "hoist", twin={"k[2,2,8,8]": "k", "8] x)": "8] x, T[2,2,8,8] k)"},
         kept="graph-input"),
    case("embedding, Transpose, BN",
         "(int64[N,5] i) => (T[n,c,w] y) { a = Gather(k[2,4], i)  d = Transpose <perm = [0,2,1]> (a)  y = BN(d, A.4) }",
         "Gather Transpose", "hoist", twin={"k[2,4]": "k", "5] i)": "5] i, T[2,4] k)"}, kept="graph-input"),
    case("residual block",
         "(T[N,3,8,8] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,1,1])  b = BN(a, A.4)  r = Relu(b)"
         "  d = Conv <pads = [1,1,1,1]> (r, v[4,4,3,3])  e = BN(d, B.4)  f = Add(r, e)  y = Relu(f) }",
         "Conv Relu Conv Add Relu", "hoist",
         twin={"v[4,4,3,3]": "v", "8] x)": "8] x, T[4,4,3,3] v)"}, kept="variable-operand", twin_by="hoist",
         left="Conv Relu Conv BatchNormalization Add Relu"),
    case("residual sum of an input, BN",
         "(T[N,4,8,8] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,4,1,1])  d = Add(a, x)  y = BN(d, A.4) }",
         "Mul Conv Add", "hoist", twin={"Add(a, x)": "Pow(a, x)"}, kept="barrier"),
    _hoist("Max", "d = Max(a, e)  y = BN+(d, A.4)", "Max", {"BN+": "BN"}, twin_after="Conv Conv Max Mul"),
    _hoist("Max of what takes no affine", "d = Max(a, e)  y = BN+(d, A.4)", "Max",
           {"Max(a, e)": "Max(f, g)", "e = Conv": "f = Softplus(a)  e = Conv", "d = ": "g = Softplus(e)  d = "},
           "barrier"),
    _hoist("sum of a Relu", "r = Relu(a)  d = Add(e, r)  y = BN+(d, A.4)", "Relu Add",
           {"Relu(a)": "Relu(f)", "e = Conv": "f = Softplus(a)  e = Conv", "Add(e, r)": "Add(g, r)",
            "r = R": "g = Softplus(e)  r = R"}, "barrier"),
    _hoist("Min of three", "d = Min(a, e, k[1])  y = BN+(d, A.4)", "Min", {"BN+": "BN"},
           twin_after="Conv Conv Min Mul"),
    _hoist("Mean", "d = Mean(a, e)  y = BN(d, A.4)", "Mean", _JOINED_READ, "graph-output"),
    case("Conv plus a value of known sizes, BN",
         "(T[N,3,8,8] x, T[N,4,8,8] z) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,1,1])  d = Add(a, z)  y = BN(d, A.4) }",
         "Mul Conv Add", "hoist", twin={"T[N,4,8,8] z": "T[N,K,8,8] z"}, kept="unknown-shape"),
    case("a product of values of unknown rank",
         "(T[N,4] x, T[2,4] z, int64[K] s) => (T[n,c] y) { u = Reshape(x, s)  f = Neg(u)  d = Mul(f, z)  e = Neg(d)"
         "  y = Sigmoid(e) }", "Reshape Mul Sigmoid", exact=False, inputs={"s": np.array([2, 4])},
         twin={"e = Neg(d)": "e = Div(d, k[4])"}, left="Reshape Neg Mul Div Sigmoid"),
    case("Conv plus rows that broadcast, all sizes equal",
         "(T[4,3,6,6] x, T[4,1,1] z) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])  d = Add(a, z)  y = BN0(d, A.4) }",
         "Mul Conv Add", "hoist", twin={"T[4,1,1] z": "T[4] z"}, left="Conv Add Mul"),
    case("the sum of a column and a row",
         "(T[4,3] x, T[3,5] z) => (T[n,c] y) { p = MatMul(x, w[3,1])  q = MatMul(v[1,3], z)  d = Add(p, q)"
         "  y = Add(d, t[4,1]) }", "MatMul MatMul Add Add", twin={"t[4,1]": "t[4,5]"}),
    case("the product of a column and a row",
         "(T[4,3] x, T[3,5] z) => (T[n,c] y) { p = MatMul(x, w[3,1])  q = MatMul(v[1,3], z)  d = Mul(p, q)"
         "  y = Mul(d, t[4,1]) }", "MatMul MatMul Mul Mul", twin={"t[4,1]": "t[4,5]"}),
    # Sources that can only go together: each alone would leave the other reader, or the other operand, unequal.
    case("Conv read by two like BNs",
         "(T[N,3,8,8] x) => (T[n,c,h,w] y, T[m,d,p,q] z) { a = Conv(x, w[4,3,1,1])  b = BN(a, A.4)  d = BN(a, A.4)"
         "  y = Relu(b)  z = Sigmoid(d) }", "Conv Relu Sigmoid", "hoist", twin={"d = BN(a, A.4)": "d = BN(a, B.4)"},
         kept="other-readers other-readers", exact=False),
    case("Conv read by four like BNs",
         "(T[N,3,8,8] x) => (T[n,c,h,w] y, T[m,d,p,q] z, T[i,j,k,l] u, T[e,f,g,o] v) { a = Conv(x, w[4,3,1,1])"
         "  b = BN(a, A.4)  d = BN(a, A.4)  e = BN(a, A.4)  f = BN(a, A.4)"
         "  y = Relu(b)  z = Sigmoid(d)  u = Softplus(e)  v = Abs(f) }", "Conv Relu Sigmoid Softplus Abs", "hoist",
         twin={"g,o] v)": "g,o] v, T[q,r,s,t] p)", "v = Abs(f)": "v = Abs(f)  g = BN(a, A.4)  p = Exp(g)"},
         exact=False, kept=" ".join(["other-readers"] * 5)),
    case("a difference of like shifts",
         "(T[N,4] x, T[N,4] z) => (T[n,c] y) { a = Add(x, k[4])  b = Add(z, k)  d = Sub(a, b)  y = Relu(d) }",
         "Sub Relu", twin={"Sub(a, b)": "Mul(a, b)"}),
    case("two outputs that are the same",
         "(T[N,3,8,8] x) => (T[n,c,h,w] y, T[m,d,p,q] z) { a = Conv(x, w[4,3,1,1])  y = BN(a, A.4)  z = BN(a, A.4) }",
         "Conv Identity", "hoist", twin={"T[m,d,p,q] z": "T[m,d,p,q] z, T[i,j,k,l] a"},
         kept="graph-output graph-output"),
    case("Conv read by a BN behind a Relu and a BN behind a MaxPool",
         "(T[N,3,8,8] x) => (T[n,c,h,w] y, T[m,d,p,q] z) { a = Conv(x, w[4,3,1,1])  b = Relu(a)  y = BN+0(b, A.4)"
         "  d = MaxPool <kernel_shape = [2,2]> (a)  z = BN+0(d, A.4) }", "Conv Relu MaxPool", "hoist",
         twin={"Relu(a)": "Sigmoid(a)"}, left="Conv Sigmoid Mul MaxPool Mul", exact=False),
    _sink("Add, like BNs", "a = BN(x, A.4)  e = BN(z, A.4)  d = Add(a, e)", "Add",
          {"e = BN(z, A.4)": "e = BN(z, B.4)"}, twin_after="Mul Mul Add Conv"),
    _sink("Where, like BNs", "a = BN(x, A.4)  e = BN(z, A.4)  p = Less(z, x)  d = Where(p, a, e)", "Less Where",
          {"e = BN(z, A.4)": "e = BN(z, B.4)"}, "unequal-branches unequal-branches"),
    case("like BNs, Concat of unknown numbers of rows, Conv",
         "(T[N,4,H,8] x, T[N,4,G,8] z) => (T[n,c,h,w] y) { a = BN(x, A.4)  e = BN(z, A.4)"
         "  d = Concat <axis = 2> (a, e)  y = Conv(d, w[2,4,1,1]) }", "Concat Conv", "sink",
         twin={"BN(z, A.4)": "BN(z, B.4)"}, kept="unknown-shape unknown-shape"),
    case("a product of two negations", "(T[N,4] x, T[N,4] z) => (T[n,c] y) { a = Neg(x)  b = Neg(z)  y = Mul(a, b) }",
         "Mul", twin={"Mul(a, b)": "Max(a, b)"}),
    # Sunk.
    _sink("Concat of channels", "a = BN(x, A.4)  e = BN(z, B.4)  d = Concat <axis = 1> (a, e)", "Concat",
          {"axis = 1": "axis = 2"}, "axis axis", constants={"w": np.ones((2, 8, 3, 3)) * np.arange(1.0,
          9).reshape(8, 1, 1)},
          twin_constants={"w": np.ones((2, 4, 3, 3))}),
    _sink("Add, shift only", "a = BN(x, A.4)  d = Add(z, a)", "Mul Add", {"Conv(d": "Conv <pads = [1,1,1,1]> (d"},
          "padding"),
    _sink("Sub, shift only", "a = BN(x, A.4)  d = Sub(z, a)", "Mul Sub", {"Conv(d": "Conv <pads = [1,1,1,1]> (d"},
          "padding"),
    _sink("Add of two ways, equal scales", "a = BN+0(x, A.4)  e = Relu(a)  d = Add(a, e)", "Relu Add",
          {"BN+0": "BN"}, "shift-blocked"),
    _sink("Add of two ways, two shifts", "a = BN+(x, A.4)  e = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (a)"
          "  d = Sum(a, e)", "MaxPool Sum", {"BN+": "BN"}, "negative-scale"),
    _sink("Mean, shift only", "a = BN(x, A.4)  d = Mean(z, a)", "Mul Mean", {"Conv(d": "Conv <pads = [1,1,1,1]> (d"},
          "padding"),
    _sink("Max of two ways", "a = BN+(x, A.4)  e = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (a)"
          "  d = Max(a, e)", "MaxPool Max", {"Max(a, e)": "Max(a, z)"}, "unequal-branches"),
    _sink("Add of two ways, scales", "a = BN+0(x, A.4)  e = Relu(a)  d = Add(a, e)", "Relu Add",
          {"Add(a, e)": "Add(a, z)"}, twin_after="Mul Relu Add Conv"),
    _sink("Mul", "a = BN0(x, A.4)  d = Mul(z, a)", "Mul", {"BN0": "BN"}, "shift-blocked"),
    _sink("Mul of a value with itself", "a = BN0(x, A.4)  d = Mul(a, a)", "Mul", {"BN0": "BN"}, "shift-blocked"),
    _sink("Div", "a = BN0(x, A.4)  d = Div(a, z)", "Div", {"BN0": "BN"}, "shift-blocked", exact=False),
    _sink("Div by it", "a = BN0(x, A.4)  d = Div(a, z)", "Div", {"Div(a, z)": "Div(z, a)"}, twin_after="Mul Div Conv",
          exact=False, constants={"A_gamma": np.array([1.0, -1.0, 2.0, 0.5])}),
    _sink("Where of two ways", "a = BN+(x, A.4)  e = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (a)"
          "  p = Less(z, x)"
          "  d = Where(p, a, e)", "MaxPool Less Where", {"Where(p, a, e)": "Where(p, a, z)"}, "unequal-branches"),
)  # fmt: skip
