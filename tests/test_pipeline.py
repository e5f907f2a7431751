"""The steps together: what is folded is written, named, cleaned, checked and proven; what fails is survived."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import bnfold
from bnfold import graph, io, pipeline, simplify
from bnfold.errors import ModelError
from bnfold.rewrite import clean
from tests.conftest import conv_bn
from tests.graphs import build


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_optimize_folds_cleans_and_proves(model: ir.Model) -> None:
    done = bnfold.optimize(model)
    assert operators(done.model) == ["Conv", "Relu", "Conv", "Relu"]
    assert done.report.folded == 2 and done.report.kept == 0
    assert done.verdict is not None and done.verdict.status == "pass" and done.exit_code == 0
    assert (done.nodes_before, done.nodes_after) == (6, 4)
    used = {value for node in done.model.graph for value in node.inputs}
    assert set(done.model.graph.initializers.values()) <= used
    assert "2 BatchNormalization folded" in str(done)


def test_the_source_is_left_as_it_is(model: ir.Model, model_file: Path) -> None:
    before = io.digest(model)
    bnfold.inspect(model)
    bnfold.optimize(model, verify=False)
    assert io.digest(model) == before
    proto = onnx.load(model_file)
    bytes_before = proto.SerializeToString(deterministic=True)
    bnfold.optimize(proto, verify=False)
    assert proto.SerializeToString(deterministic=True) == bytes_before


@pytest.mark.parametrize("verify", [False, True])
def test_a_folded_model_is_not_the_file_that_it_came_from(model_file: Path, verify: bool) -> None:
    done = bnfold.optimize(model_file, verify=verify, verify_options={"samples": 1})
    before = io.digest(model_file)
    done.save(str(model_file))
    assert io.digest(done.model) == io.digest(model_file) != before


def test_inspect_says_what_optimize_does(model: ir.Model) -> None:
    report = bnfold.inspect(model)
    assert report.to_dict() == bnfold.optimize(model, verify=False, simplify="never").report.to_dict()


def test_a_second_run_changes_nothing(model: ir.Model) -> None:
    once = bnfold.optimize(model, verify=False)
    twice = bnfold.optimize(once.model, verify=False)
    assert twice.report.entries == () and twice.nodes_after == once.nodes_after
    assert io.digest(twice.model) == io.digest(once.model)


def test_two_runs_write_the_same_bytes(model_file: Path, tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        bnfold.optimize(model_file, verify=False).save(tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_the_interface_and_the_metadata_stay(model: ir.Model) -> None:
    model.metadata_props["owner"] = "tests"
    model.producer_name = "somebody"
    folded = bnfold.optimize(model, verify=False).model
    assert [str(v) for v in folded.graph.inputs] == [str(v) for v in model.graph.inputs]
    assert [v.name for v in folded.graph.outputs] == [v.name for v in model.graph.outputs]
    assert folded.metadata_props["owner"] == "tests" and folded.producer_name == "somebody"
    assert folded.ir_version == model.ir_version and folded.opset_imports == model.opset_imports


def test_a_model_without_batch_norm_passes(model: ir.Model) -> None:
    plain = bnfold.optimize(model, verify=False).model
    assert bnfold.optimize(plain).exit_code == 0


def test_verification_can_be_left_out(model: ir.Model) -> None:
    done = bnfold.optimize(model, verify=False)
    assert done.verdict is None and done.exit_code == 0 and done.to_dict()["verdict"] is None


def test_verification_sees_a_fold_gone_wrong(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    original = pipeline.rewrite

    def broken(model: ir.Model, **options: Any) -> Any:
        report = original(model, **options)
        name, value = next((n, v) for n, v in model.graph.initializers.items() if v.const_value.shape.rank() == 4)
        array = value.const_value.numpy().copy()
        array[1] *= 1.01
        value.const_value = ir.tensor(array, name=name)
        return report

    monkeypatch.setattr(pipeline, "rewrite", broken)
    assert bnfold.optimize(model).exit_code == 1


def test_external_data_stays_external(tmp_path: Path) -> None:
    onnx.save(conv_bn(channels=32), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    out = tmp_path / "out"
    out.mkdir()
    done = bnfold.optimize(tmp_path / "m.onnx")
    assert done.exit_code == 0
    done.save(out / "folded.onnx")
    assert len(list(out.iterdir())) == 2
    assert bnfold.verify(tmp_path / "m.onnx", out / "folded.onnx").status == "pass"


def test_progress_names_the_steps(model: ir.Model) -> None:
    steps: list[str] = []
    bnfold.optimize(model, verify=False, progress=steps.append)
    assert steps == ["loading", "simplifying", "folding", "checking"]


CONSTANTS = """
    <ir_version: 9, opset_import: ["": 18]>
    g (float[n, 4] x) => (float[n, 4] y) {
        a = Constant <value = float[4] {1, 2, 3, 4}> ()
        b = Exp (a)
        c = Sin (b)
        d = Cos (c)
        m = Mul (x, d)
        y = Tanh (m)
    }"""


@pytest.fixture
def constants() -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(CONSTANTS))


def test_simplify_is_skipped_where_it_has_nothing_to_do(model: ir.Model, constants: ir.Model) -> None:
    assert simplify.constant_nodes(model) == 0
    assert simplify.constant_nodes(constants) == 3
    for each in (model, constants):
        same, report = simplify.simplify(each)
        assert same is each and report.status == "skipped" and report.reason == "the graph is small"


@pytest.mark.parametrize(("sizes", "status"), [("N, 4, 6", "done"), ("N, C, W", "skipped")])
def test_simplify_looks_for_sizes_that_are_known(sizes: str, status: str) -> None:
    moves = "".join(f"r{i} = Relu(r{i - 1})  " for i in range(1, simplify.SMALL_NODES))
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        agraph (float[{sizes}] x) => (float[M, K] y)
        <int64[1] rest = {{-1}}, int64[1] one = {{1}}, int64[1] two = {{2}}> {{
            s = Shape (x)
            c = Slice (s, one, two)
            t = Concat <axis = 0> (rest, c)
            r0 = Reshape (x, t)
            {moves}
            y = Identity (r{simplify.SMALL_NODES - 1})
        }}""")
    simpler, report = simplify.simplify(ir.from_proto(model))
    assert report.status == status, report.reason
    assert ("Shape" in operators(simpler)) == (status == "skipped")


def test_simplify_folds_constants_in_a_child(constants: ir.Model) -> None:
    constants.metadata_props["owner"] = "tests"
    simpler, report = simplify.simplify(constants, "always")
    assert report.status == "done", report.reason
    assert operators(simpler)[-2:] == ["Mul", "Tanh"] and report.nodes_after < report.nodes_before
    assert simpler.metadata_props["owner"] == "tests"
    assert "onnxsim" not in sys.modules
    assert len(io.digest(simpler)) == 64  # its file is gone


def test_simplify_does_not_compute_with_a_size_of_minus_one() -> None:
    text = """<ir_version: 8, opset_import: ["": 13]> g (float[N,3] x) => (float[M,3] y)
        <int64[1] first = {0}, int64[1] ones = {1}, float[1,3] row = {1, 2, 3}> {
        shape = Shape (x) rows = Gather (shape, first)
        repeats = Concat <axis = 0> (rows, ones) y = Tile (row, repeats) }"""
    model = io.load(onnx.parser.parse_model(text))
    model.graph.inputs[0].shape = ir.Shape([-1, 3])
    simpler, _ = simplify.simplify(model, "always")
    assert [list(value.shape or ()) for value in simpler.graph.inputs] == [[-1, 3]]
    tile = next(node for node in simpler.graph if node.op_type == "Tile")
    assert graph.const(tile.inputs[1]) is None


def test_simplify_leaves_the_folding_to_us(model: ir.Model) -> None:
    simpler, report = simplify.simplify(model, "always")
    assert report.status == "done", report.reason
    assert operators(simpler) == operators(model)


def test_simplify_changes_nothing_around_the_graph() -> None:
    """A constant product in front of a Mul behind a Conv: it becomes one constant, and the Mul stays for the fold."""
    model = build("""(T[batch,3,height,width] picture) => (T[batch,c,h,w] logits, T[i,j,k,l] other) {
        [conv] a = Conv(picture, w[4,3,3,3])  k = Mul(s[4,1,1], t[1,4,1,1])  [mul] logits = Mul(a, k)
        [custom] other = shop.Wrap <kind = "x"> (a) }""", domains=', "shop" : 3', checked=False)
    model.producer_name, model.doc_string, model.graph.doc_string = "maker", "read me", "of the graph"
    model.metadata_props.add(key="labels", value="cat,dog")
    model.graph.input[0].doc_string, model.graph.output[0].doc_string = "of the input", "of the output"
    model.graph.input[0].type.denotation = "IMAGE"
    model.graph.node[0].doc_string = "of the node"
    model.graph.node[0].metadata_props.add(key="origin", value="features.0")
    simpler, report = simplify.simplify(ir.from_proto(model), "always")
    assert report.status == "done", report.reason
    result = ir.to_proto(simpler)
    assert [node.op_type for node in result.graph.node] == ["Conv", "Mul", "Wrap"]
    model = ir.to_proto(ir.from_proto(model))
    assert result.graph.node[0] == model.graph.node[0]
    for name in ("ir_version", "producer_name", "doc_string", "opset_import", "metadata_props"):
        assert getattr(result, name) == getattr(model, name), name
    for name in ("input", "output", "doc_string"):
        assert getattr(result.graph, name) == getattr(model.graph, name), name


def _crash(command: list[str], **options: Any) -> Any:
    return subprocess.CompletedProcess(command, -11, "", "")


def _fail(command: list[str], **options: Any) -> Any:
    return subprocess.CompletedProcess(command, 1, "", "Traceback\nRuntimeError: unlucky")


def _hang(command: list[str], **options: Any) -> Any:
    raise subprocess.TimeoutExpired(command, options["timeout"])


def _nonsense(command: list[str], **options: Any) -> Any:
    Path(command[4]).write_text("nonsense")
    return subprocess.CompletedProcess(command, 0, "", "")


def _other_interface(command: list[str], **options: Any) -> Any:
    proto = onnx.load(command[3])
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "renamed"
    onnx.save(proto, command[4])
    return subprocess.CompletedProcess(command, 0, "", "")


@pytest.mark.parametrize(
    ("child", "said"),
    [
        (_crash, "killed by signal 11"),
        (_fail, "unlucky"),
        (_hang, "did not finish within 300 s"),
        (_nonsense, "refused"),
        (_other_interface, "the model's outputs changed"),
    ],
)
def test_a_simplifier_that_fails_is_survived(
    model: ir.Model, monkeypatch: pytest.MonkeyPatch, child: Callable[..., Any], said: str
) -> None:
    monkeypatch.setattr(simplify.subprocess, "run", child)
    done = bnfold.optimize(model, simplify="always", verify=False)
    assert done.simplified.status == "failed" and said in done.simplified.reason
    assert done.report.folded == 2


def test_a_simplifier_that_really_hangs_is_stopped(constants: ir.Model) -> None:
    same, report = simplify.simplify(constants, "always", timeout=0.05)
    assert same is constants and report.status == "failed" and report.seconds < 5


def test_overridable_initializers_survive_simplification() -> None:
    """Those that nothing reads too: a caller may still feed them."""
    text = CONSTANTS.replace("x) =>", "x, float[4] read, float[4] unread) =>").replace("Tanh (m)", "Add (m, read)")
    proto = onnx.parser.parse_model(text)
    for name in ("read", "unread"):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), name))
    simpler, report = simplify.simplify(ir.from_proto(proto), "always")
    assert report.status == "done", report.reason
    assert operators(simpler)[-2:] == ["Mul", "Add"] and report.nodes_after < report.nodes_before
    assert [v.name for v in simpler.graph.inputs] == ["x", "read", "unread"]
    assert set(simpler.graph.initializers) >= {"read", "unread"}


def test_a_result_that_the_checker_refuses_is_not_returned(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    original = pipeline.rewrite

    def broken(model: ir.Model, **options: Any) -> Any:
        report = original(model, **options)
        next(iter(model.graph)).op_type = "Convolve"
        return report

    monkeypatch.setattr(pipeline, "rewrite", broken)
    with pytest.raises(Exception, match="Convolve") as caught:
        bnfold.optimize(model, verify=False)
    assert not isinstance(caught.value, ModelError)  # our fault, not the user's


def test_clean_keeps_what_is_used(model: ir.Model) -> None:
    model.graph.register_initializer(ir.Value(name="dead", const_value=ir.tensor(np.ones(3, np.float32), name="dead")))
    clean(model)
    assert "dead" not in model.graph.initializers and len(operators(model)) == 6
