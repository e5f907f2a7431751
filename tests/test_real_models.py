"""Models that nobody here made: how many of their BatchNormalizations fold, and that they compute the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests import light
from tests.conftest import REPOSITORY
from tests.graphs import Array, at_runtime, folded, operators

RFB = REPOSITORY.parent / "shared" / "real" / "version-RFB-320.onnx"
needs_rfb = pytest.mark.skipif(not RFB.exists(), reason="the model lies beside the repository, not in it")

# The largest of a few draws underestimates what rounding may do, and a fold rounds twice: weight and bias.
MARGIN = 8.0


@dataclass(frozen=True)
class Expected:
    """What folding leaves of a model: of its BatchNormalizations, of all nodes, and which elementwise passes."""

    folded: int
    nodes: tuple[int, int]
    left: dict[str, int]


LIGHT = {
    "resnet50": Expected(53, (176, 123), {}),
    # A BatchNormalization behind a Concat with several readers only joins the Mul and Add that follow it.
    "densenet121": Expected(121, (910, 429), {"Mul": 62, "Add": 62}),
    "inception_v2": Expected(69, (509, 164), {}),
    "shufflenet": Expected(49, (203, 154), {}),
}


def perturbed(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """A copy whose float32 weights are each moved by up to their unit roundoff, to the next number or back."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    rng = np.random.default_rng(seed)
    for tensor in copy.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float64)
            moved = array * (1.0 + 2.0**-23 * rng.uniform(-1.0, 1.0, array.shape))
            tensor.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), tensor.name))
    return copy


def image(model: onnx.ModelProto) -> dict[str, Array]:
    fixed = {tensor.name for tensor in model.graph.initializer}
    (value,) = (value for value in model.graph.input if value.name not in fixed)
    shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
    return {value.name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}


def assert_same(result: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Outputs differ by no more than they do when every weight is rounded anew."""
    inputs = image(model)
    plain, ours = at_runtime(model, inputs), at_runtime(result, inputs)
    noisy = [at_runtime(perturbed(model, seed), inputs) for seed in range(3)]
    for name, array in plain.items():
        assert array.std() > 0, f"output {name} does not depend on anything"
        allowed = max(float(np.sqrt(np.mean((other[name] - array) ** 2))) for other in noisy)
        assert float(np.sqrt(np.mean((ours[name] - array) ** 2))) <= MARGIN * allowed, name


@needs_rfb
def test_overridable_initializers_keep_every_batch_norm() -> None:
    model = onnx.load(RFB)
    result, report = folded(model)
    assert Counter(entry.reason.code for entry in report.entries if entry.reason) == {"overridable": 35}
    assert "--freeze-initializers" in (report.entries[0].hint or "")
    assert operators(result).count("BatchNormalization") == 35
    assert len(result.graph.input) == len(model.graph.input) == 245


@needs_rfb
def test_frozen_initializers_fold_every_batch_norm() -> None:
    model = onnx.load(RFB)
    result, report = folded(model, freeze_initializers=True)
    assert (report.folded, report.kept, report.frozen) == (35, 0, 244)
    assert (report.nodes_before, report.nodes_after) == (242, 196)
    assert [value.name for value in result.graph.input] == ["input"]
    assert "BatchNormalization" not in operators(result)
    onnx.checker.check_model(result, full_check=True)
    assert_same(result, model)


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT)
def test_light_models(name: str) -> None:
    model, expected = light.filled(name), LIGHT[name]
    result, report = folded(model)
    assert (report.folded, report.kept) == (expected.folded, 0)
    assert (report.nodes_before, report.nodes_after) == expected.nodes
    left = Counter(operators(result))
    assert {op: left[op] for op in ("BatchNormalization", "Mul", "Add") if left[op]} == expected.left
    onnx.checker.check_model(result, full_check=True)
    assert list(result.graph.input) == list(model.graph.input)
    assert list(result.graph.output) == list(model.graph.output)
    assert_same(result, model)
    assert folded(result)[0].SerializeToString(deterministic=True) == result.SerializeToString(deterministic=True)


def test_a_batch_norm_with_no_absorber_says_so() -> None:
    """In DenseNet those that nothing absorbs become one Mul and one Add together with those that follow them."""
    report = folded(light.filled("densenet121"))[1]
    absorbed = [entry for entry in report.entries if entry.absorbers]
    assert Counter(entry.judgement for entry in absorbed) == {"hoist": 59}
    assert len(report.entries) - len(absorbed) == 62
