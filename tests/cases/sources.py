"""What counts as an affine: BatchNormalizations of every opset, and arithmetic with constants in every broadcast."""

from __future__ import annotations

import numpy as np

from tests.cases.base import Case, case

_ALSO_OUTPUT = {"=> (T[n,c,h,w] y)": "=> (T[n,c,h,w] y, T[n,c,h,w] a)"}
_VARIANCE = np.full(4, 4.0 - 0.0625)


def _behind(name: str, call: str, twin: dict[str, str], left: str = "", **options: object) -> Case:
    """Arithmetic behind a convolution to [N,4,6,6], which absorbs it."""
    text = f"(T[N,3,8,8] x) => (T[n,c,h,w] y) {{ a = Conv(x, w[4,3,3,3], b[4])  {call} }}"
    return case(f"Conv, {name}", text, "Conv", twin=twin, left=left, **options)


def _square(name: str, call: str, twin: dict[str, str]) -> Case:
    """A convolution to [4,4,4,4], so that sizes alone say nothing about axes."""
    text = f"(T[4,3,6,6] x) => (T[n,c,h,w] y) {{ a = Conv(x, w[4,3,3,3])  y = {call} }}"
    return case(f"Conv to equal sizes, {name}", text, "Conv", twin=twin)


def _batch_norm(name: str, opset: int, attributes: str, twin: dict[str, str], kept: str, **options: object) -> Case:
    text = f"(T[N,3,8,8] x) => (T[n,c,h,w] y) {{ a = Conv(x, w[4,3,3,3])  y = BN(a, A.4{attributes}) }}"
    return case(name, text, "Conv", "hoist", opset=opset, twin=twin, kept=kept, **options)


CASES = (
    # BatchNormalization of every opset.
    _batch_norm("BN of opset 6", 6, ", is_test=1", {"is_test=1": "is_test=0"}, "training-mode", runtime=False),
    _batch_norm("BN of opset 7", 7, ", spatial=1", _ALSO_OUTPUT, "graph-output"),
    _batch_norm("BN of opset 9", 9, "", {"y = BN": "y, m, v, o, p = BN", "] y)": "] y, T[k] m)"}, "training-mode"),
    _batch_norm("BN of opset 14", 14, ", training_mode=0", {"y = BN": "y, m, v = BN",
    "training_mode=0": "training_mode=1"}, "training-mode"),
    _batch_norm("BN of opset 15", 15, "", {"y = BN": "y, m, v = BN", "A.4": "A.4, training_mode=1"}, "training-mode"),
    _batch_norm("BN of opset 21", 21, "", _ALSO_OUTPUT, "graph-output", ir_version=10),
    case("BN with spatial 0",
         "(T[N,4,8,8] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,4,1,1])"
         "  y = BatchNormalization <spatial = 0, epsilon = 0.0625> (a, g, g, g, v) }", "Conv", "hoist", opset=7,
         constants={"g": np.full((4, 8, 8), 0.5), "v": np.full((4, 8, 8), 4.0 - 0.0625)}, runtime=False,
         twin_constants={"g": np.arange(256.0).reshape(4, 8, 8), "v": np.full((4, 8, 8), 4.0 - 0.0625)},
         twin={}, kept="axis"),
    # Its parameters.
    case("BN parameters through Identity and Reshape",
         "(T[N,3,8,8] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])  g = Identity(s[4])  r = Reshape(m[2,2], {4})"
         "  y = BatchNormalization <epsilon = 0.0625> (a, g, b[4], r, v) }", "Conv", "hoist",
         constants={"v": _VARIANCE}, kept="not-constant",
         twin={"m[2,2]": "m", "T[N,3,8,8] x)": "T[N,3,8,8] x, T[2,2] m)"}),
    case("BN parameters that may be overridden",
         "(T[N,3,8,8] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])  y = BN(a, A.4) }", "Conv", "hoist",
         twin={"T[N,3,8,8] x)": "T[N,3,8,8] x, T[4] A_mean)"}, kept="overridable"),
    case("BN with a negative variance",
         "(T[N,3,8,8] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])  y = BN(a, A.4) }", "Conv", "hoist",
         twin={}, twin_constants={"A_var": np.array([1.0, -1.0, 1.0, 1.0])}, kept="non-finite"),
    case("BN with a mean that is not a number",
         "(T[N,3,8,8] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])  y = BN(a, A.4) }", "Conv", "hoist",
         twin={}, twin_constants={"A_mean": np.array([1.0, np.nan, 1.0, 1.0])}, kept="non-finite"),
    # Constants per channel, in every form that broadcasts and in either order; the twin's varies along W or H.
    _behind("Mul [1,C,1,1]", "y = Mul(a, s[1,4,1,1])", {"s[1,4,1,1]": "s[1,1,6,1]"}),
    _behind("Mul [C,1,1] first", "y = Mul(s[4,1,1], a)", {"s[4,1,1]": "s[6,1]"}),
    _behind("Mul scalar", "y = Mul(a, 2.0)", {"2.0": "z", "[N,3,8,8] x)": "[N,3,8,8] x, T[1] z)"}),
    _behind("Mul [1]", "y = Mul(a, s[1])", {"s[1]": "s[6]"}),
    _behind("Mul [1,1,1,1]", "y = Mul(a, s[1,1,1,1])", {"s[1,1,1,1]": "s[1,1,1,6]"}),
    _behind("Mul [W] of equal elements", "y = Mul(a, s)", {}, constants={"s": np.full(6, 2.0)},
            twin_constants={"s": np.arange(6.0)}),
    _behind("Add [1,C,1,1]", "y = Add(a, s[1,4,1,1])", {"s[1,4,1,1]": "s[4,6,6]"}),
    _behind("Add [C,1,1] first", "y = Add(s[4,1,1], a)", {"s[4,1,1]": "s[1,1,4,1,1]", "[n,c,h,w] y": "[m,n,c,h,w] y"}),
    _behind("Sum with a constant", "y = Sum(a, s[4,1,1])", {"s[4,1,1]": "s[1,6]"}),
    _behind("Sub of a constant", "y = Sub(a, s[4,1,1])", {"s[4,1,1]": "s[6,6]"}),
    _behind("Sub from a constant", "y = Sub(s[4,1,1], a)", {"s[4,1,1]": "s[1,6]"}),
    _behind("Div by a constant", "y = Div(a, s)", {"Div(a, s)": "Div(s, a)"},
            constants={"s": np.array([0.5, -2.0, 4.0, 1.0]).reshape(4, 1, 1)}),
    _behind("Div by zero", "y = Div(a, s)", {}, constants={"s": np.array([0.5, -2.0, 4.0, 1.0]).reshape(4, 1, 1)},
            twin_constants={"s": np.array([0.5, 0.0, 4.0, 1.0]).reshape(4, 1, 1)}),
    _behind("Neg", "y = Neg(a)", {"y = Neg(a)": "d = Softplus(a)  y = Neg(d)"}),
    _behind("a chain", "d = Mul(a, s[4,1,1])  e = Sub(t[1,4,1,1], d)  f = Neg(e)  y = Add(u[1], f)",
            {"f = Neg(e)": "f = Abs(e)"}, left="Conv Abs Add"),
    _behind("a BatchNormalization written as arithmetic",
            "d = Sub(a, m[4,1,1])  e = Add(v, 0.0625)  f = Sqrt(e)  g = Div(d, f)  h = Mul(g, s[4,1,1])"
            "  y = Add(h, t[4,1,1])", {"Sqrt(e)": "Sqrt(z)", "[N,3,8,8] x)": "[N,3,8,8] x, T[4,1,1] z)"},
            left="Conv Add Sqrt Div Add",
            constants={"v": 4.0 ** np.arange(4).reshape(4, 1, 1) - 0.0625}),
    _behind("a constant through Unsqueeze and Reshape",
            "k = Unsqueeze(s[4], {1, 2})  r = Reshape(k, {1, 4, 1, 1})  y = Mul(a, r)",
            {"{1, 4, 1, 1}": "z", "[N,3,8,8] x)": "[N,3,8,8] x, int64[4] z)"}),
    _behind("a constant through Sqrt and Reciprocal", "k = Sqrt(v)  r = Reciprocal(k)  y = Mul(a, r)",
            {"Sqrt(v)": "Sqrt(z)", "[N,3,8,8] x)": "[N,3,8,8] x, T[4,1,1] z)"},
            constants={"v": 4.0 ** np.arange(4).reshape(4, 1, 1)}),
    _behind("a product of constants", "k = Mul(s[1], t[4,1,1])  y = Mul(a, k)",
            {"t[4,1,1]": "z", "[N,3,8,8] x)": "[N,3,8,8] x, T[4,1,1] z)"}, left="Conv Mul Mul"),
    _behind("a constant cut out of another", "k = Slice(s[8,1,1], {0}, {8}, {0}, {2})  y = Mul(a, k)",
            {"{8}, {0}": "z, {0}", "[N,3,8,8] x)": "[N,3,8,8] x, int64[1] z)"}),
    case("Conv of a standardized weight, BN",
         "(T[N,3,8,8] x) => (T[n,c,h,w] y) { m = ReduceMean <axes = [1,2,3]> (v)  w = Sub(v, m)"
         "  a = Conv(x, w)  y = BN(a, A.4) }", "Conv", "hoist",
         constants={"v": np.arange(64.0).reshape(4, 4, 2, 2)[:, :3] - 32.0 * (np.arange(3) == 1).reshape(3, 1, 1)},
         twin={"Sub(v, m)": "Sub(v, z)", "[N,3,8,8] x)": "[N,3,8,8] x, T[4,1,1,1] z)"}, kept="variable-operand",
         left="ReduceMean Sub Conv BatchNormalization", exact=False),
    case("Gemm, BN whose gamma takes its type and its size from the Gemm",
         "(T[N,4] x) => (T[n,c] y) { a = Gemm(x, w[4,3])  o = CastLike(one, a)  z = Shape <start = 1, end = 2> (a)"
         "  g = Expand(o, z)  y = BatchNormalization(a, g, b[3], m[3], v) }", "Gemm", "hoist", exact=False,
         constants={"one": np.array([2.0]), "v": np.full(3, 0.75)},
         twin={"(a)  g": "(q)  g", "T[N,4] x": "T[N,4] x, T[N,D] q"},
         kept="not-constant", left="Gemm CastLike Shape Expand BatchNormalization"),
    # Axes are tracked, never sizes.
    _square("Mul [C,1,1], not [W]", "Mul(a, s[4,1,1])", {"s[4,1,1]": "s[4]"}),
    _square("Add [C,1,1], not [H,1]", "Add(a, s[4,1,1])", {"s[4,1,1]": "s[4,1]"}),
    _square("Mul [1,C,1,1], not [N,1,1,1]", "Mul(a, s[1,4,1,1])", {"s[1,4,1,1]": "s[4,1,1,1]"}),
    # A constant that enlarges the value is no map of its elements.
    case("Conv to one channel, Add",
         "(T[N,3,8,8] x) => (T[n,c,h,w] y) { a = Conv(x, w[1,3,3,3])  y = Add(a, s[1,1,1]) }", "Conv",
         twin={"s[1,1,1]": "s[4,1,1]"}),
    case("Conv of unknown sizes, Mul",
         "(T[N,3,H,W] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,1,1])  y = Mul(a, s[4,1,1]) }", "Conv",
         twin={"s[4,1,1]": "s[2]"}),
    # Chains without a linear operator: what is composed costs no more than the last.
    case("BN, BN on an input", "(T[N,4,8,8] x) => (T[n,c,h,w] y) { a = BN(x, A.4)  y = BN(a, B.4) }",
         "Mul Add", twin=_ALSO_OUTPUT, kept="graph-input graph-output"),
    case("BN, Mul, Sub, BN on an input", "(T[N,4,8,8] x) => (T[n,c,h,w] y) { a = BN(x, A.4)  d = Mul(a, s[4,1,1])"
         "  e = Sub(t[1,4,1,1], d)  y = BN(e, B.4) }", "Mul Add",
         twin=_ALSO_OUTPUT, kept="graph-input", left="BatchNormalization Mul Add"),
    case("Mul, Mul on an input", "(T[N,4] x) => (T[n,c] y) { a = Mul(x, s[4])  y = Mul(t[1,4], a) }", "Mul",
         twin={"=> (T[n,c] y)": "=> (T[n,c] y, T[n,c] a)"}),
)  # fmt: skip
