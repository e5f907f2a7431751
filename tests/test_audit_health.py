"""The health of BatchNorm's constants: every code has a case that shows it and a sound twin that does not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from bnfold.audit.findings import REMEDIES, Code
from bnfold.audit.health import examine, health
from bnfold.folding.frozen import Frozen, nodes, of_node
from tests.conftest import conv_bn

C = 4
SOUND = {
    "gamma": np.array([1.0, -0.5, 0.02, 2.0]),
    "beta": np.zeros(C),
    "mean": np.zeros(C),
    "var": np.array([1.0, 0.5, 2.0, 1e-4]),
}


def bn(**changed: Any) -> Frozen:
    return Frozen("layer1.bn", "x", "y", **{**SOUND, **{k: np.asarray(v, float) for k, v in changed.items()}})


BAD: list[tuple[Code, dict[str, Any], str, dict[str, Any]]] = [
    (Code.NOT_FINITE, {"beta": [0, np.nan, np.inf, 0]}, "2 of 4 in beta", {"beta": 2}),
    (Code.NOT_FINITE, {"mean": [np.inf, 0, 0, 0]}, "1 of 4 in running_mean", {"running_mean": 1}),
    (Code.NOT_FINITE, {"var": [np.nan] * C}, "4 of 4 in running_var", {"running_var": 4}),
    (Code.NEGATIVE_VARIANCE, {"var": [1, -2, 1, 1]}, r"in 1 of 4 channels \(1\), lowest -2", {"count": 1}),
    (Code.VANISHING_VARIANCE, {"var": [1, 1, 0, 9e-6]}, r"in 2 of 4 channels \(2, 3\), lowest 0", {"count": 2}),
    (Code.INITIAL_STATISTICS, {"mean": [0] * C, "var": [1] * C}, "every channel", {"channels": 4}),
    (Code.DEAD_GAMMA, {"gamma": [1, 1e-5, 1, 0]}, r"in 2 of 4 channels \(1, 3\)", {"count": 2, "largest": 1.0}),
    (Code.DEAD_GAMMA, {"gamma": [0] * C}, r"in 4 of 4 channels \(0, 1, 2, 3\)", {"count": 4}),
]


def test_sound_numbers_have_no_finding() -> None:
    assert examine(bn()) == []


@pytest.mark.parametrize(("code", "changed", "says", "numbers"), BAD)
def test_an_unsound_number_is_named(code: Code, changed: dict[str, Any], says: str, numbers: dict[str, Any]) -> None:
    (found,) = examine(bn(**changed))
    assert (found.code, found.module) == (code, "layer1.bn")
    assert re.search(says, found.detail)
    assert numbers.items() <= found.numbers.items()
    assert found.to_dict()["remedy"] == REMEDIES[code]


@pytest.mark.parametrize("changed", [
    {"var": [1, 1, 1, 1e-5]},  # epsilon itself is not below epsilon
    {"mean": [0, 0, 0, 1e-9], "var": [1] * C},
    {"mean": [0] * C, "var": [1, 1, 1, 0.999]},
    {"gamma": [1, 1, 1, 2e-4]},
    {"gamma": [1e-6, -1e-6, 2e-6, 1e-6]},  # small everywhere is a scale, not death
])  # fmt: skip
def test_the_sound_twin_is_not(changed: dict[str, Any]) -> None:
    assert examine(bn(**changed)) == []


def test_every_code_has_a_remedy_and_a_name_of_its_own() -> None:
    assert set(REMEDIES) == set(Code)
    assert len({code.value for code in Code}) == len(Code)


def edited(change: Callable[[onnx.ModelProto], None]) -> ir.Model:
    proto = conv_bn()
    change(proto)
    return ir.from_proto(proto)


def _set(name: str, array: np.ndarray) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        for initializer in proto.graph.initializer:
            if initializer.name == name:
                initializer.CopyFrom(numpy_helper.from_array(array.astype(np.float32), name))

    return change


def _training(proto: onnx.ModelProto) -> None:
    node = next(node for node in proto.graph.node if node.name == "bn1")
    node.attribute.append(onnx.helper.make_attribute("training_mode", 1))


def test_a_model_is_examined_node_by_node() -> None:
    assert health(edited(lambda proto: None)) == []
    (found,) = health(edited(_set("var1", np.array([1, 1, 1, -1.0]))))
    assert (found.code, found.module) == (Code.NEGATIVE_VARIANCE, "bn1")
    (found,) = health(edited(_training))
    assert (found.code, found.module) == (Code.TRAINING_MODE, "bn1")


def test_statistics_are_read_as_the_node_computes() -> None:
    model = edited(lambda proto: None)
    frozen = [of_node(node) for node in nodes(model)]
    assert [(f.name, f.input, f.output, f.channels) for f in frozen if f] == [
        ("bn0", "c0", "b0", 4),
        ("bn1", "c1", "b1", 4),
    ]
    first = frozen[0]
    assert first is not None
    np.testing.assert_allclose(first.scale, first.gamma / np.sqrt(first.var + 1e-5), rtol=1e-15)


def test_statistics_computed_at_run_time_are_none() -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.input.append(onnx.helper.make_tensor_value_info("var0", onnx.TensorProto.FLOAT, [4]))
        for index, initializer in enumerate(proto.graph.initializer):
            if initializer.name == "var0":
                del proto.graph.initializer[index]
                break

    assert [of_node(node) is None for node in nodes(edited(change))] == [True, False]
