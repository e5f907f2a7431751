"""Moves of elements: the coefficients take the same way, or the inverse one."""

from __future__ import annotations

import numpy as np

from tests.cases.base import Case, case

_PADDED = {"Conv(d": "Conv <pads = [1,1,1,1]> (d"}
_MOVED_READ = {"=> (T[n,c,h,w] y": "=> (T[n,p,q,r] d, T[n,c,h,w] y"}
_SHUFFLE = "p = Reshape(a, {0, 2, 2, 8, 8})  q = Transpose <perm = [0,2,1,3,4]> (p)  d = Reshape(q, {0, 4, 8, 8})"


def _hoist(
    name: str, call: str, left: str, twin: dict[str, str], kept: str, twin_after: str = "", **options: object
) -> Case:
    """A convolution to [2,4,8,8], a move of its output `a` to `d`, BN of `d`; `left` are the moves."""
    text = f"(T[2,3,8,8] x) => (T[n,c,h,w] y) {{ a = Conv(x, w[4,3,1,1])  {call} }}"
    return case(f"Conv, {name}, BN", text, f"Conv {left}", "hoist", twin=twin, kept=kept, left=twin_after, **options)


def _sink(name: str, call: str, left: str, twin: dict[str, str], kept: str, **options: object) -> Case:
    """BN of x [2,4,8,8] to `a`, a move of it to `d`, and a linear operator."""
    text = f"(T[2,4,8,8] x) => (T[n,c,h,w] y) {{ a = BN(x, A.4)  {call} }}"
    return case(f"BN, {name}", text, left, "sink", twin=twin, kept=kept, **options)


CASES = (
    # Hoisted: the demand takes the inverse way.
    _hoist("Transpose to channel-last, scale", "d = Transpose <perm = [0,2,3,1]> (a)  y = Mul(d, s[4])", "Transpose",
           {"s[4]": "s[8,1]"}, ""),
    _hoist("Transpose there and back", "e = Transpose <perm = [0,2,3,1]> (a)  d = Transpose <perm = [0,3,1,2]> (e)"
           "  y = BN(d, A.4)", "Transpose Transpose", {"[0,3,1,2]": "[0,1,3,2]", "A.4": "A.8"}, "axis"),
    _hoist("Reshape that keeps the channels", "d = Reshape(a, {0, 4, 16, 4})  y = BN(d, A.4)", "Reshape",
           {"{0, 4, 16, 4}": "{0, 8, 8, 4}", "A.4": "A.8"}, "axis"),
    _hoist("Reshape that splits the channels", "d = Reshape(a, {0, 2, 16, 8})  y = BN(d, A.2)", "Reshape",
           _MOVED_READ, "graph-output"),
    _hoist("channel shuffle", _SHUFFLE + "  y = BN(d, A.4)", "Reshape Transpose Reshape",
           {"[0,2,1,3,4]": "[0,1,3,2,4]"}, "axis"),
    _hoist("Slice of channels, its axes not named", "d = Slice(a, {0, 1}, {9, 3})  y = BN(d, A.2)", "Slice",
           {"=> (T[n,c,h,w] y": "=> (T[n,p,q,r] a, T[n,c,h,w] y"}, "graph-output"),
    # Readers of parts of one value may each ask something else of their part.
    _hoist("two Slices of channels, one BN", "e = Slice(a, {0}, {2}, {1})  d = BN(e, A.2)  f = Slice(a, {2}, {4}, {1})"
           "  y = Mul(d, f)", "Slice Slice Mul", {"{2}, {4}, {1}": "{1}, {3}, {1}"}, "other-readers"),
    _hoist("two Slices of channels, a BN each", "e = Slice(a, {0}, {2}, {1})  d = BN(e, A.2)"
           "  f = Slice(a, {2}, {4}, {1})  g = BN(f, B.2)  y = Mul(d, g)", "Slice Slice Mul",
           {"{0}, {2}, {1}": "{1}, {3}, {1}"}, "other-readers other-readers"),
    _hoist("one of three Gathers scaled", "q = Gather <axis = 1> (a, {0})  k = Gather <axis = 1> (a, {1})"
           "  v = Gather <axis = 1> (a, {2})  s = Mul(q, 0.5)  t = Mul(s, k)  y = Mul(t, v)",
           "Gather Gather Gather Mul Mul", {"v = Gather <axis = 1> (a, {2})": "v = Gather <axis = 1> (a, i)",
                                            "T[2,3,8,8] x": "T[2,3,8,8] x, int64[1] i"}, ""),
    _hoist("Slice backwards of channels and rows",
           "d = Slice(a, {-1, 5}, {-2147483648, 2}, {1, 2}, {-2, -1})  y = BN(d, A.2)", "Slice",
           _MOVED_READ, "graph-output"),
    _hoist("Slice by attributes", "d = Slice <starts = [1], ends = [3], axes = [1]> (a)  y = BN(d, A.2)", "Slice",
           _MOVED_READ, "graph-output", opset=9),
    _hoist("Gather of channels", "d = Gather <axis = 1> (a, {3, 0})  y = BN(d, A.2)", "Gather",
           {"{3, 0}": "{3, 3}"}, "unequal-branches"),
    _hoist("Gather of one channel", "d = Gather <axis = 1> (a, {2})  y = BN(d, A.1)", "Gather",
           _MOVED_READ, "", twin_after="Conv Gather Mul"),
    _hoist("Expand", "p = ReduceMax <axes = [2,3]> (a)  d = Expand(p, {2, 4, 5, 5})  y = BN+(d, A.4)",
           "ReduceMax Expand", {"w[4,3,1,1]": "w[1,3,1,1]"}, "axis"),
    _hoist("Tile", "d = Tile(a, {1, 1, 2, 2})  y = BN(d, A.4)", "Tile", {"{1, 1, 2, 2}": "{1, 2, 1, 1}", "A.4": "A.8"},
           "unequal-branches"),
    _hoist("DepthToSpace", "d = DepthToSpace <blocksize = 2> (a)  y = BN1(d, A.1)", "DepthToSpace",
           _MOVED_READ, "graph-output"),
    _hoist("SpaceToDepth of one scale", "d = SpaceToDepth <blocksize = 2> (a)  y = BN1(d, A.16)", "SpaceToDepth",
           {"BN1": "BN"}, "axis"),
    case("MatMul, Transpose that reverses, Mul",
         "(T[N,4] x) => (T[c,n] y) { a = MatMul(x, w[4,3])  d = Transpose(a)  y = Mul(d, s[3,1]) }", "MatMul Transpose",
         twin={"Transpose(a)": "Transpose <perm = [0,1]> (a)", "T[N,4]": "T[3,4]"}, left="MatMul Transpose Mul"),
    case("BN, Split of an unknown number of rows, Convs",
         "(T[N,4,H,8] x) => (T[n,c,h,w] y, T[m,b,g,v] z) { a = BN(x, A.4)  d, e = Split <axis = 2> (a, {1, 1})"
         "  y = Conv(d, w[2,4,1,1])  z = Conv(e, u[2,4,1,1]) }", "Split Conv Conv", "sink",
         twin={"Conv(d": "Conv <pads = [1,1,1,1]> (d"}, kept="padding"),
    case("Conv, Split with a part that nobody reads, BN",
         "(T[N,3,8,8] x) => (T[n,c,h,w] y) { a = Conv(x, w[6,3,1,1])  d, e = Split <axis = 1> (a, {4, 2})"
         "  y = BN(d, A.4) }", "Conv Split", "hoist", twin={"=> (T": "=> (T[i,j,k,l] a, T"}, kept="graph-output"),
    case("Conv, DepthToSpace DCR to two channels, BN",
         "(T[2,3,4,4] x) => (T[n,c,h,w] y) { a = Conv(x, w[8,3,1,1])  d = DepthToSpace <blocksize = 2> (a)"
         "  y = BN(d, A.2) }", "Conv DepthToSpace", "hoist", twin=_MOVED_READ, kept="graph-output"),
    case("Conv, DepthToSpace CRD to two channels, BN",
         "(T[2,3,4,4] x) => (T[n,c,h,w] y) { a = Conv(x, w[8,3,1,1])"
         '  d = DepthToSpace <blocksize = 2, mode = "CRD"> (a)  y = BN(d, A.2) }',
         "Conv DepthToSpace", "hoist", twin=_MOVED_READ, kept="graph-output"),
    case("Conv, Split into two BNs",
         "(T[N,3,8,8] x) => (T[n,c,h,w] y, T[n,d,p,q] z) { a = Conv(x, w[4,3,1,1])  d, e = Split <axis = 1> (a, {1, 3})"
         "  y = BN(d, A.1)  z = BN(e, B.3) }", "Conv Split", "hoist",
         twin={"axis = 1": "axis = 2", "{1, 3}": "{5, 3}", "A.1": "A.4", "B.3": "B.4"}, kept="axis axis"),
    case("Conv, Split by attribute into BN and a silent part",
         "(T[N,3,8,8] x) => (T[n,c,h,w] y, T[n,d,p,q] z) { a = Conv(x, w[4,3,1,1])  d, z = Split <axis = 1> (a)"
         "  y = BN(d, A.2) }", "Conv Split", "hoist", opset=11,
         twin={"[n,c,h,w] y,": "[n,c,h,w] y, T[e,f,g,h] d,"}, kept="graph-output"),
    case("Conv, Split into equal parts by num_outputs, BN",
         "(T[N,3,8,8] x) => (T[n,c,h,w] y, T[n,d,p,q] z) { a = Conv(x, w[5,3,1,1])"
         "  z, d = Split <axis = 1, num_outputs = 2> (a)  y = BN(d, A.2) }", "Conv Split", "hoist", opset=18,
         twin={"BN(d, A.2)": "BN(a, A.5)"}, kept="other-readers", left="Conv Split BatchNormalization"),
    case("Conv, Flatten, BN",
         "(T[N,3,8,8] x) => (T[n,c] y) { a = Conv(x, w[4,3,8,8])  d = Flatten(a)  y = BN(d, A.4) }",
         "Conv Flatten", "hoist", twin={"w[4,3,8,8]": "w[1,3,7,7]"}, kept="axis"),
    case("Conv, Squeeze, Conv 1d",
         "(T[N,3,8,1] x) => (T[n,c,w] y) { a = Conv(x, w[4,3,3,1])  d = Squeeze(a, {3})  y = BN(d, A.4) }",
         "Conv Squeeze", "hoist", twin={"=> (T[n,c,w] y": "=> (T[n,p,q] d, T[n,c,w] y"}, kept="graph-output"),
    case("Conv 1d, Unsqueeze by attribute, BN",
         "(T[N,3,8] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3])  d = Unsqueeze <axes = [2]> (a)  y = BN(d, A.4) }",
         "Conv Unsqueeze", "hoist", opset=11, twin=_MOVED_READ, kept="graph-output"),
    # Batch and time merged and parted again: only the axis of the channels need be traceable.
    case("[B,T,C], MatMul, [B·T,C], BN, [B,T,C]",
         "(T[B,T,3] x) => (T[n,t,c] y) { a = MatMul(x, w[3,4])  d = Reshape(a, {-1, 4})  e = BN(d, A.4)"
         "  s = Shape(a)  f = Reshape(e, s)  y = Sigmoid(f) }", "MatMul Add Reshape Shape Reshape Sigmoid", "hoist",
         twin={"T[B,T,3] x": "T[B,3,3] x", "{-1, 4}": "{-1, 12}", "A.4": "A.12"}, kept="axis", exact=False),
    case("[B,T,C], [B·T,C], BN, [B,T,C], MatMul",
         "(T[B,T,4] x) => (T[n,t,c] y) { a = Reshape(x, {-1, 4})  e = BN(a, A.4)"
         "  s = Shape(x)  f = Reshape(e, s)  y = MatMul(f, w[4,3]) }", "Reshape Shape Reshape MatMul Add", "sink",
         twin={"w[4,3]": "w", "T[B,T,4] x": "T[B,T,4] x, T[4,3] w"}, kept="axis"),
    case("Conv, Reshape to a computed shape, BN",
         "(T[N,3,8,8] x) => (T[n,c,h] y) { a = Conv(x, w[4,3,1,1])  s = Shape(a)  m = Gather(s, {0})"
         "  r = Concat <axis = 0> (m, {4, -1})  d = Reshape(a, r)  y = BN(d, A.4) }",
         "Conv Shape Gather Concat Reshape", "hoist",
         twin={"r = Concat <axis = 0> (m, {4, -1})": "r = Identity(s)", "T[n,c,h] y": "T[n,c,h,w] y", "Reshape(a, r)":
               "Reshape(a, z)", "T[N,3,8,8] x": "T[N,3,8,8] x, int64[4] z"}, kept="unknown-shape"),
    case("BN, flattened to a computed shape, Gemm",
         "(T[N,3,4,4] x) => (T[n,c] y) { a = BN(x, A.3)  s = Shape(a)  m = Gather(s, {0})"
         "  r = Concat <axis = 0> (m, {-1})  d = Reshape(a, r)  y = Gemm(d, w[48,5]) }",
         "Shape Gather Concat Reshape Gemm", "sink", twin={"T[N,3,4,4] x": "T[N,3,4,H] x", "w[48,5]": "w[24,5]"},
         kept="unknown-shape"),
    case("Conv, channel shuffle of computed shapes, BN",
         "(T[N,3,H,W] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,1,1])  s = Shape(a)  m = Slice(s, {0}, {1})"
         "  t = Slice(s, {2}, {4})  r = Concat <axis = 0> (m, {2, 2}, t)  p = Reshape(a, r)"
         "  q = Transpose <perm = [0,2,1,3,4]> (p)  u = Concat <axis = 0> (m, {-1}, t)  d = Reshape(q, u)"
         "  y = BN(d, A.4) }", "Conv Shape Slice Slice Concat Reshape Transpose Concat Reshape", "hoist",
         twin={"T[N,3,H,W] x": "T[N,3,2,2] x", "[0,2,1,3,4]": "[0,3,1,2,4]"}, kept="axis"),
    # Sunk: the fact goes the way of the values.
    _sink("Transpose to channel-last, MatMul", "d = Transpose <perm = [0,2,3,1]> (a)  y = MatMul(d, w[4,3])",
          "Transpose MatMul Add", {"[0,2,3,1]": "[0,2,1,3]", "w[4,3]": "w[8,3]"}, "axis"),
    _sink("Reshape, Conv 1d", "d = Reshape(a, {0, 4, 64})  e = Conv(d, w[3,4,5])  y = Unsqueeze(e, {3})",
          "Reshape Conv Unsqueeze", {"{0, 4, 64}": "{0, 2, 128}", "w[3,4,5]": "w[3,2,5]"}, "axis"),
    _sink("Reshape, MatMul from the left", "e = Reshape(a, {0, 4, 64})  d = MatMul(w[3,4], e)  y = Unsqueeze(d, {3})",
          "Reshape MatMul Unsqueeze Add", {"MatMul(w[3,4], e)": "MatMul(e, w[64,3])"}, "axis"),
    _sink("channel shuffle, Conv", _SHUFFLE + "  y = Conv(d, w[3,4,3,3])", "Reshape Transpose Reshape Conv",
          {"[0,2,1,3,4]": "[0,1,3,2,4]"}, "axis"),
    _sink("Slice of channels, Conv", "d = Slice(a, {0}, {9}, {1}, {2})  y = Conv(d, w[3,2,3,3])", "Slice Conv",
          _PADDED, "padding"),
    _sink("Split, two Convs", "d, e = Split <axis = 1> (a, {1, 3})  f = Conv(d, w[2,1,3,3])  g = Conv(e, v[2,3,3,3])"
          "  y = Concat <axis = 1> (f, g)", "Split Conv Conv Concat", {"Conv(d": "Conv <pads = [1,1,1,1]> (d",
          "Conv(e": "Conv <pads = [1,1,1,1]> (e"}, "padding"),
    _sink("Split into equal parts, Conv", "d, e = Split <axis = 1> (a)  y = Conv(d, w[2,2,3,3])", "Split Conv",
          _PADDED, "padding"),
    _sink("Gather of channels, Conv", "d = Gather <axis = 1> (a, {3, 0, 3})  y = Conv(d, w[3,3,3,3])", "Gather Conv",
          _PADDED, "padding"),
    case("BN, Gather of rows at run time, Conv",
         "(T[2,4,8,8] x, int64[5] i) => (T[n,c,h,w] y) { a = BN(x, A.4)  d = Gather <axis = 2> (a, i)"
         "  y = Conv(d, w[3,4,3,3]) }", "Gather Conv", "sink", twin={"axis = 2": "axis = 1", "w[3,4": "w[3,5"},
         kept="axis"),
    case("BN, Slice of rows at run time, Conv",
         "(T[2,4,8,8] x, int64[1] i) => (T[n,c,h,w] y) { a = BN(x, A.4)  d = Slice(a, i, {9}, {2})"
         "  y = Conv(d, w[3,4,3,3]) }", "Slice Conv", "sink", twin={"{2}": "{1}", "w[3,4": "w[3,3"}, kept="axis",
         inputs={"i": np.array([3])}),
    case("BN, Split at run time, Conv",
         "(T[2,4,8,8] x, int64[2] i) => (T[n,c,h,w] y) { a = BN(x, A.4)  d, e = Split <axis = 2> (a, i)"
         "  y = Conv(d, w[3,4,1,1]) }", "Split Conv", "sink",
         twin={"axis = 2": "axis = 1"}, kept="axis",
         inputs={"i": np.array([3, 5])}),
    case("BN, Expand, Conv",
         "(T[2,3,1,1] x) => (T[n,c,h,w] y) { a = BN(x, A.3)  d = Expand(a, {2, 3, 5, 5})  y = Conv(d, w[4,3,3,3]) }",
         "Expand Conv", "sink", twin=_PADDED, kept="padding"),
    _sink("Tile, Conv", "d = Tile(a, {1, 2, 1, 1})  y = Conv(d, w[3,8,3,3])", "Tile Conv", _PADDED, "padding"),
    case("BN, DepthToSpace, Conv",
         "(T[2,8,4,4] x) => (T[n,c,h,w] y) { a = BN1(x, A.8)  d = DepthToSpace <blocksize = 2> (a)"
         "  y = Conv(d, w[3,2,3,3]) }", "DepthToSpace Conv", "sink", twin={"BN1": "BN"}, kept="axis"),
    _sink("SpaceToDepth, Conv", "d = SpaceToDepth <blocksize = 2> (a)  y = Conv(d, w[3,16,3,3])", "SpaceToDepth Conv",
          _PADDED, "padding"),
    case("BN, Flatten, Gemm", "(T[N,3,4,4] x) => (T[n,c] y) { a = BN(x, A.3)  d = Flatten(a)  y = Gemm(d, w[48,5]) }",
         "Flatten Gemm", "sink", twin={"Flatten(a)": "Flatten <axis = 2> (a)", "w[48,5]": "w[16,5]",
                                       "T[N,3,4,4] x": "T[2,3,4,4] x"}, kept="axis"),
    case("BN, Squeeze, Gemm",
         "(T[N,3,1,1] x) => (T[n,c] y) { a = BN(x, A.3)  d = Squeeze(a, {2, 3})  y = Gemm(d, w[3,5]) }",
         "Squeeze Gemm", "sink", twin={"w[3,5]": "w", "T[N,3,1,1] x": "T[N,3,1,1] x, T[3,5] w"},
         kept="variable-operand"),
)  # fmt: skip
