"""Bodies of If, Loop and Scan: folded inside, and a border for what crosses it. Model-local functions are inlined."""

from __future__ import annotations

import numpy as np

from tests.cases.base import case

_IF = """(T[N,3,8,8] x, bool p) => (T[n,c,h,w] y) {
    y = If (p) <
        then_branch = one () => (T[n,c,h,w] u) { a = Conv(x, w[4,3,3,3])  u = BN(a, A.4) },
        else_branch = two () => (T[n,c,h,w] v) { b = Conv(x, w)  v = Relu(b) }
    > }"""
_OUTSIDE = """(T[N,3,8,8] x, bool p) => (T[n,c,h,w] y, T[n,c,h,w] z) {
    a = Conv(x, w[4,3,3,3])  z = BN(a, A.4)
    y = If (p) <
        then_branch = one () => (T[n,c,h,w] u) { u = Relu(z) },
        else_branch = two () => (T[n,c,h,w] v) { v = Neg(z) }
    > }"""
_LOOP = """(T[2,4,8,8] x) => (T[n,c,h,w] y) {
    y = Loop(n, t, x) <
        body = step (int64 i, bool go, T[2,4,8,8] h) => (bool on, T[2,4,8,8] k) {
            on = Identity(go)  b = Conv <pads = [1,1,1,1]> (h, w[4,4,3,3])  d = BN(b, A.4)  k = Relu(d) }
    > }"""
_SCAN = """(T[2,4,3] x) => (T[n,c,h] y) {
    y = Scan(x) <num_scan_inputs = 1,
        body = step (T[4,3] h) => (T[4,5] k) { b = Gemm(h, w[3,5])  k = BN(b, A.5) }
    > }"""
_FUNCTION = """(T[N,3,8,8] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])  y = local.Normed(a, g[4], b[4], m[4], v) }
    <domain: "local", opset_import: ["" : 17]> Normed (x, g, b, m, v) => (y)
    { d = BatchNormalization <epsilon = 0.0625> (x, g, b, m, v)  y = Relu(d) }"""
_BN = "d = BatchNormalization <epsilon = 0.0625> (x, g, b, m, v)  y = Relu(d)"
_NESTED = f"""(T[N,3,8,8] x) => (T[n,c,h,w] y) {{ y = local.Block(x, w[4,3,3,3], g[4], b[4], m[4], v) }}
    <domain: "local", opset_import: ["" : 17]> Normed (x, g, b, m, v) => (y) {{ {_BN} }}
    <domain: "local", opset_import: ["" : 17]> Linear (x, w) => (y) {{ y = Conv(x, w) }}
    <domain: "local", opset_import: ["" : 17, "local" : 1]> Block (x, w, g, b, m, v) => (y)
    {{ d = local.Linear(x, w)  y = local.Normed(d, g, b, m, v) }}"""
_AFFINE = """(T[N,3,8,8] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])  y = local.Scaled(a, s[4,1,1], t[4,1,1]) }
    <domain: "local", opset_import: ["" : 17]> Scaled (x, s, t) => (y) { d = Mul(x, s)  y = Add(d, t) }"""

CASES = (
    case("BN in a branch",
         _IF, "If Conv Conv Relu", "hoist", twin={"a = Conv(x, w[4,3,3,3])  u = BN(a, A.4)": "u = BN(x, A.3)",
         "Conv(x, w)": "Identity(x)"}, kept="body", left="If BatchNormalization Identity Relu"),
    case("BN in a branch, its convolution beside it", _IF, "If Conv Conv Relu", "hoist",
         twin={"y = If": "a = Conv(x, w)  y = If", "a = Conv(x, w[4,3,3,3])  u": "u",
               "Conv(x, w)  v": "Conv(x, w[4,3,3,3])  v"}, kept="body", left="Conv If BatchNormalization Conv Relu"),
    case("BN in a branch, the quantized weight of its convolution outside",
         _IF.replace("(x, w)", "(x, k[4,3,3,3])").replace("w[4,3,3,3]", "w")
         .replace("y = If", "w = DequantizeLinear(q, d)  y = If"),
         "DequantizeLinear If Conv Conv Relu", "hoist", twin={"k[4,3,3,3]": "w"}, kept="other-readers",
         constants={"q": np.arange(-54, 54, dtype=np.int8).reshape(4, 3, 3, 3), "d": np.array(0.5)}, dtypes=("float",)),
    case("BN whose value a branch reads", _OUTSIDE, "Conv If Relu Neg", "hoist",
         twin={"Relu(z)": "Relu(a)"}, kept="body"),
    case("BN in a loop", _LOOP, "Loop Identity Conv Relu", "hoist",
         constants={"n": np.array(2), "t": np.array(True)}, twin={"d = BN(b, A.4)": "d = BN(h, A.4)"},
         kept="shift-blocked",
         left="Loop Identity Conv BatchNormalization Relu"),
    case("BN in a scan", _SCAN, "Scan Gemm", "hoist", twin={"=> (T[4,5] k)": "=> (T[4,5] k, T[4,5] b)",
         "y = Scan": "y, z = Scan"}, kept="graph-output"),
    case("BN in a model-local function", _FUNCTION, "Conv Relu", "hoist", domains=', "local" : 1',
         constants={"v": np.full(4, 4.0 - 0.0625)},
         twin={"epsilon = 0.0625>": "epsilon = 0.0625, training_mode = 1>", "d = Batch": "d, o, p = Batch"},
         kept="training-mode", left="Conv BatchNormalization Relu"),
    case("BN in a function of a function, behind a convolution in another", _NESTED, "Conv Relu", "hoist",
         domains=', "local" : 1', constants={"v": np.full(4, 4.0 - 0.0625)},
         twin={"Conv(x, w)": "Softplus(w)  y = Conv(x, d)", "y = Soft": "d = Soft"}, kept="variable-operand",
         left="Softplus Conv BatchNormalization Relu", exact=False),
    case("a scale and a shift in a function", _AFFINE, "Conv", domains=', "local" : 1',
         twin={"s[4,1,1], t[4,1,1]": "x, x", "T[N,3,8,8]": "T[N,3,1,1]", "[4,3,3,3]": "[3,3,1,1]"}, left="Conv Scaled"),
)  # fmt: skip
