"""Drift: nothing on clean held-out digits; what happens to them is seen, ranked and, where it can be, mended."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from bnfold.audit import audit, data, recalibrate
from bnfold.audit.observe import observe, sites
from bnfold.errors import InputError, ModelError, UsageError
from bnfold.folding.frozen import recorded
from bnfold.pipeline import optimize
from tests.conftest import conv_bn
from tests.drifting import CORRUPTIONS, Images

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from torch import nn  # noqa: E402

from bnfold.export import export  # noqa: E402
from bnfold.models import registry  # noqa: E402
from bnfold.models.data import Split, load  # noqa: E402
from bnfold.models.train import train  # noqa: E402


@pytest.fixture(scope="module")
def held_out() -> Split:
    return load("digits").test


@pytest.fixture(scope="module")
def trained() -> Iterator[nn.Module]:
    """A small residual network with nine BatchNorms, right on 19 of 20 held-out digits."""
    yield train("resnet", load("digits"), epochs=6, kwargs={"width": 8}, quiet=True).module


@pytest.fixture(scope="module")
def digits(trained: nn.Module) -> ir.Model:
    return export(trained, inputs="1x1x8x8")


def feeds(images: Images, split: Split) -> dict[str, Any]:
    return {"input": np.asarray(images, np.float32), "labels": split.labels}


def test_clean_held_out_data_has_not_drifted(digits: ir.Model, held_out: Split) -> None:
    report = audit(digits, feeds(held_out.images, held_out))
    assert report.findings == () and report.exit_code == 0 and report.drift is not None
    assert report.drift.score < 0.16 and report.drift.examples == len(held_out)
    assert report.accuracy[0] is not None and report.accuracy[0] > 0.95
    assert max(layer.median_shift for layer in report.drift.layers) < 0.16


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_what_happens_to_the_input_is_seen_and_ranked(digits: ir.Model, held_out: Split, name: str) -> None:
    change, strengths = CORRUPTIONS[name]
    reports = [audit(digits, feeds(change(held_out.images, by), held_out)) for by in strengths]
    scores = [report.drift.score for report in reports if report.drift is not None]
    assert len(scores) == 3 and scores == sorted(scores) and len(set(scores)) == 3 and scores[0] > 0.1
    assert all(report.exit_code == 1 for report in reports)
    strongest = reports[-1]
    assert any(finding.code.value == "drifted" for finding in strongest.findings)
    assert strongest.drift is not None
    distances = [layer.distance for layer in strongest.drift.layers]
    assert distances == sorted(distances, reverse=True) and distances[0] == strongest.drift.score


def test_inverted_data_is_off_by_more_than_a_quarter(digits: ir.Model, held_out: Split) -> None:
    report = audit(digits, feeds(1 - held_out.images, held_out))
    assert report.drift is not None and max(layer.median_shift for layer in report.drift.layers) > 0.27


@pytest.mark.parametrize(
    ("name", "by", "lost"),
    [("shifted", 0.4, 0.05), ("brightened", 3, 0.05), ("dimmed", 0.3, 0.2), ("blurred", 0.6, 0.1)],
)
def test_recalibration_recovers_the_accuracy(
    digits: ir.Model, held_out: Split, name: str, by: float, lost: float, tmp_path: Path
) -> None:
    change, _ = CORRUPTIONS[name]
    given = feeds(change(held_out.images, by), held_out)
    clean = audit(digits, feeds(held_out.images, held_out)).accuracy[0]
    report = audit(digits, given, recalibrate=True)
    before, after = report.accuracy
    assert clean is not None and before is not None and after is not None
    assert before < clean - lost and after > clean - 0.06
    report.save(tmp_path / "new.onnx")
    again = audit(tmp_path / "new.onnx", given)
    assert again.exit_code == 0 and again.drift is not None and again.drift.score < 1e-5
    assert again.accuracy[0] == after


@pytest.mark.parametrize("fold", [False, True])
def test_inverted_images_need_a_sign_too(digits: ir.Model, held_out: Split, fold: bool, tmp_path: Path) -> None:
    """New statistics alone make of every normalised value its negative; a minus sign at the input turns it back."""
    model = optimize(digits, verify=False).model if fold else digits
    given = feeds(1 - held_out.images, held_out)
    before, after = audit(model, given, recalibrate=True).accuracy
    assert before is not None and after is not None and before < 0.3 and after < 0.3
    report = audit(model, given, recalibrate=True, negate=True)
    assert report.accuracy[0] == before and (report.accuracy[1] or 0) > 0.9 and report.negated
    report.save(tmp_path / "new.onnx")
    again = audit(tmp_path / "new.onnx", given)
    assert again.accuracy[0] == report.accuracy[1] and again.exit_code == 0
    # Folding has a place for the sign.
    operators = {node.op_type for node in optimize(tmp_path / "new.onnx", verify=False).model.graph}
    assert operators.isdisjoint({"Neg", "Mul", "BatchNormalization"})


def test_recalibrated_statistics_are_those_of_one_batch_of_everything(
    trained: nn.Module, digits: ir.Model, held_out: Split
) -> None:
    images = CORRUPTIONS["blurred"][0](held_out.images, 0.5)
    one = copy.deepcopy(trained).double().train()
    for part in one.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        one(torch.from_numpy(images).double())
    model = digits.clone()
    names = recalibrate.recalibrate(model, data.for_model(model, {"input": images}))
    assert len(names) == 9
    buffers = dict(one.named_buffers())
    for site in sites(model)[0]:
        prefix = site.frozen.name.partition("/")[0]
        mean, var = (buffers[f"{prefix}.running_{what}"].numpy() for what in ("mean", "var"))
        np.testing.assert_allclose(site.frozen.mean, mean, atol=1e-5, rtol=1e-5)
        # PyTorch divides by n − 1.
        np.testing.assert_allclose(site.frozen.var, var, rtol=1e-3)


def test_a_folded_model_tells_the_same(digits: ir.Model, held_out: Split) -> None:
    folded = optimize(digits, verify=False).model
    given = feeds(CORRUPTIONS["shifted"][0](held_out.images, 0.2), held_out)
    one, other = audit(digits, given), audit(folded, given)
    assert one.drift is not None and other.drift is not None and other.batch_norms == 9
    assert [f.code for f in one.findings] == [f.code for f in other.findings]
    for mine, theirs in zip(one.drift.layers, other.drift.layers, strict=True):
        assert mine.name == theirs.name
        np.testing.assert_allclose(mine.shift, theirs.shift, atol=1e-4)
        np.testing.assert_allclose(mine.ratio, theirs.ratio, rtol=1e-3)


def test_a_folded_model_is_recalibrated_like_the_original(digits: ir.Model, held_out: Split) -> None:
    images = CORRUPTIONS["dimmed"][0](held_out.images, 0.3)
    outputs = []
    for model in (digits.clone(), optimize(digits, verify=False).model):
        given = data.for_model(model, {"input": images})
        recalibrate.recalibrate(model, given)
        got: list[np.ndarray] = []
        observe(model, [], given, outputs=lambda out, got=got: got.append(out["output"]))
        outputs.append(np.concatenate(got))
        assert "bnfold.fold_map" not in model.metadata_props
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-4)
    assert {node.op_type for node in model.graph}.isdisjoint({"BatchNormalization", "Mul"})
    again = audit(model, {"input": images})
    assert again.drift is not None and again.drift.score < 1e-4 and len(again.drift.layers) == 9


def test_a_module_tells_the_same(trained: nn.Module, digits: ir.Model, held_out: Split) -> None:
    given = feeds(CORRUPTIONS["blurred"][0](held_out.images, 0.4), held_out)
    one, other = audit(digits, given, recalibrate=True), audit(trained, given, recalibrate=True)
    assert one.drift is not None and other.drift is not None and one.accuracy == other.accuracy
    assert [f"{layer.name}/BatchNormalization" for layer in other.drift.layers] == [l.name for l in one.drift.layers]
    for mine, theirs in zip(one.drift.layers, other.drift.layers, strict=True):
        np.testing.assert_allclose(mine.shift, theirs.shift, atol=1e-4)


def test_what_merging_hides_is_listed() -> None:
    module = registry.build("repvgg", input_shape=(1, 8, 8), classes=10).eval()
    model = export(module, inputs="1x1x8x8")
    folded = optimize(model, verify=False).model
    given = {"input": np.random.default_rng(0).normal(size=(80, 1, 8, 8)).astype(np.float32)}
    report = audit(folded, given)
    assert report.drift is not None and report.drift.unobserved
    assert len(report.drift.layers) + len(report.drift.unobserved) == report.batch_norms == len(recorded(folded))
    assert all("merged" in site.reason for site in report.drift.unobserved)
    with pytest.raises(ModelError, match="recalibrate the model that this one was folded from"):
        audit(folded, given, recalibrate=True)


def test_gamma_0_hides_what_a_folded_layer_saw() -> None:
    proto = conv_bn()
    for tensor in proto.graph.initializer:
        if tensor.name == "gamma0":
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(4, np.float32), "gamma0"))
        if tensor.name == "gamma1":
            tensor.CopyFrom(numpy_helper.from_array(np.array([1, 0, 1, 1], np.float32), "gamma1"))
    model = optimize(proto, verify=False).model
    given = {"x": np.random.default_rng(0).normal(size=(100, 3, 8, 8)).astype(np.float32)}
    report = audit(model, given)
    assert report.drift is not None
    assert [(site.name, "gamma is 0" in site.reason) for site in report.drift.unobserved] == [("bn0", True)]
    (layer,) = report.drift.layers
    assert np.isnan(layer.shift).tolist() == [False, True, False, False]


# Data


def gate(batch: str = "n") -> onnx.ModelProto:
    row = f"float[{batch},2]"
    text = f"""<ir_version: 9, opset_import: ["": 18]> g ({row} a, {row} b) => ({row} z)
      <float[2] g = {{1, 1}}, float[2] o = {{0, 0}}, float[2] m = {{0, 0}}, float[2] v = {{1, 1}}> {{
      s = Add(a, b)  y = BatchNormalization(s, g, o, m, v)  z = Softmax(y)
    }}"""
    return onnx.parser.parse_model(text)


def test_several_inputs_and_a_fixed_batch() -> None:
    random = np.random.default_rng(0)
    given = {name: random.normal(size=(11, 2)).astype(np.float32) for name in "ab"}
    for batch, used in (("n", 11), ("4", 8), ("1", 11)):
        report = audit(gate(batch), {**given, "labels": np.arange(11) % 2})
        assert report.drift is not None and report.drift.examples == used
        expected = (given["a"] + given["b"])[:used].mean(0)
        np.testing.assert_allclose(report.drift.layers[0].shift, expected / np.sqrt(1 + 1e-5), rtol=1e-4)
        right = ((given["a"] + given["b"]).argmax(1) == np.arange(11) % 2)[:used].mean()
        assert report.accuracy[0] == pytest.approx(right)


@pytest.mark.parametrize(("change", "says"), [
    ({"b": None}, "no array named 'b'"),
    ({"c": np.ones((11, 2), np.float32)}, "'c' is no input"),
    ({"a": np.ones((11, 3), np.float32)}, "does not fit"),
    ({"a": np.ones((11, 2))}, "is float64, the model wants float32"),
    ({"a": np.full((11, 2), np.nan, np.float32)}, "holds NaN"),
    ({"a": np.ones((0, 2), np.float32), "b": np.ones((0, 2), np.float32)}, "does not fit"),
    ({"labels": np.zeros(10, int)}, "10 labels for 11 examples"),
    ({"labels": np.array(3)}, "whole numbers for each example"),
    ({"labels": np.zeros(11)}, "give whole numbers"),
])  # fmt: skip
def test_data_that_does_not_fit(change: dict[str, Any], says: str) -> None:
    given: dict[str, Any] = {name: np.ones((11, 2), np.float32) for name in "ab"} | change
    with pytest.raises(InputError, match=says):
        audit(gate(), {name: array for name, array in given.items() if array is not None})


def test_labels_of_a_sequence_are_held_against_its_scores() -> None:
    """Labels `(N, L)` and scores `(N, L, K)`; an output of another shape is none of theirs."""
    text = """<ir_version: 9, opset_import: ["": 18]> g (float[n,3,2] x) => (float[n,3,2] z, float[n,2] w)
      <int64[1] one = {1}> { z = Neg(x)  w = ReduceSum<keepdims = 0>(x, one) }"""
    x = np.random.default_rng(0).normal(size=(9, 3, 2)).astype(np.float32)
    model = onnx.parser.parse_model(text)
    for labels in (x.argmin(2), np.where(np.arange(9)[:, None] < 6, x.argmin(2), x.argmax(2))):
        found = audit(model, {"x": x, "labels": labels}).accuracy[0]
        assert found == (x.argmin(2) == labels).mean()
    assert audit(model, {"x": x, "labels": x.sum(1).argmax(1)}).accuracy[0] == 1.0
    for labels in (np.zeros((9, 4), int), np.full(9, 2), np.full((9, 3), 2), np.full((9, 3), -1)):
        with pytest.raises(InputError, match="the given data: no output has scores for the labels"):
            audit(model, {"x": x, "labels": labels})


def test_an_input_called_y_is_no_label() -> None:
    text = '<ir_version: 9, opset_import: ["": 18]> g (float[n,2] y) => (float[n,2] z) { z = Relu(y) }'
    report = audit(onnx.parser.parse_model(text), {"y": np.ones((5, 2), np.float32)})
    assert report.batch_norms == 0 and report.accuracy == (None, None) and report.exit_code == 0


def test_negatives_need_one_input_and_a_graph(trained: nn.Module) -> None:
    given = {name: np.ones((11, 2), np.float32) for name in "ab"}
    with pytest.raises(UsageError, match="one floating-point input; this one has 2"):
        audit(gate(), given, recalibrate=True, negate=True)
    with pytest.raises(UsageError, match="export the model first"):
        audit(trained, {"x": np.ones((11, 1, 8, 8), np.float32)}, recalibrate=True, negate=True)
    with pytest.raises(UsageError, match="give --recalibrate too"):
        audit(gate(), given, negate=True)


def test_recalibration_needs_data(model: ir.Model) -> None:
    with pytest.raises(UsageError, match="needs data"):
        audit(model, recalibrate=True)
    with pytest.raises(UsageError, match="nothing was recalibrated"):
        audit(model).save("x.onnx")


def test_shared_statistics_come_apart() -> None:
    """One initializer that two nodes read: each gets what it sees, and the model that was given stays as it is."""
    text = """<ir_version: 9, opset_import: ["": 18]> g (float[n,2] a) => (float[n,2] z)
      <float[2] g = {1, 1}, float[2] o = {0, 0}, float[2] m = {0, 0}, float[2] v = {1, 1}> {
      y = BatchNormalization(a, g, o, m, v)  t = Sigmoid(y)  z = BatchNormalization(t, g, o, m, v)
    }"""
    given = ir.from_proto(onnx.parser.parse_model(text))
    x = np.random.default_rng(0).normal(5, 3, (200, 2)).astype(np.float32)
    before = ir.to_proto(given).SerializeToString(deterministic=True)
    audit(given, {"a": x}, recalibrate=True)
    assert ir.to_proto(given).SerializeToString(deterministic=True) == before
    model = given.clone()
    recalibrate.recalibrate(model, data.for_model(model, {"a": x}))
    first, second = (site.frozen for site in sites(model)[0])
    np.testing.assert_allclose(first.mean, x.mean(0), rtol=1e-5)
    inner = 1 / (1 + np.exp(-(x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)))
    np.testing.assert_allclose(second.mean, inner.mean(0), rtol=1e-5)
    np.testing.assert_allclose(second.var, inner.var(0), rtol=1e-4)
