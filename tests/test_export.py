"""Export from PyTorch: every BN kept, the batch free, the same outputs, and one line for whatever can't be done."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnfold.errors import InputError, ModelError, RejectedError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from bnfold.export import export  # noqa: E402
from bnfold.models import registry  # noqa: E402
from tests.architectures import seeded  # noqa: E402
from tests.exported import EXPORTERS, agrees, conv_bn, names, ops  # noqa: E402

# tests/test_models.py exports them all.
BATCH_NORMS = {"repvgg": 9, "mlp": 2}


# What is exported


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("arch", BATCH_NORMS)
def test_an_architecture(arch: str, exporter: str) -> None:
    module = seeded(registry.build(arch))
    model = export(module, inputs=torch.zeros(1, 1, 8, 8), exporter=exporter)
    assert ops(model)["BatchNormalization"] == BATCH_NORMS[arch]
    assert names(model.graph.inputs) == ["input[batch, 1, 8, 8]"]
    assert names(model.graph.outputs) == ["output[batch, 10]"]
    assert "Identity" not in ops(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for batch in (1, 5):
        agrees(model, module, torch.randn(batch, 1, 8, 8))


def test_a_missing_bias_is_no_arithmetic() -> None:
    assert ops(export(conv_bn(), inputs="1x1x5x5")) == {"Conv": 1, "BatchNormalization": 1, "Relu": 1}


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_model_owns_its_weights(exporter: str) -> None:
    module = conv_bn()
    model = export(module, inputs="1x1x5x5", exporter=exporter)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(1)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_twice_the_same_bytes(exporter: str) -> None:
    module = conv_bn()
    first, second = (export(module, inputs="1x1x5x5", exporter=exporter) for _ in range(2))
    assert ir.to_proto(first).SerializeToString(deterministic=True) == ir.to_proto(second).SerializeToString(
        deterministic=True
    )


def test_nodes_know_their_module_and_tell_nothing_of_the_machine() -> None:
    model = export(registry.build("resnet").eval(), inputs="1x1x8x8")
    node = next(node for node in model.graph if node.name == "stages.1.conv2.1/BatchNormalization")
    assert "'stages.1.conv2.1'" in node.metadata_props["pkg.torch.onnx.name_scopes"]
    assert len({node.name for node in model.graph}) == len(model.graph)
    assert b".py" not in ir.to_proto(model).SerializeToString()


def test_torchscript_names_nodes_by_module() -> None:
    model = export(registry.build("resnet").eval(), inputs="1x1x8x8", exporter="torchscript")
    node = next(node for node in model.graph if node.name == "stages.1.conv2.1/BatchNormalization")
    assert node.metadata_props["bnfold.module"] == "stages.1.conv2.1"
    assert len({node.name for node in model.graph}) == len(model.graph)


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        return {"sum": x + y, "total": (x * y).sum(), "same": x}


class Many(nn.Module):
    def forward(self, *xs: Tensor) -> tuple[Tensor, list[Tensor]]:
        return xs[0] + xs[1], [xs[0] * 2]


class Moved(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return functional.avg_pool1d(x, 2), x.sum(0)


class Clash(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": x + 1}


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    ("module", "inputs", "expected"),
    [
        (Two(), ["1x3", "1x3"], "x[batch, 3] y[batch, 3] -> sum[batch, 3] total[] same[batch, 3]"),
        (Two(), {"a": "1x3", "b": "1x3"}, "a[batch, 3] b[batch, 3] -> sum[batch, 3] total[] same[batch, 3]"),
        (Two(), ["left:2x3", "3"], "left[batch, 3] y[3] -> sum[batch, 3] total[] same[batch, 3]"),
        (Many(), ["1x3", "1x3"], "xs_0[batch, 3] xs_1[batch, 3] -> output_0[batch, 3] output_1[batch, 3]"),
        (Moved(), "1x3x4", "input[batch, 3, 4] -> output_0[batch, 3, 2] output_1[3, 4]"),
        (Clash(), ["x:1x3"], "x[batch, 3] -> output[batch, 3]"),
        (nn.ReLU(), np.zeros((1, 2), np.float32), "input[batch, 2] -> output[batch, 2]"),
        (nn.Embedding(5, 2), "1x4:int64", "input[batch, 4] -> output[batch, 4, 2]"),
        (nn.ReLU(), "1x4:float16", "input[batch, 4] -> output[batch, 4]"),
    ],
)
def test_names_and_shapes(module: nn.Module, inputs: Any, expected: str, exporter: str) -> None:
    model = export(module.eval(), inputs=inputs, exporter=exporter)
    assert " ".join([*names(model.graph.inputs), "->", *names(model.graph.outputs)]) == expected


def test_names_are_unique_even_where_torch_used_them() -> None:
    class Adds(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            add = x + 1
            return {"mul": add, "add": add * 2}

    model = export(Adds().eval(), inputs="2x3")
    assert names(model.graph.outputs) == ["mul[batch, 3]", "add[batch, 3]"]
    agrees(model, type("Values", (Adds,), {"forward": lambda s, x: Adds.forward(s, x).values()})(), torch.randn(4, 3))


@pytest.mark.parametrize(("exporter", "opset"), [("dynamo", 18), ("dynamo", 21), ("torchscript", 13)])
def test_opset(exporter: str, opset: int) -> None:
    assert export(conv_bn(), inputs="1x1x5x5", exporter=exporter, opset=opset).opset_imports == {"": opset}


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_fixed_batch_where_asked(exporter: str) -> None:
    model = export(conv_bn(), inputs="3x1x5x5", exporter=exporter, dynamic_batch=False)
    assert names([*model.graph.inputs, *model.graph.outputs]) == ["input[3, 1, 5, 5]", "output[3, 2, 3, 3]"]


# Modes and statistics


def test_modes_come_back_and_statistics_are_untouched() -> None:
    module = conv_bn().train()
    module[2].eval()
    state = {key: value.clone() for key, value in module.state_dict().items()}
    notes: list[str] = []
    model = export(module, inputs="1x1x5x5", note=notes.append)
    assert [part.training for part in module] == [True, True, False] and module.training
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    assert notes == ["the module was in training mode; exported in eval mode, with its running statistics"]
    agrees(model, module.eval(), torch.randn(4, 1, 5, 5))


def test_one_bn_left_in_training_mode_is_named() -> None:
    module = conv_bn()
    module[1].train()
    with pytest.warns(UserWarning, match=r"^1 \(BatchNorm2d\) was in training mode"):
        export(module, inputs="1x1x5x5")
    assert module[1].training


def test_modes_come_back_after_a_failure() -> None:
    module = conv_bn().train()
    with pytest.raises(InputError):
        export(module, inputs="1x9x5x5", note=lambda text: None)
    assert all(part.training for part in module.modules())


class Functional(nn.Module):
    def __init__(self, training: bool) -> None:
        super().__init__()
        self.batch = training
        self.register_buffer("mean", torch.ones(3))
        self.register_buffer("var", torch.full((3,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(x, self.mean, self.var, training=self.batch)


def test_functional_batch_norms_count_too() -> None:
    assert ops(export(Functional(False).eval(), inputs="1x3x4"))["BatchNormalization"] == 1


def test_a_lost_bn_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    original = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: original(*a, **{**k, "optimize": True}))
    with pytest.raises(ModelError, match="1 batch norms ran, the dynamo exporter kept 0; try the torchscript exporter"):
        export(conv_bn(), inputs="1x1x5x5")


# What can't be exported


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, 12)


class Strange(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x).real


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize(
    ("module", "inputs", "says"),
    [
        (
            nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)),
            "1x1x5x5",
            "Sequential: 1 keeps no running statistics",
        ),
        (Functional(True), "2x3x4", "use the batch's statistics in eval mode"),
        (FixedBatch(), "2x12", "can't take another batch size"),
        (Strange(), "1x3x3", "Strange: the .* exporter can't convert it: "),
    ],
)
def test_refused(module: nn.Module, inputs: str, says: str, exporter: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        export(module.eval(), inputs=inputs, exporter=exporter)
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")


def test_control_flow_on_values() -> None:
    with pytest.raises(ModelError, match="control flow depends on the values"):
        export(Branches().eval(), inputs="2x3")
    notes: list[str] = []
    export(Branches().eval(), inputs="2x3", exporter="torchscript", note=notes.append, verify=False)
    assert len(notes) == 1 and "tracing may have frozen a choice" in notes[0]
    # Another input takes the other branch, which the traced model has not.
    with pytest.raises(RejectedError, match="the exported model is not the module: output 'output' on input 2×3"):
        export(Branches().eval(), inputs="2x3", exporter="torchscript", note=notes.append)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_says_nothing(exporter: str, capfd: pytest.CaptureFixture[str]) -> None:
    export(conv_bn(), inputs="1x1x5x5", exporter=exporter)
    assert capfd.readouterr() == ("", "")
