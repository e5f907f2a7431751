"""Baselines: ratios alone, of a pass alone, and a finding where one has grown."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import bnfold as package
from bnfold import report
from bnfold.errors import InputError, UsageError
from bnfold.report import baseline
from tests import nets
from tests.conftest import Outcome, conv_bn

jsonschema = pytest.importorskip("jsonschema")

Bnfold = Callable[..., Outcome]
OUTPUT = "output 'y' on cpu, deployed"


@pytest.fixture(scope="module")
def passed() -> dict[str, Any]:
    """The document of a pass whose ratios are well above what counts as rounding."""
    original = nets.separable(0)
    names = {"reference": "a.onnx", "candidate": "b.onnx"}
    verdict = package.verify(original, nets.fold(original), samples=2)
    return report.document("verify", {**names, **verdict.to_dict()})


def test_a_baseline_holds_ratios_and_nothing_of_the_model(passed: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    baseline.save(passed, path)
    found = baseline.load(path)
    jsonschema.validate(found, report.schema("baseline"), cls=jsonschema.Draft202012Validator)
    outputs = {name: ratio for name, ratio in found["ratios"].items() if name.startswith("output ")}
    assert set(outputs) == {"output 'y' on cpu, off", OUTPUT}
    assert outputs[OUTPUT] == pytest.approx(passed["cells"][1]["ratio"], rel=1e-3)
    assert set(found) == {"schema", "settings", "onnxruntime", "ratios"}
    again = baseline.compare(passed, found, path)
    assert again["exit_code"] == 0 and again["baseline"]["regressions"] == []
    jsonschema.validate(again, report.schema("verify"), cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("before", "now", "factor", "grown"),
    [
        (0.2, 0.39, 2.0, False),
        (0.2, 0.41, 2.0, True),
        (0.2, 0.41, 3.0, False),
        (0.001, 0.19, 2.0, False),
        (0.001, 0.21, 2.0, True),
        (0.2, 0.1, 1.0, False),
        (0.2, None, 1e6, True),
    ],
)
def test_a_regression_is_a_ratio_that_has_grown(
    passed: dict[str, Any], before: float, now: float | None, factor: float, grown: bool
) -> None:
    doc = copy.deepcopy(passed)
    doc["cells"][1]["ratio"] = now
    known = {"settings": passed["settings"], "ratios": {OUTPUT: before}}
    found = baseline.compare(doc, known, "b.json", factor)
    assert [entry["where"] for entry in found["baseline"]["regressions"]] == [OUTPUT] * grown
    assert found["exit_code"] == int(grown) and found["status"] == "pass"


@pytest.mark.parametrize(("status", "code"), [("mismatch", 1), ("inconclusive", 3)])
def test_a_regression_never_makes_it_better(passed: dict[str, Any], status: str, code: int) -> None:
    doc = {**passed, "status": status, "exit_code": code}
    known = {"settings": passed["settings"], "ratios": {OUTPUT: 0.0}}
    assert baseline.compare(doc, known, "b.json", 1.0)["exit_code"] == code
    with pytest.raises(UsageError, match=f"this is {status}"):
        baseline.save(doc, "never.json")


def test_a_foreign_baseline_is_refused(passed: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="other outputs, such as output z"):
        baseline.compare(passed, {"settings": passed["settings"], "ratios": {"output z on cpu, off": 0.1}}, "b.json")
    with pytest.raises(InputError, match="was measured with samples 7, now with 2"):
        settings = {**passed["settings"], "samples": 7}
        baseline.compare(passed, {"settings": settings, "ratios": {OUTPUT: 0.1}}, "b.json")
    known = {"settings": passed["settings"], "ratios": {OUTPUT: 0.1, "output z on cpu, off": 0.1}}
    assert baseline.compare(passed, known, "b.json")["baseline"]["missing"] == ["output z on cpu, off"]


BAD = {
    "missing": None, "empty": "", "text": "ratios", "array": "[]", "another": '{"schema": "bnfold.verify/1"}',
    "newer": '{"schema": "bnfold.baseline/2", "settings": {}, "ratios": {"a": 1}}',
    "no ratios": '{"schema": "bnfold.baseline/1", "settings": {}, "ratios": {}}',
    "no numbers": '{"schema": "bnfold.baseline/1", "settings": {}, "ratios": {"a": "b"}}',
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_baseline_is_refused_before_any_work(
    bnfold: Bnfold, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    path, content = tmp_path / "b.json", BAD[case]
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr("bnfold.verify.gate.Gate.run", None)
    for words in (["verify", model_file, model_file], ["optimize", model_file, "-o", tmp_path / "f.onnx"]):
        outcome = bnfold(*words, "--baseline", path)
        assert outcome.code == 4 and len(outcome.err.splitlines()) == 1
        assert str(path) in outcome.err and "--update-baseline" in outcome.err
    assert not (tmp_path / "f.onnx").exists()


@pytest.mark.parametrize("options", [["--seed", "1"], ["--dim", "batch=2"]])
def test_another_measurement_is_refused_before_any_work(
    bnfold: Bnfold, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    words = ["verify", model_file, model_file, "--samples", "2", "--baseline", tmp_path / "b.json"]
    assert bnfold(*words, "--update-baseline").code == 0
    monkeypatch.setattr("bnfold.verify.gate.Gate.run", None)
    outcome = bnfold(*words, *options)
    assert outcome.code == 4 and "use it, or --update-baseline" in outcome.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--update-baseline"], "--update-baseline needs --baseline FILE"),
        (["--baseline-factor", "0.5"], "from 1"),
        (["--baseline-factor", "nan"], "from 1"),
    ],
)
def test_wrong_usage(bnfold: Bnfold, model_file: Path, options: list[str], said: str) -> None:
    outcome = bnfold("verify", model_file, model_file, *options)
    assert outcome.code == 2 and said in outcome.err


@pytest.mark.parametrize("verb", ["verify", "optimize"])
def test_no_baseline_is_written_over_the_model(bnfold: Bnfold, model_file: Path, tmp_path: Path, verb: str) -> None:
    before = model_file.read_bytes()
    second = [model_file] if verb == "verify" else ["-o", tmp_path / "f.onnx"]
    outcome = bnfold(verb, model_file, *second, "--baseline", model_file, "--update-baseline")
    assert outcome.code == 2 and "is the model itself" in outcome.err and model_file.read_bytes() == before


def test_the_verbs_keep_and_compare(bnfold: Bnfold, tmp_path: Path) -> None:
    original, folded, path = tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "b.json"
    onnx.save(nets.separable(0), original)
    onnx.save(nets.fold(nets.separable(0)), folded)
    words = ["verify", original, folded, "--samples", "2", "--baseline", path]
    assert bnfold(*words, "--update-baseline").code == 0
    outcome = bnfold(*words)
    assert outcome.code == 0 and "no worse than" in outcome.out
    known = json.loads(path.read_text())
    known["ratios"] = dict.fromkeys(known["ratios"], 0.0)
    path.write_text(json.dumps(known))
    outcome = bnfold(*words, "--baseline-factor", "1")
    assert outcome.code == 1 and "worse than" in outcome.out and "pass: " in outcome.out
    found = json.loads(bnfold(*words, "--baseline-factor", "1", "--json").out)
    assert (found["status"], found["exit_code"]) == ("pass", 1) and found["baseline"]["regressions"]
    outcome = bnfold(*words[:4], "3", *words[5:])
    assert outcome.code == 4 and "was measured with samples 2, now with 3" in outcome.err


def test_a_model_that_got_worse_is_not_written(bnfold: Bnfold, tmp_path: Path) -> None:
    model, out, path = tmp_path / "a.onnx", tmp_path / "f.onnx", tmp_path / "b.json"
    onnx.save(nets.separable(0), model)
    words = ["optimize", model, "-o", out, "--samples", "2", "--baseline", path]
    assert bnfold(*words, "--update-baseline").code == 0
    out.write_bytes(b"the old one")
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, "ratios": dict.fromkeys(known["ratios"], 0.0)}))
    outcome = bnfold(*words, "--baseline-factor", "1")
    assert outcome.code == 1 and outcome.err == f"bnfold: {out} was not written: worse than the baseline\n"
    assert out.read_bytes() == b"the old one"


def test_what_does_not_pass_updates_nothing(bnfold: Bnfold, tmp_path: Path) -> None:
    other = tmp_path / "o.onnx"
    model = tmp_path / "m.onnx"
    onnx.save(conv_bn(), model)
    onnx.save(conv_bn(seed=1), other)
    path = tmp_path / "b.json"
    assert bnfold("verify", model, other, "--baseline", path, "--update-baseline").code == 1
    assert not path.exists()
