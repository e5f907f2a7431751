"""The verbs: what they print, what they write, how they exit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest

from bnfold import io, report
from bnfold.cli import VERBS
from bnfold.cli import bnfold as group
from bnfold.cli.reference import markdown
from bnfold.errors import UsageError
from tests.conftest import REPOSITORY, Outcome, conv_bn, document
from tests.graphs import build

jsonschema = pytest.importorskip("jsonschema")

Bnfold = Callable[..., Outcome]


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its words: `verify`, `report verify` …"""

    def below(command: click.Command, words: str) -> Iterator[tuple[str, click.Command]]:
        if not isinstance(command, click.Group):
            yield words, command
            return
        context = click.Context(command)
        for name in command.list_commands(context):
            leaf = command.get_command(context, name)
            assert leaf is not None
            yield from below(leaf, f"{words} {name}".strip())

    yield from below(group, "")


def test_every_verb_that_prints_a_document_has_its_schema() -> None:
    printing = {words for words, command in commands() if any(p.name == "as_json" for p in command.params)}
    assert {"inspect", "optimize", "verify"} <= printing
    for verb in printing:
        jsonschema.Draft202012Validator.check_schema(report.schema(verb.partition(" ")[0]))


def test_docs_are_what_the_commands_say() -> None:
    assert (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8") == markdown(), "run `make docs`"


def test_version_and_help(bnfold: Bnfold) -> None:
    assert re.fullmatch(r"bnfold \d+\.\d+\.\d+\n", bnfold("--version").out)
    for words in (["--help"], ["-h"], []):
        outcome = bnfold(*words)
        assert all(verb in outcome.out + outcome.err for verb in VERBS)


@pytest.mark.parametrize("verb", [words for words, _ in commands()])
def test_every_verb_has_help_and_an_example(bnfold: Bnfold, verb: str) -> None:
    outcome = bnfold(*verb.split(), "--help")
    assert outcome.code == 0 and outcome.err == ""
    assert f"bnfold {verb}" in outcome.out.rpartition("Example:")[2]


def test_inspect(bnfold: Bnfold, model_file: Path) -> None:
    before = model_file.read_bytes()
    found = document(bnfold("inspect", model_file, "--json"), "inspect")
    assert (found["folded"], found["kept"]) == (2, 0)
    assert [entry["node"] for entry in found["batch_norms"]] == ["bn0", "bn1"]
    outcome = bnfold("inspect", model_file)
    assert outcome.code == 0 and outcome.err == ""
    assert "2 of 2 BatchNorms fold" in outcome.out and "conv1" in outcome.out
    assert model_file.read_bytes() == before


def test_inspect_says_what_would_merge(bnfold: Bnfold, tmp_path: Path) -> None:
    text = "(T[N,8] x) => (T[n,c] y) { a = MatMul(x, w[8,8])  b = MatMul(x, v[8,8])  y = Add(a, b) }"
    onnx.save(build(text), tmp_path / "m.onnx")
    for words, count in (((), 1), (("--no-merge",), 0)):
        assert len(document(bnfold("inspect", tmp_path / "m.onnx", *words, "--json"), "inspect")["merges"]) == count


def test_inspect_says_why_not(bnfold: Bnfold, tmp_path: Path) -> None:
    proto = conv_bn()
    proto.graph.output.append(onnx.helper.make_tensor_value_info("c0", onnx.TensorProto.FLOAT, ["batch", 4, 8, 8]))
    onnx.save(proto, tmp_path / "m.onnx")
    found = document(bnfold("inspect", tmp_path / "m.onnx", "--json"), "inspect")
    kept = found["batch_norms"][0]
    assert kept["status"] == "kept" and kept["blocking"] and kept["hint"]
    out = bnfold("inspect", tmp_path / "m.onnx").out
    assert kept["reason"] in out and kept["blocking"] in out and kept["hint"] in out.replace("\n", " ")


def test_optimize_writes_what_it_verified(bnfold: Bnfold, model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "folded.onnx"
    found = document(bnfold("optimize", model_file, "-o", out, "--json"), "optimize")
    assert found["output"] == str(out) and found["verdict"]["status"] == "pass"
    assert found["nodes"] == {"before": 6, "after": 4}
    onnx.checker.check_model(out)
    assert document(bnfold("verify", model_file, out, "--json"), "verify")["status"] == "pass"
    outcome = bnfold("optimize", model_file, "-o", out)
    assert "pass" in outcome.out and str(out) in outcome.out.replace("\n", "")


def test_optimize_without_verification(bnfold: Bnfold, model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "folded.onnx"
    found = document(bnfold("optimize", model_file, "-o", out, "--no-verify", "--no-merge", "--json"), "optimize")
    assert found["verdict"] is None and out.exists()
    assert "not verified" in bnfold("optimize", model_file, "-o", out, "--no-verify").out


@pytest.mark.parametrize(("status", "code"), [("mismatch", 1), ("inconclusive", 3)])
def test_optimize_writes_nothing_unproven(
    bnfold: Bnfold, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: Any, code: int
) -> None:
    from bnfold.verify.verdict import Verdict, inconclusive

    verdict = Verdict(status, findings=(inconclusive("made up by a test"),))
    monkeypatch.setattr(sys.modules["bnfold.verify"], "verify", lambda *args, **options: verdict)
    out = tmp_path / "folded.onnx"
    out.write_bytes(b"the old one")
    outcome = bnfold("optimize", model_file, "-o", out, "--json")
    assert outcome.code == code
    assert document(outcome, "optimize")["output"] is None
    assert outcome.err == f"bnfold: {out} was not written: {status}\n"
    assert out.read_bytes() == b"the old one"
    assert list(tmp_path.glob(".*")) == []


def test_freeze_initializers(bnfold: Bnfold, tmp_path: Path) -> None:
    proto = conv_bn()
    for tensor in proto.graph.initializer:
        info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.input.append(info)
    model, out = tmp_path / "m.onnx", tmp_path / "folded.onnx"
    onnx.save(proto, model)
    assert document(bnfold("inspect", model, "--json"), "inspect")["folded"] == 0
    assert document(bnfold("inspect", model, "--freeze-initializers", "--json"), "inspect")["folded"] == 2
    found = document(bnfold("optimize", model, "-o", out, "--freeze-initializers", "--json"), "optimize")
    assert found["fold"]["folded"] == 2 and [v.name for v in io.load(out).graph.inputs] == ["x"]


def test_verify_exit_codes(bnfold: Bnfold, model_file: Path, tmp_path: Path) -> None:
    other, constant = tmp_path / "other.onnx", tmp_path / "constant.onnx"
    onnx.save(conv_bn(seed=1), other)
    proto = conv_bn()
    proto.graph.node[-1].CopyFrom(onnx.helper.make_node("Sub", ["b1", "b1"], ["y"]))
    onnx.save(proto, constant)
    assert bnfold("verify", model_file, model_file).code == 0
    outcome = bnfold("verify", model_file, other, "--json")
    assert outcome.code == 1 and document(outcome, "verify")["status"] == "mismatch"
    outcome = bnfold("verify", constant, constant, "--json")
    assert outcome.code == 3 and document(outcome, "verify")["status"] == "inconclusive"
    assert bnfold("verify", model_file, model_file, "--expect-folds", "2").code == 3
    outcome = bnfold("verify", model_file, other)
    assert outcome.code == 1 and "mismatch" in outcome.out


def test_verify_takes_inputs_and_shapes(bnfold: Bnfold, model_file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32))
    assert bnfold("verify", model_file, model_file, "--inputs", tmp_path / "x.npz").code == 0
    for size in (["--dim", "batch=4"], ["--shape", "x=4x3x8x8"]):
        found = document(bnfold("verify", model_file, model_file, *size, "--json", "--samples", "2"), "verify")
        assert found["settings"]["dims"] == {"batch": 4}


def test_quiet_says_it_with_the_exit_code(bnfold: Bnfold, model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "folded.onnx"
    for words in (["inspect", model_file], ["optimize", model_file, "-o", out], ["verify", model_file, out]):
        outcome = bnfold(*words, "-q")
        assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def test_bench(bnfold: Bnfold, model_file: Path) -> None:
    twin = shutil.copy(model_file, model_file.with_name("twin.onnx"))
    found = document(bnfold("bench", model_file, twin, "--rounds", "3", "--json"), "bench")
    assert [row["name"] for row in found["rows"]] == ["model.onnx", "twin.onnx"]
    outcome = bnfold("bench", model_file, twin, "--rounds", "3")
    assert outcome.code == 0 and "model.onnx" in outcome.out and "twin.onnx" in outcome.out
    for size in (["--batch", "4"], ["--dim", "batch=4"], ["--shape", "x=4x3x8x8"]):
        found = document(bnfold("bench", model_file, "--rounds", "1", *size, "--json"), "bench")
        assert found["inputs"] == {"x": [4, 3, 8, 8]}
    assert bnfold("bench", model_file, "--rounds", "0").code == bnfold("bench", model_file, "--batch", "0").code == 2


def test_train_and_export(bnfold: Bnfold, tmp_path: Path) -> None:
    checkpoint, model = tmp_path / "c.safetensors", tmp_path / "m.onnx"
    outcome = bnfold("train", "mlp", "--epochs", "2", "-o", checkpoint, "--json")
    found = document(outcome, "train")
    assert found["epochs"] == 2 and outcome.err.count("epoch ") == 2
    found = document(bnfold("export", checkpoint, "-o", model, "--json"), "export")
    assert found["batchnorms"] == document(bnfold("inspect", model, "--json"), "inspect")["folded"] > 0
    assert io.load(model).graph.inputs[0].shape is not None


def test_export_of_a_factory(bnfold: Bnfold, tmp_path: Path) -> None:
    out = tmp_path / "bn.onnx"
    words = ["export", "torch.nn:BatchNorm2d", "--arg", "num_features=3", "--input", "1x3x8x8", "-o", out, "--json"]
    assert document(bnfold(*words), "export")["batchnorms"] == 1


def test_a_bug_is_called_one(bnfold: Bnfold, model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold import pipeline

    def fail(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError("made up by a test")

    monkeypatch.setattr(pipeline, "inspect", fail)
    outcome = bnfold("inspect", model_file)
    assert outcome.code == 70 and "Traceback" in outcome.err and "report it" in outcome.err


@pytest.mark.parametrize(
    ("shape", "dims"),
    [("x=2x3x8x8", {"batch": 2}), ("z=2x5", {"batch": 2, "z:1": 5})],
)
def test_shapes_become_sizes_of_dimensions(shape: str, dims: dict[str, int]) -> None:
    from bnfold.cli.sizes import resolve

    text = """<ir_version: 9, opset_import: ["": 18]>
        g (float[batch, 3, 8, 8] x, float[batch, ?] z) => (float[batch, 3, 8, 8] y) { y = Neg (x) }"""
    model = io.load(onnx.parser.parse_model(text))
    plain: dict[str, Any] = {"dims": (), "shapes": (shape,), "samples": 1, "seed": 0, "levels": ()}
    assert resolve(plain, lambda: model)["dims"] == dims
    with pytest.raises(UsageError, match="axis 0 is 2"):
        resolve({**plain, "dims": ("batch=3",)}, lambda: model)


@pytest.mark.slow
def test_the_examples_run_as_they_stand(tmp_path: Path) -> None:
    """From the help, in the order of the verbs.

    A server runs until it is stopped, on ports that may be taken here: tests/serve starts it on free ones.
    """
    lines, verbs = [], [(words, command) for words, command in commands() if words != "serve"]
    for words, command in verbs:
        examples = [line.strip() for line in (command.epilog or "").splitlines()]
        found = [line for line in examples if line.startswith(f"bnfold {words} ") or line == f"bnfold {words}"]
        assert found, words
        lines += found
    from bnfold.models.data import load

    np.savez(tmp_path / "x.npz", input=load("digits").test.images)
    for line in lines:
        words = line.split()
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or words[1] == "doctor", f"{line}\n{done.stdout}\n{done.stderr}"
        if "digits.onnx" in words:
            shutil.copy(tmp_path / "digits.onnx", tmp_path / "model.onnx")


def test_names_are_printed_as_they_are(bnfold: Bnfold, tmp_path: Path) -> None:
    """Not as markup, nor as emoji; and not lost where stdout can't show them."""
    proto = conv_bn()
    proto.graph.node[1].name = "[red]bn:smile:[/]"
    path = tmp_path / "[bold]m.onnx"
    onnx.save(proto, path)
    assert "[red]bn:smile:[/]" in bnfold("inspect", path).out
    outcome = bnfold("optimize", path, "-o", tmp_path / "[bold]f.onnx", "--no-verify")
    assert "[bold]f.onnx" in outcome.out.replace("\n", "")
    command = [sys.executable, "-m", "bnfold", "inspect", path]
    ascii_only = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PATH": ""}
    assert subprocess.run(command, env=ascii_only, capture_output=True, check=False).returncode == 0


def test_inspect_says_whether_the_statistics_are_sound(bnfold: Bnfold, tmp_path: Path) -> None:
    proto = conv_bn()
    broken = {"mean0": np.zeros(4), "var0": np.ones(4), "var1": np.array([1.0, -1.0, np.nan, 0.0])}
    for tensor in proto.graph.initializer:
        if tensor.name in broken:
            tensor.CopyFrom(onnx.numpy_helper.from_array(broken[tensor.name].astype(np.float32), tensor.name))
    onnx.save(proto, tmp_path / "m.onnx")
    found = document(bnfold("inspect", tmp_path / "m.onnx", "--json"), "inspect")["health"]
    codes = {(finding["module"], finding["code"]) for finding in found}
    assert codes == {
        ("bn0", "initial-statistics"), ("bn1", "not-finite"), ("bn1", "negative-variance"),
        ("bn1", "vanishing-variance"),
    }  # fmt: skip
    outcome = bnfold("inspect", tmp_path / "m.onnx")
    assert outcome.code == 0 and all(code in outcome.out for _, code in codes)
    assert "statistics: sound in all 2" not in outcome.out
    onnx.save(conv_bn(layers=1), tmp_path / "m.onnx")
    assert "statistics: sound in the one" in bnfold("inspect", tmp_path / "m.onnx").out


def test_one_of_a_thing_is_not_several(bnfold: Bnfold, tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["": 18]>
        g (float[2, 3] x) => (float[2, 3] y) { y = Neg (x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    onnx.save(conv_bn(layers=1), tmp_path / "one.onnx")
    said = bnfold("inspect", tmp_path / "one.onnx").out
    assert "1 of 1 BatchNorm folds, 0 stay; 3 → 2 nodes" in said
    said += bnfold("verify", tmp_path / "one.onnx", tmp_path / "one.onnx", "--samples", "1").out
    said += bnfold("bench", tmp_path / "m.onnx", "--rounds", "1").out
    assert not re.search(r"\b1 (nodes|inputs|rounds|threads|BatchNorms|ratios)\b", said)
    assert "on 1 input (" in said and "1 round," in said


def test_a_terminal_is_used_as_wide_as_it_is(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the tables take its width; in a pipe, which has none, no name is broken."""
    pty = pytest.importorskip("pty")
    proto = conv_bn()
    name = "backbone.stages.3.blocks.11.attention.norm/" + "x" * 40
    proto.graph.node[1].name = name
    onnx.save(proto, model_file)
    command = [sys.executable, "-m", "bnfold", "inspect", str(model_file)]
    piped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert name in piped
    master, slave = pty.openpty()
    env = {**os.environ, "COLUMNS": "60", "TERM": "xterm"}
    subprocess.run(command, stdout=slave, stderr=subprocess.DEVNULL, env=env, check=True)
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert max(map(len, lines)) <= 60 and name not in shown and "attention." in shown


def test_a_model_is_verified_against_itself_at_every_level(bnfold: Bnfold, model_file: Path) -> None:
    found = document(bnfold("verify", model_file, "--samples", "1", "--json"), "verify")
    assert found["reference"] == found["candidate"] == str(model_file)
    assert [cell["level"] for cell in found["cells"]] == ["off", "basic", "extended", "deployed"]
    found = document(bnfold("verify", model_file, "--samples", "1", "--level", "basic", "--json"), "verify")
    assert [cell["level"] for cell in found["cells"]] == ["basic"]


def test_verify_options_reach_the_verification(bnfold: Bnfold, model_file: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "folded.onnx", tmp_path / "other.onnx"
    onnx.save(conv_bn(seed=1), other)
    words = ["--quick", "--strict", "--level", "off", "--json"]
    found = document(bnfold("optimize", model_file, "-o", out, *words), "optimize")["verdict"]
    assert found["settings"]["quick"] is True and found["settings"]["strict"] is True
    assert found["settings"]["samples"] == 4 and [cell["level"] for cell in found["cells"]] == ["off"]
    assert found["seconds"] and all(value >= 0 for value in found["seconds"].values())
    assert document(bnfold("verify", model_file, other, "--json"), "verify")["cells"] == []
    assert document(bnfold("verify", model_file, other, "--all", "--json"), "verify")["cells"] != []


def test_a_module_is_verified_against_its_export(bnfold: Bnfold, tmp_path: Path) -> None:
    out, words = tmp_path / "bn.onnx", ["torch.nn:BatchNorm2d"]
    assert bnfold("export", *words, "--arg", "num_features=3", "--input", "1x3x8x8", "-o", out).code == 0
    right, wrong = '{"num_features": 3}', '{"num_features": 3, "eps": 0.5}'
    assert bnfold("verify", *words, out, "--torch", "--kwargs", right, "--samples", "2").code == 0
    assert bnfold("verify", *words, out, "--torch", "--kwargs", wrong, "--samples", "2").code == 1
    assert bnfold("verify", *words, out, "--kwargs", right).code == 2
    assert bnfold("verify", *words, out, "--torch", "--kwargs", "[").code == 4
    assert bnfold("verify", *words, "--torch").code == 2
