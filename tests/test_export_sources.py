"""Where `export` takes a module from: checkpoints, factories, weights files, and one line for each that is no good."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from bnfold.errors import BnfoldError, InputError, ModelError, UsageError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import nn  # noqa: E402

from bnfold.export import export  # noqa: E402
from bnfold.models import registry  # noqa: E402
from bnfold.models.checkpoint import Meta, save_checkpoint  # noqa: E402
from tests.architectures import seeded  # noqa: E402
from tests.exported import EXPORTERS, agrees, conv_bn, names, ops  # noqa: E402


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
