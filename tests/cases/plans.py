"""Plans: what is computed where a route is blocked, and sources that go together or not at all."""

from __future__ import annotations

import numpy as np

from tests.cases.base import case

# A BatchNormalization, and the same as a product and a sum.
_IN_STEPS = {
    "B_gamma": np.array([2.0, 2.0, -1.0, 0.5]), "B_beta": np.array([0.5, -1.0, 1.5, 0.0]),
    "B_mean": np.array([0.5, 1.0, -0.5, 0.0]), "B_var": np.array([1.0, 4.0, 1.0, 4.0]) - 0.0625,
    "s": np.array([2.0, 1.0, -1.0, 0.25]).reshape(4, 1, 1), "t": np.array([-0.5, -2.0, 1.0, 0.0]).reshape(4, 1, 1),
}  # fmt: skip

CASES = (
    # What a product without bias passes on is computed at once, where that costs less than further on.
    case("the response of a MatMul, read by two",
         "(T[N,4] x) => (T[n,c] y, T[m,d] z) { a = BN(x, A.4)  b = MatMul(a, w[4,4])  d = Add(b, k[4])  y = Sigmoid(d)"
         "  e = MatMul(d, v[4,4])  z = Sigmoid(e) }", "MatMul Add Sigmoid MatMul Sigmoid", "sink", exact=False,
         twin={"b = MatMul(a, w[4,4])": "b = Softplus(a)"}, kept="barrier"),
    case("the response of a MatMul behind a Mul and a Transpose, read by two",
         "(T[N,4] x) => (T[c,n] y, T[d,m] z) { a = BN(x, A.4)  b = Mul(a, k[4])  d = Transpose <perm = [1,0]> (b)"
         "  e = MatMul(w[4,4], d)  y = Sigmoid(e)  f = MatMul(v[4,4], e)  z = Sigmoid(f) }",
         "Transpose MatMul Add Sigmoid MatMul Sigmoid", "sink", exact=False,
         twin={"e = MatMul(w[4,4], d)": "e = Softplus(d)"}, left="Transpose Mul Add Softplus Sigmoid MatMul Sigmoid"),
    case("the response of a MatMul in front of a Transpose, read by two",
         "(T[N,4] x) => (T[c,n] y, T[d,m] z) { a = BN(x, A.4)  b = MatMul(a, w[4,4])  d = Transpose <perm = [1,0]> (b)"
         "  y = Sigmoid(d)  e = MatMul(v[4,4], d)  z = Sigmoid(e) }", "MatMul Add Transpose Sigmoid MatMul Sigmoid",
         "sink", exact=False, twin={"b = MatMul(a, w[4,4])": "b = Softplus(a)"}, kept="barrier"),
    # What is left on every operand of a join is computed behind it.
    case("the sum of three Convs of which two are read elsewhere, BN",
         "(T[N,4,6] x) => (T[n,c,w] y, T[m,d,p] u, T[i,j,k] v) { a = Conv(x, w[4,4,1])  u = Sigmoid(a)"
         "  b = Conv(x, f[4,4,1])  v = Sigmoid(b)  d = Conv(x, g[4,4,1])  e = Add(a, b)  h = Add(e, d)"
         "  y = BN(h, A.4) }",
         "Conv Sigmoid Conv Sigmoid Conv Add Mul Add", "hoist", exact=False,
         twin={"e = Add(a, b)": "e = Pow(a, b)", "d = Conv(x, g[4,4,1])": "d = Softplus(x)"}, kept="barrier"),
    # What is left of a BatchNormalization counts by where it stands.
    case("two Convs, Mul, a shift left behind in front of a Conv of one dimension",
         "(T[N,3,8] x, T[N,3,8] z) => (T[n,c,w] y) { a = Conv(x, w[4,3,1])  e = Conv(z, v[4,3,1])  d = Mul(a, e)"
         "  b = BN(d, A.4)  y = Conv <pads = [1,1]> (b, u[2,4,3]) }", "Conv Conv Mul Add Conv", "hoist",
         twin={",8]": ",8,8]", "3,1]": "3,1,1]", "4,3]": "4,3,3]", "[1,1]>": "[1,1,1,1]>", "n,c,w": "n,c,h,w"},
         kept="padding"),
    case("two shifts in front of a padded Conv",
         "(T[N,4,8,8] x) => (T[n,c,h,w] y) { a = Add(x, k[4,1,1])  b = Add(a, t[4,1,1])"
         "  y = Conv <pads = [1,1,1,1]> (b, w[2,4,3,3]) }", "Add Conv", twin={"1,1,1]>": "0,0,0]>", "[1,0": "[0,0"},
         left="Conv"),
    case("BN, two sums that leave the same scale",
         "(T[N,4,8,8] x, T[N,4,8,8] z) => (T[n,c,h,w] y, T[m,d,p,q] u) { a = BN(x, A.4)  b = Add(z, a)"
         "  y = Conv(b, w[2,4,3,3])  d = Sub(z, a)  u = Conv(d, v[2,4,3,3]) }", "Mul Add Conv Sub Conv", "sink",
         twin={"u = Conv(d": "u = Conv <pads = [1,1,1,1]> (d"}, kept="padding"),
    # Together.
    case("BNs, Add, like BNs, one of them in two steps",
         "(T[N,4,8,8] x, T[N,4,8,8] z) => (T[n,c,h,w] y) { a = Mul(x, s)  b = Add(a, t)  e = BN(z, B.4)"
         "  d = Add(b, e)  y = Conv(d, w[2,4,3,3]) }", "Add Conv", "sink", constants=_IN_STEPS,
         twin={"a = Mul(x, s)": "a = Div(x, s)"}, left="Mul Mul Add Conv"),
    case("Conv, like BNs behind pools of two sizes",
         "(T[N,3,8,8] x) => (T[n,c,h,w] y, T[m,d,p,q] z) { a = Conv(x, w[4,3,1,1])"
         "  b = AveragePool <kernel_shape = [2,2]> (a)  d = BN(b, A.4)  e = AveragePool <kernel_shape = [4,4]> (a)"
         "  f = BN(e, A.4)  y = Sigmoid(d)  z = Tanh(f) }", "Conv AveragePool AveragePool Sigmoid Tanh", "hoist",
         exact=False, twin={"f = BN(e, A.4)": "f = BN(e, B.4)"}, kept="other-readers other-readers"),
    case("Conv read by two like BNs and a Sigmoid",
         "(T[N,3,8,8] x) => (T[n,c,h,w] y, T[m,d,p,q] z, T[i,j,k,l] u) { a = Conv(x, w[4,3,1,1])  b = BN(a, A.4)"
         "  d = BN(a, A.4)  y = Softplus(b)  z = Exp(d)  u = Sigmoid(a) }", "Conv Mul Add Softplus Exp Sigmoid",
         "hoist", exact=False, twin={"d = BN(a, A.4)": "d = BN(a, B.4)"}, kept="other-readers other-readers"),
    case("Where, like BNs behind PRelus of a slope that is computed",
         "(T[N,4,8,8] x, T[N,4,8,8] z, bool[N,1,1,1] p) => (T[n,c,h,w] y) { a = BN+0(x, A.4)  b = BN+0(z, A.4)"
         "  k = Neg(s[4,1,1])  d = PRelu(a, k)  e = PRelu(b, k)  f = Where(p, d, e)  y = Conv(f, w[2,4,1,1]) }",
         "Neg PRelu PRelu Where Conv", "sink", twin={"e = PRelu(b, k)": "e = Softplus(b)"}, exact=False,
         left="Mul Mul Neg PRelu Softplus Where Conv"),
    # In a body.
    case("like BNs, both in a body",
         "(T[N,4,8,8] x, T[N,4,8,8] z, bool p, bool[N,1,1,1] q) => (T[n,c,h,w] y) { a = Relu(x)  y = If (p) <"
         " then_branch = one () => (T[n,c,h,w] u) { u = Relu(a) }, else_branch = two () => (T[n,c,h,w] v) {"
         " b = BN(x, A.4)  d = BN(z, A.4)  e = Where(q, b, d)  v = Conv(e, w[2,4,1,1]) } > }",
         "Relu If Relu Where Conv", "sink", kept="body body",
         twin={"a = Relu(x)": "a = Relu(x)  d = BN(z, A.4)", "  d = BN(z, A.4)  e": "  e"}),
    case("a Mul and a BN that cancel in a body",
         "(T[N,4,8,8] x, bool p) => (T[n,c,h,w] y) { a = Relu(x)  y = If (p) <"
         " then_branch = one () => (T[n,c,h,w] u) { u = Relu(a) },"
         " else_branch = two () => (T[n,c,h,w] v) { b = Mul(a, 0.5)  v = BN10+(b, A.4) } > }",
         "Relu If Relu Identity", "hoist", twin={"0.5": "0.25"}, left="Relu If Relu Mul"),
)  # fmt: skip
