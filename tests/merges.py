"""The table of graphs that merge: each becomes one layer, and has a twin that must stay as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx

from tests.graphs import build

COST, APART, ELSEWHERE = "would cost more", "not centred", "other readers"
ZEROS, BORDER = "zeros are written", "padded border"


@dataclass(frozen=True)
class Graph:
    """A graph, the operators that are left of it, and why what is left did not merge."""

    name: str
    text: str
    after: str
    reason: str | None
    options: dict[str, Any]

    def model(self, dtype: str = "float") -> onnx.ModelProto:
        return build(self.text, dtype=dtype, **self.options)

    def __str__(self) -> str:
        return self.name


def case(name: str, text: str, after: str, twin: dict[str, str], reason: str | None, **options: Any) -> list[Graph]:
    """A graph that becomes `after`, and its twin, of which nothing merges, for a reason that is reported (or None)."""
    changed = text
    for old, new in twin.items():
        assert old in changed, f"{name}: {old!r} is not in the text"
        changed = changed.replace(old, new)
    return [Graph(name, text, after, None, options), Graph(f"{name}, twin", changed, "", reason, options)]


def image(body: str, x: str = "T[N,4,8,8] x", y: str = "T[n,c,h,w] y") -> str:
    return f"({x}) => ({y}) {{ {body} }}"


SAME = "<pads = [1,1,1,1]>"
READ = {"T[n,c,h,w] y": "T[n,c,h,w] y, T[n,p,q,r] d"}
OTHER = {"T[N,4,8,8] x": "T[N,4,8,8] x, T[N,4,8,8] z", "(x, v": "(z, v"}

CASES = [
    # Parallel convolutions.
    *case("3×3 + 1×1", image(f"a = Conv {SAME} (x, w[4,4,3,3], b[4])  d = Conv(x, v[4,4,1,1])  y = Add(a, d)"), "Conv",
          READ, ELSEWHERE),
    *case("3×3 − 1×1 of another value",
          image(f"a = Conv {SAME} (x, w[4,4,3,3], b[4])  d = Conv(x, v[4,4,1,1])  y = Sub(d, a)"), "Conv", OTHER, None),
    *case("1×3 + 3×1 + 3×3",
          image(f"a = Conv <pads = [0,1,0,1]> (x, w[4,4,1,3])  d = Conv <pads = [1,0,1,0]> (x, v[4,4,3,1])"
                f"  e = Conv {SAME} (x, u[4,4,3,3])  y = Sum(a, d, e)"), "Conv",
          {f"e = Conv {SAME} (x, u[4,4,3,3])": "e = Relu(x)", "w[4,": "w[32,", "v[4,": "v[32,", ",4,1,3]": ",32,1,3]",
           ",4,3,1]": ",32,3,1]", "N,4,8": "N,32,8"}, COST),
    *case("stride 2", image("a = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w[4,4,3,3])"
                            "  d = Conv <strides = [2,2]> (x, v[4,4,1,1])  y = Add(a, d)"), "Conv",
          # On eight rows a 2×2 window has as many positions as a 3×3 one, on nine it has not.
          {"v[4,4,1,1]": "v[4,4,2,2]"}, APART),
    *case("stride 2 twice, once", image("a = Conv <pads = [1,1,1,1], strides = [2,2]> (x, w[4,4,3,3])"
                                        "  d = Conv <strides = [2,2]> (x, v[4,4,1,1])  y = Add(a, d)"), "Conv",
          {"d = Conv <strides = [2,2]> (x, v[4,4,1,1])": "d = Conv <strides = [1,1]> (x, v[4,4,5,5])"}, "stride"),
    *case("even kernel", image("a = Conv <pads = [0,0,1,1]> (x, w[4,4,2,2])  d = Conv(x, v[4,4,1,1])  y = Add(a, d)"),
          "Conv", {"v[4,4,1,1]": "v", "x)": "x, T[4,4,1,1] v)"}, None),
    *case("padded off centre",
          image("a = Conv <pads = [0,2,2,0]> (x, w[4,4,3,3])  d = Conv(x, v[4,4,1,1])  y = Add(a, d)"), "Conv",
          {"[0,2,2,0]": "[0,1,2,0]", "d = Conv(x": "e = Slice(x, {0}, {7}, {3})  d = Conv(e"}, None),
    *case("dilated 3×3 + 1×1",
          image("a = Conv <pads = [2,2,2,2], dilations = [2,2]> (x, w[4,4,3,3])"
                "  d = Conv(x, v[4,4,1,1])  y = Add(a, d)"), "Conv",
          {"Conv(x, v[4,4,1,1])": f"Conv {SAME} (x, v[32,32,3,3])", "w[4,4": "w[32,32", "N,4,": "N,32,"}, COST),
    *case("depthwise + identity",
          image("a = Conv <group = 4, pads = [1,1,1,1]> (x, w[4,1,3,3])  y = Add(a, x)"), "Conv",
          {"y = Add(a, x)": "d = MaxPool <kernel_shape = [1,1]> (x)  y = Add(a, d)"}, None),
    *case("groups of 2 + groups of 4",
          image("a = Conv <group = 2> (x, w[4,2,1,1])  d = Conv <group = 4> (x, v[4,1,1,1])  y = Sub(a, d)"), "Conv",
          {"<group = 2> (x, w[4,2,1,1])": "<group = 32, pads = [1,1,1,1]> (x, w[32,1,3,3])",
           "<group = 4> (x, v[4,1": "(x, v[32,32", "N,4,8,8": "N,32,8,8"}, COST),
    *case("residual convolution", image(f"a = Conv {SAME} (x, w[4,4,3,3])  y = Add(x, a)"), "Conv",
          {"y = Add(x, a)": "d = Relu(a)  y = Add(x, d)"}, None),
    *case("a BN of x", image(f"a = Conv {SAME} (x, w[4,4,3,3])  d = BN(x, A.4)  y = Add(d, a)"), "Conv",
          {"d = BN(x, A.4)": "c = BN(x, A.4)  d = Relu(c)"}, None),
    *case("FastViT's x + γ·(f − g)",
          image("a = Conv <group = 4, pads = [1,1,1,1]> (x, w[4,1,3,3])  b = Conv <group = 4> (x, v[4,1,1,1])"
                "  c = Sub(a, b)  d = Mul(c, k[4,1,1])  y = Add(x, d)"), "Conv",
          {"c = Sub(a, b)": "e = Relu(b)  f = Relu(a)  c = Sub(f, e)"}, None),
    *case("a scaled copy that others read too",
          image(f"e = Mul(x, k[4,1,1])  a = Conv {SAME} (x, w[4,4,3,3])  d = Add(a, e)  y = Relu(d)  z = Relu(e)",
                y="T[n,c,h,w] y, T[n,c,h,w] z"), "Mul Conv Relu Relu",
          {"k[4,1,1]": "k[4,1,8]"}, None),
    *case("behind a private Identity",
          image(f"a = Conv {SAME} (x, w[4,4,3,3])  d = Identity(a)  e = Conv(x, v[4,4,1,1])  y = Add(d, e)"), "Conv",
          READ, None),
    *case("behind a Dropout, of a copy",
          image(f"i = Identity(x)  a = Conv {SAME} (i, w[4,4,3,3])  d = Dropout(a)  e = Conv(x, v[4,4,1,1])"
                "  y = Add(d, e)"), "Conv",
          {"d = Dropout(a)": "d, m = Dropout(a)", "T[n,c,h,w] y": "T[n,c,h,w] y, bool[n,p,q,r] m"}, None),
    *case("SAME of a known size",
          image('a = Conv <auto_pad = "SAME_LOWER", strides = [2,2]> (x, w[4,4,3,3])'
                '  d = Conv <auto_pad = "SAME_LOWER", strides = [2,2]> (x, v[4,4,3,3])  y = Add(a, d)'), "Conv",
          {"N,4,8,8": "N,4,B,T"}, None),
    *case("SAME of different kernels",
          image('a = Conv <auto_pad = "SAME_UPPER"> (x, w[4,4,2,3])  d = Conv <auto_pad = "SAME_UPPER"> (x, v[4,4,1,1])'
                "  y = Add(a, d)", x="T[N,4,B,T] x"), "Conv",
          {"v[4,4,1,1]": "v[1,4,1,1]"}, "channels"),
    *case("what reads another value stays added",
          image(f"a = Conv {SAME} (x, w[4,4,3,3])  b = Conv(x, v[4,4,1,1])  s = Sigmoid(x)"
                "  e = Sub(a, s)  d = Sub(e, b)  y = Relu(d)"), "Sigmoid Conv Sub Relu",
          {"e = Sub(a, s)": "g = Relu(a)  e = Sub(g, s)"}, None),
    *case("sizes that are not known",
          image(f"a = Conv {SAME} (x, w[4,4,3,3])  b = Conv(x, v[4,4,1,1])  c = Add(a, b)  d = Add(c, x)"
                "  y = Relu(d)", x="T[N,4,B,T] x"), "Conv Relu",
          {"v[4,4,1,1]": "v[1,4,1,1]", "Add(c, x)": "Mul(c, x)"}, "channels"),
    *case("average pools",
          image("a = AveragePool <kernel_shape = [2,2]> (x)  b = Conv(x, v[4,4,2,2])  y = Add(a, b)"), "Conv",
          {"[2,2]> (x)  b = Conv(": "[2,2], pads = [1,1,1,1]> (x)  b = Conv <pads = [1,1,1,1]> ("}, None),
    *case("padded average pools that count the padding",
          image("a = AveragePool <kernel_shape = [2,2], pads = [1,1,1,1], count_include_pad = 1> (x)"
                "  b = Conv <pads = [1,1,1,1]> (x, v[4,4,2,2])  y = Add(a, b)"), "Conv",
          {"count_include_pad = 1": "count_include_pad = 0"}, None),
    *case("average pool rounded up where nothing is to round",
          image("a = AveragePool <kernel_shape = [2,2], strides = [2,2], ceil_mode = 1> (x)"
                "  b = Conv <strides = [2,2]> (x, v[4,4,2,2])  y = Add(a, b)"), "Conv",
          {"N,4,8,8": "N,4,7,7", "> (x, v": ", pads = [0,0,1,1]> (x, v"}, None),
    *case("transposed convolutions",
          image("a = ConvTranspose <strides = [2,2], pads = [1,1,1,1], output_padding = [1,1]> (x, w[4,4,3,3], b[4])"
                "  d = ConvTranspose <strides = [2,2], group = 2> (x, v[4,2,2,2])  y = Add(a, d)"), "ConvTranspose",
          {"(x, v[": "(z, v[", "T[N,4,8,8] x": "T[N,4,8,8] x, T[N,4,8,8] z"}, None),
    # Parallel products.
    *case("Gemms",
          "(T[N,8] x) => (T[n,c] y) { a = Gemm <alpha = 0.5> (x, w[8,4], b[4])  d = Gemm <transB = 1> (x, v[4,8])"
          "  y = Add(a, d) }", "Gemm", {"d = Gemm <transB = 1> (x": "d = Gemm <transB = 1, transA = 1> (z",
                                        "[N,8] x": "[N,8] x, T[8,N] z"}, None),
    *case("MatMuls and the input", "(T[N,T,8] x) => (T[n,t,c] y) { a = MatMul(x, w[8,8])  d = MatMul(x, v[8,8])"
          "  e = Sum(a, x, d)  y = Relu(e) }", "MatMul Relu",
          {"a = MatMul(x, w[8,8])": "a = MatMul(w[8,8], x)", "T[N,T,8]": "T[N,8,8]",
           "Sum(a, x, d)": "Sum(a, d)"}, None),
    *case("matrices on the left, a bias and the input", "(T[N,8,5] x) => (T[n,c,t] y) { a = MatMul(w[8,8], x)"
          "  b = Add(a, k[8,1])  d = MatMul(v[8,8], x)  e = Sub(d, x)  f = Sub(b, e)  y = Relu(f) }", "MatMul Add Relu",
          {"k[8,1]": "k[5]", "MatMul(v[8,8], x)": "MatMul(x, v[5,5])", "Sub(d, x)": "Sigmoid(d)"}, None),
    *case("MatMul, its bias and a BN of the input",
          "(T[N,8] x) => (T[n,c] y) { a = MatMul(x, w[8,8])  b = Add(a, k[8])  c = BN(x, A.8)  d = Sub(b, c)"
          "  y = Relu(d) }",
          "MatMul Add Relu", {"c = BN(x, A.8)": "e = Sigmoid(x)  c = BN(e, A.8)"}, None),
    # In a body, and from outside into one.
    *case("inside a body",
          image("y = If(p) <then_branch = t () => (T[a,b,c,d] r) {"
                f"  e = Conv {SAME} (x, w[4,4,3,3])  f = Conv(x, v[4,4,1,1])"
                "  r = Add(e, f) }, else_branch = u () => (T[a,b,c,d] s) { s = Relu(x) }>",
                x="T[N,4,8,8] x, bool p"),
          "If Conv Relu",
          {"y = If(p)": "f = Conv(x, v[4,4,1,1])  y = If(p)", "  f = Conv(x, v[4,4,1,1])  r": "  r"}, None),
    # Sequential.
    *case("1×1, 3×3", image("d = Conv(x, w[8,4,1,1], b[8])  y = Conv(d, v[4,8,3,3])"), "Conv", READ, ELSEWHERE),
    *case("1×1 without bias, padded 3×3", image(f"d = Conv(x, w[8,4,1,1])  y = Conv {SAME} (d, v[4,8,3,3])"), "Conv",
          {"w[8,4,1,1]": "w[8,4,1,1], b[8]"}, BORDER),
    *case("padded 3×3, 1×1",
          image(f"d = Conv {SAME} (x, w[8,4,3,3], b[8])  y = Conv(d, v[4,8,1,1], c[4])"), "Conv",
          {"Conv(d": f"Conv {SAME} (d"}, ZEROS),
    *case("3×3 with stride 2, 1×1",
          image("d = Conv <strides = [2,2]> (x, w[8,4,3,3])  y = Conv(d, v[4,8,1,1])"), "Conv",
          {"w[8,4": "w[2,4", "v[4,8": "v[32,2"}, COST),
    *case("1×1 with stride 2, padded 3×3",
          image(f"d = Conv <strides = [2,2]> (x, w[8,4,1,1])  y = Conv {SAME} (d, v[4,8,3,3])"), "Conv",
          {"w[8,4,1,1]": "w[8,4,2,2]"}, ZEROS),
    *case("Conv, AveragePool",
          image("d = Conv(x, w[4,4,3,3], b[4])  y = AveragePool <kernel_shape = [2,2], strides = [2,2]> (d)"), "Conv",
          {"[2,2]> (d)": "[2,2], ceil_mode = 1> (d)", "N,4,8,8": "N,4,7,7"}, None),
    *case("1×1 of many channels, a large AveragePool",
          image("d = Conv(x, w[64,32,1,1], b[64])  y = AveragePool <kernel_shape = [8,8]> (d)", x="T[N,32,8,8] x"),
          "AveragePool Conv", {"w[64,32": "w[2,32", "b[64]": "b[2]"}, COST),
    # Exchanged.
    *case("1×1 in front of an AveragePool that leaves the padding out",
          image("d = Conv(x, w[64,32,1,1], b[64])"
                "  y = AveragePool <kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1]> (d)", x="T[N,32,8,8] x"),
          "AveragePool Conv", {"pads = [1,1,1,1]>": "pads = [1,1,1,1], count_include_pad = 1>"}, BORDER),
    *case("1×1 without bias in front of an AveragePool that counts the padding",
          image("d = Conv(x, w[64,32,1,1])  y = AveragePool <kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1],"
                " count_include_pad = 1> (d)", x="T[N,32,8,8] x"),
          "AveragePool Conv", {"strides = [2,2]": "strides = [1,1]", "w[64,32": "w[16,32"}, COST),
    *case("1×1 in front of an AveragePool that rounds up",
          image("d = Conv(x, w[8,4,1,1], b[8])"
                "  y = AveragePool <kernel_shape = [2,2], strides = [2,2], ceil_mode = 1> (d)", x="T[N,4,7,7] x"),
          "AveragePool Conv", READ, None),
    *case("BN between a 1×1 and the mean of all positions",
          image("c = Conv(x, w[8,4,1,1])  d = BN(c, A.8)  y = GlobalAveragePool(d)"), "GlobalAveragePool Conv",
          {"= GlobalAveragePool(d)": "= GlobalMaxPool(d)"}, None),
    *case("1×1 and a mean that keeps the axes",
          image("d = Conv <group = 2> (x, w[8,2,1,1], b[8])  y = ReduceMean <axes = [2,3]> (d)"), "ReduceMean Conv",
          {"[2,3]": "[1,2]"}, None),
    *case("1×1 and a mean, dynamic", image("d = Conv(x, w[8,4,1,1], b[8])  y = ReduceMean <axes = [3]> (d)",
                                   x="T[N,4,B,T] x"), "ReduceMean Conv",
          {"<axes = [3]>": "<axes = [3], keepdims = 0>", "[n,c,h,w]": "[n,c,h]"}, None),
    *case("depthwise, pointwise where it is cheaper",
          image("d = Conv <group = 4> (x, w[4,1,1,1])  y = Conv(d, v[4,4,1,1])"), "Conv",
          {"w[4,1,1,1]": "w[32,1,3,3]", "group = 4": "group = 32", "v[4,4": "v[32,32", "N,4,": "N,32,"}, COST),
    *case("ConvTranspose, 1×1",
          image("d = ConvTranspose <strides = [2,2]> (x, w[4,8,2,2], b[8])  y = Conv(d, v[4,8,1,1])"), "ConvTranspose",
          {"v[4,8,1,1]": "v[4,8,2,2]"}, "pointwise"),
    *case("1×1, ConvTranspose",
          image("d = Conv(x, w[4,4,1,1])  y = ConvTranspose <strides = [2,2]> (d, v[4,4,3,3])"), "ConvTranspose",
          {"w[4,4,1,1]": "w[4,4,1,1], b[4]"}, BORDER),
    *case("a private Identity between", image("a = Conv(x, w[4,4,1,1])  d = Identity(a)  y = Conv(d, v[4,4,1,1])"),
          "Conv", READ, None),
    *case("Gemm, Gemm", "(T[N,8] x) => (T[n,c] y) { d = Gemm <transB = 1> (x, w[16,8], b[16])"
          "  y = Gemm <alpha = 0.5> (d, v[16,4]) }", "Gemm",
          {"w[16,8], b[16]": "w[1,8], b[1]", "v[16,4]": "v[1,32]"}, COST),
    *case("matrices on the left, one after the other", "(T[N,6,5] x) => (T[n,c,t] y) { a = MatMul(w[16,6], x)"
          "  d = Add(a, b[16,1])  e = MatMul(v[4,16], d)  y = Add(e, c[4,1]) }", "MatMul Add",
          {"e = MatMul(v[4,16], d)": "e = MatMul(d, v[5,5])", "c[4,1]": "c[16,1]"}, None),
    *case("MatMul, bias, MatMul, bias", "(T[N,T,8] x) => (T[n,t,c] y) { a = MatMul(x, w[8,16])  d = Add(a, b[16])"
          "  e = MatMul(d, v[16,4])  y = Add(e, c[4]) }", "MatMul Add",
          {"=> (T[n,t,c] y)": "=> (T[n,t,c] y, T[n,t,d] d)"}, None),
    *case("a chain of Gemms",
          "(T[N,8] x) => (T[n,c] y) { a = Gemm(x, w[8,8])  d = Gemm(a, v[8,8])  y = Gemm(d, u[8,8]) }", "Gemm",
          {"d = Gemm(a, v[8,8])": "e = Relu(a)  f = Gemm(e, v[8,8])  d = Relu(f)"}, None),
]  # fmt: skip
