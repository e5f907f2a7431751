"""Export from PyTorch: every BN kept, the batch free, the same outputs, and one line for whatever can't be done."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnfold.errors import BnfoldError, InputError, ModelError, RejectedError, UsageError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
ort = pytest.importorskip("onnxruntime")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from bnfold.export import export  # noqa: E402
from bnfold.models import registry  # noqa: E402
from bnfold.models.checkpoint import Meta, save_checkpoint  # noqa: E402

EXPORTERS = ("dynamo", "torchscript")
# tests/test_models.py exports them all.
BATCH_NORMS = {"repvgg": 9, "mlp": 2}


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in eval mode, its statistics, gammas and betas far from 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
            if part.affine:
                nn.init.normal_(part.weight, generator=generator)
                nn.init.normal_(part.bias, generator=generator)
    return module.eval()


def conv_bn() -> nn.Module:
    return seeded(nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU()))


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.all_nodes())


def names(values: Any) -> list[str]:
    return [f"{value.name}{value.shape}".replace(",", ", ") for value in values]


def run(model: ir.Model, *inputs: Tensor) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {value.name: tensor.numpy() for value, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feeds)


def agrees(model: ir.Model, module: nn.Module, *inputs: Tensor) -> None:
    with torch.no_grad():
        expected = module(*inputs)
    expected = [expected] if isinstance(expected, Tensor) else list(expected)
    for mine, theirs in zip(run(model, *inputs), expected, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-4, atol=1e-4)


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


# Sources


def checkpoint(path: Path) -> nn.Module:
    module = seeded(registry.build("mlp", input_shape=[1, 8, 8]))
    meta = Meta("mlp", {"input_shape": [1, 8, 8]}, (1, 8, 8), "digits", 0, 0, 1, 0.5, torch.__version__)
    save_checkpoint(module, meta, path)
    return module


def test_from_a_checkpoint(tmp_path: Path) -> None:
    module = checkpoint(tmp_path / "c.safetensors")
    model = export(tmp_path / "c.safetensors")
    assert names(model.graph.inputs) == ["input[batch, 1, 8, 8]"]
    agrees(model, module, torch.randn(3, 1, 8, 8))


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's own module in it, as the current one."""
    (tmp_path / "users_net.py").write_text(
        textwrap.dedent(
            """
            from torch import nn

            class Net(nn.Sequential):
                def __init__(self, width=2):
                    super().__init__(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width))

            ready = Net()
            number = 3

            def fails():
                raise RuntimeError("no such\\nlayer")

            def text():
                return "text"
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    sys.modules.pop("users_net", None)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "wrapped.pth"])
def test_from_a_factory_with_weights(user: Path, kind: str) -> None:
    from safetensors.torch import save_file

    module = seeded(nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)))
    path = user / f"w.{kind}"
    if kind == "safetensors":
        save_file(module.state_dict(), path)
    else:
        state = module.state_dict()
        torch.save({"epoch": 3, "state_dict": state} if "wrapped" in kind else state, path)
    entries = list(sys.path)
    model = export("users_net:Net", kwargs={"width": 3}, weights=path, inputs="1x1x5x5")
    assert sys.path == entries
    agrees(model, module, torch.randn(2, 1, 5, 5))


def test_from_a_module_that_stands_ready(user: Path) -> None:
    assert ops(export("users_net:ready", inputs="1x1x5x5"))["BatchNormalization"] == 1


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def bad_weights(user: Path) -> list[tuple[str, str]]:
    torch.save({"0.weight": Hostile()}, user / "hostile.pt")
    (user / "hostile.pth").write_bytes(pickle.dumps(Hostile()))
    torch.save(nn.Linear(1, 1), user / "module.pt")
    torch.save([1, 2], user / "list.pt")
    torch.save(nn.Linear(1, 1).state_dict(), user / "other.pt")
    torch.save({**conv_bn().state_dict(), "0.bias": torch.zeros(5)}, user / "shape.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(1, 1)), user / "script.pt")
    (user / "empty.pt").write_bytes(b"")
    (user / "text.pt").write_text("hello")
    (user / "cut.pt").write_bytes((user / "shape.pt").read_bytes()[:500])
    (user / "w.bin").write_bytes(b"")
    (user / "cut.safetensors").write_bytes(b"\x10")
    return [
        ("hostile.pt", "could run code"),
        ("hostile.pth", "could run code|damaged"),
        ("module.pt", "could run code"),
        ("list.pt", "no state dict"),
        ("other.pt", r"lacks 0\.weight, 0\.bias, 1\.weight and 3 more of Net; holds weight, bias"),
        ("shape.pt", r"0\.bias is torch\.float32 \(5,\), but Net has torch\.float32 \(2,\)"),
        ("script.pt", "is a TorchScript archive"),
        ("empty.pt", "can't be read|damaged"),
        ("text.pt", "can't be read|damaged"),
        ("cut.pt", "can't be read|damaged"),
        ("w.bin", "damaged|can't be read"),
        ("cut.safetensors", "damaged, or no safetensors file"),
        ("none.pt", "no such file"),
    ]


def test_bad_weights_are_one_line_and_run_nothing(user: Path) -> None:
    for name, says in bad_weights(user):
        with pytest.raises(ModelError, match=says) as caught:
            export("users_net:Net", weights=user / name, inputs="1x1x5x5")
        assert str(caught.value).startswith(str(user / name)) and "\n" not in str(caught.value), name
    assert not (user / "ran").exists()


@pytest.mark.parametrize(
    ("source", "arguments", "error", "says"),
    [
        ("none.safetensors", {}, ModelError, "no such file; give a checkpoint"),
        ("users_net.py", {}, ModelError, "damaged, or no safetensors file"),
        (".", {}, ModelError, "is not a file"),
        ("users_nut:Net", {}, ModelError, "No module named 'users_nut'; install it, or call bnfold in the folder"),
        ("users_nut.deep:Net", {}, ModelError, "No module named 'users_nut'; install it, or call bnfold in the folder"),
        ("torchvision:resnet18", {}, ModelError, r"; install a torchvision that is built for torch \d"),
        ("timm:resnet18", {}, ModelError, r"; install timm and a torchvision that is built for torch \d"),
        ("users_net:Nut", {}, ModelError, "has no attribute 'Nut'"),
        ("users_net:number", {}, ModelError, "not callable"),
        ("users_net:text", {}, ModelError, r"gave str, not a torch\.nn\.Module"),
        ("users_net:fails", {}, ModelError, "RuntimeError: no such"),
        ("users_net:Net", {"kwargs": {"depth": 1}}, ModelError, "'depth'"),
        ("users_net:Net", {"inputs": None}, UsageError, "give an example input"),
        ("users_net:Net", {"inputs": "abc"}, UsageError, r"\[NAME:\]SHAPE\[:DTYPE\]"),
        ("users_net:Net", {"inputs": "1x3:float33"}, UsageError, r"\[NAME:\]SHAPE\[:DTYPE\]"),
        ("users_net:Net", {"inputs": "1x3x5x5"}, InputError, r"fails on input \(2, 3, 5, 5\)"),
        ("users_net:Net", {"inputs": ["1x1x5x5", "1"]}, InputError, "too many positional arguments; forward takes"),
        ("users_net:Net", {"exporter": "onnxruntime"}, UsageError, "give dynamo or torchscript"),
        ("users_net:Net", {"opset": 99}, UsageError, "there is no opset 99"),
        ("users_net:Net", {"opset": 10}, UsageError, "instead of 10; ask for"),
        ("users_net:Net", {"opset": 2, "exporter": "torchscript"}, ModelError, "opset"),
        ("users_net.py", {"weights": "w.pt"}, UsageError, "which alone takes weights"),
    ],
)
def test_a_bad_source_is_one_line(
    user: Path, monkeypatch: pytest.MonkeyPatch, source: str, arguments: dict[str, Any], error: type[BnfoldError],
    says: str,
) -> None:  # fmt: skip
    for absent in ("timm", "torchvision"):
        monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(error, match=says) as caught:
        export(source, **{"inputs": "1x1x5x5", **arguments})
    assert "\n" not in str(caught.value)


def test_a_module_takes_no_weights() -> None:
    with pytest.raises(UsageError, match="already built"):
        export(conv_bn(), inputs="1x1x5x5", weights="w.pt")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_from_the_command_line(exporter: str, tmp_path: Path) -> None:
    # A process of its own, where nothing but export has imported the modules that it needs.
    checkpoint(tmp_path / "c.safetensors")
    command = [sys.executable, "-m", "bnfold", "export", "c.safetensors", "-o", "m.onnx", "--exporter", exporter, "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert ops(ir.load(tmp_path / "m.onnx"))["BatchNormalization"] == 2


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
