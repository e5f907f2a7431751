"""Every case of the table: the expected graph, the same function, the same contract, and nothing left to do."""

from __future__ import annotations

import functools
import re

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import pytest

from bnfold.folding.report import FoldReport
from bnfold.rules.base import Reason
from tests.cases import CASES, Graph
from tests.graphs import Array, at_runtime, build, cost, exact, feeds, folded, operators

GRAPHS = [graph for case in CASES for graph in (case.graph, case.twin)]
BY_NAME = {graph.name: graph for graph in GRAPHS}
RUNS = [pytest.param(graph, dtype, id=f"{graph} ({dtype})") for graph in GRAPHS for dtype in graph.dtypes]

# Where an average is not exact: a few roundings of float64 or float32 on values below 2^10.
TOLERANCE = {"double": 2.0**-40, "float": 2.0**-12}


@functools.cache
def made(graph_name: str, dtype: str) -> tuple[onnx.ModelProto, onnx.ModelProto, FoldReport]:
    """The graph's model, folded, with the report; nothing here changes them."""
    model = BY_NAME[graph_name].model(dtype)
    return model, *folded(model)


def same(ours: Array, theirs: Array, graph: Graph, dtype: str) -> bool:
    """Whether two results are equal, bit for bit where the case is exact."""
    if graph.exact:
        return bool(np.array_equal(ours, theirs, equal_nan=ours.dtype.kind == "f"))
    return bool(np.allclose(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], equal_nan=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.graph))
def test_names_are_unique_and_twins_differ(case) -> None:
    assert sum(str(graph) == str(case.graph) for graph in GRAPHS) == 1
    assert case.graph.model().SerializeToString() != case.twin.model().SerializeToString()


@pytest.mark.parametrize(("graph", "dtype"), RUNS)
def test_expected_graph(graph: Graph, dtype: str) -> None:
    model, result, report = made(graph.name, dtype)
    assert " ".join(operators(result)) == (graph.after or " ".join(operators(model)))
    assert " ".join(e.reason.code for e in report.entries if e.reason is not None) == graph.kept
    assert all(e.blocking and e.hint for e in report.entries if e.status == "kept")
    if graph.by:
        assert {e.judgement for e in report.entries if e.status == "folded"} <= {graph.by}
    assert report.nodes_after == len(operators(result))


@pytest.mark.parametrize(("graph", "dtype"), RUNS)
def test_equivalent(graph: Graph, dtype: str) -> None:
    """All outputs, and every value whose name is in both models."""
    model, result, report = made(graph.name, dtype)
    if not (report.folded or report.affines):
        if model.functions and not result.functions:  # inlined, because their parameters are formal
            model = onnx.inliner.inline_local_functions(model)
            assert operators(result) == operators(model)
            return
        assert result == ir.to_proto(ir.from_proto(model))
        return
    for seed in range(2):
        inputs = {**feeds(model, seed), **graph.inputs}
        before, after = exact(model, inputs, every=True), exact(result, inputs, every=True)
        assert {value.name for value in model.graph.output} <= before.keys() & after.keys()
        for name in before.keys() & after.keys():
            assert same(after[name], before[name], graph, dtype), name
        for name in after.keys() - before.keys():  # a new name has a new meaning
            base = before.get(re.sub(r"_folded(_\d+)?$", "", name))
            assert base is None or not np.array_equal(after[name], base), name
        if dtype == "float" and graph.runtime:
            ours, theirs = at_runtime(result, inputs), at_runtime(model, inputs)
            for name, value in theirs.items():
                assert same(ours[name], value, graph, dtype), name


@pytest.mark.parametrize(("graph", "dtype"), RUNS)
def test_stable(graph: Graph, dtype: str) -> None:
    """The same bytes from run to run; a second run changes nothing; what is unchanged costs nothing."""
    model, result, report = made(graph.name, dtype)
    again, second = folded(model)
    assert again.SerializeToString(deterministic=True) == result.SerializeToString(deterministic=True)
    repeated, second = folded(result)
    assert repeated.SerializeToString(deterministic=True) == result.SerializeToString(deterministic=True)
    assert (second.folded, second.affines) == (0, 0)
    changed = operators(result) != operators(model)
    if report.folded or report.affines:
        assert cost(result) < cost(model)
        assert "bnfold.fold_map" in {entry.key for entry in result.metadata_props}
    else:
        assert not changed or model.functions
        assert not result.metadata_props


@pytest.mark.parametrize(("graph", "dtype"), RUNS)
def test_contract(graph: Graph, dtype: str) -> None:
    """The result is valid and is called like the original."""
    model, result, _ = made(graph.name, dtype)
    onnx.checker.check_model(result, full_check=True)
    assert list(result.graph.input) == list(model.graph.input)
    assert list(result.graph.output) == list(model.graph.output)
    assert (result.ir_version, list(result.opset_import)) == (model.ir_version, list(model.opset_import))
    assert {tensor.name for tensor in result.graph.initializer} >= {
        tensor.name for tensor in model.graph.initializer if tensor.name in {i.name for i in model.graph.input}
    }


@pytest.mark.parametrize("kind", ["BN0", "BN+0", "BN10"])
def test_before_opset_13_a_quantization_stays_per_tensor(kind: str) -> None:
    """DequantizeLinear has no axis there, whatever axis its default would be: only a uniform scale goes in."""
    constants = {"q": np.arange(16, dtype=np.int8).reshape(4, 4, 1, 1), "step": 0.5, "zero": np.int8([3])}
    body = f"u = DequantizeLinear(q, step, zero)  d = {kind}(x, A.4)  y = Conv(d, u)"
    model = build(f"(T[N,4,3,3] x) => (T[N,4,3,3] y) {{ {body} }}", opset=10, constants=constants)
    result, _ = folded(model)
    onnx.checker.check_model(result, full_check=True)
    assert ("BatchNormalization" in operators(result)) == (kind != "BN10")
    inputs = feeds(model)
    assert np.array_equal(at_runtime(result, inputs)["y"], at_runtime(model, inputs)["y"])


@pytest.mark.parametrize(("operands", "step"), [("q, step", 0.5), ("q, step, zero", [0.5, 0.25, 1.0, 2.0])])
def test_a_zero_point_that_says_nothing_new_is_not_written(operands: str, step: float | list[float]) -> None:
    constants = {"q": np.arange(16, dtype=np.int8).reshape(4, 4, 1, 1), "step": step, "zero": np.int8([0, 1, 2, 3])}
    body = f"u = DequantizeLinear <axis = 0> ({operands})  d = Conv(x, u)  y = BN+(d, A.4)"
    model = build(f"(T[N,4,3,3] x) => (T[N,4,3,3] y) {{ {body} }}", constants=constants)
    result, report = folded(model)
    assert report.folded == 1
    assert list(result.graph.node[0].input[2:]) == list(model.graph.node[0].input[2:])


def untyped(body: str) -> onnx.ModelProto:
    """A model of x where inference stops at an operator of another domain, and the type of e is declared further on."""
    text = f"(T[N,4,3,3] x) => (T[N,4,h,w] y) {{ {body} }}"
    model = build(text, domains=', "com.microsoft" : 1', checked=False)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("e", onnx.TensorProto.FLOAT, ["N", 4, "h", "w"]))
    return model


@pytest.mark.parametrize("call", ["Clip(c, 0.5, 6.0)", "Pad(c, {0,0,1,1,0,0,1,1}, 0.5)"])
def test_no_constant_is_written_beside_a_value_of_unknown_type(call: str) -> None:
    """The type of e lets the affine come back to where none is known."""
    model = untyped(f"c = com.microsoft.Gelu(x)  d = {call}  e = Identity(d)  y = BN1(e, A.4)")
    result, report = folded(model)
    assert operators(result) == operators(model)
    assert [e.reason.code for e in report.entries if e.reason] == [
        "not-floating" if call.startswith("Clip") else "unknown-shape"
    ]


@pytest.mark.parametrize("reader", ["", "  z = Sigmoid(d)"])
def test_nothing_is_computed_on_a_value_of_unknown_type(reader: str) -> None:
    """Its rank is unknown too, and whether others read a part of it; what is left is computed where both are known."""
    model = untyped(f"c = com.microsoft.Gelu(x)  d = Identity(c)  e = Identity(d)  y = BN10+(e, A.4){reader}")
    result, _ = folded(model)
    assert operators(result) == ["Gelu", "Identity", "Identity", "Mul", *["Sigmoid"] * bool(reader)]
    assert result.graph.node[3].input[0] == "e"


@pytest.mark.filterwarnings("error")
def test_statistics_that_are_not_finite_are_counted_without_a_warning() -> None:
    gamma = {"A_gamma": np.array([np.inf, 1, 1, 1])}
    model = build("(T[N,4,3,3] x) => (T[N,4,3,3] y) { y = BN(x, A.4) }", constants=gamma)
    entry = folded(model)[1].entries[0]
    assert entry.reason is not None and entry.reason.code == "non-finite"
    assert entry.detail == "1 channels have no finite scale and shift"


_FUNCTION = """(T[N,3,8,8] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])  y = local.Normed(a, g[4], b[4], m[4], v) }
    <domain: "local", opset_import: ["" : 15]> Normed (x, g, b, m, v) => (y) { [norm] y = BODY }"""


def test_a_function_of_another_opset_is_inlined_where_its_operators_mean_the_same() -> None:
    constants = {"v": np.full(4, 4.0 - 0.0625)}
    text = _FUNCTION.replace("BODY", "BatchNormalization <epsilon = 0.0625> (x, g, b, m, v)")
    model = build(text, constants=constants, domains=', "local" : 1')
    result, report = folded(model)
    assert operators(result) == ["Conv"] and report.folded == 1
    inputs = feeds(model)
    assert np.array_equal(at_runtime(result, inputs)["y"], at_runtime(model, inputs)["y"])


def test_a_batch_norm_in_a_function_that_stays_is_reported() -> None:
    """Pad of opset 18 is not that of 15."""
    body = "BatchNormalization <epsilon = 0.0625> (x, g, b, m, v)  u = Pad(y, i)"
    text = _FUNCTION.replace("BODY", body).replace("(x, g, b, m, v) =>", "(x, g, b, m, v, i) =>")
    model = build(text.replace("m[4], v)", "m[4], v, {0,0,0,0,0,0,0,0})"), constants={"v": np.full(4, 1.0)}, opset=18,
                  domains=', "local" : 1', checked=False)  # fmt: skip
    result, report = folded(model)
    assert operators(result) == ["Conv", "Normed"]
    assert [(e.node, e.reason, e.blocking) for e in report.entries] == [("norm", Reason.FUNCTION, "y")]
    assert report.entries[0].detail == "in function local::Normed"


def test_a_batch_norm_whose_parameters_come_in_any_shape_is_reported() -> None:
    model = build(
        "(T[N,4,8,8] x, T[4] g, int64[K] s) => (T[n,c,h,w] y) { r = Reshape(g, s)"
        "  y = BatchNormalization(x, r, b[4], m[4], v[4]) }",
        checked=False,
    )
    (entry,) = folded(model)[1].entries
    assert (entry.channels, entry.reason) == (None, Reason.NOT_CONSTANT)
