"""Attributes and constants as the rules read them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from bnfold.graph import Op, access, annotate, dtype, is_floating, label, shape, tensor
from bnfold.graph.access import lists_initializers, note, noted, overridable
from bnfold.graph.constants import attr
from bnfold.rewrite import rewrite
from tests.graphs import at_runtime, build, feeds


def test_a_float_attribute_has_the_precision_of_onnx() -> None:
    """An exporter's model in memory may hold a Python float that its file will round."""
    node = ir.node("Op", [], {"a": ir.AttrFloat32("a", 1e-5), "b": ir.AttrFloat32s("b", [0.1, 0.5])})
    assert attr(node, "a", None) == float(np.float32(1e-5))
    assert list(attr(node, "b", None)) == [float(np.float32(0.1)), 0.5]
    assert attr(node, "c", 0.1) == 0.1


def test_a_model_in_memory_folds_as_its_file_does() -> None:
    text = "(T[N,4] x) => (T[n,c] y) { a = MatMul(x, w[4,256])  y = BN(a, A.256) }"
    model = ir.from_proto(build(text, constants={"A_var": np.random.default_rng(0).uniform(0.0, 1e-4, 256)}))
    norm = next(node for node in model.graph if node.op_type == "BatchNormalization")
    norm.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-5)
    stored = ir.from_proto(ir.to_proto(model))
    rewrite(model)
    rewrite(stored)
    ours, theirs = ir.to_proto(model), ir.to_proto(stored)
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)


_VECTOR, _MATRIX = np.arange(4.0) + 1.0, np.arange(12.0).reshape(4, 3) - 5.0
_CODES = np.array([-3, 0, 7, 120], np.int8)


@pytest.mark.parametrize(
    ("call", "constants"),
    [
        ("Slice(k, {3}, {-9}, {0}, {-2})", {"k": _MATRIX}),
        ("Slice(k, {1}, {3})", {"k": _MATRIX}),
        ('Slice(k, {1}, {3}, "", {2})', {"k": _MATRIX}),
        ("Split <axis = 0> (k, {1,3})", {"k": _MATRIX}),
        ("Gather <axis = 1> (k, {2,0,-1})", {"k": _MATRIX}),
        ("Flatten <axis = -1> (k)", {"k": _MATRIX}),
        ("Tile(k, {2,1})", {"k": _MATRIX}),
        ("Where(p, k, l)", {"p": _MATRIX > 0, "k": _MATRIX, "l": 2.0}),
        ("Max(k, l, 0.5)", {"k": _MATRIX, "l": -_MATRIX}),
        ("Min(k, l)", {"k": _MATRIX, "l": -_MATRIX}),
        ("MatMul(k, l)", {"k": _MATRIX.T, "l": _VECTOR}),
        ("ReduceMean <keepdims = 0> (k, {1})", {"k": _MATRIX}),
        ("ReduceSum(k, {-2})", {"k": _MATRIX}),
        ("ReduceSum <noop_with_empty_axes = 1> (k)", {"k": _MATRIX}),
        ("ReduceMax(k)", {"k": _MATRIX}),
        ("ReduceMin(k, {0, 1})", {"k": _MATRIX}),
        ("DequantizeLinear(q, s, z)", {"q": _CODES, "s": 0.5, "z": np.int8(-3)}),
        ("DequantizeLinear <axis = 0> (q, s)", {"q": _CODES, "s": _VECTOR}),
        ("QuantizeLinear <axis = 1> (k, s, z)", {"k": 40.25 * _MATRIX, "s": _VECTOR[:3], "z": np.zeros(3, np.int8)}),
        ("QuantizeLinear(k, s)", {"k": 40.25 * _MATRIX, "s": 2.5}),
        ("Constant <value_float = 0.3> ()", {}),
        ("Constant <value_floats = [0.3, 2.0]> ()", {}),
        ("Constant <value_int = 3> ()", {}),
        ("Constant <value_ints = [3, -1]> ()", {}),
    ],
)
def test_constant_arithmetic_is_that_of_the_runtime(call: str, constants: dict[str, np.ndarray]) -> None:
    """Values, shapes and types as ONNX Runtime computes them; the other parts of a Split as well."""
    outputs = ["y", "u"] if call.startswith("Split") else ["y"]
    kinds = {"QuantizeLinear(": "uint8", "QuantizeLinear ": "int8", "Constant <value_int": "int64"}
    kind = next((kind for start, kind in kinds.items() if call.startswith(start)), "T")
    declared = f"{kind} y, T u" if "u" in outputs else f"{kind} y"
    text = f"(T[N] x) => ({declared}, T[N] v) {{ {', '.join(outputs)} = {call}  v = Relu(x) }}"
    proto = build(text, constants=constants, opset=18)
    model = ir.from_proto(proto)
    annotate(model)
    theirs = at_runtime(proto, feeds(proto))
    for value in model.graph.outputs[: len(outputs)]:
        held = tensor(value)
        assert held is not None
        ours = held.numpy()
        assert (ours.dtype, ours.shape) == (theirs[value.name].dtype, theirs[value.name].shape)
        np.testing.assert_array_equal(ours, theirs[value.name])


@pytest.mark.parametrize(
    "call",
    [
        "CastLike(x, k)",
        "Tile(k, {100000,100000})",
        "Gather(k, i)",
        "MatMul(l, k)",
        "Mul(l, k)",
        "DequantizeLinear(q, s)",
    ],
)
def test_constants_that_would_grow_are_left_alone(call: str) -> None:
    """No more than 64 MB are computed, and a matrix of codes stays quantized."""
    row, column, index = np.zeros((1, 3000)), np.zeros((3000, 1)), np.zeros(3000, np.int64)
    constants = {"k": row, "l": column, "i": index, "q": np.zeros((2, 2), np.int8)}
    used = {name: array for name, array in {**constants, "s": 0.5}.items() if name in call}
    model = ir.from_proto(build(f"(T[N] x) => (T y, T[N] v) {{ y = {call}  v = Relu(x) }}", constants=used))
    annotate(model)
    assert tensor(model.graph.outputs[0]) is None


def test_what_is_not_there_has_nothing() -> None:
    op = Op(ir.node("Clip", [ir.Value(name="x"), None]))
    op.node.outputs[0].name = None
    asked = (op.input, op.maker, op.const, op.tensor, op.shape, op.rank, lambda slot: op.ints(slot, "axes"))
    assert [ask(slot) for slot in (1, 2) for ask in asked] == [None] * 2 * len(asked)
    assert (op.maker(0), op.shape(0), op.used(0), op.used(1), label(op.node)) == (None, None, False, False, "Clip")
    assert not is_floating(None) and dtype(None) is None
    assert not overridable(None) and not lists_initializers(None) and op.opset == 1


def test_what_is_read_or_given_is_used() -> None:
    pool = ir.node("MaxPool", [ir.Value(name="x")], num_outputs=3)
    ir.node("Relu", [pool.outputs[0]])
    ir.Graph([], [pool.outputs[1]], nodes=[pool])
    assert [Op(pool).used(index) for index in range(4)] == [True, True, False, False]


def test_what_is_not_known_is_no_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter of a function, the shape of what has none, and what is too large."""
    held = ir.Value(name="k", const_value=ir.tensor(np.ones(3, np.float32)))
    ir.Graph([], [], nodes=[], initializers=[held])
    parameter = ir.RefAttr("value", "v", ir.AttributeType.TENSOR)
    unknown = ir.Value(name="x", type=ir.TensorType(ir.DataType.DOUBLE))
    nodes = [
        ir.Node("", "Constant", [], attributes=[parameter]), ir.node("Shape", [unknown]),
        ir.node("CastLike", [held, unknown]), ir.node("Neg", [held]),
    ]  # fmt: skip
    assert [tensor(node.outputs[0]) is None for node in nodes] == [True, True, False, False]
    monkeypatch.setattr(access, "CONSTANT_BYTES", 11)
    larger = ir.node("CastLike", [held, unknown]), ir.node("Neg", [held])
    assert [tensor(node.outputs[0]) for node in larger] == [None, None]


@pytest.mark.parametrize(
    ("stored", "inferred", "known"),
    [
        (None, None, None),
        (None, (2, "n"), (2, "n")),
        ([2, "n"], None, (2, "n")),
        (["n", -1, None, "c"], (5, 6, "h", "w"), (5, 6, "h", "c")),
        (["n", 4], (5, 4, 6), ("n", 4)),
    ],
)
def test_a_size_that_is_known_goes_before_a_name_and_a_stored_name_before_an_inferred_one(
    stored: list[int | str | None] | None, inferred: tuple[int | str | None, ...] | None, known: object
) -> None:
    value = ir.Value(name="x", shape=None if stored is None else ir.Shape(stored))
    if inferred is not None:
        noted(value, inferred)
    assert shape(value) == known


def test_a_new_value_is_noted_like_another_but_for_its_sizes() -> None:
    plain, declared = ir.Value(name="a"), ir.Value(name="b", shape=ir.Shape(["n", 4]))
    for like in (plain, declared):
        noted(like, ("n", 4, 6)[: 2 + (like is plain)])
    kept, resized, blank = (ir.Value(name=name) for name in "cde")
    note(kept, declared)
    note(resized, declared, {1: 3})
    note(blank, plain, {1: 3})
    assert (kept.shape, shape(resized), resized.shape) == (declared.shape, ("n", 3), ir.Shape(["n", 3]))
    assert (blank.shape, shape(blank)) == (None, ("n", 3, 6))
