"""Whatever is wrong with the input: one line that says what to do, the right exit code, nothing at the output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from bnfold import io
from bnfold.errors import ModelError
from tests.conftest import Outcome, conv_bn

Bnfold = Callable[..., Outcome]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _missing(path: Path) -> None:
    pass


def _directory(path: Path) -> None:
    path.mkdir()


def _empty(path: Path) -> None:
    path.touch()


def _text(path: Path) -> None:
    path.write_text("this is a text file\n" * 20)


def _json(path: Path) -> None:
    path.write_text('{"a": 1}')


def _lfs(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def _truncated(path: Path) -> None:
    data = conv_bn().SerializeToString()
    path.write_bytes(data[: len(data) // 2])


def _noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(4096))


def _unknown_input(path: Path) -> None:
    proto = conv_bn()
    proto.graph.node[0].input[0] = "nowhere"
    path.write_bytes(proto.SerializeToString())


def _unknown_operator(path: Path) -> None:
    proto = conv_bn()
    proto.graph.node[0].op_type = "Convolve"
    path.write_bytes(proto.SerializeToString())


def _newer_ir(path: Path) -> None:
    proto = conv_bn()
    proto.ir_version = 9999
    path.write_bytes(proto.SerializeToString())


def _external(path: Path) -> Path:
    onnx.save(conv_bn(channels=32), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path.with_name("w.bin")


def _external_missing(path: Path) -> None:
    _external(path).unlink()


def _external_cut(path: Path) -> None:
    os.truncate(_external(path), 1000)


BAD_MODELS = [
    (_missing, "no such file"),
    (_directory, "is a directory"),
    (_empty, "is empty"),
    (_text, "is not an ONNX model"),
    (_json, "is not an ONNX model"),
    (_lfs, "git lfs pull"),
    (_truncated, "cut short"),
    (_noise, "is not an ONNX model"),
    (_unknown_input, "is not a valid ONNX model"),
    (_unknown_operator, "Convolve"),
    (_newer_ir, "is not a valid ONNX model"),
    (_external_missing, "put 'w.bin' beside the model"),
    (_external_cut, "is cut short"),
]

# The bad model is %B, a good one %G, an output that is not there yet %N.
VERBS = {
    "inspect": ("inspect", "%B"),
    "optimize": ("optimize", "%B", "-o", "%N"),
    "verify reference": ("verify", "%B", "%G"),
    "verify candidate": ("verify", "%G", "%B"),
    "bench": ("bench", "%G", "%B", "--rounds", "2"),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("make", "said"), BAD_MODELS, ids=[make.__name__.strip("_") for make, _ in BAD_MODELS])
def test_a_bad_model(
    bnfold: Bnfold, model_file: Path, tmp_path: Path, verb: str, make: Callable[[Path], None], said: str
) -> None:
    bad, new = tmp_path / "bad.onnx", tmp_path / "new.onnx"
    make(bad)
    places = {"%B": bad, "%G": model_file, "%N": new}
    before = snapshot(tmp_path)
    outcome = bnfold(*(places.get(word, word) for word in VERBS[verb]))
    refused(outcome, 4, said)
    assert str(bad) in outcome.err
    assert snapshot(tmp_path) == before


def test_a_path_that_onnx_can_not_open(bnfold: Bnfold, model_file: Path) -> None:
    odd = model_file.rename(model_file.with_name("\udcff.onnx"))  # the byte 255, which is no UTF-8
    refused(bnfold("inspect", odd), 4, "\\udcff.onnx: is no UTF-8, and ONNX opens no other path; rename it")


def test_no_prefix_of_a_model_is_a_model(tmp_path: Path) -> None:
    data = conv_bn(layers=1).SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError):
            io.load(path)


def refused(outcome: Outcome, code: int, said: str) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("bnfold: "), outcome.err
    assert said in lines[0]


def _no_folder(folder: Path) -> Path:
    return folder / "nowhere" / "out.onnx"


def _a_folder(folder: Path) -> Path:
    (folder / "out.onnx").mkdir()
    return folder / "out.onnx"


def _under_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "out.onnx"


def _a_device(folder: Path) -> Path:
    return Path(os.devnull)


def _too_long(folder: Path) -> Path:
    return folder / ("x" * 300)


BAD_OUTPUTS = [
    (_no_folder, "create it first"),
    (_a_folder, "is a directory"),
    (_under_a_file, "not a directory"),
    (_a_device, "not a regular file"),
    (_too_long, "too long"),
]


@pytest.mark.parametrize("verb", ["optimize", "export", "train"])
@pytest.mark.parametrize(("make", "said"), BAD_OUTPUTS, ids=[make.__name__.strip("_") for make, _ in BAD_OUTPUTS])
def test_a_bad_output(
    bnfold: Bnfold, model_file: Path, tmp_path: Path, verb: str, make: Callable[[Path], Path], said: str
) -> None:
    """It is found before the work begins, so no torch is loaded and no minute lost."""
    source = {"optimize": model_file, "export": "torch.nn:ReLU", "train": "mlp"}[verb]
    output = make(tmp_path)
    before = snapshot(tmp_path)
    refused(bnfold(verb, source, "-o", output), 4, said)
    assert snapshot(tmp_path) == before


USAGE = [
    (("nosuch",), "nosuch"),
    (("verify",), "REFERENCE"),
    (("verify", "%G", "--torch"), "CANDIDATE"),
    (("verify", "%G", "%G", "--weights", "w.pt"), "--torch"),
    (("verify", "%G", "%G", "--level", "highest"), "deployed"),
    (("bench",), "MODEL"),
    (("optimize", "%G"), "--output"),
    (("optimize", "%G", "-o", ""), "give the path of a file"),
    (("verify", "%G", "%G", "--nosuch"), "--nosuch"),
    (("verify", "%G", "%G", "--samples", "0"), "--samples"),
    (("verify", "%G", "%G", "--samples", "many"), "--samples"),
    (("verify", "%G", "%G", "--seed", "-1"), "--seed"),
    (("verify", "%G", "%G", "--rtol", "nan"), "rtol is nan"),
    (("optimize", "%G", "-o", "%N", "--atol", "-1"), "atol is -1.0"),
    (("bench", "%G", "--threads", "0"), "threads"),
    (("train", "mlp", "--seed", "-1", "-o", "%N"), "seed is -1"),
    (("verify", "%G", "%G", "--dim", "batch"), "--dim batch=4"),
    (("verify", "%G", "%G", "--dim", "batch=0"), "whole numbers"),
    (("verify", "%G", "%G", "--shape", "z=1x3x8x8"), "its inputs are x"),
    (("verify", "%G", "%G", "--shape", "x=1x3"), "rank"),
    (("verify", "%G", "%G", "--shape", "x=1x4x8x8"), "axis 1 is 4"),
    (("optimize", "%G", "-o", "%N", "--shape", "x=1x3xAx8"), "'A' is not a size"),
    (("train", "renset", "-o", "%N"), "did you mean resnet"),
    (("train", "resnet", "--data", "nosuch", "-o", "%N"), "nosuch"),
]


@pytest.mark.parametrize(("words", "said"), USAGE, ids=[" ".join(words) for words, _ in USAGE])
def test_wrong_usage(
    bnfold: Bnfold, model_file: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    new = tmp_path / "new.onnx"
    refused(bnfold(*({"%G": model_file, "%N": new}.get(word, word) for word in words)), 2, said)
    assert not new.exists()


def test_a_provider_that_is_not_there(bnfold: Bnfold, model_file: Path, tmp_path: Path) -> None:
    new = tmp_path / "new.onnx"
    refused(bnfold("verify", model_file, model_file, "--provider", "nosuch"), 4, "nosuch")
    refused(bnfold("optimize", model_file, "-o", new, "--provider", "coreml"), 4, "coreml")
    refused(bnfold("bench", model_file, "--provider", "nosuch"), 4, "nosuch")
    assert not new.exists()


GOOD = np.zeros((2, 3, 8, 8), np.float32)
BAD_INPUTS = {
    "wrong name": ({"z": GOOD}, "z"),
    "one too many": ({"x": GOOD, "z": GOOD}, "z"),
    "none": ({}, "x"),
    "wrong rank": ({"x": GOOD[0]}, "x"),
    "wrong size": ({"x": np.zeros((2, 4, 8, 8), np.float32)}, "x"),
    "wrong dtype": ({"x": GOOD.astype(np.int64)}, "x"),
    "text": ({"x": np.array(["a"])}, "x"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
@pytest.mark.parametrize("verb", ["verify", "optimize"])
def test_bad_inputs(bnfold: Bnfold, model_file: Path, tmp_path: Path, verb: str, case: str) -> None:
    arrays, said = BAD_INPUTS[case]
    np.savez(tmp_path / "x.npz", **arrays)
    second = [model_file] if verb == "verify" else ["-o", tmp_path / "new.onnx"]
    refused(bnfold(verb, model_file, *second, "--inputs", tmp_path / "x.npz"), 4, said)
    assert not (tmp_path / "new.onnx").exists()


@pytest.mark.parametrize("make", [_missing, _text, _empty, _directory])
def test_an_inputs_file_that_is_none(
    bnfold: Bnfold, model_file: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "x.npz"
    make(path)
    refused(bnfold("verify", model_file, model_file, "--inputs", path), 4, str(path))


@pytest.mark.parametrize("make", [_missing, _text, _empty, _directory, _truncated])
def test_a_checkpoint_that_is_none(bnfold: Bnfold, tmp_path: Path, make: Callable[[Path], None]) -> None:
    source, new = tmp_path / "c.safetensors", tmp_path / "new.onnx"
    make(source)
    refused(bnfold("export", source, "-o", new), 4, str(source))
    assert not new.exists()


HALF_WRITTEN = """
import sys, time
from pathlib import Path
from bnfold.cli import main

def half(path, data):
    with open(path, "wb") as stream:
        stream.write(data[: len(data) // 2])
    print("half", flush=True)
    time.sleep(60)

Path.write_bytes = half
main(sys.argv[1:])
"""


LOST_IN_A_LIBRARY = """
import sys
from pathlib import Path
import numpy as np, onnx, onnxruntime
from bnfold.cli import interrupts, main

interrupts.GRACE_S = 0.5
text = '''<ir_version: 9, opset_import: ["": 18]> g (int64 n, bool c, float x) => (float y) {
    y = Loop (n, c, x) <body = b (int64 i, bool c0, float x0) => (bool c1, float x1) {
        c1 = Identity (c0)
        x1 = Neg (x0)
    }>
}'''
session = onnxruntime.InferenceSession(onnx.parser.parse_model(text).SerializeToString())

def half(path, data):
    with open(path, "wb") as stream:
        stream.write(data[: len(data) // 2])
    print("half", flush=True)
    session.run(None, {"n": np.array(2**62), "c": np.array(True), "x": np.array(1, np.float32)})

Path.write_bytes = half
main(sys.argv[1:])
"""


@pytest.mark.parametrize("script", [HALF_WRITTEN, LOST_IN_A_LIBRARY], ids=["sleeping", "in a library"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing_half_written(
    model_file: Path, tmp_path: Path, script: str, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "folded.onnx").write_bytes(b"the old one")
    command = [sys.executable, "-c", script, "optimize", model_file, "-o", out / "folded.onnx", "--no-verify"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    assert len(list(out.iterdir())) == 2  # the old file and half of the new one
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err
    assert snapshot(out) == {"folded.onnx": b"the old one"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_training_can_be_interrupted(tmp_path: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "bnfold", "train", "mlp", "--epochs", "10000", "-o", tmp_path / "c.safetensors"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("epoch 1/")
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


GONE = "[ ${PIPESTATUS[0]} = 141 ] && exit 141"
STREAMS = {
    "reader gone": (f"%B | true; {GONE}", 141, 0),
    "reader gone, a document": (f"%B --json | true; {GONE}", 141, 0),
    "stdout closed": ("%B >&-", 4, 1),
    "stdout full": ("%B >/dev/full", 4, 1),
    "stdout full, a document": ("%B --json >/dev/full", 4, 1),
    "both closed": ("%B >&- 2>&-", 4, 0),
    "stderr full": ("%B nosuch 2>/dev/full", 2, 0),
    "nothing to say": ("%B -q >&- 2>&-", 0, 0),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("case", STREAMS)
def test_a_stream_that_nobody_reads_is_never_a_mismatch(model_file: Path, case: str) -> None:
    line, code, said = STREAMS[case]
    command = line.replace("%B", f"{sys.executable} -m bnfold inspect {model_file}")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == said and "Traceback" not in done.stderr
