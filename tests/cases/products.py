"""Gemm and MatMul: matrix products with a constant on either side."""

from __future__ import annotations

import numpy as np

from tests.cases.base import case

_OUTPUT = {"=> (T[n,c] y)": "=> (T[n,c] y, T[n,c] a)"}
_OUTPUT_3D = {"=> (T[n,t,c] y)": "=> (T[n,t,c] y, T[n,t,c] a)"}


def _gemm(name: str, call: str, inputs: str = "T[N,3] x", channels: int = 4):
    return case(f"Gemm {name}, BN", f"({inputs}) => (T[n,c] y) {{ a = {call}  y = BN(a, A.{channels}) }}",
                "Gemm", "hoist", twin=_OUTPUT, kept="graph-output")  # fmt: skip


CASES = (
    _gemm("plain", "Gemm(x, w[3,4])"),
    _gemm("C per column", "Gemm(x, w[3,4], b[4])"),
    _gemm("C a row", "Gemm(x, w[3,4], b[1,4])"),
    _gemm("C a scalar", "Gemm(x, w[3,4], b[])"),
    _gemm("C of one element", "Gemm(x, w[3,4], b[1])"),
    _gemm("C a column", "Gemm(x, w[3,4], b[2,1])", "T[2,3] x"),
    _gemm("C a matrix", "Gemm(x, w[3,4], b[2,4])", "T[2,3] x"),
    _gemm("alpha", "Gemm <alpha = 0.5> (x, w[3,4], b[4])"),
    _gemm("beta", "Gemm <beta = 0.25> (x, w[3,4], b[4])"),
    _gemm("alpha, beta, transB", "Gemm <alpha = 0.5, beta = -2.0, transB = 1> (x, w[4,3], b[4])"),
    _gemm("transA", "Gemm <transA = 1> (x, w[3,4], b[4])", "T[3,N] x"),
    _gemm("transA, transB", "Gemm <transA = 1, transB = 1> (x, w[4,3])", "T[3,N] x"),
    case("Gemm, constant on the left, scaled rows",
         "(T[3,N] x) => (T[n,c] y) { a = Gemm(w[4,3], x)  y = Mul(a, s[4,1]) }", "Gemm", twin=_OUTPUT),
    case("Gemm, constant on the left, transposed, scaled rows",
         "(T[N,3] x) => (T[n,c] y) { a = Gemm <transA = 1, transB = 1, alpha = 0.5, beta = 2.0> (w[3,4], x, b[4,1])"
         "  d = Add(a, t[4,1])  y = Mul(d, s[4,1]) }", "Gemm", twin={"Mul(d, s[4,1])": "Mul(d, s[1,N])",
         "(T[N,3] x)": "(T[2,3] x)", "s[1,N]": "s[1,2]"}, left="Gemm Mul"),
    case("Gemm, constant on the left, BN per column",
         "(T[3,4] x) => (T[n,c] y) { d = Transpose(x)  a = Gemm(w[4,4], d)"
         "  y = BN1(a, A.3) }", "Transpose Gemm", "hoist",
         twin={"T[3,4] x": "T[4,4] x", "BN1(a, A.3)": "BN(a, A.4)"}, kept="axis"),
    case("BN, Gemm", "(T[N,3] x) => (T[n,c] y) { a = BN(x, A.3)  y = Gemm(a, w[3,4], b[4]) }", "Gemm", "sink",
         twin=_OUTPUT, kept="graph-input"),
    case("BN, Gemm alpha, beta, transB",
         "(T[N,3] x) => (T[n,c] y) { a = BN(x, A.3)"
         "  y = Gemm <alpha = 0.5, beta = -2.0, transB = 1> (a, w[4,3], b[4]) }",
         "Gemm", "sink", twin={"b[4]": "b", "(T[N,3] x)": "(T[N,3] x, T[4] b)"}, kept="variable-operand"),
    case("BN, Gemm alpha without C", "(T[N,3] x) => (T[n,c] y) { a = BN(x, A.3)  y = Gemm <alpha = 2.0> (a, w[3,4]) }",
         "Gemm", "sink", twin=_OUTPUT, kept="graph-input"),
    case("BN, Gemm transA contracts the batch",
         "(T[N,3] x) => (T[n,c] y) { a = BN1(x, A.3)  y = Gemm <transA = 1> (a, w[2,4]) }",
         "Gemm", "sink", twin={"BN1": "BN"}, kept="axis", left="BatchNormalization Gemm"),
    case("BN as the right operand of Gemm",
         "(T[3,4] x) => (T[n,c] y) { a = BN(x, A.4)  y = Gemm <transB = 1> (w[2,4], a) }",
         "Gemm", "sink", twin={"<transB = 1> (w[2,4], a)": "(w[2,3], a)"}, kept="axis"),
    case("BN, two Gemms",
         "(T[N,3] x) => (T[n,c] y, T[n,d] z) { a = BN(x, A.3)  y = Gemm(a, w[3,4])  z = Gemm(a, v[3,2]) }",
         "Gemm Gemm", "sink", twin={"z = Gemm(a, v[3,2])": "z = Sigmoid(a)"}, kept="barrier", exact=False),

    # MatMul has no bias: a shift is left as one Add, which a BatchNormalization still pays for.
    case("MatMul, BN", "(T[N,3] x) => (T[n,c] y) { a = MatMul(x, w[3,4])  y = BN(a, A.4) }", "MatMul Add", "hoist",
         twin=_OUTPUT, kept="graph-output"),
    case("MatMul, BN without shift", "(T[N,3] x) => (T[n,c] y) { a = MatMul(x, w[3,4])  y = BN0(a, A.4) }", "MatMul",
         "hoist", twin={"w[3,4]": "w", "(T[N,3] x)": "(T[N,3] x, T[3,4] w)"}, left="MatMul Mul"),
    case("MatMul, Add, BN", "(T[N,3] x) => (T[n,c] y) { a = MatMul(x, w[3,4])  b = Add(a, k[4])  y = BN(b, A.4) }",
         "MatMul Add", "hoist", twin=_OUTPUT, left="MatMul Mul Add"),
    case("MatMul, Add constant first, BN",
         "(T[N,3] x) => (T[n,c] y) { a = MatMul(x, w[3,4])  b = Add(k[4], a)  y = BN(b, A.4) }",
         "MatMul Add", "hoist", twin={"w[3,4]": "w", "(T[N,3] x)": "(T[N,3] x, T[3,4] w)"},
         left="MatMul Mul Add"),
    case("MatMul N-D, Transpose, BN",
         "(T[N,5,3] x) => (T[n,t,c] y) { a = MatMul(x, w[3,4])  b = Transpose <perm = [0,2,1]> (a)  y = BN(b, A.4) }",
         "MatMul Add Transpose", "hoist", twin={"T[N,5,3]": "T[N,4,3]", "  b = Transpose <perm = [0,2,1]> (a)": "",
         "BN(b": "BN(a"}, kept="axis"),
    case("MatMul constant on the left, BN",
         "(T[N,3,5] x) => (T[n,t,c] y) { a = MatMul(w[4,3], x)  y = BN(a, A.4) }", "MatMul Add", "hoist",
         twin={"MatMul(w[4,3], x)": "MatMul(x, w[5,3])", "BN(a, A.4)": "BN(a, A.3)"}, kept="axis"),
    case("MatMul batched weights, BN over the batch axis",
         "(T[N,4,5,3] x) => (T[n,h,t,c] y) { a = MatMul(x, w[4,3,2])  y = BN(a, A.4) }", "MatMul Add", "hoist",
         twin={"w[4,3,2]": "w[1,3,2]"}, kept="axis"),
    case("MatMul batched weights that broadcast x, BN",
         "(T[N,3] x) => (T[n,t,c] y) { a = MatMul(x, w[2,3,4])  b = Transpose <perm = [0,2,1]> (a)  y = BN(b, A.4) }",
         "MatMul Add Transpose", "hoist", twin={"=> (T[n,t,c] y)": "=> (T[n,t,c] y, T[p,q,r] b)"}, kept="graph-output"),
    case("BN, MatMul, Add", "(T[N,3] x) => (T[n,c] y) { a = BN(x, A.3)  b = MatMul(a, w[3,4])  y = Add(b, k[4]) }",
         "MatMul Add", "sink", twin=_OUTPUT, kept="graph-input"),
    case("BN, MatMul, Add constant first",
         "(T[N,3] x) => (T[n,c] y) { a = BN(x, A.3)  b = MatMul(a, w[3,4])  y = Add(k[4], b) }",
         "MatMul Add", "sink", twin={"w[3,4]": "w", "(T[N,3] x)": "(T[N,3] x, T[3,4] w)"}, kept="axis"),
    case("BN, MatMul", "(T[N,3] x) => (T[n,c] y) { a = BN(x, A.3)  y = MatMul(a, w[3,4]) }", "MatMul Add", "sink",
         twin={"MatMul(a, w[3,4])": "MatMul(w[4,2], a)"}, kept="axis"),
    case("BN, Cast to a wider type, MatMul",
         "(float[N,3] x) => (T[n,c] y) { a = BN(x, A.3)  d = Cast <to = 11> (a)  y = MatMul(d, w[3,4]) }",
         "Cast MatMul Add", "sink", twin={"(float[": "(T[", "<to = 11> (a)": "<to = 1> (a)  e = Cast <to = 11> (d)",
         "MatMul(d": "MatMul(e"}, kept="narrowing-cast", dtypes=("double",)),
    case("Gemm of a value of unknown rank",
         "(T[N,6] x, int64[K] s) => (T[n,c] y) { u = Reshape(x, s)  a = Gemm(u, w[3,4])  b = Mul(a, 2.0)"
         "  y = Relu(b) }",
         "Reshape Gemm Relu", inputs={"s": np.array([4, 3])}, twin={"Gemm": "MatMul"}, left="Reshape MatMul Mul Relu",
         opset=11),
    case("Gemm, constant on the left, plus a computed column",
         "(T[3,4] x, T[2,1] u) => (T[n,c] y) { d = MatMul(v[4,2], u)  a = Gemm(w[4,3], x, d)  y = Mul(a, s[4,1]) }",
         "MatMul Gemm", twin={"T[2,1] u": "T[2] u"}, left="MatMul Gemm Mul"),
    case("BN, MatMul of batched weights on the left, one shift for all",
         "(T[N,2,3,5] x) => (T[n,h,t,c] y) { a = BN1(x, A.2)  y = MatMul(w[2,4,3], a) }", "MatMul Add", "sink",
         twin={"y = MatMul(w[2,4,3], a)": "d = Transpose <perm = [0,1,3,2]> (a)  y = MatMul(a, d)"},
         kept="shift-blocked"),
    case("Mul, Add along the batch, MatMul of batched weights on the left",
         "(T[2,3,5] x) => (T[n,t,c] y) { a = Mul(x, s[2,1,1])  b = Add(a, k[2,3,1])  y = MatMul(w[2,4,3], b) }",
         "MatMul Add", twin={"k[2,3,1]": "k[3,5]"}, left="Mul Add MatMul"),
    case("BN, MatMul constant on the left",
         "(T[N,3,5] x) => (T[n,t,c] y) { a = BN(x, A.3)  y = MatMul(w[4,3], a) }", "MatMul Add", "sink",
         twin={"MatMul(w[4,3], a)": "MatMul(a, w[5,4])"}, kept="axis"),
    case("BN, MatMul batched weights",
         "(T[N,4,5,3] x) => (T[n,h,t,c] y) { a = BN(x, A.4)  y = MatMul(a, w[4,3,2]) }", "MatMul Add", "sink",
         twin={"w[4,3,2]": "w[3,2]"}, kept="axis"),
    case("MatMul by a vector", "(T[N,3] x) => (T[n] y) { a = MatMul(x, w[3])  y = Mul(a, 2.0) }", "MatMul",
         twin={"Mul(a, 2.0)": "Mul(a, s[2])", "T[N,3]": "T[2,3]"}),
    case("BN, MatMul by a vector", "(T[N,3] x) => (T[n] y) { a = BN(x, A.3)  y = MatMul(a, w[3]) }", "MatMul Add",
         "sink", twin={"w[3]": "w", "(T[N,3] x)": "(T[N,3] x, T[3] w)"}, kept="axis"),
    case("MatMul of a vector, Mul, Add",
         "(T[3] x) => (T[c] y) { a = MatMul(w[4,3], x)  d = Mul(a, s[4])  y = Add(d, t[4]) }", "MatMul Add",
         twin={"=> (T[c] y": "=> (T[k] a, T[c] y"}, left="MatMul Mul Add"),
    case("Gemm of a computed C, BN",
         "(T[N,3] x, T[N,4] z) => (T[n,c] y) { d = Gemm(z, v[4,4])  a = Gemm <alpha = 0.5, beta = -2.0> (x, w[3,4], d)"
         "  y = BN(a, A.4) }", "Gemm Gemm", "hoist", twin={"beta = -2.0": "beta = 0.0"}, kept="axis"),
    case("Gemm of a computed C that broadcasts, BN",
         "(T[2,3] x, T[2,4] z) => (T[n,c] y) { d = Gemm(z, v[4,1])  a = Gemm(x, w[3,4], d)  y = BN1(a, A.4) }",
         "Gemm Gemm", "hoist", twin={"BN1": "BN"}, kept="axis"),
)  # fmt: skip
