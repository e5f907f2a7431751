"""Operators as opsets before 7 write them: they broadcast only where an attribute asks for it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from bnfold.verify.kernels import Unsupported
from tests.graphs import EPSILON, build, exact, feeds, folded, operators


@pytest.mark.parametrize(
    ("attributes", "constant", "since_7"),
    [
        ("<broadcast = 1, axis = 1>", "k[4]", "k[4,1,1]"),
        ("<broadcast = 1, axis = 1>", "k[4,5]", "k[4,5,1]"),
        ("<broadcast = 1, axis = -1>", "k[6]", "k[6]"),
        ("<broadcast = 1>", "k[5,6]", "k[5,6]"),
        ("<broadcast = 1>", "k[]", "k[]"),
        ("", "k[2,4,5,6]", "k[2,4,5,6]"),
    ],
)
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_the_reference_broadcasts_as_they_did(op: str, attributes: str, constant: str, since_7: str) -> None:
    text = f"(T[2,4,5,6] x) => (T[n,c,h,w] y) {{ y = {op} {attributes} (x, {constant}) }}"
    old = build(text, opset=6, dtype="double")
    shape = [int(size) for size in since_7[2:-1].split(",") if size]
    values = {"k": np.random.default_rng(0).uniform(1.0, 2.0, shape)}
    old.graph.initializer[0].raw_data = values["k"].tobytes()
    new = build(f"(T[2,4,5,6] x) => (T[n,c,h,w] y) {{ y = {op}(x, k) }}", opset=7, dtype="double", constants=values)
    inputs = feeds(new)
    assert np.array_equal(exact(old, inputs)["y"], exact(new, inputs)["y"])


def test_the_reference_does_not_broadcast_unasked() -> None:
    model = build("(T[2,4,5,6] x) => (T[n,c,h,w] y) { y = Add(x, k[6]) }", opset=6)
    with pytest.raises(Unsupported, match="does not broadcast"):
        exact(model, feeds(model))


def test_the_reference_reads_the_slope_of_a_prelu_along_the_channels() -> None:
    old, new = (
        build(f"(T[2,4,5,6] x) => (T[n,c,h,w] y) {{ y = PRelu(x, k[{shape}]) }}", opset=opset)
        for opset, shape in ((6, "4"), (7, "4,1,1"))
    )
    assert np.array_equal(exact(old, feeds(old))["y"], exact(new, feeds(new))["y"])


def test_ir_version_3_keeps_the_constants_of_a_body_around_it() -> None:
    """There every initializer is an input of its graph too, and the branch of an If has no inputs."""
    model = build("""(T[2,3,6,6] x, bool q) => (T[n,c,h,w] y) { y = If (q) <
        then_branch = one () => (T[n,c,h,w] u) { a = Conv(x, w[4,3,3,3])  u = BN(a, A.4) },
        else_branch = two () => (T[n,c,h,w] v) { v = Conv(x, w[4,3,3,3]) } > }""", opset=8, ir_version=3, checked=False)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.checker.check_model(model)
    result, report = folded(model)
    onnx.checker.check_model(result, full_check=True)
    assert report.folded == 1 and operators(result) == ["If", "Conv", "Conv"]
    inputs = feeds(model)
    assert np.array_equal(exact(result, inputs)["y"], exact(model, inputs)["y"])


@pytest.mark.parametrize(("scale", "dtype", "left"), [
    (0.5, "double", ["Conv", "Clip"]), (0.1, "double", ["Conv", "Clip", "Mul"]), (0.1, "float", ["Conv", "Clip"]),
])  # fmt: skip
def test_an_attribute_does_not_round_what_was_float64(scale: float, dtype: str, left: list[str]) -> None:
    """The bounds of Clip are attributes before opset 11, and attributes are float32."""
    text = "(T[N,4,6,6] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,4,1,1])  b = Clip <max = 6.0> (a)  y = BN(b, s.4) }"
    parts = {"gamma": scale, "beta": 0.0, "mean": 0.0, "var": 1.0 - EPSILON}
    constants = {f"s_{name}": np.full(4, value) for name, value in parts.items()}
    assert operators(folded(build(text, opset=10, dtype=dtype, constants=constants))[0]) == left


@pytest.mark.parametrize(("opset", "attribute", "left"), [(6, ", is_test=1", 3), (7, "", 2)])
def test_before_opset_7_an_average_counts_the_padding(opset: int, attribute: str, left: int) -> None:
    body = f"a = BN(x, A.4{attribute})  d = AveragePool <kernel_shape = [2,2], pads = [1,1,1,1]> (a)"
    model = build(f"(T[N,4,8,8] x) => (T[n,c,h,w] y) {{ {body}  y = Conv(d, w[2,4,1,1]) }}", opset=opset)
    assert len(operators(folded(model)[0])) == left


def test_a_constant_that_broadcasts_as_before_opset_7_is_no_affine() -> None:
    """It lies along axis 1, and the product could take it along the last, which is as long."""
    text = """(T[N,4,4] x) => (T[n,t,c] y) {
        a = MatMul(x, w[4,4])  y = Mul <broadcast = 1, axis = 1> (a, k[4]) }"""
    assert operators(folded(build(text, opset=6))[0]) == ["MatMul", "Mul"]


def test_a_join_that_broadcasts_as_before_opset_7_has_no_law() -> None:
    """The second operand lies along axes 1 and 2: by its rank alone it would be taken for rows of the last two."""
    text = """(T[N,4,4,4] x, T[4,4] z) => (T[n,c,h,w] y) {
        a = BN0(z, A.4, is_test=1)  d = Mul <broadcast = 1, axis = 1> (x, a)  y = MatMul(d, w[4,2]) }"""
    model = build(text, opset=6)
    result, report = folded(model)
    assert operators(result) == operators(model)
    assert [entry.reason.code for entry in report.entries if entry.reason] == ["barrier"]
