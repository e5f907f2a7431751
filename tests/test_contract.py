"""What a fold may not change, what it writes down, and that it does both alike in every process."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from bnfold.folding.fold import fold
from bnfold.folding.report import FOLD_MAP
from bnfold.rules.base import Reason
from tests.conftest import REPOSITORY
from tests.graphs import at_runtime, build, exact, feeds, folded, operators
from tests.random_graphs import random_model

_MODEL = """(T[batch,3,height,width] picture) => (T[batch,c,h,w] logits, T[i,j,k,l] other) {
    [conv] a = Conv <pads = [1,1,1,1]> (picture, w[4,3,3,3])  [bn] b = BN(a, A.4)  [relu] r = Relu(b)
    [second] d = Conv(r, v[2,4,1,1])  [bn2] logits = BN(d, B.2)  [custom] other = shop.Wrap <kind = "x"> (r) }"""


@pytest.fixture
def annotated() -> onnx.ModelProto:
    """A model with everything around its graph that a deployment may rely on."""
    model = build(_MODEL, domains=', "shop" : 3', checked=False)
    model.producer_name, model.producer_version, model.doc_string, model.model_version = "maker", "7", "read me", 12
    model.domain = "example.org"
    model.metadata_props.add(key="labels", value="cat,dog")
    model.graph.doc_string = "of the graph"
    model.graph.input[0].doc_string = "of the input"
    model.graph.output[0].doc_string = "of the output"
    model.graph.input[0].type.denotation = "IMAGE"
    model.graph.node[0].doc_string = "of the node"
    model.graph.value_info.append(helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, ["batch", 4, "h1", "w1"]))
    return model


def test_everything_around_the_graph_survives(annotated: onnx.ModelProto) -> None:
    result, report = folded(annotated)
    assert report.folded == 2
    assert list(result.graph.input) == list(annotated.graph.input)
    assert list(result.graph.output) == list(annotated.graph.output)
    assert list(result.opset_import) == list(annotated.opset_import)
    for name in ("ir_version", "producer_name", "producer_version", "doc_string", "model_version", "domain"):
        assert getattr(result, name) == getattr(annotated, name), name
    assert result.graph.doc_string == "of the graph"
    assert {entry.key: entry.value for entry in result.metadata_props}["labels"] == "cat,dog"
    nodes = {node.name: node for node in result.graph.node}
    assert list(nodes) == ["conv", "relu", "second", "custom"]
    assert nodes["conv"].doc_string == "of the node"
    custom = nodes["custom"]
    assert (custom.domain, custom.op_type, custom.attribute[0].s, list(custom.input)) == ("shop", "Wrap", b"x", ["r"])
    assert "r" in {value.name for value in result.graph.value_info}


def test_an_operator_of_another_domain_is_a_barrier_whatever_its_name() -> None:
    text = "(T[N,3,6,6] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])  d = shop.Relu(a)  y = BN(d, A.4) }"
    model = build(text, domains=', "shop" : 3', checked=False)
    model.graph.value_info.append(helper.make_tensor_value_info("d", onnx.TensorProto.FLOAT, ["N", 4, 4, 4]))
    result, report = folded(model)
    assert operators(result) == ["Conv", "Relu", "BatchNormalization"]
    assert (report.entries[0].reason, report.entries[0].blocking) == (Reason.BARRIER, "d")


def test_the_fold_map_says_what_became_of_what() -> None:
    model = build(_MODEL.replace("shop.Wrap <kind = \"x\">", "Neg"))
    result, _ = folded(model)
    content = json.loads({entry.key: entry.value for entry in result.metadata_props}[FOLD_MAP])
    assert content["version"] == 1
    first, second = content["folds"]
    assert (first["judgement"], first["removed"], first["route"]) == ("hoist", ["bn"], ["conv"])
    assert second["removed"] == ["bn2"]
    stored = {tensor.name for tensor in result.graph.initializer}
    for edit in (*first["edits"], *second["edits"]):
        assert edit["new"] in stored and edit["formula"] and edit["node"] in ("conv", "second")
    assert {(edit["old"], edit["new"]) for edit in first["edits"]} == {("w", "w_folded"), ("", "a_folded")}


def test_a_later_fold_adds_to_the_map() -> None:
    model = build("(T[N,3,6,6] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])  y = BN(a, A.4) }")
    result, _ = folded(model)
    # Somebody appends a BatchNormalization to the folded model and folds again.
    result.graph.node.append(helper.make_node("BatchNormalization", ["y", "g", "g", "g", "g"], ["z"], name="later"))
    result.graph.initializer.append(numpy_helper.from_array(np.arange(1, 5, dtype=np.float32), "g"))
    result.graph.output[0].name = "z"
    again, report = folded(result)
    assert report.folded == 1
    content = json.loads({entry.key: entry.value for entry in again.metadata_props}[FOLD_MAP])
    assert [entry["removed"] for entry in content["folds"]] == [["y"], ["later"]]


def test_a_broken_fold_map_is_replaced() -> None:
    model = build("(T[N,3,6,6] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])  y = BN(a, A.4) }")
    model.metadata_props.add(key=FOLD_MAP, value="{not json")
    result, _ = folded(model)
    content = json.loads({entry.key: entry.value for entry in result.metadata_props}[FOLD_MAP])
    assert len(content["folds"]) == 1


def test_reason_codes_are_distinct_and_each_has_a_hint() -> None:
    codes = [reason.code for reason in Reason]
    assert len(set(codes)) == len(codes)
    assert all(reason.hint and reason.code == reason.code.lower() for reason in Reason)


def test_every_reason_and_every_formula_is_documented() -> None:
    """The table of codes is the enum's, in its order; no formula that the rules write is missing."""
    text = (REPOSITORY / "docs" / "folding.md").read_text(encoding="utf-8")
    reasons = text.partition("## Reasons")[2].partition("## The fold map")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| .+ \| (.+) \|$", reasons, re.MULTILINE)
    assert rows == [(reason.code, reason.hint) for reason in Reason]
    sources = [*(REPOSITORY / "bnfold" / "rules").glob("*.py"), REPOSITORY / "bnfold" / "folding" / "plan.py"]
    formula = re.compile(r'"(s·[a-zA-Z](?: \+ t)?|W·s|b \+ ΣW·t|\(v − t\)/s|~[qz] where s < 0|the axis of s)"')
    written = {found for path in sources for found in formula.findall(path.read_text(encoding="utf-8"))}
    assert len(written) == 10
    assert [each for each in sorted(written) if f"`{each}`" not in text] == []


def test_the_report_counts_and_lists_in_graph_order() -> None:
    text = (
        "(T[N,3,6,6] x) => (T[n,c,h,w] y, T[i,j,k,l] z) { [first] a = BN(x, A.3)"
        "  b = Conv <pads = [1,1,1,1]> (a, w[4,3,3,3])  [middle] c = BN(b, B.4)  y = Sigmoid(c)"
        "  [last] z = BN(y, D.4) }"
    )
    report = folded(build(text))[1]
    assert [entry.node for entry in report.entries] == ["first", "middle", "last"]
    assert [entry.status for entry in report.entries] == ["kept", "folded", "kept"]
    assert [entry.channels for entry in report.entries] == [3, 4, 4]
    first, middle, _ = (entry.to_dict() for entry in report.entries)
    assert (first["reason"], first["blocking"]) == ("padding", "a") and first["hint"]
    assert (middle["judgement"], middle["reason"], middle["hint"]) == ("hoist", None, None)
    assert report.to_dict()["folded"] == report.folded == 1
    assert json.dumps(report.to_dict())
    assert str(report) == "1 BatchNormalization folded, 2 kept; 0 other affines absorbed"


@pytest.mark.parametrize(
    "text",
    [
        "(T[N,4,6] x) => (T[n,c,w] y) { y = BN(x, A.4) }",
        "(T[N,4,6] x) => (T[N,4,6] x, T[n,c,w] y) { a = BN(x, A.4)  y = BN(a, B.4) }",
        "(T[N,4,6] x) => (T[n,c,w] y, T[i,j,k] a) { a = Conv(x, w[4,4,1])  b = BN(a, A.4)  y = BN(b, B.4) }",
        "(T[N,4,6] x) => (T[n,c,w] y, T[i,j,k] b) { a = Conv(x, w[4,4,1])  b = BN(a, A.4)  y = BN(b, B.4) }",
        "(T[N,4,6] x) => (T[n,c,w] a, T[i,j,k] y) { a = BN(x, A.4)  y = Conv(a, w[4,4,1]) }",
        "(T[N,4,6] x) => (T[n,c,w] y) { a = Mul(x, 2.0)  y = Mul(a, 0.5) }",
        "(T[N,4,6] x) => (T[n,c,w] y) { a = Relu(x)  b = Neg(a)  y = Neg(b) }",
    ],
)
def test_values_at_the_border_of_the_graph(text: str) -> None:
    """Inputs that are outputs, outputs in the middle of a chain, affines that cancel: names and numbers stay."""
    model = build(text)
    result, _ = folded(model)
    onnx.checker.check_model(result, full_check=True)
    assert list(result.graph.output) == list(model.graph.output)
    inputs = feeds(model)
    before, after = exact(model, inputs, every=True), exact(result, inputs, every=True)
    assert all(np.array_equal(after[name], before[name]) for name in before.keys() & after.keys())
    ours, theirs = at_runtime(result, inputs), at_runtime(model, inputs)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_an_output_listed_twice() -> None:
    model = build("(T[N,3,6,6] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])  y = BN(a, A.4) }")
    twin = ir.from_proto(model)
    twin.graph.outputs.append(twin.graph.outputs[0])
    fold(twin)
    assert [value.name for value in twin.graph.outputs] == ["y", "y"]
    assert [node.op_type for node in twin.graph] == ["Conv"]


def test_a_new_output_keeps_the_shape_that_was_inferred() -> None:
    """The declared shape of an output may be unknown: what is planned after a fold must not see less than before it."""
    model = build("""(T[N,4,6,6] x) => (T[a,b,c,d] y, T[e,f,g,h] z) {
        a = Neg(x)  y = BN0(a, A.4)  e = Div(x, k[4,1,1])  f = Concat <axis = 1> (e, y)  z = BN0+(f, B.8) }""")
    for value in model.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    result, report = folded(model)
    assert (report.folded, report.affines) == (2, 2)
    assert folded(result)[0].SerializeToString() == result.SerializeToString()


def test_what_a_remainder_tells_of_a_shape_is_used_at_once() -> None:
    """Without it a second run would find more than the first."""
    model = build("""(T[N,channels,4,4] x) => (T[n,c,h,w] y) {
        a = BN0(x, A.4)  b = SpaceToDepth <blocksize = 2> (a)  y = BN(b, B.16) }""")
    result, report = folded(model)
    assert report.folded == 2 and "BatchNormalization" not in operators(result)
    assert folded(result)[0].SerializeToString() == result.SerializeToString()


def test_nothing_is_left_to_compute_before_opset_7() -> None:
    """A Mul of opset 6 broadcasts only where an attribute says along which axis."""
    text = """(T[N,4,6,6] x) => (T[n,c,h,w] y) {
        a = AveragePool <kernel_shape = [2,2]> (x)  y = BN0(a, A.4, is_test=1) }"""
    result, report = folded(build(text, opset=6))
    assert operators(result) == ["AveragePool", "BatchNormalization"]
    assert [entry.reason for entry in report.entries] == [Reason.BARRIER]
    assert folded(build(text.replace(", is_test=1", ""), opset=7))[1].folded == 1


def test_ir_version_3_lists_its_initializers() -> None:
    """There every initializer is among the inputs, as a constant: new ones join, old ones leave."""
    model = build("(T[N,3,6,6] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])  y = BN(a, A.4) }", opset=9, ir_version=3,
                  checked=False)  # fmt: skip
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    result, report = folded(model)
    onnx.checker.check_model(result)
    assert report.folded == 1
    stored = {tensor.name for tensor in result.graph.initializer}
    assert {value.name for value in result.graph.input} == stored | {"x"}
    assert operators(result) == ["Conv"]


_DIGEST = """
import hashlib, sys
from tests.graphs import folded
from tests.random_graphs import random_model
digest = hashlib.sha256()
for seed in range(12):
    digest.update(folded(random_model(seed, "float"))[0].SerializeToString(deterministic=True))
print(digest.hexdigest())
"""


def test_bytes_do_not_depend_on_the_process() -> None:
    """Another order of hashing, another process: the same bytes."""
    digest = hashlib.sha256()
    for seed in range(12):
        digest.update(folded(random_model(seed, "float"))[0].SerializeToString(deterministic=True))
    for hashing in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashing}
        command = [sys.executable, "-c", _DIGEST]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == digest.hexdigest()


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_a_product_that_is_one_but_for_its_last_bit_is_no_product(dtype: str) -> None:
    """49·(1/49) is less than one in float64 and one in every narrower type: it goes at once, not in the second run."""
    text = "(T[N,4] x) => (T[n,c] y) { a = Mul(x, k)  b = Relu(a)  d = Div(b, k)  y = Softplus(d) }"
    model = build(text, dtype=dtype, constants={"k": np.array([49.0, 3.0, 10.0, 41.0])})
    result, report = folded(model)
    assert operators(result) == ["Relu", "Softplus"] and report.affines == 2
    assert folded(result)[0].SerializeToString() == result.SerializeToString()


@pytest.mark.parametrize("call", ["Clip(a, -1., 6.)", "Pad(a, {0,0,1,1,0,0,1,1}, 1.5)"])
@pytest.mark.parametrize(
    ("body", "formula"),
    [
        ("a = Conv(x, w[4,4,1,1])  d = CALL  y = BN1(d, A.4)", "s·v + t"),
        ("a = BN1(x, A.4)  d = CALL  y = Conv(d, w[4,4,1,1])", "(v − t)/s"),
    ],
)
def test_the_fold_map_says_how_a_bound_was_mapped(body: str, formula: str, call: str) -> None:
    result, _ = folded(build(f"(T[N,4,6,6] x) => (T[n,c,h,w] y) {{ {body.replace('CALL', call)} }}"))
    content = json.loads({entry.key: entry.value for entry in result.metadata_props}[FOLD_MAP])
    assert {edit["formula"] for edit in content["folds"][0]["edits"] if edit["node"] == "d"} == {formula}


_AROUND = "(T[N,4,6,6] x, T[4,4,3,3] k, T v) => (T[n,c,h,w] y) "


@pytest.mark.parametrize(
    ("body", "reason", "blocking"),
    [
        ("y = BN(x, A.4)", "graph-input", "x"),
        ("a = Softplus(x)  y = BN(a, A.4)", "barrier", "a"),
        ("a = BN(x, A.4)  y = Softplus(a)", "barrier", "y"),
        ("a = com.microsoft.Gelu(x)  y = BN(a, A.4)", "not-floating", "a"),
        ("a = Conv(x, w[4,4,1,1])  y = BN(a, A.4, training_mode=1)", "training-mode", "y"),
        ("a = Conv(x, w[4,4,1,1])  y, m, q = BN(a, A.4)", "training-mode", "y"),
        ("a = Reshape(x, {-1})  y = BN(a, A.1)", "unknown-shape", "a"),
        ("a = Conv(x, k)  y = BN(a, A.4)", "variable-operand", "k"),
        ("a = Conv(x, w[4,4,1,1])  d = Clip(a, v)  y = BN1(d, A.4)", "variable-operand", "v"),
        ("a = Conv(x, w[4,4,1,1])  d = Pad(a, {0,0,1,1,0,0,1,1}, v)  y = BN1(d, A.4)", "variable-operand", "v"),
        ("a = Conv(x, w[4,4,1,1])  d = Relu(a)  y = BN(d, A.4)", "negative-scale", "d"),
        ("a = BN(x, A.4)  y = Conv <pads = [1,1,1,1]> (a, w[2,4,3,3])", "padding", "a"),
        ("a = BN(x, A.4)  y = Conv(a, k)", "variable-operand", "k"),
        ("u = ReduceMax <axes = [0,2,3]> (x)  e = Squeeze(u)  a = BN(x, A.4)  y = Conv(a, w[4,4,3,3], e)",
         "variable-operand", "e"),
        ("a = BN(x, A.4)  d = Relu(a)  y = Conv(d, w[2,4,1,1])", "shift-blocked", "a"),
        ('a = BN(x, A.4)  y = Einsum <equation = "abcc,abcd->abcd"> (a, x)', "barrier", "y"),
    ],
)  # fmt: skip
def test_what_is_kept_says_why_and_where(body: str, reason: str, blocking: str) -> None:
    (entry,) = folded(build(_AROUND + f"{{ {body} }}", domains=', "com.microsoft" : 1'))[1].entries
    assert (entry.reason and entry.reason.code, entry.blocking) == (reason, blocking)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ("a = Conv(x, w[4,4,1,1])  u = Sigmoid(a)  y = BN(a, A.4)", "also read by Sigmoid "),
        ("a = Conv(x, w[4,4,1,1])  u = BN(a, B.4)  y = BN(a, A.4)", "also read by BatchNormalization "),
        ("a = Softplus(x)  u = Identity(x)  y = BN(a, A.4)", "no law for ai.onnx::Softplus"),
        ("a = QuantizeLinear(x, 0.5)  u = Identity(x)  d = DequantizeLinear(a, 0.5)  y = BN(d, A.4)",
         "the value is quantized here (DequantizeLinear); fold before quantizing"),
        ("a = shop.Relu(x)  u = Identity(x)  y = BN(a, A.4)", "no law for shop::Relu"),
        ("a = shop.DequantizeLinear(x)  u = Identity(x)  y = BN(a, A.4)", "no law for shop::DequantizeLinear"),
    ],
)  # fmt: skip
def test_what_is_kept_says_what_is_in_the_way(body: str, detail: str) -> None:
    text = f"(T[N,4,6,6] x) => (T[n,c,h,w] y, T[i,j,k,l] u) {{ {body} }}"
    model = build(text, domains=', "shop" : 3', checked=False)
    model.graph.value_info.append(helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, ["N", 4, "h", "w"]))
    assert {entry.detail for entry in folded(model)[1].entries} == {detail}


@pytest.mark.parametrize("op", ["Mul", "Div"])
def test_arithmetic_on_integers_is_no_affine(op: str) -> None:
    model = build(f"(int64[N] x) => (int64[n] y) {{ a = {op}(x, {{3}})  y = Mul(a, {{3}}) }}")
    assert operators(folded(model)[0]) == [op, "Mul"]


def test_what_is_met_on_a_route_goes_with_it() -> None:
    text = """(T[N,3,6,6] x) => (T[n,c,h,w] y) {
        a = Conv(x, w[4,3,3,3])  [mul] d = Mul(a, k[4,1,1])  [bn] y = BN(d, A.4) }"""
    content = json.loads({e.key: e.value for e in folded(build(text))[0].metadata_props}[FOLD_MAP])
    assert [fold["removed"] for fold in content["folds"]] == [["bn", "mul"]]


def test_what_cancels_leaves_the_weights_alone() -> None:
    text = """(T[N,3,6,6] x) => (T[n,c,h,w] y, T[i,j,k,l] z) {
        a = Neg(x)  b = Neg(a)  y = Conv(b, w[4,3,3,3])  z = Sigmoid(a) }"""
    result, report = folded(build(text))
    assert (operators(result), report.affines) == (["Mul", "Conv", "Sigmoid"], 2)
    assert [tensor.name for tensor in result.graph.initializer] == ["w", "a_scale"]
    content = json.loads({entry.key: entry.value for entry in result.metadata_props}[FOLD_MAP])
    assert [fold["route"] for fold in content["folds"]] == [["b"]]


def test_the_first_operand_that_can_takes_the_shift() -> None:
    """Another could take a product on its way along, which goes by itself."""
    constants = {"A_gamma": np.ones(4), "A_var": np.full(4, 1.0 - 0.0625)}
    text = """(T[N,3,6,6] x, T[N,3,6,6] z) => (T[n,c,h,w] y) {
        [first] a = Conv(x, w[4,3,1,1])  [second] b = Conv(z, v[4,3,1,1])  d = Mul(b, k[4,1,1])  e = Add(a, d)
        y = BN(e, A.4) }"""
    result, _ = folded(build(text, constants=constants))
    content = json.loads({e.key: e.value for e in result.metadata_props}[FOLD_MAP])
    assert operators(result) == ["Conv", "Conv", "Add"]
    assert [[edit["node"] for edit in fold["edits"]] for fold in content["folds"]] == [["first"], ["second"]]


@pytest.mark.parametrize(("dtype", "factor", "left"), [("float", "0.3", 0), ("double", "0.3", 1), ("double", "0.5", 0)])
def test_an_attribute_is_a_float32_whatever_the_values_are(dtype: str, factor: str, left: int) -> None:
    text = f"""(T[N,3,6,6] x) => (T[n,c,h,w] y) {{
        a = Conv(x, w[4,3,1,1])  b = Clip <min = -0.7, max = 0.9> (a)  y = Mul(b, {factor}) }}"""
    result, _ = folded(build(text, dtype=dtype, opset=10, checked=False))
    assert operators(result) == ["Conv", "Clip"] + left * ["Mul"]
    if not left:
        content = json.loads({entry.key: entry.value for entry in result.metadata_props}[FOLD_MAP])
        assert {edit["old"][:4] for edit in content["folds"][0]["edits"] if edit["node"] == "b"} == {"-0.6", "0.89"}


@pytest.mark.parametrize(
    ("body", "blocking"),
    [
        ("a = Conv(x, w[4,4,1,1])  y = BN(a, A.4)", "w"),
        ("a = Conv(x, v, k)  y = BN(a, B.4)", "k"),
        ("a = Conv(x, w[4,4,1,1])  y = BN(a, C.4)", "a"),
        ("a = Conv(x, w[4,4,1,1])  d = Mul(a, x)  y = BN(d, C.4)", "d"),
    ],
)  # fmt: skip
def test_what_does_not_fit_its_type_is_named(body: str, blocking: str) -> None:
    """A weight, a bias, one that was not there, and what would be left to compute."""
    large, unit = np.full(4, 6e4), {"gamma": np.ones(4), "var": np.full(4, 1.0 - 0.0625)}
    constants = {
        "A_gamma": large, "k": large, "v": np.ones((4, 4, 1, 1)),
        **{f"{name}_{part}": array for name in "BC" for part, array in unit.items()},
        "B_beta": large, "B_gamma": np.full(4, 2.0), "C_beta": large, "C_mean": -large,
    }  # fmt: skip
    model = build(f"(T[N,4,6,6] x) => (T[n,c,h,w] y) {{ {body} }}", dtype="float16", constants=constants)
    (entry,) = folded(model)[1].entries
    assert (entry.reason, entry.blocking) == (Reason.RANGE, blocking)


def test_company_is_sought_nearby() -> None:
    """A source on the way to the other operand joins, but not from behind 32 nodes."""
    for count, left in ((31, 0), (32, 2)):
        chains = "".join(f"{v}{k + 1} = Identity({v}{k})  " for k in range(count) for v in "ab")
        model = build(f"""(T[N,4,6,6] x, T[N,4,6,6] z, bool[N,1,1,1] p) => (T[n,c,h,w] y) {{
            a0 = BN(x, A.4)  b0 = BN(z, A.4)  {chains}  d = Where(p, a{count}, b{count})  y = Conv(d, w[2,4,3,3]) }}""")
        assert operators(folded(model)[0]).count("BatchNormalization") == left
