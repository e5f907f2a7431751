"""Models that onnx's checker accepts though no runtime would run them, and valid ones that were mistaken for such."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import bnfold
from bnfold import io
from bnfold.errors import ModelError
from bnfold.folding.report import FoldReport
from tests.conftest import conv_bn
from tests.graphs import build, folded, operators

CONV = "(T[N,3,8,8] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])  y = BN(a, A.4) }"
FUNCTION = """(T[N,3,8,8] x) => (T[n,c,h,w] y) { a = Conv(x, w[4,3,3,3])  y = local.Normed(a, g[4], b[4], m[4], v) }
    <domain: "local", opset_import: ["" : 15]> Normed (x, g, b, m, v) => (y)
    { d = BatchNormalization <epsilon = 0.0625> (x, g, b, m, v)  y = Relu(d) }"""


def optimized(proto: onnx.ModelProto, folder: Path) -> tuple[onnx.ModelProto, FoldReport]:
    onnx.save(proto, folder / "in.onnx")
    done = bnfold.optimize(folder / "in.onnx", verify=False, simplify="never")
    done.save(folder / "out.onnx")
    return onnx.load(folder / "out.onnx"), done.report


def _cut_short(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.raw_data = tensor.raw_data[:-4]


def _too_few(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    values = numpy_helper.to_array(tensor).reshape(-1)
    tensor.ClearField("raw_data")
    tensor.float_data.extend(values[1:])


def _negative(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -1


def _parameter(model: onnx.ModelProto) -> None:
    model.graph.node[0].name = "first"
    model.graph.node[0].attribute.add(name="group", ref_attr_name="g", type=onnx.AttributeProto.INT)


def _no_text(model: onnx.ModelProto) -> None:
    # Shape inference of onnx 1.23 never comes back from this.
    del model.graph.node[:]
    node = model.graph.node.add(op_type="Einsum", input=["x", "x"], output=["y"])
    node.attribute.add(name="equation", s=b"a\xff,ab->ab", type=onnx.AttributeProto.STRING)


def _no_name(model: onnx.ModelProto) -> None:
    data = model.SerializeToString().replace(b"Conv", b"Co\xc0\xbf")
    model.ParseFromString(data)
    model.graph.node[0].domain = "local"
    model.opset_import.add(domain="local", version=1)


def _no_graph_name(model: onnx.ModelProto) -> None:
    model.graph.name = "a name of seventeen"
    model.ParseFromString(model.SerializeToString().replace(b"of seventeen", b"of \xc0\xbfventeen"))


def _elsewhere(model: onnx.ModelProto, folder: Path, **entries: str) -> None:
    tensor = model.graph.initializer[0]
    (folder / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", **entries}.items():
        tensor.external_data.add(key=key, value=value)


@pytest.mark.parametrize(
    ("entries", "saying"),
    [
        ({"offset": "8"}, "has 432 of 440 bytes"),
        ({"length": "500"}, "has 432 of 500 bytes"),
        ({"location": "{folder}/w.bin"}, "outside the model's folder"),
        ({"location": ""}, "has no file"),
        ({"location": "w\0bin"}, "has no file"),
        ({"location": "."}, "no regular file"),
        ({"location": "v.bin"}, "put 'v.bin' beside the model"),
    ],
    ids=str,
)
def test_external_data_is_all_there_and_beside_the_model(entries: dict[str, str], saying: str, tmp_path: Path) -> None:
    model = build(CONV)
    _elsewhere(model, tmp_path, **{key: value.format(folder=tmp_path) for key, value in entries.items()})
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=saying):
        io.load(tmp_path / "m.onnx")


def test_what_is_unusual_is_read(tmp_path: Path) -> None:
    """Strings as a constant, an attribute of another domain that is no text, one that is a function's parameter."""
    text = """(T[N,3,8,8] x) => (T[N,3,8,8] y, string[2] s) {
        a = local.Own <slope = 0.5> (x)  y = shop.Op(a)  s = Identity(words) }
        <domain: "local", opset_import: ["" : 17]> Own <slope> (x) => (y)
        { y = LeakyRelu <alpha: float = @slope> (x) }"""
    words = {"words": np.array(["a", "b"], object)}
    model = build(text, domains=', "local" : 1, "shop" : 1', constants=words, checked=False)
    model.graph.node[1].attribute.add(name="blob", s=b"\xff", type=onnx.AttributeProto.STRING)
    onnx.save(model, tmp_path / "m.onnx")
    loaded = io.load(tmp_path / "m.onnx")
    assert [node.op_type for node in loaded.graph] == ["Own", "Op", "Identity"]


def _device(model: onnx.ModelProto) -> None:
    model.graph.node[0].name = "first"
    model.graph.node[0].device_configurations.add()


@pytest.mark.parametrize(
    ("damage", "saying"),
    [
        (_cut_short, "bytes of 432"),
        (_too_few, "cannot reshape"),
        (_negative, "dimensions [-1"),
        (_parameter, "attribute 'group' of Conv first is a parameter of a function"),
        (_no_text, "attribute 'equation' of Einsum is not valid UTF-8"),
        (_no_graph_name, "not valid UTF-8"),
        (_no_name, "not valid UTF-8"),
        (_device, "Conv first is placed on devices by a configuration"),
    ],
)
def test_it_is_refused_when_it_is_read(damage: Callable[[onnx.ModelProto], None], saying: str, tmp_path: Path) -> None:
    model = build(CONV)
    damage(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError) as refused:
        io.load(tmp_path / "m.onnx")
    assert saying in str(refused.value) and "m.onnx" in str(refused.value)


def _wrong_rank(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute[0].ints.pop()


def _twice(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute[0].ints[1] = 3
    model.graph.value_info.append(helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, ["N", 4, 4, 4]))


def _one_beta(model: onnx.ModelProto) -> None:
    (beta,) = [tensor for tensor in model.graph.initializer if tensor.name == "A_beta"]
    beta.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), beta.name))


TRANSPOSED = """(T[N,3,4,4] x) => (T[n,h,w,c] y)
    { a = Conv(x, w[4,3,1,1])  b = Transpose <perm = [0,2,3,1]> (a)  y = Mul(b, s[4]) }"""
SPLIT = """(T[2,4,8,8] x) => (T[n,c,h,w] y)
    { a = BN(x, A.4)  d, e = Split <axis = 1> (a, {900000000,3})  f = Conv(d, w[2,2,1,1])  g = Conv(e, v[2,2,1,1])
      y = Concat <axis = 1> (f, g) }"""


@pytest.mark.parametrize(
    ("text", "change"),
    [
        (CONV.replace("A.4", "A.5"), None),
        (CONV.replace("w[4,", "w[1,"), None),
        ("(T[N,C,8,8] x) => (T[n,c,h,w] y) { a = BN(x, A.4)  y = Conv(a, w[2,4,1,1]) }", _one_beta),
        ("(T[N,4,8,8] x) => (T[n,c,h,w] y) { a = BN(x, A.4)  y = Conv(a, w[2,1,4,1]) }", None),
        (TRANSPOSED, _wrong_rank),
        (TRANSPOSED, _twice),
        (SPLIT, None),
        (SPLIT.replace("900000000,3", "1,2"), None),
        (SPLIT.replace("900000000,3", "1,1,2"), None),
    ],
    ids=["parameters of another size", "parameters of more channels", "parameters of two sizes",
         "channels of another number", "a permutation too short", "an axis taken twice", "parts too large",
         "parts too small", "more parts than outputs"],
)  # fmt: skip
def test_an_operator_that_contradicts_its_operands_is_left_alone(
    text: str, change: Callable[[onnx.ModelProto], None] | None, tmp_path: Path
) -> None:
    model = build(text)
    if change is not None:
        change(model)
    result, report = optimized(model, tmp_path)
    assert operators(result) == operators(model)
    assert {entry.reason.code for entry in report.entries if entry.reason} <= {"malformed"}


@pytest.mark.parametrize(
    ("opset", "parameters", "kind", "folds"),
    [
        (17, "gamma beta", np.float32, True),
        (17, "mean var", np.float64, True),
        (17, "gamma", np.float32, False),
        (17, "mean var", np.int32, False),
        (14, "mean var", np.float32, True),
        (14, "gamma beta", np.float32, False),
        (9, "mean var", np.float32, False),
    ],
)  # fmt: skip
def test_the_types_that_a_batch_norm_takes_are_those_of_its_opset(
    opset: int, parameters: str, kind: type, folds: bool
) -> None:
    model = build(CONV, dtype="float16", opset=opset)
    for tensor in model.graph.initializer:
        if tensor.name.removeprefix("A_") in parameters.split():
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), tensor.name))
    _, report = folded(model)
    assert [entry.reason and entry.reason.code for entry in report.entries] == [None if folds else "malformed"]


def test_an_index_out_of_range_is_no_part_of_a_value(tmp_path: Path) -> None:
    model = build("""(T[N,3,6,6] x) => (T[n,c,h,w] y, T[a,b,d,e] z) { a = Conv(x, w[4,3,3,3])
        f = Gather <axis = 1> (a, {9})  g = Gather <axis = 1> (a, {1})  y = BN(f, A.1)  z = BN(g, B.1) }""")
    assert operators(optimized(model, tmp_path)[0])[:3] == ["Conv", "Gather", "Gather"]


def test_a_pool_with_a_huge_window_is_no_layer_to_merge(tmp_path: Path) -> None:
    pool = 'AveragePool <kernel_shape = [2,4611686018427387904], count_include_pad = 1, auto_pad = "SAME_UPPER"> (x)'
    model = build(f"(T[N,4,8,8] x) => (T[n,c,h,w] y) {{ d = {pool}  y = Conv(d, w[2,4,1,1]) }}")
    assert operators(optimized(model, tmp_path)[0]) == ["AveragePool", "Conv"]


def test_a_vector_that_nobody_could_store_is_not_walked_through(tmp_path: Path) -> None:
    model = build("(T[2,4,8,8] x, int64[4294967296] i) => (T[n,c,h,w] y) { a = BN(x, A.4)  d = Slice(a, i, {9}, {1})"
                  "  y = Conv(d, w[3,4,3,3]) }")  # fmt: skip
    assert operators(optimized(model, tmp_path)[0])[-1] == "Conv"


def test_a_function_of_another_opset_is_folded_where_it_means_the_same(tmp_path: Path) -> None:
    model = build(FUNCTION, domains=', "local" : 1', constants={"v": np.ones(4)})
    result, report = optimized(model, tmp_path)
    assert not result.functions and report.folded == 1


def test_a_body_that_nothing_uses_reads_nothing(tmp_path: Path) -> None:
    model = build("""(T[N,3,8,8] x, bool p) => (T[n,c,h,w] z) {
        a = Conv(x, w[4,3,3,3])  b = BN(a, A.4)  z = Relu(b)
        y = If (p) < then_branch = one () => (T[n,c,h,w] u) { u = Relu(b) },
                     else_branch = two () => (T[n,c,h,w] v) { v = Neg(b) } > }""")
    result, report = optimized(model, tmp_path)
    assert operators(result) == ["Conv", "Relu"] and report.folded == 1


@pytest.mark.parametrize("kind", ["initializer", "attribute", "body"])
def test_small_tensors_may_be_external(kind: str, tmp_path: Path) -> None:
    model = conv_bn(layers=1)
    parameters = list(model.graph.initializer)
    if kind == "attribute":
        del model.graph.initializer[:]
        for tensor in reversed(parameters):
            node = onnx.NodeProto(op_type="Constant", output=[tensor.name])
            node.attribute.add(name="value", t=tensor, type=onnx.AttributeProto.TENSOR)
            model.graph.node.insert(0, node)
    if kind == "body":
        held = onnx.GraphProto(name="held", initializer=parameters, node=model.graph.node, output=model.graph.output)
        for value in held.node:
            value.output[:] = ["u" if name == "y" else name for name in value.output]
        held.output[0].name = "u"
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "p"))
        node = model.graph.node.add(op_type="If", input=["p"], output=["y"])
        for name in ("then_branch", "else_branch"):
            node.attribute.add(name=name, g=held, type=onnx.AttributeProto.GRAPH)
    onnx.save(model, tmp_path / "in.onnx", save_as_external_data=True, size_threshold=0, convert_attribute=True)
    done = bnfold.optimize(tmp_path / "in.onnx", verify=False, simplify="never")
    done.save(tmp_path / "out.onnx")
    onnx.checker.check_model(tmp_path / "out.onnx")
    assert done.report.kept == 0 and done.report.folded > 0
