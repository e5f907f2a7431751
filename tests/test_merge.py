"""What merges and its twin that must not: expected graph, the same function, names, reports, stability."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import bnfold
from bnfold.folding.report import FOLD_MAP, FoldReport
from bnfold.merging.costs import MOVE
from bnfold.merging.layers import Layer
from bnfold.merging.report import COSTS_MORE
from bnfold.rewrite import rewrite
from tests.graphs import at_runtime, build, dyadic, exact, feeds, operators, seeded
from tests.merges import CASES, COST, SAME, Graph, image

RUNS = [pytest.param(graph, dtype, id=f"{graph} ({dtype})") for graph in CASES for dtype in ("float", "double")]


def rewritten(model: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, FoldReport]:
    copy = ir.from_proto(onnx.ModelProto.FromString(model.SerializeToString()))
    report = rewrite(copy, **options)
    return ir.to_proto(copy), report


@pytest.mark.parametrize("graph", CASES, ids=str)
def test_expected_graph(graph: Graph) -> None:
    model = graph.model()
    result, report = rewritten(model)
    onnx.checker.check_model(result, full_check=True)
    assert (result.graph.input, result.graph.output) == (model.graph.input, model.graph.output)
    assert report.nodes_after == len(operators(result))
    done = [merge for merge in report.merges if merge.into is not None]
    assert all(merge.after.total <= merge.before.total and merge.reason is None for merge in done)
    names = {node.name for node in result.graph.node} | {node.name for node in bodies(result)}
    if graph.after:
        assert " ".join(operators(result)) == graph.after
        assert done and done[-1].into in names
        folds = json.loads(next(p.value for p in result.metadata_props if p.key == FOLD_MAP))["folds"]
        merged = [(entry["removed"], entry["into"]) for entry in folds if entry["judgement"] == "merge"]
        assert merged == [(list(merge.nodes), merge.into) for merge in done]
    else:
        assert not done
        reasons = [str(merge.reason) for merge in report.merges]
        assert not reasons if graph.reason is None else any(graph.reason in reason for reason in reasons), reasons
        if graph.reason == COST:
            assert any(merge.after.total > merge.before.total > 0 for merge in report.merges)


@pytest.mark.parametrize(("graph", "dtype"), RUNS)
def test_equivalent(graph: Graph, dtype: str) -> None:
    """Every output, and every value whose name is in both models; all numbers here are dyadic, so nothing rounds."""
    model = graph.model(dtype)
    result, _ = rewritten(model)
    for seed in range(2):
        inputs = feeds(model, seed)
        before, after = exact(model, inputs, every=True), exact(result, inputs, every=True)
        assert {value.name for value in model.graph.output} <= before.keys() & after.keys()
        for name in before.keys() & after.keys():
            np.testing.assert_allclose(after[name], before[name], rtol=2.0**-46, atol=2.0**-46, err_msg=name)
        if dtype == "float":
            theirs, ours = at_runtime(model, inputs), at_runtime(result, inputs)
            for name, value in theirs.items():
                np.testing.assert_allclose(ours[name], value, rtol=2.0**-20, atol=2.0**-20, err_msg=name)


@pytest.mark.parametrize("graph", CASES, ids=str)
def test_stable(graph: Graph) -> None:
    """The same bytes from run to run, a second run changes nothing, and without merging nothing merges."""
    model = graph.model()
    result, _ = rewritten(model)
    content = result.SerializeToString(deterministic=True)
    assert rewritten(model)[0].SerializeToString(deterministic=True) == content
    again, second = rewritten(result)
    assert again.SerializeToString(deterministic=True) == content
    assert all(merge.into is None for merge in second.merges)
    off, report = rewritten(model, merge=False)
    assert report.merges == () and (not graph.after or operators(off) != operators(result))


def bodies(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for outer in model.graph.node for a in outer.attribute if a.HasField("g") for node in a.g.node]


def test_the_certificate_replays_merges() -> None:
    model = CASES[0].model()
    done = bnfold.optimize(model)
    assert done.verdict is not None and done.verdict.status == "pass"
    assert [merge.into for merge in done.report.merges] == ["a_merged"]
    candidate = ir.to_proto(done.model)
    for tensor in candidate.graph.initializer:
        tampered = onnx.ModelProto.FromString(candidate.SerializeToString())
        held = next(each for each in tampered.graph.initializer if each.name == tensor.name)
        array = numpy_helper.to_array(held).copy()
        array.flat[0] = np.nextafter(array.flat[0], np.inf, dtype=array.dtype)
        held.CopyFrom(numpy_helper.from_array(array, held.name))
        verdict = bnfold.verify(model, tampered)
        assert verdict.status == "mismatch" and any("certificate" in reason for reason in verdict.reasons)


def test_given_sizes_decide_and_are_replayed() -> None:
    """On three rows and columns the larger weights of one layer cost more than its fewer products save."""
    text = (
        "a = Conv <pads = [1,1,1,1]> (x, w[64,64,3,3])  d = AveragePool <kernel_shape = [3,3], strides = [3,3]> (a)"
        "  y = Relu(d)"
    )
    model = build(image(text, x="T[N,64,H,W] x"))
    assert [merge.reason for merge in bnfold.inspect(model, dims={"H": 3, "x:3": 3, "W": 3}).merges] == [COSTS_MORE]
    assert [merge.reason for merge in bnfold.inspect(model).merges] == [None]
    small = bnfold.optimize(model, dims={"H": 3, "W": 3})
    assert operators(ir.to_proto(small.model)) == operators(model)
    for dims in ({"H": 3, "W": 3}, {"H": 6, "W": 6}):
        done = bnfold.optimize(model, verify=False, dims=dims)
        verdict = bnfold.verify(model, done.model, dims={"H": 9, "W": 12}, samples=4)
        assert verdict.status == "pass", verdict


def test_the_report_holds_costs_of_a_whole_inference() -> None:
    model = build(image("d = Conv(x, w[8,4,1,1])  y = Conv(d, v[4,8,1,1])", x="T[2,4,8,8] x"), dtype="float16")
    (merge,) = rewritten(model)[1].merges
    told = merge.to_dict()
    positions, apart, one = 2 * 8 * 8, 8 * 4 + 4 * 8, 4 * 4
    assert told["law"] == "composition"
    assert told["macs"] == {"before": positions * apart, "after": positions * one}
    assert told["bytes"] == {"before": 2 * (positions * 24 + apart), "after": 2 * (positions * 8 + one)}
    assert told["cost"] == {
        side: told["macs"][side] + MOVE * told["bytes"][side] / 2 for side in ("before", "after")
    }


def test_weights_without_a_partner_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    kernel = Layer.kernel

    def noted(layer: Layer) -> Any:
        read.append(str(layer.node.outputs[0].name))
        return kernel(layer)

    monkeypatch.setattr(Layer, "kernel", noted)
    text = (
        "(T[N,8] x) => (T[n,c] y) { a = Gemm(x, w[8,8])  b = Relu(a)  c = Gemm(b, v[8,8])  d = Add(c, x)"
        "  e = Gemm(d, s[8,1])  f = Gemm(e, t[1,8])  g = Add(f, d)  y = Relu(g) }"
    )
    assert all(merge.into is None for merge in rewritten(build(text))[1].merges) and read == []


@pytest.mark.parametrize("op", ["Add", "Sum"])
def test_a_tree_of_thousands_of_additions(op: str) -> None:
    """No recursion, and not the square of the length either."""
    steps = "".join(f"  s{i + 1} = {op}(s{i}, z)" for i in range(3000))
    text = f"(T[N,4] x, T[N,4] z) => (T[n,c] y) {{ s0 = MatMul(x, w[4,4]){steps}  e = Add(s3000, x)  y = Relu(e) }}"
    result, report = rewritten(build(text))
    assert [len(merge.nodes) for merge in report.merges] == [1] and len(result.graph.node) == 3002


def test_a_merged_weight_that_leaves_its_type_is_refused() -> None:
    large = {"w": np.full((4, 4), 6e4), "v": np.full((4, 4), 6e4)}
    text = "(T[N,4] x) => (T[n,c] y) { a = MatMul(x, w)  b = MatMul(x, v)  y = Add(a, b) }"
    assert operators(rewritten(build(text, constants=large))[0]) == ["MatMul"]
    result, report = rewritten(build(text, dtype="float16", constants=large))
    assert operators(result) == ["MatMul", "MatMul", "Add"]
    assert ["beyond float16's largest" in str(merge.reason) for merge in report.merges] == [True]


def test_a_pool_that_gives_nothing_stays_what_it_is() -> None:
    """Its window is larger than the image: ONNX Runtime lets a pool have no output there, a convolution not."""
    text = image("d = Conv(x, w[4,4,1,1])  y = AveragePool <kernel_shape = [{0},{0}]> (d)", x="T[N,4,2,2] x")
    for taps, left in ((3, ["Conv", "AveragePool"]), (2, ["AveragePool", "Conv"])):
        model = build(text.replace("{0}", str(taps)))
        assert operators(rewritten(model)[0]) == left
        at_runtime(rewritten(model)[0], feeds(model, 0))


def test_a_bias_of_a_product_is_told_to_broadcast_where_it_would_not_by_itself() -> None:
    text = ("(T[N,8] x) => (T[n,c] y) { a = MatMul(x, w[8,8])  b = BN(a, A.8, is_test=1)  d = MatMul(x, v[8,8])"
            "  e = Add(b, d)  y = Relu(e) }")  # fmt: skip
    model = build(text, dtype="double", opset=6)
    result, _ = rewritten(model)
    inputs = feeds(model, 0)
    assert operators(result) == ["MatMul", "Add", "Relu"]
    np.testing.assert_allclose(exact(result, inputs)["y"], exact(model, inputs)["y"], rtol=2.0**-46, atol=2.0**-46)


def test_an_addition_that_aligns_its_operands_by_an_attribute_is_no_plain_sum() -> None:
    text = image(f"a = Conv {SAME} (x, w[4,4,3,3])  b = Conv(x, v[4,4,1,1])  c = Add <broadcast = 1, axis = 0> (a, z)"
                 "  d = Add(c, b)  y = Relu(d)", x="T[2,4,8,8] x, T[2] z")  # fmt: skip
    model = build(text, opset=6)
    result, report = rewritten(model)
    assert operators(result) == operators(model) and all(merge.into is None for merge in report.merges)


def test_initializers_listed_among_the_inputs_go_with_their_layer() -> None:
    """Before IR version 4 every initializer is an input too."""
    text = "(T[N,8] x, T[8,8] w, T[8,8] v) => (T[n,c] y) { a = MatMul(x, w)  b = MatMul(x, v)  y = Add(a, b) }"
    held = {name: dyadic(seeded(name), (8, 8)) for name in "wv"}
    result, _ = rewritten(build(text, ir_version=3, constants=held))
    onnx.checker.check_model(result)
    assert operators(result) == ["MatMul"] and len(result.graph.input) == 2


def test_a_shared_weight_keeps_serving_its_other_readers() -> None:
    text = (
        "(T[N,8] x) => (T[n,c] y, T[n,c] z) { a = MatMul(x, w[8,8])  b = MatMul(x, v[8,8])  y = Add(a, b)"
        "  r = Relu(x)  z = MatMul(r, w) }"
    )
    model = build(text)
    result, _ = rewritten(model)
    assert sorted(operators(result)) == ["MatMul", "MatMul", "Relu"]
    inputs = feeds(model)
    before, after = exact(model, inputs), exact(result, inputs)
    assert all(np.array_equal(before[name], after[name]) for name in "yz")
