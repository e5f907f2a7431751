"""`bnfold export` from the command line: what it loads, what it audits, what it writes."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnfold.errors import ModelError, RejectedError, UsageError
from bnfold.report import schema
from tests.conftest import Outcome

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import Tensor, nn  # noqa: E402

from bnfold.export import export  # noqa: E402

Cli = Callable[..., Outcome]


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a user's own module in it, trained weights beside it, as the current one."""
    (tmp_path / "shop.py").write_text(textwrap.dedent("""
        import torch
        from torch import nn

        def net(width=2, momentum=0.1):
            return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width, momentum=momentum), nn.ReLU())

        def deep():
            return nn.Sequential(*(nn.BatchNorm2d(1) for _ in range(5)))

        def half_asleep():
            model = net().eval()
            model[1].train()
            return model
    """))
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, momentum=1.0), nn.ReLU())
    with torch.no_grad():
        module(torch.randn(256, 1, 5, 5))
    torch.save({"state_dict": {f"model.{key}": t for key, t in module.state_dict().items()}}, tmp_path / "w.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield tmp_path
    sys.modules.pop("shop", None)


SOURCE = ("export", "shop:net", "-o", "m.onnx", "--input", "1x1x5x5")


def test_a_sound_model_is_written_without_a_word(bnfold: Cli, user: Path) -> None:
    done = bnfold(*SOURCE, "--weights", "w.pt", "--prefix", "model.", "--strict", "--json")
    assert done.code == 0
    document = json.loads(done.out)
    jsonschema.validate(document, schema("export"))
    assert document["findings"] == [] and document["batchnorms"] == 1
    assert done.err == "bnfold: note: the weights are those under 'model.'\n"
    model = ir.load("m.onnx")
    bn = next(node for node in model.graph if node.op_type == "BatchNormalization")
    assert bn.name == "1/BatchNormalization" and bn.metadata_props["bnfold.module"] == "1"


def test_what_is_not_sound_is_told(bnfold: Cli, user: Path) -> None:
    done = bnfold(*SOURCE, "--json", "--kwargs", '{"width": 3}', "--arg", "momentum=0.99")
    assert done.code == 0 and Path("m.onnx").exists()
    document = json.loads(done.out)
    jsonschema.validate(document, schema("export"))
    assert [finding["code"] for finding in document["findings"]] == ["momentum", "never-updated"]
    assert "note: 1: momentum: momentum=0.99" in done.err and "note: 1: never-updated" in done.err


def test_what_many_have_in_common_is_one_line(bnfold: Cli, user: Path) -> None:
    done = bnfold("export", "shop:deep", "-o", "m.onnx", "--input", "1x1x5x5")
    assert done.code == 0 and done.err.startswith(
        "bnfold: note: never-updated in 5 BatchNorms (0, 1, 2 and 2 more): num_batches_tracked is 0"
    )
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(("arguments", "says"), [
    ((), r"shop:net is not sound: 1: never-updated: .*--allow never-updated lets it pass"),
    (("--arg", "momentum=0.9"), r"1: momentum: .* \(and 1 more\)"),
    (("--arg", "momentum=0.9", "--allow", "never-updated"), "1: momentum"),
])  # fmt: skip
def test_strict_writes_nothing(bnfold: Cli, user: Path, arguments: tuple[str, ...], says: str) -> None:
    import re

    done = bnfold(*SOURCE, "--strict", *arguments)
    assert done.code == 1 and re.search(says, done.err) and done.err.count("\n") == 1
    assert not Path("m.onnx").exists()


def test_strict_lets_pass_what_is_allowed(bnfold: Cli, user: Path) -> None:
    assert bnfold(*SOURCE, "--strict", "--allow", "never-updated", "-q").code == 0


def test_one_batch_norm_left_in_training_mode(bnfold: Cli, user: Path) -> None:
    source = ("export", "shop:half_asleep", "-o", "m.onnx", "--input", "1x1x5x5", "--weights", "w.pt")
    done = bnfold(*source, "--strict")
    assert done.code == 1 and "1: training-mode: it is in training mode" in done.err


def test_the_data_are_held_against_the_statistics(bnfold: Cli, user: Path) -> None:
    x = np.random.default_rng(0).normal(size=(300, 1, 5, 5)).astype(np.float32)
    np.savez("fits.npz", input=x)
    np.savez("off.npz", input=x + 3)
    strict = (*SOURCE, "--weights", "w.pt", "--strict", "-q", "--data")
    assert bnfold(*strict, "fits.npz").code == 0
    Path("m.onnx").unlink()
    done = bnfold(*strict, "off.npz")
    assert done.code == 1 and "1: drifted" in done.err and not Path("m.onnx").exists()


@pytest.mark.parametrize(("arguments", "code", "says"), [
    (("--weights", "none.pt"), 4, "no such file"),
    (("--weights", "w.pt", "--prefix", "net."), 4, "lacks 0.weight"),
    (("--weights", "w.pt", "--ema"), 4, "holds no averaged weights"),
    (("--ema",), 2, "choose among --weights"),
    (("--weights", "w.pt", "--arg", "width=3"), 4, "0.weight is torch.float32 (2, 1, 3, 3), but Sequential has"),
    (("--kwargs", '{"height": 3}'), 4, "height"),
    (("--kwargs", "3"), 4, "is no JSON object"),
    (("--arg", "width"), 4, "write it like --arg num_classes=10"),
    (("--dynamic", "2=h", "--dynamic", "3"), 2, "write INPUT:AXIS=NAME"),
    (("--dynamic", "pixels:2=h"), 2, "no input is called 'pixels'; the inputs are input"),
    (("--dynamic", "4=h"), 2, "has axes 0 to 3 only"),
    (("--dynamic", "1=c"), 2, "the example has the size 1 there"),
    (("--dynamic", "1=batch"), 2, "the example has the size 1 there"),
    (("--allow", "rust"), 2, "the codes are"),
    (("--exporter", "abacus"), 2, "give dynamo or torchscript"),
    (("--data", "shop.py"), 4, "is not an .npz file"),
    (("--opset", "99"), 2, "there is no opset 99; ONNX has 1 to"),
    (("--input", "1x1x5x5"), 4, "too many positional arguments"),
    (("--input", "five"), 2, "can't read the input 'five'"),
    (("--input", "99999999x99999999"), 2, "there is no memory for it"),
    (("--input", "99999999999999999999:int64"), 2, "there is no memory for it"),
])  # fmt: skip
def test_a_wrong_call_is_one_line(bnfold: Cli, user: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    """Of arguments too, before a word about the statistics, which never were updated here."""
    done = bnfold(*SOURCE, *arguments)
    assert done.code == code and says in done.err and done.err.count("\n") == 1 and done.out == ""
    assert not Path("m.onnx").exists()


@pytest.mark.parametrize(("package", "home", "maker"), [
    ("timm", "timm/__init__.py", "create_model"),
    ("torchvision", "torchvision/models/__init__.py", "get_model"),
])  # fmt: skip
def test_a_model_of_a_collection_goes_by_its_name(user: Path, package: str, home: str, maker: str) -> None:
    for file in (Path(package, "__init__.py"), Path(home)):
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
    text = f"import shop\ndef {maker}(name, **how):\n    return {{'small': shop.net}}[name](**how)\n"
    Path(home).write_text(text)
    before = {name for name in sys.modules if name.partition(".")[0] == package}
    try:
        model = export(f"{package}:small", kwargs={"width": 5}, inputs="1x1x5x5")
        assert str(model.graph.outputs[0].shape) == "[batch,5,3,3]"
        with pytest.raises(ModelError, match=f"{package}:large: KeyError"):
            export(f"{package}:large", inputs="1x1x5x5")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == package and name not in before]:
            del sys.modules[name]


# Free axes


class Sized(nn.Module):
    """Pools, so that any size goes; `frozen` bakes the example's height in."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.conv, self.bn, self.frozen = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), frozen

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return y.sum(2) / (int(y.shape[2]) if self.frozen else 1)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("dynamic", [["input:2=height", "3=width"], {"input": {2: "height", 3: "width"}}])
def test_other_axes_are_free(exporter: str, dynamic: Any) -> None:
    module = Sized().eval()
    model = export(module, inputs="1x1x6x7", exporter=exporter, dynamic=dynamic)
    assert str(model.graph.inputs[0].shape) == "[batch,1,height,width]"
    session = pytest.importorskip("onnxruntime").InferenceSession(ir.to_proto(model).SerializeToString())
    x = torch.randn(3, 1, 12, 5)
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], module(x), atol=1e-4)


def test_a_size_that_tracing_froze_is_not_passed_over() -> None:
    module = Sized(True).eval()
    with pytest.raises(RejectedError, match=r"not the module: output 'output' on input 2×1×7×7.*try the dynamo"):
        export(module, inputs="1x1x6x7", exporter="torchscript", dynamic=["2=height"], note=lambda text: None)


def test_inputs_share_a_free_axis() -> None:
    class Both(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a @ b.transpose(1, 2)

    model = export(Both().eval(), inputs=["1x3x4", "1x3x4"], dynamic=["a:1=rows", "b:1=rows"])
    assert [str(value.shape) for value in model.graph.inputs] == ["[batch,rows,4]", "[batch,rows,4]"]
    with pytest.raises(UsageError, match=r"'n' is 3 elsewhere, 4 here; name it anew"):
        export(Both().eval(), inputs=["1x3x4", "1x3x4"], dynamic=["a:1=n", "b:2=n"])


# The proof


class Other(nn.Module):
    """Not the same while it is exported: a stand-in for what an exporter may get wrong."""

    def __init__(self, fault: float) -> None:
        super().__init__()
        self.conv, self.fault = nn.Conv2d(1, 2, 3), fault

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * (1 + self.fault) if torch.compiler.is_exporting() or torch.jit.is_tracing() else y


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_a_small_fault_is_found(exporter: str) -> None:
    with pytest.raises(RejectedError, match="the exported model is not the module: output 'output'"):
        export(Other(1e-4).eval(), inputs="1x1x5x5", exporter=exporter, note=lambda text: None)
    export(Other(0.0).eval(), inputs="1x1x5x5", exporter=exporter, note=lambda text: None)
    export(Other(1e-4).eval(), inputs="1x1x5x5", exporter=exporter, note=lambda text: None, verify=False)


def test_a_module_that_rolls_dice_is_not_called_verified() -> None:
    class Dice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    notes: list[str] = []
    export(Dice().eval(), inputs="2x3", note=notes.append)
    assert notes == ["not verified against the module: it gives another result each time"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_are_held_to_their_own_precision(dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)).eval().to(dtype)
    export(module, inputs=torch.randn(3, 4).to(dtype), note=lambda text: None)


# Large models and archives


def test_what_protobuf_cannot_hold_goes_through_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The limit of 2 GiB, made small."""
    from bnfold import io
    from bnfold.exporting import writers

    for module in (io, writers, sys.modules["bnfold.export"], sys.modules["bnfold.runtime"]):
        monkeypatch.setattr(module, "INLINE_LIMIT", 4096)
    module = nn.Sequential(nn.Conv2d(1, 64, 5), nn.BatchNorm2d(64), nn.Conv2d(64, 8, 3)).eval()
    for exporter in ("dynamo", "torchscript"):
        model = export(module, inputs="1x1x9x9", exporter=exporter)
        io.save(model, tmp_path / f"{exporter}.onnx")
        assert [path.suffix for path in tmp_path.glob(f"{exporter}.onnx.*")] == [".data"]
        onnx.checker.check_model(tmp_path / f"{exporter}.onnx", full_check=True)


def test_an_archive_is_read_where_it_is_trusted(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    path = tmp_path / "m.pt2"
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(module, (torch.randn(2, 1, 5, 5),), dynamic_shapes=({0: batch},)), path)
    with pytest.raises(UsageError, match="may run code when it is read; where you trust it, give --trust"):
        export(path)
    model = export(path, trust=True)
    assert [node.op_type for node in model.graph] == ["Conv", "BatchNormalization"]
    assert not isinstance(model.graph.inputs[0].shape[0], int)  # type: ignore[index]
    with pytest.raises(UsageError, match="dynamo exporter only"):
        export(path, trust=True, exporter="torchscript")
    path.write_bytes(b"no archive")
    with pytest.raises(ModelError, match=r"can't be read as an archive of torch\.export"):
        export(path, trust=True)
