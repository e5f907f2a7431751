"""Weights from files: every common layout is understood, what does not fit is named, and nothing is ever run."""

from __future__ import annotations

import io
import pickle
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bnfold.errors import ModelError

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from bnfold.models.matching import fit, take  # noqa: E402
from bnfold.models.modules import load_module  # noqa: E402
from bnfold.models.weights import read_state, read_weights, write_weights  # noqa: E402

State = dict[str, Tensor]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def under(prefix: str, state: State) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


RIGHT, WRONG = net(1).state_dict(), net(2).state_dict()

LAYOUTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (RIGHT, {}),
    "state_dict": ({"epoch": 3, "state_dict": RIGHT, "optimizer": {"lr": 0.1}}, {}),
    "model_state_dict": ({"model_state_dict": RIGHT}, {}),
    "nested": ({"model": {"state_dict": RIGHT}}, {}),
    "data parallel": (under("module.", RIGHT), {}),
    "lightning": ({"state_dict": under("model.", RIGHT) | {"criterion.weight": torch.ones(2)}, "epoch": 1}, {}),
    "compiled": (under("_orig_mod.", RIGHT), {}),
    "compiled inside": (under("model._orig_mod.", RIGHT), {}),
    "two wrappers": (under("module.model.", RIGHT), {}),
    "a part": (under("backbone.", RIGHT) | {"head.weight": torch.ones(2, 2)}, {}),
    "counters beside": ({**RIGHT, "step": 7, "note": "x"}, {}),
    "without counts": ({key: t for key, t in RIGHT.items() if "num_batches" not in key}, {}),
    "averaged beside": ({"state_dict": WRONG, "state_dict_ema": RIGHT}, {"ema": True}),
    "not the averaged": ({"state_dict": RIGHT, "state_dict_ema": WRONG}, {}),
    "averaged model": ({"model": WRONG, "ema_model": under("module.", RIGHT) | {"n_averaged": torch.tensor(5)}},
                       {"ema": True}),
    "averaged by prefix": (under("model.", WRONG) | under("ema_model.", RIGHT), {"ema": True}),
    "not averaged by prefix": (under("model.", RIGHT) | under("ema_model.", WRONG), {}),
    "chosen": (under("student.", WRONG) | under("teacher.", RIGHT), {"prefix": "teacher."}),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_understood(layout: str, tmp_path: Path) -> None:
    content, options = LAYOUTS[layout]
    torch.save(content, tmp_path / "w.pth")
    state, averaged = read_state(tmp_path / "w.pth", ema=options.get("ema", False))
    module = net(0)
    ema = options.get("ema", False) and not averaged
    take(module, fit(module, state, "w.pth", prefix=options.get("prefix"), ema=ema))
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, RIGHT[key]), key


def test_a_module_that_has_the_wrapper_takes_weights_without_it() -> None:
    wrapped = nn.ModuleDict({"inner": net(0)})
    take(wrapped, fit(wrapped, RIGHT, "w.pt"))
    assert torch.equal(wrapped["inner"][0].weight, RIGHT["0.weight"])


def test_the_user_hears_what_was_left_out() -> None:
    heard: list[str] = []
    module = net(0)
    take(module, fit(module, under("model.", RIGHT) | {"loss.weight": torch.ones(1)}, "w.pt"), tell=heard.append)
    assert heard == ["the weights are those under 'model.'; left out: loss.weight"]


def without(*keys: str) -> State:
    return {key: tensor for key, tensor in RIGHT.items() if key not in keys}


MISFITS: list[tuple[State, str]] = [
    (without("0.weight"), r"lacks 0\.weight of Sequential; give its own weights"),
    (without("0.weight", "0.bias", "1.weight", "1.bias"), r"lacks 0\.weight, 0\.bias, 1\.weight and 1 more of"),
    ({**RIGHT, "2.weight": torch.ones(1)}, r"holds 2\.weight, which Sequential has not"),
    ({**RIGHT, "0.bias": torch.ones(5)}, r"0\.bias is torch\.float32 \(5,\), but Sequential has torch\.float32 \(2,\)"),
    ({**RIGHT, "0.bias": torch.ones(2, dtype=torch.int64)}, r"0\.bias is torch\.int64 \(2,\)"),
    ({**without("0.weight"), "9.x": torch.ones(1)}, r"lacks 0\.weight of Sequential; holds 9\.x, which"),
    ({"a": torch.ones(1)}, "lacks 0"),
    (under("a.", RIGHT) | under("b.", WRONG), r"holds several models, under a\., b\.; choose one with --prefix"),
]


@pytest.mark.parametrize(("state", "says"), MISFITS)
def test_what_does_not_fit_is_named(state: State, says: str) -> None:
    module = net(0)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    with pytest.raises(ModelError, match=says) as caught:
        take(module, fit(module, state, "w.pt"))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


def test_what_fits_is_taken_where_asked() -> None:
    module, heard = net(0), []
    state = {**without("0.weight"), "0.bias": torch.ones(5), "9.x": torch.ones(1)}
    take(module, fit(module, state, "w.pt", partial=True), tell=heard.append)
    assert torch.equal(module[1].running_mean, RIGHT["1.running_mean"])
    assert heard[0].startswith("5 of 7 tensors were loaded: lacks 0.weight of Sequential; holds 9.x")
    with pytest.raises(ModelError):
        fit(module, {"9.x": torch.ones(1)}, "w.pt", partial=True)


def test_averaged_weights_that_are_not_there() -> None:
    with pytest.raises(ModelError, match="holds no averaged weights"):
        fit(net(), RIGHT, "w.pt", ema=True)


def test_a_file_of_averaged_weights_alone(tmp_path: Path) -> None:
    torch.save({"model_ema": RIGHT, "config": [1]}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"averaged weights alone \(model_ema\); take them with --ema"):
        read_weights(tmp_path / "w.pt")


def test_written_weights_come_back(tmp_path: Path) -> None:
    module = net(1)
    write_weights(module, tmp_path / "w.safetensors")
    assert all(torch.equal(t, RIGHT[key]) for key, t in read_weights(tmp_path / "w.safetensors").items())


# Files that mean harm


class Calls:
    """Unpickled by anything that allows it, this calls `function(*arguments)`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def archive(payload: bytes) -> bytes:
    """What torch.save writes, around another pickle."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as file:
        file.writestr("w/data.pkl", payload)
        file.writestr("w/version", "3\n")
        file.writestr("w/byteorder", "little")
    return content.getvalue()


def hostile(folder: Path) -> dict[str, bytes]:
    import os
    import subprocess

    mark = str(folder / "ran")
    calls = {
        "system": Calls(os.system, f"touch {mark}"),
        "popen": Calls(subprocess.Popen, ["touch", mark]),
        "eval": Calls(eval, f"open({mark!r}, 'w')"),
        "exec": Calls(exec, f"open({mark!r}, 'w')"),
        "touch": Calls(Path.touch, Path(mark)),
        "import": Calls(__import__, "antigravity"),
        "getattr": Calls(getattr, "".join, "__self__"),
    }
    files = {f"{name}.pt": archive(pickle.dumps({"0.weight": call}, 2)) for name, call in calls.items()}
    files |= {f"{name}.pth": pickle.dumps({"0.weight": call}, 2) for name, call in calls.items()}
    deep = b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."
    files["deep.pt"] = archive(deep)
    # A text of 4 GiB, a number of 2 GiB, a list of 2⁶⁰ bytes: claimed, not there.
    files["text.pt"] = archive(b"\x80\x04\x8d" + struct.pack("<Q", 1 << 32) + b"x.")
    files["number.pt"] = archive(b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.")
    files["bytes.pt"] = archive(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"x.")
    files["storage.pt"] = archive(
        b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
        b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu\x8a\x06\x00\x00\x00\x00\x00\x01tQK\x00"
        b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85K\x01\x85\x89}tRs."
    )
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("w/data.pkl", b"\x80\x02}." + b"\0" * (64 << 20))
        file.writestr("w/version", "3\n")
    files["bomb.pt"] = bomb.getvalue()
    # torch's reader would advise to allow code.
    files["zeros.pt"] = bytes(4096)
    files["empty.pt"] = b"PK\x05\x06" + bytes(18)
    return files


def test_no_file_runs_code_or_takes_the_memory(tmp_path: Path) -> None:
    for name, content in hostile(tmp_path).items():
        path = tmp_path / name
        path.write_bytes(content)
        started = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ModelError) as caught:
                read_weights(path)
        text = str(caught.value)
        assert text.startswith(str(path)) and "\n" not in text and len(text) < 600, name
        assert time.process_time() - started < 20, name
        if name.partition(".")[0] in ("system", "popen", "eval", "exec", "touch", "import", "getattr"):
            assert "it asks for" in text and "could run code" in text, (name, text)
        if name == "bomb.pt":
            assert "is a compressed archive" in text
        assert "weights_only" not in text and "mmap" not in text, (name, text)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_says_what_it_asks_for(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "module.pt")
    with pytest.raises(ModelError, match=r"it asks for torch\.nn\.modules\.linear\.Linear"):
        read_weights(tmp_path / "module.pt")


@pytest.mark.parametrize(("name", "says"), [
    ("w.pt2", "is the archive of a program"),
    ("w.h5", r"\.safetensors, \.pt and \.pth files only"),
])  # fmt: skip
def test_other_files_are_refused_by_name(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelError, match=says):
        read_weights(tmp_path / name)


def test_weights_as_the_source_name_what_is_missing(tmp_path: Path) -> None:
    torch.save(RIGHT, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"holds weights but no architecture; name it, package\.module:factory --wei"):
        load_module(tmp_path / "w.pth")
