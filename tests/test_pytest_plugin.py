"""The pytest plugin: pass, failure and error are what users' test runs show, with one line that says why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import onnx
import pytest
from onnx import helper

import bnfold.verify.gate  # noqa: F401
from bnfold import runtime
from tests import nets
from tests.conftest import conv_bn

pytest_plugins = ["pytester"]

TEST = """
def test_it(bnfold_verify):
    verdict = bnfold_verify({reference!r}, {candidate!r}, samples=2{more})
    assert verdict.status == {status!r}
"""


@pytest.fixture
def models(pytester: pytest.Pytester) -> Path:
    """A folder with a model, its fold, a faulty fold and one that is zero whatever the input."""
    folder = pytester.path
    onnx.save(nets.plain(0), folder / "model.onnx")
    onnx.save(nets.fold(nets.plain(0)), folder / "folded.onnx")
    onnx.save(nets.fold(nets.plain(0), fault="a channel + 0.1 %"), folder / "faulty.onnx")
    zero = conv_bn()
    zero.graph.node[-1].CopyFrom(helper.make_node("Sub", ["b1", "b1"], ["y"]))
    onnx.save(zero, folder / "zero.onnx")
    return folder


def run(pytester: pytest.Pytester, request: pytest.FixtureRequest, *args: str) -> pytest.RunResult:
    """pytest within this one; the plugin comes by its entry point where bnfold was installed with it."""
    runtime.version()  # ONNX Runtime can't be imported anew, as pytester would have it
    installed = request.config.pluginmanager.has_plugin("bnfold")
    return pytester.runpytest_inprocess(*([] if installed else ["-p", "bnfold.pytest_plugin"]), *args)


def made(pytester: pytest.Pytester, reference: str, candidate: str, status: str = "pass", more: str = "") -> None:
    pytester.makepyfile(TEST.format(reference=reference, candidate=candidate, status=status, more=more))


def test_a_legitimate_fold_passes(
    pytester: pytest.Pytester, models: Path, request: pytest.FixtureRequest
) -> None:
    made(pytester, "model.onnx", "folded.onnx")
    run(pytester, request, "--junit-xml=j.xml").assert_outcomes(passed=1)
    properties = {p.get("name"): p.get("value") for p in ET.parse(models / "j.xml").iter("property")}
    assert properties["bnfold_status"] == "pass" and 0 <= float(properties["bnfold_ratio"] or "nan") <= 1


def test_a_mismatch_fails_with_one_line(
    pytester: pytest.Pytester, models: Path, request: pytest.FixtureRequest
) -> None:
    made(pytester, "model.onnx", "faulty.onnx")
    result = run(pytester, request)
    result.assert_outcomes(failed=1)
    said = [line for line in result.outlines if line.startswith("mismatch: ")]
    assert len(said) == 1 and "Traceback" not in result.stdout.str() and result.ret == 1


def test_inconclusive_is_an_error_and_no_failure(
    pytester: pytest.Pytester, models: Path, request: pytest.FixtureRequest
) -> None:
    made(pytester, "zero.onnx", "zero.onnx")
    result = run(pytester, request, "--junit-xml=j.xml")
    result.assert_outcomes(errors=1)
    assert any(line.startswith("inconclusive: ") for line in result.outlines) and result.ret == 1
    suite = ET.parse(models / "j.xml").getroot()[0]
    assert (suite.get("failures"), suite.get("errors")) == ("0", "1")


def test_inconclusive_can_be_allowed(
    pytester: pytest.Pytester, models: Path, request: pytest.FixtureRequest
) -> None:
    made(pytester, "zero.onnx", "zero.onnx", "inconclusive", ", allow_inconclusive=True")
    run(pytester, request).assert_outcomes(passed=1)


def test_other_failures_are_left_alone(
    pytester: pytest.Pytester, models: Path, request: pytest.FixtureRequest
) -> None:
    made(pytester, "model.onnx", "folded.onnx", status="no such status")
    run(pytester, request).assert_outcomes(failed=1)
    made(pytester, "model.onnx", "nowhere.onnx")
    result = run(pytester, request)
    result.assert_outcomes(failed=1)
    assert "ModelError: nowhere.onnx: no such file" in result.stdout.str()


def test_the_plugin_is_light() -> None:
    """Everyone's pytest loads it, whether a test uses it or not."""
    code = "import sys, bnfold.pytest_plugin; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"numpy", "onnx", "onnx_ir", "onnxruntime", "torch", "rich"} & set(done.stdout.split()) == set()
