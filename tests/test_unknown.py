"""What is not known is not assumed: the laws and the cases again, with less known of the graph.

Shapes are forgotten, whole or in part, and constants become inputs, or may be overridden. A rule may refuse then, but
it says why, and what it still does is right.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from bnfold.affine import Affine, along
from bnfold.graph import Op, Shape, annotate
from bnfold.graph.access import DTYPE, SHAPE
from bnfold.rules import RULES
from bnfold.rules.base import Refusal
from bnfold.rules.tracing import Untraceable, regroup
from tests.cases import CASES, Graph
from tests.graphs import Array, build, exact, feeds, folded, seeded
from tests.makers import Draw
from tests.test_laws import EXAMPLES, JUDGEMENTS, granted


def forget(draw: Draw, model: ir.Model, op: Op) -> dict[str, Array]:
    """Forget some of what is known of the values around an operator; return the constants that became inputs."""
    values = [value for value in (*op.node.inputs, *op.node.outputs) if value is not None]
    if draw.of(True, False):
        for value in draw.some(values):
            _forget_shape(draw, value)
        if draw.size(0, 3) == 0:
            for value in op.node.outputs:
                value.type = None
                value.meta.pop(DTYPE, None)
    freed: dict[str, Array] = {}
    constants = list(model.graph.initializers.values())
    if constants and draw.of(True, False):
        for value in draw.some(constants):
            held = value.const_value
            assert held is not None and value.name is not None
            freed[value.name] = held.numpy()
            model.graph.inputs.append(value)
            if draw.of(True, True, False):  # else it is an initializer that may be overridden
                del model.graph.initializers[value.name]
                value.const_value = None
    return freed


def _forget_shape(draw: Draw, value: ir.Value) -> None:
    how, known = draw.of("rank", "sizes", "size"), value.shape
    value.meta.pop(SHAPE, None)
    if how == "rank" or known is None:
        value.shape = None
    else:
        lost = range(len(known)) if how == "sizes" else [draw.size(0, max(0, len(known) - 1))]
        value.shape = ir.Shape(None if axis in lost else size for axis, size in enumerate(known))


@pytest.mark.parametrize(("op_type", "judgement"), JUDGEMENTS)
def test_law_of_what_is_less_known(op_type: str, judgement: str) -> None:
    @settings(max_examples=EXAMPLES, database=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def check(seed: int) -> None:
        granted(op_type, judgement, seed, forget)

    check()


def test_weights_of_unknown_number_are_no_average() -> None:
    text = '(T[N,5,1] s, T[N,5,3] x) => (T[n,t,c] y) { p = Softmax (s)  y = Einsum <equation = "bij,bjd->bid"> (p, x) }'
    model = ir.from_proto(build(text))
    annotate(model)
    op = Op(model.graph[-1])
    for value in op.node.inputs:
        assert value is not None
        value.shape = None
        value.meta.pop(SHAPE, None)
    assert isinstance(RULES["Einsum"].hoist(op, {0: Affine.of(1.0, 2.0)}), Refusal)


@pytest.mark.parametrize("split", [(2, 2, "T", 3, 3), (2, 2, None, 3, 3)])
def test_axes_around_one_of_unknown_size_are_traced(split: Shape) -> None:
    merged = (4, split[2], 9)
    front, back = np.arange(2.0).reshape(1, 2, 1, 1, 1), np.arange(3.0).reshape(1, 1, 1, 3, 1)
    assert np.array_equal(regroup(front, split, merged), np.tile(np.arange(2.0), 2).reshape(4, 1, 1))
    assert np.array_equal(regroup(back, split, merged), np.repeat(np.arange(3.0), 3).reshape(1, 1, 9))
    assert np.array_equal(regroup(np.arange(4.0).reshape(4, 1, 1), merged, split)[:, :, 0, 0, 0], [[0, 1], [2, 3]])


def test_a_resize_between_unknown_sizes_changes_them() -> None:
    model = ir.from_proto(build('(T[2,3,4,4] x) => (T[n,c,h,w] y) { y = Resize(x, "", "", {2,3,7,4}) }'))
    annotate(model)
    op, wanted = Op(model.graph[0]), {0: Affine.of(along(np.arange(7.0), 2, 4), 0.0)}
    for value in (model.graph.inputs[0], op.output()):
        value.meta.pop(SHAPE, None)
        value.shape = ir.Shape([2, 3, None, 4])
    assert isinstance(RULES["Resize"].hoist(op, wanted), Refusal)


def test_what_has_no_elements_passes_one_scale_for_all() -> None:
    assert regroup(np.ones((1, 1)), (0, 4), (2, 0, 2)).shape == (1, 1, 1)
    with pytest.raises(Untraceable):
        regroup(np.arange(4.0).reshape(1, 4), (0, 4), (2, 0))


def test_two_axes_of_unknown_size_are_not_the_same() -> None:
    with pytest.raises(Untraceable):
        regroup(np.arange(4.0).reshape(1, 4), (None, 4), (None, 4, None))


GRAPHS = [case.graph for case in CASES if not case.graph.domains]
LESS = ("ranks", "sizes", "constants", "overridable")


def less_known(model: onnx.ModelProto, what: str, seed: int) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The model with less known of it, and what its new inputs hold."""
    less = onnx.ModelProto.FromString(model.SerializeToString())
    for value in (*less.graph.input, *less.graph.output):
        kind = value.type.tensor_type
        if what == "ranks":
            kind.ClearField("shape")
        elif what == "sizes":
            for dim in kind.shape.dim:
                dim.Clear()
    freed: dict[str, Array] = {}
    if what in ("constants", "overridable"):
        rng = seeded(model.graph.name, seed)
        for tensor in [tensor for tensor in less.graph.initializer if rng.random() < 0.4]:
            freed[tensor.name] = numpy_helper.to_array(tensor)
            less.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
            if what == "constants":
                less.graph.initializer.remove(tensor)
    return less, freed


@pytest.mark.parametrize("what", LESS)
@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_a_case_of_which_less_is_known(graph: Graph, what: str) -> None:
    """What is folded without a shape or a constant is right, and no operator seems to contradict its operands."""
    model = graph.model(graph.dtypes[0])
    less, freed = less_known(model, what, zlib.crc32(graph.name.encode()))
    result, report = folded(less)
    assert "malformed" not in {entry.reason.code for entry in report.entries if entry.reason is not None}
    inputs = {**feeds(model), **graph.inputs}
    before, after = exact(model, inputs), exact(result, {**inputs, **freed})
    for name, array in before.items():
        assert np.allclose(after[name], array, rtol=1e-9, atol=1e-9, equal_nan=True), name


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_an_operator_of_another_domain_may_mean_anything(graph: Graph) -> None:
    """Each in turn becomes one, of which only the name, the types and the shapes are known.

    It still reads what it read, and what it gives is not taken for anything else.
    """
    model = onnx.shape_inference.infer_shapes(graph.model(graph.dtypes[0]), data_prop=True)
    if any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute):
        return
    inputs = {**feeds(model), **graph.inputs}
    before = around(model, inputs)
    for index, own in enumerate(model.graph.node):
        foreign = onnx.ModelProto.FromString(model.SerializeToString())
        foreign.opset_import.add(domain="shop", version=1)
        foreign.graph.node[index].domain = "shop"
        result, _ = folded(foreign)
        (left,) = [node for node in result.graph.node if node.domain == "shop"]
        left.domain = ""
        after = around(result, inputs)
        assert (left.op_type, list(left.attribute)) == (own.op_type, list(own.attribute))
        for ours, theirs in zip((*left.input, *left.output), (*own.input, *own.output), strict=True):
            assert np.allclose(after[ours], before[theirs], rtol=1e-9, atol=1e-9, equal_nan=True), own.op_type


def around(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Every value of the main graph, the empty name among them."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {"": np.zeros(0), **stored, **inputs, **exact(model, inputs, every=True)}
