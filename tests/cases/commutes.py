"""Operators that an affine passes under a guard: order, bounds, windows, averages, padding, casts."""

from __future__ import annotations

import numpy as np

from tests.cases.base import Case, case


def _hoist(
    name: str, call: str, left: str, twin: dict[str, str], kept: str = "", y: str = "T[n,c,h,w]",
    twin_after: str = "", x: str = "T[N,3,6,6]", **options: object,
) -> Case:  # fmt: skip
    """A convolution to [N,4,4,4] called `a`, then `call`; `left` is what stays behind the convolution."""
    text = f"({x} x) => ({y} y) {{ a = Conv(x, w[4,3,3,3])  {call} }}"
    return case(f"Conv, {name}, BN", text, f"Conv {left}", "hoist", twin=twin, kept=kept, left=twin_after, **options)


def _sink(
    name: str, call: str, left: str, twin: dict[str, str], kept: str = "", twin_after: str = "", **options: object
) -> Case:
    """From x [N,4,8,8], BN and an operator to `d`, then a convolution without padding."""
    text = f"(T[N,4,8,8] x) => (T[n,c,h,w] y) {{ {call}  y = Conv(d, w[2,4,1,1]) }}"
    return case(f"BN, {name}, Conv", text, f"{left} Conv", "sink", twin=twin, kept=kept, left=twin_after, **options)


_SIGN = {"BN+": "BN"}
_SIGN_SHIFT = {"BN+0": "BN"}
_PADS = "{0, 0, 1, 1, 0, 0, 1, 1}"
_TO_CHANNELS = {_PADS: "{0, 1, 0, 0, 0, 0, 0, 0}", "A.4": "A.5"}
_DOUBLED = np.array([1.0, 1.0, 2.0, 2.0], np.float32)
_CROP = np.array([0, 0, 0, 0, 1, 1, 2, 2], np.float32)
_CHANNELS_DOUBLED = np.array([1.0, 2.0, 1.0, 1.0], np.float32)

_ORDER = (
    # Relu and its kin pass a scale of no negative element; a shift stops there.
    _hoist("Relu", "d = Relu(a)  y = BN+0(d, A.4)", "Relu", _SIGN_SHIFT, "negative-scale"),
    _hoist("Relu, shift left behind", "d = Relu(a)  y = BN+(d, A.4)", "Relu Add", _SIGN, "negative-scale"),
    _hoist("LeakyRelu", "d = LeakyRelu <alpha = 0.25> (a)  y = BN+0(d, A.4)", "LeakyRelu", _SIGN_SHIFT,
           "negative-scale"),
    _hoist("PRelu", "d = PRelu(a, s[4,1,1])  y = BN+0(d, A.4)", "PRelu", _SIGN_SHIFT, "negative-scale"),
    _hoist("Abs", "d = Abs(a)  y = BN+0(d, A.4)", "Abs", _SIGN_SHIFT, "negative-scale"),
    # Where only the sign stops, it alone stays behind.
    _hoist("MaxPool", "d = MaxPool <kernel_shape = [2,2], strides = [2,2]> (a)  y = BN+(d, A.4)", "MaxPool", _SIGN,
           twin_after="Conv MaxPool Mul"),
    _hoist("MaxPool of what takes no affine", "d = MaxPool <kernel_shape = [2,2]> (a)  y = BN+(d, A.4)", "MaxPool",
           {"a = Conv(x, w[4,3,3,3])": "e = Conv(x, w[4,3,3,3])  a = Softplus(e)"}, "barrier"),
    _hoist("MaxPool padded", "d = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (a)  y = BN+(d, A.4)", "MaxPool",
           {"d = MaxPool": "d, i = MaxPool", "h,w] y)": "h,w] y, int64[n,p,q,r] i)"}, "other-readers"),
    _hoist("GlobalMaxPool", "d = GlobalMaxPool(a)  y = BN+(d, A.4)", "GlobalMaxPool", _SIGN,
           twin_after="Conv GlobalMaxPool Mul"),
    _hoist("ReduceMax", "d = ReduceMax <axes = [2,3]> (a)  y = BN+(d, A.4)", "ReduceMax", _SIGN,
           twin_after="Conv ReduceMax Mul"),
    _hoist("ReduceMin without its axes", "d = ReduceMin <axes = [-1,2], keepdims = 0> (a)  y = BN+(d, A.4)",
           "ReduceMin", _SIGN, twin_after="Conv ReduceMin Mul", y="T[n,c]"),
    # Norms pass what Relu does; their sums and roots round.
    _hoist("LpPool", "d = LpPool <kernel_shape = [2,2], p = 2> (a)  y = BN+0(d, A.4)", "LpPool", _SIGN_SHIFT,
           "negative-scale", exact=False),
    _hoist("GlobalLpPool", "d = GlobalLpPool <p = 2> (a)  y = BN+0(d, A.4)", "GlobalLpPool", _SIGN_SHIFT,
           "negative-scale", exact=False),
    _hoist("ReduceL1 without its axes", "d = ReduceL1 <axes = [2,3], keepdims = 0> (a)  y = BN+0(d, A.4)", "ReduceL1",
           {"[2,3]": "[1,3]"}, twin_after="Conv ReduceL1 Mul", y="T[n,c]", exact=False),
    _hoist("ReduceL2", "d = ReduceL2 <axes = [2,3]> (a)  y = BN+0(d, A.4)", "ReduceL2", _SIGN_SHIFT, "negative-scale",
           exact=False),
    _sink("Relu", "a = BN+0(x, A.4)  d = Relu(a)", "Relu", {"BN+0": "BN+"}, "shift-blocked"),
    _sink("LeakyRelu", "a = BN+0(x, A.4)  d = LeakyRelu <alpha = -0.5> (a)", "LeakyRelu", {"BN+0": "BN"},
          "shift-blocked"),
    _sink("Abs takes any sign", "a = BN0(x, A.4)  d = Abs(a)", "Abs", {"BN0": "BN"}, "shift-blocked"),
    _sink("MaxPool", "a = BN+(x, A.4)  d = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (a)", "MaxPool", _SIGN,
          twin_after="Mul MaxPool Conv"),
    _sink("ReduceMin",
          "a = BN+(x, A.4)  d = ReduceMin <axes = [2]> (a)", "ReduceMin", {"[2]": "[1]", "2,4,1,1": "2,1,1,1"},
          "axis"),
)  # fmt: skip

_ROWS = (
    _hoist("ReverseSequence", "d = ReverseSequence <batch_axis = 1, time_axis = 0> (a, {1, 1, 1, 1})  y = BN(d, A.4)",
           "ReverseSequence", {"batch_axis = 1, time_axis = 0": "batch_axis = 0, time_axis = 1",
                               "{1, 1, 1, 1}": "{1, 1}"}, "axis"),
    _hoist("Compress of rows", "d = Compress <axis = 2> (a, p)  y = BN(d, A.4)", "Compress",
           {"axis = 2": "axis = 1", "A.4": "A.2"}, "axis", constants={"p": np.array([False, True, True])}),
    _hoist("GatherElements of columns", "d = GatherElements <axis = 3> (a, i)  y = BN(d, A.4)", "GatherElements",
           {"A.4": "A.3"}, "axis", x="T[2,3,6,6]", constants={"i": np.arange(96).reshape(2, 4, 4, 3) % 4},
           twin_constants={"i": np.arange(72).reshape(2, 3, 4, 3) % 4}),
    case("GatherElements of unknown numbers of channels, scale",
         "(T[N,?,6,6] x, int64[N,?,6,6] i) => (T[n,c,h,w] y) { d = GatherElements <axis = -1> (x, i)"
         "  y = BN0(d, A.2) }", "GatherElements Mul",
         twin={"T[N,?": "T[N,2", "int64[N,?": "int64[N,2"}, left="Mul GatherElements"),
    _hoist("GridSample that reads the border again",
           'd = GridSample <padding_mode = "border"> (a, g[2,5,5,2])  y = BN(d, A.4)', "GridSample",
           {' <padding_mode = "border">': ""}, "", x="T[2,3,6,6]", exact=False, twin_after="Conv GridSample Add"),
    _hoist("Trilu, scale", "d = Trilu(a)  y = BN0(d, A.4)", "Trilu", {"BN0": "BN"}, twin_after="Conv Trilu Add"),
    _hoist("CumSum of rows, scale", "d = CumSum(a, k)  y = BN0(d, A.4)", "CumSum", {}, constants={"k": np.array(2)},
           twin_constants={"k": np.array(1)}, twin_after="Conv CumSum Mul"),
    _sink("CumSum of rows, scale", "a = BN0(x, A.4)  d = CumSum(a, k)", "CumSum", {"BN0": "BN"}, "shift-blocked",
          constants={"k": np.array(2)}),
    _hoist("RoiAlign, scale", "d = RoiAlign <output_height = 2, output_width = 2> (a, r, b)  y = BN0(d, A.4)",
           "RoiAlign", {"BN0": "BN"}, twin_after="Conv RoiAlign Add", exact=False,
           constants={"b": np.array([0]), "r": np.array([[0.0, 0.0, 2.0, 2.0]])},
           dtypes=("float",)),
)  # fmt: skip

_PLAIN = (
    _hoist("Identity", "d = Identity(a)  y = BN(d, A.4)", "Identity", {"Identity": "Sigmoid"}, "barrier"),
    _hoist("Dropout", "d = Dropout(a, 0.5, t)  y = BN(d, A.4)", "Dropout", {}, "training-mode",
           constants={"t": np.array(False)}, twin_constants={"t": np.array(True)}),
    _hoist("Dropout of opset 6", "d = Dropout <is_test = 1> (a)  y = BN(d, A.4, is_test=1)", "Dropout",
           {"Dropout <is_test = 1>": "Dropout <is_test = 0>"}, "training-mode", opset=6, runtime=False),
    _hoist("Cast to a narrower type", "d = Cast <to = 10> (a)  y = BN(d, A.4)", "Cast",
           {"d = Cast <to = 10> (a)": "e = Cast <to = 10> (a)  d = Cast <to = 1> (e)", "float16": "float"},
           "narrowing-cast", y="float16[n,c,h,w]", runtime=False),
    _hoist("Cast to a wider type", "d = Cast <to = 11> (a)  y = BN+1(d, A.4)", "Cast",
           {"d = Cast <to = 11> (a)": "e = Cast <to = 6> (a)  d = Cast <to = 11> (e)"}, "not-floating",
           y="double[n,c,h,w]", dtypes=("double",)),
    case("BN, Cast between half types, Conv", "(T[N,4,8,8] x) => (T[n,c,h,w] y) { a = BN(x, A.4)"
         "  d = Cast <to = 10> (a)  y = Conv(d, w[2,4,1,1]) }", "Cast Conv", "sink", twin={"(T[N,4": "(bfloat16[N,4"},
         kept="narrowing-cast", dtypes=("float16",)),
    case("BN, Cast to bfloat16, Conv", "(T[N,4,8,8] x) => (T[n,c,h,w] y) { a = BN(x, A.4)  d = Cast <to = 16> (a)"
         "  y = Conv(d, w[2,4,1,1]) }", "Cast Conv", "sink", twin={"(T[N,4": "(float16[N,4"}, kept="narrowing-cast",
         dtypes=("bfloat16",), opset=22, ir_version=10),
    _sink("Identity", "a = BN(x, A.4)  d = Identity(a)", "Identity",
          {"d = Identity(a)": "e = Cast <to = 10> (a)  d = Cast <to = 1> (e)"}, "narrowing-cast", dtypes=("float",)),
)  # fmt: skip

_CLIP = (
    _hoist("Clip, one scale and shift", "d = Clip(a, -1., 6.)  y = BN+1(d, A.4)", "Clip", {"BN+1": "BN+"}, "axis"),
    _hoist("Clip, one negative scale", "d = Clip(a, -1., 6.)  y = BN1(d, A.4)", "Clip", {"BN1": "BN"}, "axis"),
    _hoist("Clip by attributes", "d = Clip <min = -1.0, max = 6.0> (a)  y = BN1(d, A.4)", "Clip",
           {", max = 6.0": "", "BN1(d, A.4)": "Mul(d, 0.0)"}, opset=10, twin_after="Conv Clip Mul", dtypes=("float",)),
    _hoist("Clip to a maximum", 'd = Clip(a, "", 6.)  y = BN+1(d, A.4)', "Clip", {"6.": "m",
    "d = Clip": "m = ReduceMax <keepdims = 0> (x)  d = Clip"},
           "variable-operand"),
    _hoist("Clip that is a Relu", "d = Clip(a, 0.)  y = BN+0(d, A.4)", "Clip", {"BN+0": "BN"}, "axis"),
    _hoist("Clip to zero at most", 'd = Clip(a, "", 0.)  y = BN+0(d, A.4)', "Clip", {"BN+0": "BN+"},
           twin_after="Conv Clip Add"),
    _hoist("Clip that is a Relu, one shift", "d = Clip(a, 0.)  y = Add(d, 1.5)", "Clip", {"1.5": "s[4,1,1]"}),
    _sink("Clip that is a Relu", "a = BN+0(x, A.4)  d = Clip(a, 0.)", "Clip", {"BN+0": "BN+"}, "shift-blocked"),
    _sink("Clip, one scale and shift", "a = BN1(x, A.4)  d = Clip(a, -1., 6.)", "Clip", {"BN1": "BN"}, "shift-blocked"),
    _sink("Clip by attributes", "a = BN+1(x, A.4)  d = Clip <min = -1.0> (a)", "Clip", {"BN+1": "BN10"}, opset=10,
          twin_after="Clip Conv"),
    _sink("Clip that is a Relu, not a bound of one", "a = BN+0(x, A.4)  d = Clip(a, 0.)", "Clip", {"0.)": "1.)"}, "",
          twin_after="Mul Clip Conv"),
)  # fmt: skip

_PAD = (
    _hoist("Pad of no axis", "d = Pad(a, {0, 0, 0, 0, 0, 0, 0, 0})  y = BN(d, A.4)", "Pad",
           {"{0, 0, 0, 0, 0, 0, 0, 0}": _PADS}, "padding"),
    _hoist("Pad with zeros, scale", f"d = Pad(a, {_PADS})  y = BN0(d, A.4)", "Pad", {"BN0": "BN"}, "padding"),
    _hoist("Pad, one scale and shift", f"d = Pad(a, {_PADS}, 1.5)  y = BN1(d, A.4)", "Pad", {"BN1": "BN"}, "padding"),
    _hoist("Pad by attributes", "d = Pad <pads = [0,0,1,1,0,0,1,1], value = 1.5> (a)  y = BN1(d, A.4)", "Pad",
           {"BN1": "BN"}, "padding", opset=10),
    _hoist("Pad reflect", f'd = Pad <mode = "reflect"> (a, {_PADS})  y = BN(d, A.4)', "Pad", _TO_CHANNELS, "axis"),
    _hoist("Pad edge", f'd = Pad <mode = "edge"> (a, {_PADS})  y = BN(d, A.4)', "Pad", _TO_CHANNELS, "axis"),
    _hoist("Pad wrap", f'd = Pad <mode = "wrap"> (a, {_PADS})  y = BN(d, A.4)', "Pad", _TO_CHANNELS, "axis", opset=19,
           ir_version=9),
    _hoist("Pad of named axes", 'd = Pad(a, {1, 1}, "", {2})  y = BN0(d, A.4)', "Pad", {"{2}": "{1}", "A.4": "A.6"},
           "", opset=18, twin_after="Conv Pad Mul"),
    _sink("Pad of named axes at the edge", 'a = BN(x, A.4)  d = Pad <mode = "edge"> (a, {1, 1}, "", {-1})', "Pad",
          {"{-1}": "i", "(T[N,4,8,8] x": "(T[N,4,8,8] x, int64[1] i"}, "axis", opset=18),
    _sink("Pad with zeros", f"a = BN0(x, A.4)  d = Pad(a, {_PADS})", "Pad", {"BN0": "BN"}, "padding"),
    _sink("Pad with zeros, no value", f"a = BN0(x, A.4)  d = Pad(a, {_PADS})", "Pad",
          {f"Pad(a, {_PADS})": f"Pad(a, {_PADS}, 1.5)"}, twin_after="Mul Pad Conv"),
    _sink("Pad of another value", f"a = BN1(x, A.4)  d = Pad(a, {_PADS}, 1.5)", "Pad", {"BN1": "BN"}, "padding"),
    _sink("Pad of another value by attribute",
          "a = BN1(x, A.4)  d = Pad <pads = [0,0,1,1,0,0,1,1], value = 1.5> (a)", "Pad", {"BN1": "BN"}, "padding",
          opset=10),
    _sink("Pad reflect", f'a = BN(x, A.4)  d = Pad <mode = "reflect"> (a, {_PADS})', "Pad",
          {'mode = "reflect"': 'mode = "constant"'}, "padding"),
)  # fmt: skip

# r: scales per axis, stored as float32 whatever the type of the values.
_RESIZE = (
    _hoist("Resize nearest", 'd = Resize <mode = "nearest"> (a, "", r)  y = BN(d, A.4)', "Resize", {"A.4": "A.8"},
           "axis", constants={"r": _DOUBLED}, twin_constants={"r": _CHANNELS_DOUBLED}),
    _hoist("Resize linear", 'd = Resize <mode = "linear"> (a, "", r)  y = BN(d, A.4)', "Resize",
           {"h,w] y)": "h,w] y, T[n,p,q,r] d)"}, "graph-output", constants={"r": _DOUBLED}),
    _hoist("Resize to sizes",
           'd = Resize <mode = "linear", coordinate_transformation_mode = "align_corners"> (a, "", "", {2, 4, 7, 7})'
           "  y = BN(d, A.4)", "Resize", {"h,w] y)": "h,w] y, T[n,p,q,r] d)"}, "graph-output"),
    _hoist("Resize of some axes", 'd = Resize <mode = "linear", axes = [2,3]> (a, "", r)  y = BN(d, A.4)', "Resize",
           {"axes = [2,3]": "axes = [1,3]", "A.4": "A.8"}, "axis", opset=18,
           constants={"r": np.array([2.0, 2.0], np.float32)}),
    _hoist("Resize of opset 10", 'd = Resize <mode = "nearest"> (a, r)  y = BN(d, A.4)', "Resize", {"A.4": "A.8"},
           "axis", opset=10, constants={"r": _DOUBLED}, twin_constants={"r": _CHANNELS_DOUBLED}),
    _hoist("Resize to sizes beside empty scales",
           'd = Resize <mode = "nearest"> (a, e, e, {2, 4, 8, 8})  y = BN(d, A.4)',
           "Resize", {"{2, 4, 8, 8}": "{2, 8, 8, 8}", "A.4": "A.8"}, "axis", opset=11,
           constants={"e": np.zeros(0, np.float32)}),
    _hoist("Resize to sizes that keep the ratio",
           'd = Resize <mode = "nearest", keep_aspect_ratio_policy = "stretch"> (a, "", "", {2, 4, 8, 8})'
           "  y = BN(d, A.4)", "Resize", {'"stretch"': '"not_larger"'}, "axis", opset=18),
    _hoist("Resize to sizes, a scale of rows",
           'd = Resize <mode = "nearest"> (a, "", "", {2, 4, 4, 8})  y = BN(d, A.4)', "Resize",
           {"y = BN(d, A.4)": "y = Mul(d, s[8,1])", "{2, 4, 4, 8}": "{2, 4, 8, 4}"}),
    _hoist("Resize cubic", 'd = Resize <mode = "cubic"> (a, "", r)  y = BN(d, A.4)', "Resize",
           {"h,w] y)": "h,w] y, T[n,p,q,r] d)"}, "graph-output", constants={"r": _DOUBLED}),
    _hoist("Resize crop, scale",
           'd = Resize <mode = "nearest", coordinate_transformation_mode = "tf_crop_and_resize"> (a, q, r)'
           "  y = BN0(d, A.4)", "Resize",
           {'"nearest"': '"nearest", extrapolation_value = 1.5'}, twin_after="Conv Resize Mul",
           constants={"r": _DOUBLED, "q": _CROP}),
    _hoist("Resize crop known at run time, one scale",
           'd = Resize <mode = "nearest", coordinate_transformation_mode = "tf_crop_and_resize"> (a, q, r)'
           "  y = BN10(d, A.4)", "Resize", {"BN10": "BN0"}, twin_after="Conv Resize Mul",
           x="float[8] q, T[N,3,6,6]", constants={"r": _DOUBLED}, inputs={"q": _CROP}),
    _sink("Resize", 'a = BN(x, A.4)  d = Resize <mode = "nearest"> (a, "", r)', "Resize",
          {'"nearest"> (a, ""': '"nearest", coordinate_transformation_mode = "tf_crop_and_resize"> (a, q'},
          "shift-blocked", constants={"r": _DOUBLED, "q": _CROP}),
    _hoist("Upsample", 'd = Upsample <mode = "nearest"> (a, r)  y = BN(d, A.4)', "Upsample", {"A.4": "A.8"}, "axis",
           opset=9, constants={"r": _DOUBLED}, twin_constants={"r": _CHANNELS_DOUBLED}),
    _hoist("Upsample by attribute",
           'd = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]> (a)  y = BN(d, A.4)', "Upsample",
           {"[1.0, 1.0": "[1.0, 2.0", "A.4": "A.8"}, "axis", opset=8),
)  # fmt: skip

# Windows of 1, 2 and 4 values, so that averages are exact.
_WINDOW = "AveragePool <kernel_shape = [2,2], pads = [1,1,1,1]"
_AVERAGES = (
    _hoist("AveragePool", "d = AveragePool <kernel_shape = [2,2]> (a)  y = BN(d, A.4)", "AveragePool",
           {"h,w] y)": "h,w] y, T[n,p,q,r] d)"}, "graph-output"),
    _hoist("AveragePool padded, not counted", f"d = {_WINDOW}> (a)  y = BN(d, A.4)", "AveragePool",
           {"h,w] y)": "h,w] y, T[n,p,q,r] d)"}, "graph-output"),
    _hoist("AveragePool counting its padding, scale", f"d = {_WINDOW}, count_include_pad = 1> (a)  y = BN0(d, A.4)",
           "AveragePool", {"h,w] y)": "h,w] y, T[n,p,q,r] d)"}, twin_after="Conv AveragePool Mul"),
    _hoist("AveragePool counting its padding", f"d = {_WINDOW}, count_include_pad = 1> (a)  y = BN(d, A.4)",
           "AveragePool Add", {"h,w] y)": "h,w] y, T[n,p,q,r] d)"}, "graph-output"),
    _hoist("GlobalAveragePool", "d = GlobalAveragePool(a)  y = BN(d, A.4)", "GlobalAveragePool",
           {"h,w] y)": "h,w] y, T[n,p,q,r] d)"}, "graph-output"),
    _hoist("ReduceMean without its axes", "d = ReduceMean <axes = [2,3], keepdims = 0> (a)  y = BN(d, A.4)",
           "ReduceMean", {"[2,3]": "[1,3]"}, "axis", y="T[n,c]"),
    _hoist("ReduceMean of opset 18", "d = ReduceMean(a, {-1, -2})  y = BN(d, A.4)", "ReduceMean",
           {"{-1, -2}": "i", "6,6] x": "6,6] x, int64[2] i"}, "unknown-shape", opset=18),
    _hoist("ReduceMean of all", "d = ReduceMean(a)  y = BN(d, A.1)", "ReduceMean",
           {"h,w] y)": "h,w] y, T[n,p,q,r] d)"}, twin_after="Conv ReduceMean Mul"),
    _hoist("ReduceSum, scale", "d = ReduceSum(a, {2, 3})  y = BN0(d, A.4)", "ReduceSum",
           {"h,w] y)": "h,w] y, T[n,p,q,r] d)"}, twin_after="Conv ReduceSum Mul"),
    _hoist("ReduceSum of 16", "d = ReduceSum(a, {2, 3})  y = BN(d, A.4)", "ReduceSum",
           {"h,w] y)": "h,w] y, T[n,p,q,r] d)"}, "graph-output"),
    _hoist("ReduceSum of an unknown number", "d = ReduceSum(a, {2, 3})  y = BN(d, A.4)", "ReduceSum Add",
           {"h,w] y)": "h,w] y, T[n,p,q,r] d)"}, "graph-output", x="T[N,3,6,T]"),
    _sink("AveragePool padded, not counted", f"a = BN(x, A.4)  d = {_WINDOW}> (a)", "AveragePool",
          {"[1,1,1,1]>": "[1,1,1,1], count_include_pad = 1>"}, "shift-blocked"),
    _sink("AveragePool not padded", "a = BN(x, A.4)  d = AveragePool <kernel_shape = [2,2], count_include_pad = 1> (a)",
          "AveragePool", {"pad = 1>": 'pad = 1, auto_pad = "SAME_UPPER">'}, "shift-blocked"),
    _sink("AveragePool whose ceiling fits", "a = BN(x, A.4)  d = AveragePool <kernel_shape = [2,2], strides = [2,2],"
          " ceil_mode = 1, count_include_pad = 1> (a)", "AveragePool",
          {"kernel_shape = [2,2]": "kernel_shape = [3,3]"}, "shift-blocked"),
    _sink("AveragePool whose SAME fits", "a = BN(x, A.4)  d = AveragePool <kernel_shape = [2,2], strides = [2,2],"
          ' auto_pad = "SAME_UPPER", count_include_pad = 1> (a)', "AveragePool", {"4,8,8]": "4,8,H]"},
          "shift-blocked"),
    _sink("GlobalAveragePool", "a = BN(x, A.4)  d = GlobalAveragePool(a)", "GlobalAveragePool",
          {"GlobalAveragePool": "GlobalMaxPool"}, twin_after="Mul GlobalMaxPool Conv"),
    _sink("ReduceMean", "a = BN(x, A.4)  d = ReduceMean <axes = [3]> (a)", "ReduceMean",
          {"[3]": "[1]", "2,4,1,1": "2,1,1,1"}, "axis"),
    _sink("ReduceSum, scale", "a = BN0(x, A.4)  d = ReduceSum(a, {3})", "ReduceSum", {"{3}": "{1}", "2,4,1": "2,1,1"},
          twin_after="Mul ReduceSum Conv"),
    _sink("ReduceSum", "a = BN(x, A.4)  d = ReduceSum(a, {3})", "ReduceSum", {"4,8,8]": "4,8,W]"}, "shift-blocked"),
)  # fmt: skip

CASES = (*_ORDER, *_ROWS, *_PLAIN, *_CLIP, *_PAD, *_RESIZE, *_AVERAGES)
