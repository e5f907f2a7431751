"""Makers of the operators that are no moves and not linear: order, windows, averages, joins, recurrent, norms."""

from __future__ import annotations

import numpy as np

from tests.makers import Draw, Made, Maker, dims, graph, value


def _unary(op: str, attributes: str = "") -> Maker:
    return lambda draw: graph(f"y = {op} {attributes} (x)", value("x", draw.shape(3)), rank=3)


def dropout(draw: Draw) -> Made:
    return draw.of(
        graph("y = Dropout(x)", value("x", draw.shape(3)), rank=3),
        graph("y, m = Dropout(x, 0.5, t)", value("x", draw.shape(3)), rank=3, constants={"t": np.array(False)}),
    )


def prelu(draw: Draw) -> Made:
    slope = draw.of("s[]", "s[3,1]", "s[1]")
    return graph(f"y = PRelu(x, {slope})", value("x", [2, 3, 4]), rank=3)


def _pool(op: str, attributes: str = "") -> Maker:
    def make(draw: Draw) -> Made:
        given = [attributes] if attributes else []
        given.append(f"kernel_shape = [{dims(draw.shape(2, 1, 3))}]")
        border = draw.of("none", "pads", "auto", "stride")
        if border == "pads":
            given[-1] = "kernel_shape = [2,3]"
            given.append(f"pads = [{dims(draw.shape(4, 0, 1))}]")
        if border == "auto":
            given.append(f'auto_pad = "{draw.of("SAME_UPPER", "SAME_LOWER", "VALID")}"')
        if border == "stride":
            given.append("strides = [2,2]")
        if op == "AveragePool":
            given.append(f"count_include_pad = {draw.of(0, 1)}")
        if op != "LpPool" and border == "stride":
            given.append(f"ceil_mode = {draw.of(0, 1)}")
        return graph(f"y = {op} <{', '.join(given)}> (x)", value("x", [2, draw.size(1, 3), 5, 5]))

    return make


def _globally(op: str) -> Maker:
    return lambda draw: graph(f"y = {op}(x)", value("x", draw.shape(4)))


def _reduce(op: str) -> Maker:
    def make(draw: Draw) -> Made:
        rank, keep = draw.size(2, 4), draw.of(0, 1)
        axes = draw.some(list(range(-rank, 0)))[: rank - 1]
        if draw.size(0, 4) == 0:
            call = f"y = {op} <keepdims = {keep}, noop_with_empty_axes = 1> (x)"
            return graph(call, value("x", draw.shape(rank)), rank=rank)
        if keep and draw.size(0, 4) == 0:
            return graph(f"y = {op} <keepdims = {keep}> (x)", value("x", draw.shape(rank)), rank=rank)
        call = f"y = {op} <keepdims = {keep}, noop_with_empty_axes = {draw.of(0, 1)}> (x, {{{dims(axes)}}})"
        return graph(call, value("x", draw.shape(rank)), rank=rank if keep else rank - len(axes))

    return make


_MODES = ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel", "tf_crop_and_resize")


def resize(draw: Draw) -> Made:
    if draw.size(0, 3) == 0:
        attributes, scales = 'mode = "linear", axes = [1, 3]', np.array([draw.of(1.0, 1.2), 2.0], np.float32)
        return graph(f'y = Resize <{attributes}> (x, "", r)', value("x", [2, 3, 4, 4]), constants={"r": scales})
    if draw.size(0, 3) == 0:
        way = draw.of("half_pixel", "align_corners")
        call = f'y = Resize <mode = "linear", coordinate_transformation_mode = "{way}"> (x, "", "", {{2, 3, 7, 4}})'
        return graph(call, value("x", [2, 3, 4, 4]))
    if draw.size(0, 3) == 0:  # both axes by 1.1, which leaves the shorter as short
        kind = 'mode = "linear", axes = [2, 3], keep_aspect_ratio_policy = "not_smaller"'
        return graph(f'y = Resize <{kind}> (x, "", "", {{3, 11}})', value("x", [1, 2, 3, 10]), outputs="T[1,2,3,11] y")
    scales = np.array([1.0, draw.of(1.0, 1.0, 2.0), draw.of(1.0, 2.0, 0.6), draw.of(1.0, 1.5)], np.float32)
    mode, way = draw.of("nearest", "linear", "cubic"), draw.of(*_MODES)
    attributes = f'mode = "{mode}", coordinate_transformation_mode = "{way}"'
    constants = {"r": scales}
    roi = '""'
    if way == "tf_crop_and_resize":
        roi, constants["q"] = "q", np.array([0, 0, draw.of(0.0, 0.25), 0, 1, 1, 1, draw.of(0.75, 1.5)], np.float32)
        attributes += draw.of("", ", extrapolation_value = 1.5")
    # The evaluator takes its cubic weights, whose sum is to be one, from float32.
    return graph(f"y = Resize <{attributes}> (x, {roi}, r)", value("x", [2, 3, 4, 4]), constants=constants,
                 tolerance=1e-5 if mode == "cubic" else 1e-9)  # fmt: skip


def upsample(draw: Draw) -> Made:
    scales = np.array([1.0, draw.of(1.0, 2.0), 2.0, draw.of(1.0, 3.0)], np.float32)
    call = f'y = Upsample <mode = "{draw.of("nearest", "linear")}"> (x, r)'
    return graph(call, value("x", [1, 2, 3, 3]), opset=9, constants={"r": scales})


def clip(draw: Draw) -> Made:
    # Bounds that every scale maps to themselves (a Relu) as often as others: only those let a fact sink.
    low, high = draw.of(("0.0", '""'), (draw.of("-0.5", "0.0", '""'), draw.of("0.75", "2.0", '""')))
    if draw.size(0, 3) == 0:
        return graph("y = Clip <min = -0.5, max = 0.75> (x)", value("x", draw.shape(3)), rank=3, opset=10)
    return graph(f"y = Clip(x, {low}, {high})", value("x", draw.shape(3)), rank=3)


def pad(draw: Draw) -> Made:
    mode = draw.of("constant", "constant", "reflect", "edge", "wrap")
    pads = [0, draw.of(0, 0, 1), draw.size(0, 1), 0, 0, draw.size(0, 2)]
    extra = draw.of("", ", 0.0", ", 1.5") if mode == "constant" else ""
    if draw.of(True, False, False) and extra:
        return graph(f"y = Pad(x, {{{dims(draw.shape(4, 0, 1))}}}{extra}, {{{dims(draw.some([0, 1, 2])[-1:])}, -2}})",
                     value("x", [2, 3, 4]), rank=3)  # fmt: skip
    return graph(f'y = Pad <mode = "{mode}"> (x, {{{dims(pads)}}}{extra})', value("x", [2, 3, 4]), rank=3)


def _join(op: str, most: int) -> Maker:
    """Operands that broadcast in either direction, one of them now and then a constant."""

    def make(draw: Draw) -> Made:
        count, full = draw.size(2, most), draw.shape(3, 1, 3)
        shapes = [full, *([draw.of(n, n, n, 1) for n in full][draw.of(0, 0, 0, 1) :] for _ in range(count - 1))]
        if draw.of(True, False):
            shapes = [full] * count
        order = draw.perm(count)
        names = ["x", "z", "u", "v"][:count]
        operands = [f"x{k}" for k in range(count)]
        fixed = draw.size(0, 6)
        inputs = []
        for k, (name, which) in enumerate(zip(names, order, strict=True)):
            if k == fixed:
                operands[k] = f"{name}[{dims(shapes[which])}]"
            else:
                operands[k] = name
                inputs.append(value(name, shapes[which]))
        return graph(f"y = {op}({', '.join(operands)})", *inputs, rank=3)

    return make


def where(draw: Draw) -> Made:
    full = draw.shape(3, 1, 3)
    x, z, p = ([draw.of(n, n, 1) for n in full][draw.of(0, 0, 1) :] for _ in range(3))
    z = draw.of(x, z)
    other = draw.of("z", "z", f"k[{dims(z)}]")
    inputs = [f"bool[{dims(p)}] p", value("x", x), value("z", z)]
    return graph(f"y = Where(p, x, {other})", *inputs[: 3 if other == "z" else 2], rank=3)


def concat(draw: Draw) -> Made:
    axis, count = draw.size(-3, 2), draw.size(2, 3)
    shapes = []
    for _ in range(count):
        shape = [2, 3, 2]
        shape[axis] = draw.size(1, 3)
        shapes.append(shape)
    names = ["x", "z", "u"][:count]
    operands = list(names)
    if draw.size(0, 2) == 0:
        operands[-1] = f"k[{dims(shapes[-1])}]"
    inputs = [value(name, shape) for name, shape, used in zip(names, shapes, operands, strict=True) if name == used]
    return graph(f"y = Concat <axis = {axis}> ({', '.join(operands)})", *inputs, rank=3)


def _recurrent(op: str, gates: int) -> Maker:
    def make(draw: Draw) -> Made:
        directions, features, hidden = draw.of(1, 2), draw.size(1, 3), draw.size(1, 2)
        way = "bidirectional" if directions == 2 else draw.of("forward", "reverse")
        weights = f"w[{directions},{gates * hidden},{features}], r[{directions},{gates * hidden},{hidden}]"
        bias = draw.of("", f", b[{directions},{2 * gates * hidden}]")
        reset = f", linear_before_reset = {draw.of(0, 1)}" if op == "GRU" else ""
        call = f'y = {op} <hidden_size = {hidden}, direction = "{way}"{reset}> (x, {weights}{bias})'
        return graph(call, value("x", [3, 2, features]))

    return make


def instance_norm(draw: Draw) -> Made:
    c = draw.size(1, 4)
    return graph(f"y = InstanceNormalization(x, g[{c}], b[{c}])", value("x", [2, c, 4]), rank=3)


def group_norm(draw: Draw) -> Made:
    groups, width, opset = draw.of(1, 2, 4), draw.of(1, 2), draw.of(18, 21)
    size = groups * width if opset == 21 else groups
    call = f"y = GroupNormalization <num_groups = {groups}> (x, g[{size}], b[{size}])"
    return graph(call, value("x", [2, groups * width, 3]), rank=3, opset=opset, checked=opset == 21)


def _trailing(op: str, opset: int) -> Maker:
    def make(draw: Draw) -> Made:
        shape, axis = draw.shape(3, 2, 4), draw.of(-1, -2, 1)
        kept = shape[axis:]
        gamma = draw.of(kept, kept[-1:], [1])
        bias = draw.of("", f", b[{dims(gamma)}]") if op == "LayerNormalization" else ""
        if op == "LayerNormalization" and draw.size(0, 3) == 0:
            call = f"y, m, v = {op} <axis = {axis}> (x, g[{dims(gamma)}]{bias})"
            return graph(call, value("x", shape), outputs="T[a,b,c] y, T[d,e,f] m, T[h,i,j] v", opset=opset)
        return graph(f"y = {op} <axis = {axis}> (x, g[{dims(gamma)}]{bias})", value("x", shape), rank=3, opset=opset)

    return make


def _softmax(op: str) -> Maker:
    def make(draw: Draw) -> Made:
        call = f"y = {op} <axis = {draw.of(0, 1, 2, -1)}> (x)"
        return graph(call, value("x", draw.shape(3, 1, 3)), rank=3, opset=draw.of(11, 13, 21))

    return make


def reverse_sequence(draw: Draw) -> Made:
    batch, time = draw.of((0, 1), (1, 0))
    shape = draw.shape(3, 2, 3)
    lengths = draw.rng.integers(1, shape[time] + 1, shape[batch])
    return graph(f"y = ReverseSequence <batch_axis = {batch}, time_axis = {time}> (x, l)", value("x", shape), rank=3,
                 constants={"l": lengths})  # fmt: skip


def compress(draw: Draw) -> Made:
    shape, axis = draw.shape(3, 2, 4), draw.of(0, 1, -1)
    chosen = draw.rng.random(shape[axis]) < 0.5
    chosen[0] = True
    return graph(f"y = Compress <axis = {axis}> (x, p)", value("x", shape), rank=3, constants={"p": chosen})


def gather_elements(draw: Draw) -> Made:
    axis, shape = draw.size(-3, 2), draw.shape(3, 1, 3)
    index = [draw.of(size, size, draw.size(1, size)) for size in shape]
    index[axis] = draw.size(1, 4)
    picked = draw.rng.integers(-shape[axis], shape[axis], index)
    return graph(f"y = GatherElements <axis = {axis}> (x, i)", value("x", shape), rank=3, constants={"i": picked})


def grid_sample(draw: Draw) -> Made:
    mode, outside = draw.of("nearest", "linear", "cubic"), draw.of("zeros", "border", "reflection")
    x, grid = value("x", [2, draw.size(1, 3), 3, 4]), value("g", [2, 2, 3, 2])
    attributes = f'mode = "{mode}", padding_mode = "{outside}", align_corners = {draw.of(0, 1)}'
    return graph(f"y = GridSample <{attributes}> (x, g)", x, grid)


def cumsum(draw: Draw) -> Made:
    call = f"y = CumSum <exclusive = {draw.of(0, 1)}, reverse = {draw.of(0, 1)}> (x, k)"
    return graph(call, value("x", draw.shape(3)), rank=3, constants={"k": np.array(draw.of(0, 1, -1))})


def roi_align(draw: Draw) -> Made:
    regions = np.array([[0.0, 0.0, 3.0, 2.0], [-2.0, 1.0, 9.0, 4.0]])
    attributes = f'mode = "{draw.of("avg", "max")}", output_height = 2, output_width = 3, sampling_ratio = 2'
    return graph(f"y = RoiAlign <{attributes}> (x, r, b)", value("x", [2, draw.size(1, 3), 4, 4]),
                 constants={"r": regions, "b": np.array([0, 1])})  # fmt: skip


MORE_MAKERS: dict[str, Maker] = {
    "Identity": _unary("Identity"), "Dropout": dropout, "Cast": _unary("Cast", "<to = 11>"),
    "CastLike": lambda draw: graph("y = CastLike(x, z)", value("x", draw.shape(3)), value("z", [1]), rank=3),
    "Relu": _unary("Relu"),
    "LeakyRelu": _unary("LeakyRelu", "<alpha = 0.25>"), "PRelu": prelu, "Abs": _unary("Abs"),
    "Trilu": _unary("Trilu"), "CumSum": cumsum, "ReverseSequence": reverse_sequence, "Compress": compress,
    "GatherElements": gather_elements, "GridSample": grid_sample, "RoiAlign": roi_align,
    "Softmax": _softmax("Softmax"),
    "LogSoftmax": _softmax("LogSoftmax"),
    "MaxPool": _pool("MaxPool"), "GlobalMaxPool": _globally("GlobalMaxPool"), "LpPool": _pool("LpPool", "p = 2"),
    "GlobalLpPool": _globally("GlobalLpPool"), "AveragePool": _pool("AveragePool"),
    "GlobalAveragePool": _globally("GlobalAveragePool"), "Resize": resize, "Upsample": upsample, "Clip": clip,
    "Pad": pad, "Add": _join("Add", 2), "Sub": _join("Sub", 2), "Mul": _join("Mul", 2), "Div": _join("Div", 2),
    "Sum": _join("Sum", 4), "Mean": _join("Mean", 4),
    "Max": _join("Max", 4), "Min": _join("Min", 4), "Where": where, "Concat": concat,
    "LSTM": _recurrent("LSTM", 4), "GRU": _recurrent("GRU", 3), "RNN": _recurrent("RNN", 1),
    "InstanceNormalization": instance_norm, "GroupNormalization": group_norm,
    "LayerNormalization": _trailing("LayerNormalization", 17), "RMSNormalization": _trailing("RMSNormalization", 23),
    **{op: _reduce(op) for op in ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum")},
}  # fmt: skip
