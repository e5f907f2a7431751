"""Models that were made to mislead, to hang or to say nothing: names, sizes and files that no exporter writes."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.conftest import Outcome, conv_bn

Bnfold = Callable[..., Outcome]


@pytest.mark.parametrize("name", ["\x1b[31mred\x07", "\u202eabc\u2066", "a\0b", "one\ntwo"], ids=ascii)
def test_a_name_does_nothing_to_a_terminal(bnfold: Bnfold, tmp_path: Path, name: str) -> None:
    """It is escaped in tables and in messages, and is itself in a document."""
    proto, path = conv_bn(layers=1), tmp_path / "m.onnx"
    proto.graph.node[1].name = name
    onnx.save(proto, path)
    assert repr(name)[1:-1] in bnfold("inspect", path).out
    assert json.loads(bnfold("inspect", path, "--json").out)["batch_norms"][0]["node"] == name
    proto.graph.node[1].op_type = name
    onnx.save(proto, path)
    assert bnfold("inspect", path).err.removesuffix("\n").isprintable()


def _declared_twice(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].output[0] = proto.graph.node[0].output[0]


def _unknown_type(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = 99


def _long_operator(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].op_type = "Op" + "n" * 100_000


def _map_output(proto: onnx.ModelProto) -> None:
    """As skl2onnx's classifiers end."""
    value = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [])
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(onnx.TensorProto.INT64, value))
    proto.graph.output[0].type.CopyFrom(kind)


def _sparse(proto: onnx.ModelProto) -> None:
    weight = proto.graph.initializer.pop(0)
    values = numpy_helper.from_array(numpy_helper.to_array(weight).reshape(-1), weight.name)
    every = numpy_helper.from_array(np.arange(values.dims[0]), "indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, every, list(weight.dims)))


def _sparse_in_a_body(proto: onnx.ModelProto) -> None:
    inner = proto.graph.node.add(op_type="If", input=["c"], output=["z"])
    branch = inner.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
    branch.g.name = "body"
    branch.g.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(np.ones(1, np.float32), "w"), numpy_helper.from_array(np.zeros(1, np.int64)), [4]
        )
    )


def _located(entries: dict[str, str]) -> Callable[[onnx.ModelProto], None]:
    def at(proto: onnx.ModelProto) -> None:
        weight = proto.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in entries.items():
            weight.external_data.add(key=key, value=value)

    return at


MESSAGES = {
    "declared twice": (_declared_twice, "is redeclared"),
    "no such type": (_unknown_type, "99 is not a valid DataType"),
    "a long operator": (_long_operator, "nnn with domain_version"),
    "a map": (_map_output, "options={'zipmap': False}"),
    "sparse weights": (_sparse, "store them as dense tensors"),
    "sparse weights in a branch": (_sparse_in_a_body, "store them as dense tensors"),
    "a negative offset": (_located({"location": "w", "offset": "-8"}), "offset must be non-negative"),
    "no location": (_located({"location": ""}), "has no file: its location is ''"),
    "an impossible location": (_located({"location": "a\0b"}), "has no file: its location is 'a\\x00b'"),
    "a pipe": (_located({"location": "fifo"}), "is at 'fifo', where no regular file is"),
    "a folder": (_located({"location": "folder"}), "is at 'folder', where no regular file is"),
    "a circle": (_located({"location": "circle"}), "is at 'circle', where no regular file is"),
    "nothing there": (_located({"location": "w.bin"}), "put 'w.bin' beside the model"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_the_message_says_what_is_wrong(bnfold: Bnfold, tmp_path: Path, case: str) -> None:
    make, said = MESSAGES[case]
    proto, path = conv_bn(layers=1), tmp_path / "m.onnx"
    make(proto)
    path.write_bytes(proto.SerializeToString())
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    outcome = bnfold("inspect", path)
    assert outcome.code == 4 and said in outcome.err and str(path) in outcome.err
    assert len(outcome.err) < 600


@pytest.mark.parametrize("rows", [10**11, 10**30, 2])
def test_a_header_that_claims_more_than_there_is(bnfold: Bnfold, model_file: Path, tmp_path: Path, rows: int) -> None:
    header, path = io.BytesIO(), tmp_path / "x.npz"
    shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, 3, 8, 8)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(64))
    outcome = bnfold("verify", model_file, model_file, "--inputs", path)
    assert outcome.code == 4 and outcome.err.startswith(f"bnfold: {path}: 'x' is cut short: {rows}×3×8×8")


def test_a_model_that_runs_at_no_size_is_not_blamed_on_the_size(bnfold: Bnfold, tmp_path: Path) -> None:
    proto, path = conv_bn(), tmp_path / "m.onnx"
    proto.graph.node[0].attribute.add(name="group", type=onnx.AttributeProto.INT, i=2)
    onnx.save(proto, path)
    refused = bnfold("verify", path, path).err
    assert "for one reason" in refused and "Conv" in refused and "--dim" not in refused


def test_what_the_runtime_refuses_is_named(bnfold: Bnfold, tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["": 18]>
        g (float[2, 3] x) => (float[2, 2] y) { y = Transpose <perm = [0, 0]> (x) }"""
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    for words in (("optimize", path, "-o", tmp_path / "new.onnx"), ("verify", path)):
        outcome = bnfold(*words)
        assert outcome.code == 4 and outcome.err.startswith(f"bnfold: {path}: ONNX Runtime does not load it on cpu: No")


@pytest.mark.parametrize(("levels", "code"), [(3, 0), (40, 4)])
def test_functions_that_call_each_other_twice(bnfold: Bnfold, tmp_path: Path, levels: int, code: int) -> None:
    """40 of them would be 2^40 nodes."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    functions = []
    for level in range(levels):
        called, domain = (f"F{level - 1}", "f") if level else ("Relu", "")
        nodes = [helper.make_node(called, [x], [y], domain=domain) for x, y in (("x", "a"), ("a", "y"))]
        functions.append(helper.make_function("f", f"F{level}", ["x"], ["y"], nodes, opsets))
    proto, path = conv_bn(layers=1), tmp_path / "m.onnx"
    proto.graph.node[2].op_type, proto.graph.node[2].domain = f"F{levels - 1}", "f"
    proto.functions.extend(functions)
    proto.opset_import.append(opsets[1])
    onnx.save(proto, path)
    outcome = bnfold("inspect", path)
    assert outcome.code == code
    assert ("would be inlined more than 10,000 times" in outcome.err) == bool(code)


@pytest.mark.parametrize(
    ("opset", "changed", "kind", "folded"),
    [
        (18, ["gamma0"], "int64", 0),
        (18, ["gamma0"], "float64", 0),
        (18, ["gamma0", "beta0"], "float64", 1),
        (18, ["var0"], "float64", 0),
        (14, ["mean0", "var0"], "float64", 1),
        (14, ["gamma0", "beta0"], "float64", 0),
        (13, ["mean0", "var0"], "float64", 0),
        (13, [], "", 1),
    ],
)
def test_statistics_of_another_type(
    bnfold: Bnfold, tmp_path: Path, opset: int, changed: list[str], kind: str, folded: int
) -> None:
    """Gamma and beta are of one type, mean and variance of one; before opset 14 there is one for all."""
    proto, path = conv_bn(layers=1), tmp_path / "m.onnx"
    proto.opset_import[0].version = opset
    for tensor in proto.graph.initializer:
        if tensor.name in changed:
            array = onnx.numpy_helper.to_array(tensor).astype(kind)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, path)
    found = json.loads(bnfold("inspect", path, "--json").out)
    assert found["folded"] == folded
    assert folded or found["batch_norms"][0]["reason"] == "malformed"


def test_a_quantized_activation_says_when_to_fold(bnfold: Bnfold, tmp_path: Path) -> None:
    proto, path = conv_bn(layers=1), tmp_path / "m.onnx"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.1), "step"))
    proto.graph.node.pop()
    proto.graph.node[1].input[0], proto.graph.node[1].output[0] = "d", "y"
    proto.graph.node.insert(1, helper.make_node("QuantizeLinear", ["c0", "step"], ["q"]))
    proto.graph.node.insert(2, helper.make_node("DequantizeLinear", ["q", "step"], ["d"]))
    onnx.save(proto, path)
    found = json.loads(bnfold("inspect", path, "--json").out)["batch_norms"][0]
    assert found["detail"].startswith("the value is quantized here (") and "fold before quantizing" in found["detail"]


def test_a_long_route_is_told_by_its_ends(bnfold: Bnfold, tmp_path: Path) -> None:
    proto, path = conv_bn(layers=1), tmp_path / "m.onnx"
    moves = [
        helper.make_node("Transpose", [f"t{n}"], [f"t{n + 1}"], name=f"turn{n}", perm=[0, 1, 3, 2]) for n in range(20)
    ]
    conv, norm, relu = proto.graph.node
    conv.output[0], norm.input[0] = "t0", "t20"
    del proto.graph.node[:]
    proto.graph.node.extend([conv, *moves, norm, relu])
    onnx.save(proto, path)
    assert len(json.loads(bnfold("inspect", path, "--json").out)["batch_norms"][0]["route"]) == 21
    shown = " ".join(bnfold("inspect", path).out.split())
    assert "← turn19 ← turn18 ← turn17 ← turn16 ← … 13 more ← turn2 ← turn1 ← turn0 ← conv0" in shown


def test_a_batchnorm_on_the_way_is_no_station() -> None:
    from bnfold.folding.report import Entry, FoldReport
    from bnfold.report.tables import folds

    route, norm = ("bn1", "conv"), "BatchNormalization"
    entries = tuple(Entry(name, norm, 4, "folded", "hoist", route, ("conv",)) for name in ("bn0", "bn1"))
    table = next(iter(folds(FoldReport(entries, 0, 0, 3, 1))))
    assert [cell.text for cell in table.columns[-1].cells] == ["← conv", "← conv"]  # type: ignore[union-attr]


def test_the_environment_says_how_wide_a_pipe_is(
    bnfold: Bnfold, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns, width in (("60", 60), ("200", 200), ("wide", 120)):
        monkeypatch.setenv("COLUMNS", columns)
        proto = conv_bn(layers=1)
        proto.graph.node[1].name = "n/" * 300
        onnx.save(proto, model_file)
        assert max(map(len, bnfold("inspect", model_file).out.splitlines())) == width
