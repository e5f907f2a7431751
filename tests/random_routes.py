"""Families of random graphs that an affine may pass: what commutes, moves, joins, bodies, functions."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.random_builder import Builder, Value
from tests.random_layers import arithmetic, batch_norm, info, last_affine


def elementwise(b: Builder) -> None:
    x = b.pick()
    if x is None:
        return
    op, attributes = b.draw.of(
        ("Relu", {}), ("Relu", {}), ("LeakyRelu", {"alpha": 0.25}), ("Abs", {}), ("Identity", {}), ("Dropout", {}),
        ("Sigmoid", {}), ("Tanh", {}), ("PRelu", {}), ("Clip", {"min": -0.5, "max": 2.0}), ("Clip", {"min": 0.0}),
    )  # fmt: skip
    if op == "Clip":
        low, high = attributes["min"], attributes.get("max")
        b.numbered(op, x, [x.shape], {"min": np.array(low), "max": None if high is None else np.array(high)})
        return
    operands = [x.name, b.constant(np.array([0.25]), x.dtype)] if op == "PRelu" else [x.name]
    legacy = {"is_test": 1} if op == "Dropout" and b.opset < 7 else {}
    b.add(op, x, operands, x.shape, **attributes, **legacy)


def window(b: Builder) -> None:
    x = b.pick(4)
    if x is None or min(x.shape[2:]) < 3:
        return
    op, pad = b.draw.of("MaxPool", "AveragePool", "AveragePool"), b.draw.of(0, 1)
    attributes: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [pad] * 4}
    if op == "AveragePool" and b.opset >= 7:
        attributes["count_include_pad"] = b.draw.of(0, 1)
    n, c, h, w = x.shape
    b.add(op, x, [x.name], [n, c, h + 2 * pad - 2, w + 2 * pad - 2], **attributes)


def reduction(b: Builder) -> None:
    x = b.pick(3, 4)
    if x is None:
        return
    op = b.draw.of("ReduceMean", "ReduceMean", "ReduceMax", "ReduceSum", "GlobalAveragePool")
    if op == "GlobalAveragePool":
        b.add(op, x, [x.name], [*x.shape[:2], *[1] * (len(x.shape) - 2)])
        return
    axis, keep = b.draw.size(1, len(x.shape) - 1), b.draw.of(0, 1)
    shape = [1 if k == axis else size for k, size in enumerate(x.shape) if keep or k != axis]
    b.numbered(op, x, [shape], {"axes": [axis]}, keepdims=keep)


def pad(b: Builder) -> None:
    x = b.pick(4)
    if x is None or min(x.shape[2:]) < 2:
        return
    mode = b.draw.of("constant", "constant", "reflect", "edge")
    value = np.array(b.draw.of(0.0, 0.5)) if mode == "constant" and b.chance(2) else None
    n, c, h, w = x.shape
    b.numbered("Pad", x, [[n, c, h + 1, w + 1]], {"pads": [0, 0, 1, 0, 0, 0, 0, 1], "value": value}, mode=mode)


def resize(b: Builder) -> None:
    x = b.pick(4)
    if x is None or x.shape[2] * x.shape[3] > 40 or b.opset < 7:
        return
    n, c, h, w = x.shape
    scales, shape = np.array([1, 1, 2, 1], np.float32), [n, c, 2 * h, w]
    if b.opset < 9:
        b.add("Upsample", x, [x.name], shape, scales=[float(k) for k in scales])
        return
    name = b.name("k")
    b.constants[name] = scales
    if b.opset < 11:
        b.add("Upsample" if b.opset < 10 else "Resize", x, [x.name, name], shape)
        return
    mode = b.draw.of("nearest", "linear")
    roi = "" if b.opset >= 13 else b.constant(np.zeros(0), "float")
    b.add("Resize", x, [x.name, roi, name], shape, mode=mode, coordinate_transformation_mode="asymmetric")


def transpose(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    if x is None:
        return
    perm = [0, *(1 + axis for axis in b.draw.perm(len(x.shape) - 1))]
    b.add("Transpose", x, [x.name], [x.shape[axis] for axis in perm], perm=perm)


def reshape(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    if x is None:
        return
    n, c, *rest = x.shape
    size = int(np.prod(rest))
    if b.chance(5):
        b.add("Flatten", x, [x.name], [n, c * size])
        return
    last = x.shape[-1]
    target = b.draw.of([n, c, size], [n, c * size], [n, size, c], [n * c, size], [n * c * size // last, last])
    if c % 2 == 0 and b.chance(2):
        target = [n, 2, c // 2, size]
    given = [0 if axis == 0 and target[0] == n and b.chance(2) else k for axis, k in enumerate(target)]
    b.add("Reshape", x, [x.name, b.constant(np.array(given))], target)


def shape_round_trip(b: Builder) -> None:
    """Merge the leading axes, and part them again with a target computed from the shape."""
    x = b.pick(3)
    if x is None:
        return
    target = b.constant(np.array([-1, x.shape[2]]))
    merged = b.add("Reshape", x, [x.name, target], [x.shape[0] * x.shape[1], x.shape[2]])
    if not b.chance(3):
        batch_norm(b, merged)
        merged = b.values[-1]
    shape = b.hidden("Shape", [x.name], [3], "int64")
    b.add("Reshape", x, [merged.name, shape.name], x.shape)


def squeeze(b: Builder) -> None:
    x = b.pick(2, 3)
    if x is None:
        return
    axis = b.draw.size(1, len(x.shape))
    (y,) = b.numbered("Unsqueeze", x, [[*x.shape[:axis], 1, *x.shape[axis:]]], {"axes": [axis]})
    if b.chance(2):
        batch_norm(b, y)
        b.numbered("Squeeze", b.values[-1], [x.shape], {"axes": [axis]})


def selection(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    if x is None:
        return
    axis = b.draw.size(1, len(x.shape) - 1)
    size = x.shape[axis]
    if b.chance(2):
        index = b.draw.rng.integers(0, size, b.draw.size(1, 3))
        shape = [*x.shape[:axis], index.size, *x.shape[axis + 1 :]]
        b.add("Gather", x, [x.name, b.constant(index)], shape, axis=axis)
    elif size > 1:
        cut = b.draw.size(1, size - 1)
        shape = [*x.shape[:axis], cut, *x.shape[axis + 1 :]]
        b.numbered("Slice", x, [shape], {"starts": [size - cut], "ends": [size], "axes": [axis]})


def split(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    if x is None:
        return
    axis = b.draw.of(1, len(x.shape) - 1)
    if x.shape[axis] < 2:
        return
    first = b.draw.size(1, x.shape[axis] - 1)
    sizes = [first, x.shape[axis] - first]
    shapes = [[*x.shape[:axis], size, *x.shape[axis + 1 :]] for size in sizes]
    b.numbered("Split", x, shapes, {"split": sizes}, axis=axis)


def repetition(b: Builder) -> None:
    x = b.pick(3, 4)
    if x is None or np.prod(x.shape) > 200:
        return
    if b.opset >= 8 and b.chance(3):
        wide = [2, *x.shape]
        b.add("Expand", x, [x.name, b.constant(np.array(wide))], wide)
        return
    repeats = [1, *(b.draw.of(1, 1, 2) for _ in x.shape[1:])]
    b.add("Tile", x, [x.name, b.constant(np.array(repeats))], [r * n for r, n in zip(repeats, x.shape, strict=True)])


def depth(b: Builder) -> None:
    x = b.pick(4)
    if x is None:
        return
    n, c, h, w = x.shape
    if c % 4 == 0:
        mode = {"mode": b.draw.of("DCR", "CRD")} if b.opset >= 11 else {}
        b.add("DepthToSpace", x, [x.name], [n, c // 4, 2 * h, 2 * w], blocksize=2, **mode)
    elif h % 2 == 0 and w % 2 == 0:
        b.add("SpaceToDepth", x, [x.name], [n, 4 * c, h // 2, w // 2], blocksize=2)


def join(b: Builder) -> None:
    x = b.pick()
    if x is None:
        return
    z = b.draw.of(*(v for v in b.like(x) if v.shape == x.shape))
    if b.chance(2) and len(x.shape) == 4:
        c = x.shape[1]
        z = b.add("Conv", z, [z.name, b.weight([c, c, 1, 1], c, x.dtype)], x.shape)
    if b.chance(4) and len(x.shape) >= 3 and b.opset >= 8:
        (z,) = b.numbered("ReduceMax", z, [[*x.shape[:-1], 1]], {"axes": [len(x.shape) - 1]}, keepdims=1)
    op = b.draw.of("Add", "Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", *(["Where"] if b.opset >= 9 else []))
    if op in ("Mul", "Div"):
        z = b.add("Sigmoid", z, [z.name], z.shape)
    operands = [x.name, z.name][:: 1 if op == "Div" else b.draw.of(1, -1)]
    b.add(op, x, ["p", *operands] if op == "Where" else operands, x.shape)


def fan_out(b: Builder) -> None:
    """An affine with several linear readers, which may take it together, and now and then another reader."""
    x = b.pick(2, 3)
    if x is None:
        return
    x = last_affine(b, x)
    for _ in range(b.draw.size(2, 3)):
        b.add("MatMul", x, [x.name, b.weight([x.shape[-1], 3], x.shape[-1], x.dtype)], [*x.shape[:-1], 3])
    if b.chance(3):
        b.add("Tanh", x, [x.name], x.shape)


def concat(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    if x is None:
        return
    axis = b.draw.size(1, len(x.shape) - 1)
    fits = [v for v in b.like(x) if len(v.shape) == len(x.shape)
            and all(m == n for k, (m, n) in enumerate(zip(v.shape, x.shape, strict=True)) if k != axis)]  # fmt: skip
    parts = [x, *(b.draw.of(*fits) for _ in range(b.draw.size(1, 2)))]
    shape = [sum(v.shape[axis] for v in parts) if k == axis else n for k, n in enumerate(x.shape)]
    b.add("Concat", x, [v.name for v in parts], shape, axis=axis)


def _chain(inner: Builder, x: Value) -> Value:
    """A few steps in a body that keep the shape of `x`."""
    c = x.shape[1]
    inner.values = [x]
    if len(x.shape) == 4 and not inner.chance(3):
        inner.add("Conv", x, [x.name, inner.weight([c, c, 1, 1], c, x.dtype)], x.shape)
    for family in inner.draw.of((batch_norm,), (batch_norm, elementwise), (elementwise, arithmetic)):
        inner.values = inner.values[-1:]
        family(inner)
    if inner.values[-1] is x:
        inner.add("Identity", x, [x.name], x.shape)
    return inner.values[-1]


def branch(b: Builder) -> None:
    """An If whose branches read a value of the graph around them."""
    x = b.pick(3, 4)
    if x is None or "body" in b.within:
        return
    graphs = []
    for _ in range(2):
        inner = b.inner("If")
        last = _chain(inner, x)
        graphs.append(helper.make_graph(inner.nodes, b.name("body"), [], [info(last)]))
        b.used.update(inner.used)
    b.add("If", x, ["q"], x.shape, then_branch=graphs[0], else_branch=graphs[1])


def loop(b: Builder) -> None:
    """A Loop of two rounds that carries a value, reads one of the graph around it, and collects one."""
    x = b.pick(3, 4)
    if x is None or "body" in b.within:
        return
    inner, carried = b.inner("Loop"), Value(b.name("s"), x.shape, x.dtype)
    last = _chain(inner, carried)
    last = inner.add("Add", last, [last.name, x.name], x.shape)
    step, go, stays = b.name("i"), b.name("c"), b.name("c")
    inner.nodes.append(helper.make_node("Identity", [go], [stays], name=b.name("Identity")))
    collected = inner.add("Relu", last, [last.name], x.shape)
    body = helper.make_graph(
        inner.nodes, b.name("body"),
        [helper.make_tensor_value_info(step, TensorProto.INT64, []), _truth(go), info(carried)],
        [_truth(stays), info(last), info(collected)],
    )  # fmt: skip
    b.used.update(inner.used)
    operands = [b.constant(np.array(2)), b.constant(np.array(True)), x.name]
    b.multiple("Loop", x, operands, [x.shape, (2, *x.shape)], body=body)


def scan(b: Builder) -> None:
    """A Scan along the second axis that maps each slice."""
    x = b.pick(4)
    if x is None or "body" in b.within or b.opset < 9:
        return
    part = Value(b.name("s"), (x.shape[0], *x.shape[2:]), x.dtype)
    inner = b.inner("Scan")
    last = _chain(inner, part)
    body = helper.make_graph(inner.nodes, b.name("body"), [info(part)], [info(last)])
    b.used.update(inner.used)
    b.add("Scan", x, [x.name], x.shape, body=body, num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1])


def _truth(name: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.BOOL, [])


def function(b: Builder) -> None:
    """A model-local function whose BatchNormalization has formal parameters, called on constants."""
    x = b.pick(3, 4)
    if x is None or "body" in b.within or b.opset < 15:
        return
    inner = b.inner("function")
    parameters = ["w", "g", "b", "m", "v"]
    c, space = x.shape[1], [1] * (len(x.shape) - 2)
    y = inner.add("Conv", x, ["x", "w"], x.shape)
    y = inner.add("BatchNormalization", y, [y.name, *parameters[1:]], x.shape, epsilon=1e-3)
    y = inner.add("Relu", y, [y.name], x.shape)
    name = b.name("Block")
    b.functions.append(helper.make_function(
        "local", name, ["x", *parameters], [y.name], inner.nodes, [helper.make_opsetid("", b.opset)]
    ))  # fmt: skip
    arrays = [b.normal(c, c, *space, spread=c**-0.5), *(b.normal(c) for _ in range(3)), b.draw.rng.uniform(0.5, 2.0, c)]
    operands = [x.name, *(b.constant(array, x.dtype) for array in arrays)]
    b.multiple(name, x, operands, [x.shape], domain="local")


