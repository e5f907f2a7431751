"""Reading and writing: what a model file may lack, and that a write is all or nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import bnfold
from bnfold import files, io
from bnfold.derived import release
from bnfold.errors import ModelError, OutputError
from bnfold.graph import external_tensors, tensors, total_bytes
from bnfold.graph.skeleton import check, skeleton
from tests.conftest import conv_bn
from tests.graphs import build


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def same(a: ir.Model, b: ir.Model) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def external(path: Path, location: str = "weights.bin") -> Path:
    onnx.save(conv_bn(channels=32), path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def listing(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("kind", [str, Path, onnx.load, io.load], ids=["str", "Path", "ModelProto", "ir.Model"])
def test_load_takes_every_kind_of_source(model_file: Path, kind: Callable[[Path], io.Source]) -> None:
    assert same(io.load(kind(model_file)), ir.from_proto(conv_bn()))


def test_load_takes_nothing_else() -> None:
    with pytest.raises(TypeError, match="not int"):
        io.load(3)  # type: ignore[arg-type]


def test_a_relative_path_finds_its_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    external(tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    assert same(io.load("m.onnx"), ir.from_proto(conv_bn(channels=32)))


def test_external_tensors_stay_memory_mapped(tmp_path: Path) -> None:
    model = io.load(external(tmp_path / "m.onnx"))
    assert any(external_tensors(model))
    assert all(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values())


def test_a_mapped_tensor_that_is_still_looked_at_is_released_later(tmp_path: Path) -> None:
    value = next(iter(io.load(external(tmp_path / "model.onnx")).graph.initializers.values()))
    tensor = value.const_value
    assert isinstance(tensor, ir.ExternalTensor)
    seen = tensor.numpy()
    before = seen.copy()
    release(tensor)
    np.testing.assert_array_equal(seen, before)
    np.testing.assert_array_equal(tensor.numpy(), before)


def test_a_proto_with_external_data_has_no_folder_to_look_in(tmp_path: Path) -> None:
    proto = onnx.load(external(tmp_path / "m.onnx"), load_external_data=False)
    with pytest.raises(ModelError, match="pass the model's path instead"):
        io.load(proto)


def _escape_by_dots(path: Path, data: Path) -> str:
    return f"../{data.name}"


def _escape_by_root(path: Path, data: Path) -> str:
    return str(data)


def _escape_by_link(path: Path, data: Path) -> str:
    path.with_name("link.bin").symlink_to(data)
    return "link.bin"


@pytest.mark.parametrize("escape", [_escape_by_dots, _escape_by_root, _escape_by_link])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, escape: Callable[[Path, Path], str]) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = external(folder / "m.onnx")
    data = (folder / "weights.bin").rename(tmp_path / "secret.bin")
    proto = onnx.load(path, load_external_data=False)
    location = escape(path, data)
    for tensor in proto.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        io.load(path)


def test_external_data_in_a_hard_link_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path / "m.onnx")
    os.link(tmp_path / "weights.bin", tmp_path / "twin.bin")
    with pytest.raises(ModelError, match="hard links; make a plain copy"):
        io.load(path)


def test_external_data_cut_short_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path / "m.onnx")
    os.truncate(tmp_path / "weights.bin", 100)
    with pytest.raises(ModelError, match=r"cut short: 'weights\.bin' has 100 of"):
        io.load(path)


def test_save_and_load_keep_everything(model: ir.Model, tmp_path: Path) -> None:
    model.metadata_props["owner"] = "tests"
    io.save(model, tmp_path / "a.onnx")
    again = io.load(tmp_path / "a.onnx")
    assert same(model, again)
    assert again.metadata_props == {"owner": "tests"}
    assert listing(tmp_path) == ["a.onnx"]


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        io.save(ir.from_proto(conv_bn()), tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert io.digest(tmp_path / "a.onnx") == io.digest(ir.from_proto(conv_bn()))
    assert io.digest(ir.from_proto(conv_bn(seed=1))) != io.digest(ir.from_proto(conv_bn()))


def test_digest_covers_the_external_data(tmp_path: Path) -> None:
    path = external(tmp_path / "m.onnx")
    before = io.digest(path)
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert io.digest(path) != before


def test_external_data_stays_external_and_leaves_no_stale_file(tmp_path: Path) -> None:
    model = io.load(external(tmp_path / "m.onnx"))
    out = tmp_path / "out"
    out.mkdir()
    io.save(model, out / "m.onnx")
    first = listing(out)
    assert len(first) == 2 and first[1].startswith("m.onnx.") and first[1].endswith(".data")
    io.save(model, out / "m.onnx")
    assert listing(out) == first
    assert same(io.load(out / "m.onnx"), model)

    name, value = next(iter(model.graph.initializers.items()))
    value.const_value = ir.tensor(np.ones(value.const_value.shape.numpy(), np.float32), name=name)
    io.save(model, out / "m.onnx")
    assert len(listing(out)) == 2 and listing(out) != first
    assert same(io.load(out / "m.onnx"), model)

    io.save(model, out / "m.onnx", external=False)
    assert listing(out) == ["m.onnx"]
    assert same(io.load(out / "m.onnx"), model)


def test_a_model_can_be_written_over_itself(tmp_path: Path) -> None:
    io.save(io.load(external(tmp_path / "source.onnx")), tmp_path / "m.onnx")
    model = io.load(tmp_path / "m.onnx")
    io.save(model, tmp_path / "m.onnx")
    assert same(io.load(tmp_path / "m.onnx"), ir.from_proto(conv_bn(channels=32)))


def test_save_changes_nothing_in_the_model(tmp_path: Path) -> None:
    model = io.load(external(tmp_path / "m.onnx"))
    before = [id(tensor) for tensor in tensors(model)]
    io.save(model, tmp_path / "copy.onnx")
    io.save(model, tmp_path / "inline.onnx", external=False)
    assert [id(tensor) for tensor in tensors(model)] == before


def test_too_large_for_protobuf_goes_external(
    model: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io, "INLINE_LIMIT", 100)
    monkeypatch.setattr(io, "EXTERNAL_MINIMUM", 16)
    io.save(model, tmp_path / "m.onnx")
    assert len(listing(tmp_path)) == 2
    assert same(io.load(tmp_path / "m.onnx"), model)


def test_tensors_in_attributes_and_bodies_move_too(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["": 18]>
        g (bool c, float[4] x) => (float[4] y) {
            k = Constant <value = float[4] {1, 2, 3, 4}> ()
            z = If (c) <
                then_branch = t () => (float[4] a) <float[4] w = {5, 6, 7, 8}> { a = Add (x, w) },
                else_branch = e () => (float[4] b) { b = Sub (x, k) }
            >
            y = Mul (z, k)
        }""")
    model = ir.from_proto(proto)
    assert len(list(tensors(model))) == 2
    io.save(model, tmp_path / "m.onnx", external=True)
    assert len(listing(tmp_path)) == 2  # what is small stays inside; the data file is empty
    again = io.load(tmp_path / "m.onnx")
    assert [t.numpy().tolist() for t in tensors(again)] == [t.numpy().tolist() for t in tensors(model)]


def test_each_tensor_of_an_attribute_that_lists_them_counts() -> None:
    listed = ir.AttrTensors("t", [ir.tensor(np.zeros(3, np.float32)), ir.tensor(np.zeros(5, np.int64))])
    node = ir.Node("local", "Table", [], [listed])
    model = ir.Model(ir.Graph([], node.outputs, nodes=[node], opset_imports={"local": 1}), ir_version=9)
    assert [tensor.size for tensor in tensors(model)] == [3, 5] and total_bytes(model) == 52


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, OSError(28, "No space left on device")])
@pytest.mark.parametrize("outside", [False, True], ids=["inline", "external"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Any, outside: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    io.save(io.load(external(tmp_path / "old.onnx")), out / "m.onnx")
    before = {name: (out / name).read_bytes() for name in listing(out)}

    def half(path: Path, data: bytes) -> int:
        with open(path, "wb") as stream:
            stream.write(data[: len(data) // 2])
        raise failure

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OutputError if isinstance(failure, OSError) else failure):
        io.save(ir.from_proto(conv_bn(seed=1, channels=32)), out / "m.onnx", external=outside)
    assert {name: (out / name).read_bytes() for name in listing(out)} == before


def test_a_tensor_that_fails_leaves_nothing(tmp_path: Path) -> None:
    model = ir.from_proto(conv_bn(channels=32))
    array = numpy_helper.to_array(conv_bn(channels=32).graph.initializer[0])

    def refuse() -> ir.TensorProtocol:
        raise OSError(5, "Input/output error")

    lazy = ir.LazyTensor(refuse, dtype=ir.DataType.FLOAT, shape=ir.Shape(array.shape), name="w0")
    model.graph.initializers["w0"].const_value = lazy
    for outside in (False, True):
        with pytest.raises((OutputError, ir.serde.SerdeError)):
            io.save(model, tmp_path / "m.onnx", external=outside)
        assert listing(tmp_path) == []


def test_permissions_follow_the_umask_and_then_the_old_file(model: ir.Model, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    mask = os.umask(0o027)
    try:
        io.save(model, path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        io.save(model, path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(mask)


def test_a_device_is_not_replaced(model: ir.Model) -> None:
    with pytest.raises(OutputError, match="not a regular file"):
        io.save(model, os.devnull)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_check_output_leaves_nothing(tmp_path: Path) -> None:
    files.check_output(tmp_path / "new.onnx")
    assert listing(tmp_path) == []


_GROUPS = "(T[N,4,6] x) => (T[n,c,w] y) { a = GroupNormalization <num_groups = 2> (x, k[2], b[2])  y = Mul(a, g) }"


def test_group_normalization_of_opset_18_is_read(tmp_path: Path) -> None:
    """onnx's checker refuses the withdrawn operator; whatever else is wrong in its model is still found."""
    constants = {"g": np.array([2.0, 2.0, 3.0, 3.0]).reshape(4, 1)}
    proto = build(_GROUPS, opset=18, checked=False, constants=constants)
    onnx.save(proto, tmp_path / "groups.onnx")
    for source in (proto, tmp_path / "groups.onnx"):
        done = bnfold.optimize(source)
        assert [node.op_type for node in done.model.graph] == ["GroupNormalization"]
        assert done.exit_code == 0
    body = onnx.ModelProto.FromString(proto.SerializeToString())
    body.graph.node[1].op_type = "Mull"
    with pytest.raises(ModelError, match="Mull"):
        io.load(body)
    body.graph.node[1].op_type = "Mul"
    del body.graph.node[0].input[2:]
    with pytest.raises(ModelError, match="input size 2"):
        io.load(body)


def test_a_tensor_need_not_be_called_as_its_initializer() -> None:
    model = io.load(conv_bn())
    value = next(iter(model.graph.initializers.values()))
    value.const_value = ir.tensor(value.const_value.numpy(), name="another")
    check(model)
    assert value.name in {held.name for held in skeleton(model).graph.initializer}


@pytest.mark.parametrize("nodes", ["", "ai.onnx"])
def test_the_other_name_of_onnx_s_domain_is_read(nodes: str, tmp_path: Path) -> None:
    proto = conv_bn()
    proto.opset_import[0].domain = "ai.onnx"
    for node in proto.graph.node:
        node.domain = nodes
    onnx.save(proto, tmp_path / "m.onnx")
    given = ir.from_proto(proto)
    for source in (tmp_path / "m.onnx", proto, given):
        done = bnfold.optimize(source, verify_options={"samples": 1})
        assert (done.report.folded, done.verdict and done.verdict.status) == (2, "pass")
        onnx.checker.check_model(ir.to_proto(done.model))
    assert given.opset_imports == {"ai.onnx": 18}  # what the caller holds is left as it is
