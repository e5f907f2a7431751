"""Einsum, products of two values, attention, recurrent layers, normalizations and quantized weights."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np

from tests.cases.base import Case, case

_READ = {"=> (T[n,t,c] y": "=> (T[p,q,r] a, T[n,t,c] y"}
_ATTENTION = "(T[N,5,5] s, T[N,5,3] x) => (T[n,t,c] y) { p = Softmax <axis = -1> (s)  "


def _einsum(name: str, equation: str, call: str, left: str, **options: object) -> Case:
    text = f'(T[N,5,3] x) => (T[n,t,c] y) {{ {call.replace("EINSUM", f"""Einsum <equation = "{equation}">""")} }}'
    return case(f"Einsum {name}", text, left, **options)


def _recurrent(op: str, gates: int, call: str, **options: object) -> Case:
    """BN of [N,C,T], transposed to [T,N,C], into a recurrent layer that reads it."""
    text = (
        "(T[N,3,4] x) => (T[t,d,n,h] y) { a = BN(x, A.3)  b = Transpose <perm = [2,0,1]> (a)"
        f"  y = {op} <hidden_size = 2{call}> (b, w[DIRS,{2 * gates},3], r[DIRS,{2 * gates},2], k[DIRS,{4 * gates}]) }}"
    )
    directions = "2" if "bidirectional" in call else "1"
    return case(f"BN, Transpose, {op}{call}", text.replace("DIRS", directions), f"Transpose {op}", "sink",
                exact=False, **options)  # fmt: skip


def _quantized(name: str, inputs: str, **options: object) -> Case:
    """A convolution with dequantized weights, then BN; DequantizeLinear knows no double."""
    text = f"(T[N,3,6,6] x) => (T[n,c,h,w] y) {{ w = DequantizeLinear{inputs}  a = Conv(x, w)  y = BN(a, A.4) }}"
    return case(f"Conv of a weight dequantized {name}, BN", text, "DequantizeLinear Conv", "hoist",
                dtypes=("float",), **options)  # fmt: skip


_CODES = (np.arange(4 * 3 * 9).reshape(4, 3, 3, 3) % 256 - 128).astype(np.int8)
_STEPS = np.array([0.5, 0.25, 1.0, 2.0])
_A_READ = {"=> (": "=> (T[m,o,q] a, "}

CASES = (
    # Einsum with one constant.
    _einsum("bij,jk->bik, scale", "bij,jk->bik", "a = EINSUM (x, w[3,4])  y = Mul(a, s[4])", "Einsum",
            twin={"s[4]": "s[5,1]"}),
    _einsum("ij,bjk->bik, BN", "ij,bjk->bik", "a = EINSUM (w[4,5], x)  y = BN(a, A.4)", "Einsum Add", by="hoist",
            twin={"ij,bjk->bik": "ij,bkj->bki", "w[4,5]": "w[4,3]", "A.4": "A.5"}, kept="axis"),
    _einsum("of a BN", "bij,ik->bkj", "a = BN(x, A.5)  y = EINSUM (a, w[5,4])", "Einsum Add", by="sink",
            twin={"bij,ik->bkj": "bij,jk->bik", "w[5,4]": "w[3,4]"}, kept="axis"),
    _einsum("of one BN for all", "bij,jk->bik", "a = BN1(x, A.5)  y = EINSUM (a, w[3,4])", "Einsum Add", by="sink",
            twin={"bij,jk->bik": "bij,jk->bk", "[n,t,c] y": "[n,c] y"}, kept="axis"),
    *(_einsum(f"and not {equation}", "bij,jk->bik", "a = EINSUM (x, w[3,3])  y = BN1(a, A.5)", "Einsum Add", by="hoist",
              twin={"bij,jk->bik": equation, "(x, w[3,3])": operands}, kept="barrier")
      for equation, operands in (("bij->bij", "(x)"), ("bij,jk,kl->bil", "(x, w[3,3], v[3,3])"),
                                 ("...ij,...jk->...ik", "(x, w[1,3,3])"))),
    _einsum("with a repeated label", "bij,jk->bik", "a = EINSUM (x, w[3,3])  y = Mul(a, s[3])", "Einsum",
            twin={"bij,jk->bik": "bij,jj->bij"}),
    _einsum("without an arrow", "bij,jk", "a = EINSUM (x, w[3,4])  y = Mul(a, s[4])", "Einsum",
            twin={"s[4]": "s[5,1]"}),
    _einsum("with an ellipsis", "...j,jk->...k", "a = EINSUM (x, w[3,4])  y = BN1(a, A.5)", "Einsum Add", by="hoist",
            twin={"BN1": "BN"}, kept="axis"),
    case("Einsum of two values, one scale",
         "(T[N,5,3] x, T[N,4,3] z) => (T[n,t,c] y) { q = MatMul(x, w[3,3])"
         '  a = Einsum <equation = "bid,bjd->bij"> (q, z)  y = Mul(a, 0.5) }', "MatMul Einsum",
         twin={"Mul(a, 0.5)": "Add(a, 0.5)"}),
    case("Einsum of two values, BN",
         "(T[N,5,3] x, T[N,4,3] z) => (T[n,t,c] y) { q = MatMul(w[5,5], x)"
         '  a = Einsum <equation = "bid,bjd->bij"> (q, z)  y = BN(a, A.5) }', "MatMul Einsum Add", "hoist",
         twin={"q = MatMul(w[5,5], x)  ": "", "(q, z)": "(x, z)", "T[N,5,3]": "T[N,?,3]", "A.5": "A.2"}, kept="axis"),
    case("Einsum of two values without a law",
         "(T[N,5,5] x, T[N,4,5] z) => (T[n,t,c] y) { q = MatMul(x, w[5,5])"
         '  a = Einsum <equation = "bid,bjd->bij"> (q, z)  y = Mul(a, 0.5) }', "MatMul Einsum",
         twin={"bid,bjd->bij": "bii,bjd->bij"}),
    case("Einsum of two values, columns scaled",
         "(T[N,5,3] x, T[N,6,3] z) => (T[n,t,c] y) { k = MatMul(w[4,6], z)"
         '  a = Einsum <equation = "bid,bjd->bij"> (x, k)  y = Mul(a, s[4]) }', "MatMul Einsum",
         twin={"Mul(a, s[4])": "Add(a, s[4])"}),
    case("BN, Einsum of two values",
         "(T[N,5,3] x, T[N,5,4] z) => (T[n,t,c] y) { a = BN0(x, A.5)"
         '  b = Einsum <equation = "bij,bik->bikj"> (a, z)  d = Reshape(b, {0, 5, 12})  y = Conv(d, w[2,5,1]) }',
         "Einsum Reshape Conv", "sink", twin={"BN0(": "BN("}, kept="shift-blocked"),
    case("attention by Einsum", "(T[N,2,5,5] s, T[N,2,5,3] x) => (T[n,h,t,c] y) { p = Softmax <axis = -1> (s)"
         "  v = MatMul(x, w[3,4])  b = Add(v, k[4])"
         '  a = Einsum <equation = "bhij,bhjd->bhid"> (p, b)  y = Add(a, t[4]) }',
         "Softmax MatMul Einsum Add", twin={"axis = -1": "axis = 2"}, exact=False,
         left="Softmax MatMul Add Einsum Add"),
    # Products of two values: a scale of rows to the left, of columns to the right.
    case("MatMul of two products, rows scaled",
         "(T[N,5,3] x, T[N,4,3] z) => (T[n,t,c] y) { q = MatMul(x, w[3,2])  k = MatMul(z, v[3,2])"
         "  t = Transpose <perm = [0,2,1]> (k)  a = MatMul(q, t)  y = Mul(a, 0.5) }",
         "MatMul MatMul Transpose MatMul", twin={"Mul(a, 0.5)": "Mul(a, s[5,1])"}),
    case("MatMul of two products, columns scaled",
         "(T[N,5,3] x, T[N,2,4] z) => (T[n,t,c] y) { q = MatMul(x, w[3,2])  k = MatMul(z, v[4,6])"
         "  a = MatMul(q, k)  y = Mul(a, s[6]) }", "MatMul MatMul MatMul", twin={"Mul(a, s[6])": "Add(a, s[6])"}),
    case("BN of scales, MatMul of two values",
         "(T[N,5,3] x, T[N,3,4] z) => (T[n,t,c] y) { a = BN0(x, A.5)  b = MatMul(a, z)  y = MatMul(u[2,5], b) }",
         "MatMul MatMul", "sink", twin={"BN0(x": "BN(x"}, kept="shift-blocked"),
    # The rows of a Softmax sum to one, so that a shift passes into V too.
    case("attention into V", _ATTENTION + "v = MatMul(x, w[3,4])  b = Add(v, k[4])  a = MatMul(p, b)  d = Mul(a, u[4])"
         "  y = Add(d, t[4]) }", "Softmax MatMul MatMul Add", twin={"axis = -1": "axis = 1"}, exact=False,
         left="Softmax MatMul Add MatMul Add"),
    *(case(f"attention by a Softmax {name}",
           _ATTENTION.replace("Softmax <axis = -1>", softmax) + "v = MatMul(x, w[3,4])  b = Add(v, k[4])"
           "  a = MatMul(p, b)  y = Add(a, t[4]) }", "Softmax MatMul MatMul Add", twin=twin, exact=False,
           left="Softmax MatMul Add MatMul Add", **options)
      for name, softmax, twin, options in (
          ("without an axis", "Softmax", {}, {"twin_opset": 11}),
          ("of opset 11", "Softmax <axis = 2>", {"axis = 2": "axis = 1"}, {"opset": 11}))),
    case("attention through a Dropout", _ATTENTION.replace("p = S", "q = S") + "p = Dropout(q)"
         "  v = MatMul(x, w[3,4])  b = Add(v, k[4])  a = MatMul(p, b)  y = Add(a, t[4]) }",
         "Softmax Dropout MatMul MatMul Add", twin={"Dropout(q)": "Dropout(q, 0.5, r)"}, exact=False,
         constants={"r": np.array(True)}, left="Softmax Dropout MatMul Add MatMul Add"),
    case("attention through a Transpose that reverses",
         "(T[5,4] s, T[5,3] x) => (T[n,c] y) { q = Softmax <axis = 0> (s)  p = Transpose(q)  v = MatMul(x, w[3,4])"
         "  b = Add(v, k[4])  a = MatMul(p, b)  y = Add(a, t[4]) }", "Softmax Transpose MatMul MatMul Add", exact=False,
         twin={"axis = 0": "axis = 1"}, left="Softmax Transpose MatMul Add MatMul Add"),
    case("attention through a Transpose of two axes",
         _ATTENTION.replace("axis = -1", "axis = 1").replace("p = S", "q = S") + "p = Transpose <perm = [0,2,1]> (q)"
         "  v = MatMul(x, w[3,4])  b = Add(v, k[4])"
         "  a = MatMul(p, b)  y = Add(a, t[4]) }", "Softmax Transpose MatMul MatMul Add", twin={"axis = 1": "axis = 2"},
         exact=False, left="Softmax Transpose MatMul Add MatMul Add"),
    case("attention into a Conv",
         "(T[N,5,5] s, T[N,3,5] x) => (T[n,t,c] y) { p = Softmax <axis = -1> (s)  b = Conv(x, w[4,3,1])"
         "  v = Transpose <perm = [0,2,1]> (b)  a = MatMul(p, v)  y = Add(a, t[4]) }", "Softmax Conv Transpose MatMul",
         twin={"axis = -1": "axis = 1"}, left="Softmax Conv Transpose MatMul Add", exact=False),
    *(case(f"attention by Einsum over as many{name}",
           "(T[N,2,5,5] s, T[N,2,5,3] x) => (T[n,h,t,c] y) { p = Softmax <axis = -1> (s)  v = MatMul(x, w[3,4])"
           '  b = Add(v, k[4])  a = Einsum <equation = "bhij,bhjd->bhid"> (p, b)  y = Add(a, t[4]) }',
           "Softmax MatMul Einsum Add", twin=twin, exact=False, left="Softmax MatMul Add Einsum Add")
      for name, twin in (("", {"T[N,2,5,5] s": "T[N,2,5,1] s"}),
                         (" as is known", {"T[N,2,5,5] s": "T[N,2,5,?] s", "T[N,2,5,3] x": "T[N,2,?,3] x"}))),
    case("attention through an Identity", _ATTENTION.replace("p = S", "q = S") + "p = Identity(q)"
         "  v = MatMul(x, w[3,4])  b = Add(v, k[4])  a = MatMul(p, b)  y = Add(a, t[4]) }",
         "Softmax Identity MatMul MatMul Add", twin={"Identity": "Neg"}, left="Softmax Neg MatMul Add MatMul Add",
         exact=False),
    case("MatMul of two values, a scale of the batch",
         "(T[2,5,3] x, T[2,4,6] z) => (T[n,t,c] y) { q = MatMul(x, w[2,3,4])  a = MatMul(q, z)"
         "  y = Mul(a, s[2,1,1]) }", "MatMul MatMul", left="MatMul MatMul Mul",
         twin={"T[2,5,3] x": "T[1,5,3] x", "w[2,3,4]": "w[3,4]"}),
    case("MatMul of two values, a scale of two batches",
         "(T[2,1,5,3] x, T[1,3,3,6] z) => (T[b,n,t,c] y) { q = MatMul(x, w[2,1,3,3])  a = MatMul(q, z)"
         "  y = Mul(a, s[2,1,1,1]) }", "MatMul MatMul", twin={"s[2,1,1,1]": "s[2,3,1,1]"}, left="MatMul MatMul Mul"),
    case("Mul, MatMul of two values, BN along an axis that the left one repeats",
         "(T[N,1,5,3] x, T[N,4,3,6] z) => (T[b,n,t,c] y) { q = Mul(x, 0.5)  a = MatMul(q, z)  y = BN(a, A.4) }",
         "MatMul Mul Add", twin={"T[N,1,5,3] x": "T[N,4,5,3] x"}, left="Mul MatMul Add"),
    # What would leave nothing but a shift behind passes nothing at all: the value in front keeps its name.
    *(case(f"{call}, BN that only shifts",
           f"(T[N,5,5] x, T[N,5,5] z) => (T[n,t,c] y) {{ a = {call}  y = BN(a, A.5) }}",
           f"{re.split('[ (]', call)[0]} Add", "hoist", left=f"{re.split('[ (]', call)[0]} Add", exact=False,
           constants={"A_gamma": np.ones(5), "A_var": np.full(5, 1.0 - 0.0625)},
           twin={"=> (T": "=> (T[m,s,d] a, T"})
      for call in ("MatMul(x, z)", 'Einsum <equation = "bij,bjk->bik"> (x, z)', "Mul(x, z)", "Div(x, z)", "Relu(x)",
                   "Clip(x, 0.)")),
    *(case(f"{call}, BN that only turns signs",
           f"(T[N,5,5] x, T[N,5,5] z) => (T[n,t,c] y) {{ a = {call}  y = BN0(a, A.5) }}",
           f"{call.partition('(')[0]} Mul", "hoist", left=f"{call.partition('(')[0]} Mul",
           constants={"A_gamma": np.array([1.0, -1, -1, 1, -1]), "A_var": np.full(5, 1.0 - 0.0625)},
           twin={"=> (T": "=> (T[m,s,d] a, T"})
      for call in ("Relu(x)", "Max(x, z)", "Clip(x, 0.)")),
    case("attention of a BN", _ATTENTION + "b = Transpose <perm = [0,2,1]> (x)  d = BN(b, A.3)"
         "  v = Transpose <perm = [0,2,1]> (d)  a = MatMul(p, v)  y = MatMul(a, u[3,2]) }",
         "Softmax Transpose Transpose MatMul MatMul Add", "sink", twin={"Softmax <axis = -1>": "Sigmoid"},
         kept="shift-blocked", exact=False),
    case("attention whose rows are masked after the Softmax", _ATTENTION + "m = Identity(p)  v = MatMul(x, w[3,4])"
         "  b = Add(v, k[4])  a = MatMul(m, b)  y = Add(a, t[4]) }", "Softmax Identity MatMul MatMul Add",
         twin={"m = Identity(p)": "z = IsNaN(p)  m = Where(z, 0.0, p)"}, exact=False),
    case("attention before opset 13 coerces its axes", _ATTENTION.replace("-1", "2") + "v = MatMul(x, w[3,4])"
         "  b = Add(v, k[4])  a = MatMul(p, b)  y = Add(a, t[4]) }", "Softmax MatMul MatMul Add", opset=11,
         twin={"axis = 2": "axis = 1"}, exact=False),
    case("attention from the right", "(T[N,5,5] s, T[N,3,5] x) => (T[n,t,c] y) { p = Softmax <axis = 1> (s)"
         "  v = MatMul(w[4,3], x)  b = Add(v, k[4,1])  a = MatMul(b, p)  y = Add(a, t[4,1]) }",
         "Softmax MatMul MatMul Add", twin={}, opset=13, twin_opset=11, exact=False),
    # Recurrent layers.
    _recurrent("LSTM", 4, "", twin=_A_READ, kept="graph-input"),
    _recurrent("LSTM", 4, ', direction = "bidirectional"', twin=_A_READ, kept="graph-input"),
    _recurrent("GRU", 3, ", linear_before_reset = 1", twin=_A_READ, kept="graph-input"),
    _recurrent("RNN", 1, ', direction = "reverse"', twin=_A_READ, kept="graph-input"),
    # Normalizations end in an affine of their own.
    case("InstanceNormalization, BN",
         "(T[N,3,6] x) => (T[n,t,c] y) { a = InstanceNormalization(x, g[3], b[3])  y = BN(a, A.3) }",
         "InstanceNormalization", "hoist", twin={"g[3]": "g", "(T[N,3,6] x)": "(T[N,3,6] x, T[3] g)"},
         kept="variable-operand", exact=False),
    case("LayerNormalization, Mul, Add",
         "(T[N,5,6] x) => (T[n,t,c] y) { a = LayerNormalization(x, g[1,6])  d = Mul(a, s[6])  y = Add(t[6], d) }",
         "LayerNormalization", twin={"s[6]": "s[5,1]"}, left="LayerNormalization Mul Add", exact=False),
    case("LayerNormalization whose mean is read, BN",
         "(T[N,5,6] x) => (T[n,t,c] y) { a = LayerNormalization <axis = 1> (x, g[5,6], b[5,6])  y = BN(a, A.5) }",
         "LayerNormalization", "hoist", twin=_READ, kept="graph-output", exact=False),
    case("GroupNormalization, BN", "(T[N,4,6] x) => (T[n,t,c] y) "
         "{ a = GroupNormalization <num_groups = 2> (x, g[4], b[4])  y = BN(a, A.4) }",
         "GroupNormalization", "hoist", twin=_READ, kept="graph-output", opset=21, ir_version=10, exact=False),
    case("RMSNormalization, scale", "(T[N,5,6] x) => (T[n,t,c] y) { a = RMSNormalization(x, g[6])  y = Mul(a, s[6]) }",
         "RMSNormalization", twin={"Mul(a, s[6])": "Add(a, s[6])"}, opset=23, ir_version=11, exact=False),
    # A shift in front of a normalization disappears, where all that is normalized together has the same.
    case("BN, InstanceNormalization", "(T[N,3,6] x) => (T[n,c,t] y) { a = BN(x, A.3)"
         "  y = InstanceNormalization(a, g[3], b[3]) }", "Mul InstanceNormalization", "sink",
         twin={"InstanceNormalization(a, g[3], b[3])": "LpNormalization(a)"}, kept="barrier", exact=False),
    case("Add, InstanceNormalization", "(T[N,3,6] x) => (T[n,c,t] y) { a = Add(x, k)"
         "  y = InstanceNormalization(a, g[3], b[3]) }", "InstanceNormalization", twin={}, exact=False,
         constants={"k": np.array([[1.5], [-2.0], [0.5]])}, twin_constants={"k": np.array([[1.5], [-np.inf], [0.5]])}),
    case("Add, GroupNormalization of single channels", "(T[N,4,6] x) => (T[n,c,t] y) { a = Add(x, k[4,1])"
         "  y = GroupNormalization <num_groups = 4> (a, g[4], b[4]) }", "GroupNormalization",
         twin={"num_groups = 4": "num_groups = 2"}, opset=21, ir_version=10, exact=False),
    case("BN, InstanceNormalization and a second reader", "(T[N,3,6] x) => (T[n,c,t] y, T[k,l,m] z) { a = BN(x, A.3)"
         "  y = InstanceNormalization(a, g[3], b[3])  z = Conv(a, w[2,3,3]) }", "Mul InstanceNormalization Conv",
         "sink", twin={"Conv(a": "Conv <pads = [1,1]> (a"}, kept="barrier", exact=False),
    case("BN, LayerNormalization", "(T[N,5,6] x) => (T[n,c,t] y) { a = BN(x, A.5)"
         "  y = LayerNormalization(a, g[6], b[6]) }", "Mul LayerNormalization", "sink",
         twin={"LayerNormalization(": "LayerNormalization <axis = 1> ("}, kept="axis", exact=False),
    case("Add, LayerNormalization", "(T[N,5,6] x) => (T[n,c,t] y) { a = Add(x, k[5,1])"
         "  y = LayerNormalization(a, g[6], b[6]) }", "LayerNormalization",
         twin={"(T[n,c,t] y)": "(T[n,c,t] y, T[i,j,k] m)", "y = Layer": "y, m = Layer"}, dtypes=("float",),
         exact=False),
    case("BN, Softmax", "(T[N,5,6] x) => (T[n,c,t] y) { a = BN(x, A.5)  y = Softmax(a) }", "Mul Softmax", "sink",
         twin={"Softmax(": "Softmax <axis = 1> ("}, kept="axis", exact=False),
    case("Add, LogSoftmax", "(T[N,5,6] x) => (T[n,c,t] y) { a = Add(x, k[5,1])  y = LogSoftmax <axis = 2> (a) }",
         "LogSoftmax", twin={"axis = 2": "axis = 1"}, opset=11, exact=False),
    # Quantized weights: the scale goes into the dequantization scale, its sign into the codes.
    _quantized("per tensor", "(q, d)", constants={"q": _CODES, "d": np.array(0.5)},
               twin={"=> (T[n,c,h,w] y)": "=> (T[n,c,h,w] y, T[i,j,k,l] w)"}, kept="other-readers"),
    _quantized("per tensor with a zero point", "(q, d, z)", twin={"a = Conv": "b = Relu(w)  a = Conv"},
               constants={"q": _CODES, "d": np.array(0.5), "z": np.array(3, np.int8)}, kept="other-readers",
               left="DequantizeLinear Relu Conv BatchNormalization"),
    _quantized("with a zero point that is read", "(q, d, z)", constants={"q": _CODES, "d": np.array(0.5),
               "z": np.array(3, np.int8)}, twin={"(q, d, z)": "(q, d, u)", "6,6] x)": "6,6] x, int8 u)"},
               kept="not-constant"),
    case("Conv of a weight dequantized with one zero point, BN without a negative scale",
         "(T[N,3,6,6] x) => (T[n,c,h,w] y) { w = DequantizeLinear(q, d, z)  a = Conv(x, w)  y = BN+(a, A.4) }",
         "DequantizeLinear Conv", "hoist", dtypes=("float",),
         constants={"q": _CODES, "d": np.array(0.5), "z": np.array(3, np.int8)},
         twin={"a = Conv(x, w)": "a = Conv(x, w)  u = Relu(w)", "w] y)": "w] y, T[i,j,k,l] u)"}, kept="other-readers",
         left="DequantizeLinear Conv Relu BatchNormalization"),
    case("BN of scales, grouped Conv of a weight dequantized per tensor",
         "(T[N,4,6,6] x) => (T[n,c,h,w] y) { w = DequantizeLinear(q, d)  a = BN+10(x, A.4)"
         "  y = Conv <group = 2> (a, w) }", "DequantizeLinear Conv", "sink", dtypes=("float",),
         constants={"q": _CODES[:, :2], "d": np.array(0.5)}, twin={"BN+10": "BN+0"}, kept="axis"),
    _quantized("per channel", " <axis = 0> (q, d)", constants={"q": _CODES, "d": _STEPS},
               twin={"<axis = 0>": "<axis = 1>"}, kept="axis", twin_constants={"q": _CODES, "d": _STEPS[:3]}),
    _quantized("per channel, unsigned", " <axis = 0> (q, d, z)",
               constants={"q": (_CODES.view(np.uint8)), "d": _STEPS, "z": np.array([0, 128, 255, 7], np.uint8)},
               twin={"(q, d, z)": "(q, e, z)", "6,6] x)": "6,6] x, T[4] e)"}, kept="not-constant"),
    case("Conv of a weight quantized and dequantized, BN",
         "(T[N,3,6,6] x) => (T[n,c,h,w] y) { c = QuantizeLinear(v[4,3,3,3], d, z)  w = DequantizeLinear(c, d)"
         "  a = Conv(x, w)  y = BN(a, A.4) }", "DequantizeLinear Conv", "hoist", dtypes=("float",),
         constants={"d": np.array(0.25), "z": np.array(0, np.int8)}, kept="variable-operand",
         twin={"v[4,3,3,3]": "v", "(T[N,3,6,6] x)": "(T[N,3,6,6] x, T[4,3,3,3] v)"}),
    case("Conv of a dequantized bias, BN",
         "(T[N,3,6,6] x) => (T[n,c,h,w] y) { w = DequantizeLinear(q, d)  b = DequantizeLinear <axis = 0> (r, e)"
         "  a = Conv(x, w, b)  y = BN(a, A.4) }", "DequantizeLinear Conv", "hoist", dtypes=("float",),
         constants={"q": _CODES, "d": np.array(0.5), "r": np.arange(4, dtype=np.int32), "e": _STEPS},
         twin={"=> (T[n,c,h,w] y)": "=> (T[n,c,h,w] y, T[m,o,u,v] a)"}, kept="graph-output"),
    case("MatMul of a dequantized weight that is transposed, Mul",
         "(T[N,8] x) => (T[n,c] y) { v = DequantizeLinear <axis = 0> (q, d)  w = Transpose(v)  a = MatMul(x, w)"
         "  y = Mul(a, s[4]) }", "DequantizeLinear Transpose MatMul", dtypes=("float",),
         constants={"q": np.arange(32, dtype=np.int8).reshape(4, 8), "d": _STEPS},
         twin={"=> (T[n,c] y)": "=> (T[n,c] y, T[k,m] w)"}),
    case("Conv of a dequantized weight, channels last, BN",
         "(T[N,3,6,6] x) => (T[n,c,h,w] y) { v = DequantizeLinear <axis = 0> (q, d)"
         "  w = Transpose <perm = [0,3,1,2]> (v)  a = Conv(x, w)  y = BN(a, A.4) }", "DequantizeLinear Transpose Conv",
         "hoist", dtypes=("float",), constants={"q": _CODES.transpose(0, 2, 3, 1), "d": _STEPS},
         twin={"axis = 0": "axis = 3"}, twin_constants={"q": _CODES.transpose(0, 2, 3, 1), "d": _STEPS[:3]},
         kept="axis"),
    case("Conv of a weight dequantized from float8, BN without a negative scale",
         "(T[N,3,6,6] x) => (T[n,c,h,w] y) { w = DequantizeLinear(q, d)  a = Conv(x, w)  y = BN+(a, A.4) }",
         "DequantizeLinear Conv", "hoist", opset=19, ir_version=9, dtypes=("float",), twin={"BN+": "BN"},
         constants={"q": (_CODES / 8).astype(ml_dtypes.float8_e4m3fn), "d": np.array(0.5)}, kept="negative-scale"),
    case("Conv of a dequantized weight, Add",
         "(T[N,3,6,6] x) => (T[n,c,h,w] y) { w = DequantizeLinear(q, d)  a = Conv(x, w)  y = Add(a, s[4,1,1]) }",
         "DequantizeLinear Conv", dtypes=("float",), constants={"q": _CODES, "d": np.array(0.5)},
         twin={"Add(a, s[4,1,1])": "Add(a, s[4,4])"}),
    _quantized("per block", " <axis = 1, block_size = 2> (q, d)", opset=21, ir_version=10,
               constants={"q": _CODES, "d": np.ones((4, 2, 3, 3)) * 0.5},
               twin={"=> (T[n,c,h,w] y)": "=> (T[n,c,h,w] y, T[m,o,u,v] a)"}, kept="graph-output"),
)  # fmt: skip
