"""`bnfold audit` from the command line: codes, documents, pages, and files that appear whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnfold.report import schema
from tests.conftest import Outcome, conv_bn

Cli = Callable[..., Outcome]


def given(seed: int = 0, by: float = 0.0) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).normal(by, 1.0, (400, 3, 8, 8)).astype(np.float32)
    return {"x": x}


@pytest.fixture
def fitting(tmp_path: Path) -> Path:
    """A model whose statistics fit `x.npz` beside it; `off.npz` is off."""
    import bnfold

    proto = conv_bn()
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("beta"):
            # Otherwise a ReLU of these random weights is dead.
            tensor.CopyFrom(numpy_helper.from_array(np.ones(4, np.float32), tensor.name))
    bnfold.audit(proto, given(), recalibrate=True).save(tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", **given(1))
    np.savez(tmp_path / "off.npz", **given(2, 2.0))
    return tmp_path


def test_nothing_found_is_0(bnfold: Cli, fitting: Path) -> None:
    done = bnfold("audit", fitting / "m.onnx")
    assert (done.code, done.out, done.err) == (0, "2 BatchNorms: nothing found\n", "")
    done = bnfold("audit", fitting / "m.onnx", "--data", fitting / "x.npz")
    assert done.code == 0 and "2 BatchNorms: nothing found; drift 0.0" in done.out


def test_findings_are_1(bnfold: Cli, fitting: Path) -> None:
    done = bnfold("audit", fitting / "m.onnx", "--data", fitting / "off.npz")
    assert done.code == 1 and "bn0" in done.out and "drifted" in done.out and "--recalibrate" in done.out
    quiet = bnfold("audit", fitting / "m.onnx", "--data", fitting / "off.npz", "-q")
    assert (quiet.code, quiet.out, quiet.err) == (1, "", "")


def test_allowed_findings_are_0(bnfold: Cli, fitting: Path) -> None:
    codes = ("--allow", "drifted", "--allow", "drifted-channels", "--allow", "dead-relu")
    done = bnfold("audit", fitting / "m.onnx", "--data", fitting / "off.npz", *codes)
    assert done.code == 0 and "allowed: " in done.out
    wrong = bnfold("audit", fitting / "m.onnx", "--allow", "drift")
    assert wrong.code == 2 and "the codes are training-mode" in wrong.err


def test_the_document_meets_its_schema(bnfold: Cli, fitting: Path) -> None:
    for arguments in ((), ("--data", fitting / "x.npz"), ("--data", fitting / "off.npz")):
        document = json.loads(bnfold("audit", fitting / "m.onnx", *arguments, "--json").out)
        jsonschema.validate(document, schema("audit"))
    assert [layer["name"] for layer in document["drift"]["layers"]] == ["bn0", "bn1"]
    assert document["drift"]["score"] == document["drift"]["layers"][0]["distance"] > 0.25
    assert document["status"] == "findings" and len(document["drift"]["layers"][0]["shifts"]) == 5


def test_the_page_holds_every_layer_and_asks_the_network_for_nothing(bnfold: Cli, fitting: Path) -> None:
    assert bnfold("audit", fitting / "m.onnx", "--data", fitting / "off.npz", "--html", fitting / "a.html").code == 1
    page = (fitting / "a.html").read_text(encoding="utf-8")
    assert page.count("<tr>") == 3 and "bn0" in page and "bn1" in page and page.count("<svg") == 6
    assert "http://" not in page and "src=" not in page and "<script" not in page


def test_recalibration_writes_a_model_that_fits(bnfold: Cli, fitting: Path) -> None:
    before = (fitting / "m.onnx").read_bytes()
    out, data = fitting / "new.onnx", fitting / "off.npz"
    done = bnfold("audit", fitting / "m.onnx", "--data", data, "--recalibrate", out)
    assert done.code == 1 and f"written: {out}, 2 BatchNorms recalibrated" in done.out.replace("\n", "")
    assert (fitting / "m.onnx").read_bytes() == before
    onnx.checker.check_model(onnx.load(out), full_check=True)
    assert bnfold("audit", out, "--data", data).code == 0


@pytest.mark.parametrize(("before", "after", "says"), [
    (0.5, 0.9, "accuracy 50.00% → 90.00% once recalibrated"),
    (0.9, 0.5, "makes the predictions worse: keep the model as it was; are these data negatives? then give --negate"),
    (0.5, 0.5, "recalibration does not help"),
    (None, None, "not known whether the recalibrated model predicts better"),
])  # fmt: skip
def test_what_recalibration_did_to_the_predictions_is_said(
    before: float | None, after: float | None, says: str
) -> None:
    from bnfold.audit.result import AuditReport
    from bnfold.report import audits

    report = AuditReport(1, accuracy=(before, after), recalibrated=("bn0",))
    document = {"model": "m.onnx", "data": "x.npz", "output": "new.onnx", **report.to_dict()}
    lines = [str(part) for part in audits.tables(document)]
    assert any(says in line for line in lines), lines
    worse = before is not None and after is not None and after < before
    assert any("worse" in line for line in lines) == worse == ("(worse)" in str(report))
    assert ("once recalibrated: worse" in audits.page(document)) == worse


def test_the_tables_fit_a_terminal_of_80_columns(bnfold: Cli, fitting: Path) -> None:
    """As wide as the names allow: nothing beside them needs more."""
    done = bnfold("audit", fitting / "m.onnx", "--data", fitting / "off.npz")
    assert max(map(len, done.out.partition("\n\n")[0].splitlines())) <= 80


def test_a_model_can_take_its_own_place(bnfold: Cli, fitting: Path) -> None:
    model, data = fitting / "m.onnx", fitting / "off.npz"
    assert bnfold("audit", model, "--data", data, "--recalibrate", model, "-q").code == 1
    assert bnfold("audit", model, "--data", data, "-q").code == 0


@pytest.mark.parametrize(("arguments", "code", "says"), [
    (("none.onnx",), 4, "no such file"),
    (("m.onnx", "--data", "none.npz"), 4, "no such file"),
    (("m.onnx", "--data", "m.onnx"), 4, "is not an .npz file"),
    (("m.onnx", "--recalibrate", "o.onnx"), 2, "recalibration needs data"),
    (("m.onnx", "--data", "x.npz", "--recalibrate", "no/o.onnx"), 4, "there is no folder"),
    (("m.onnx", "--data", "x.npz", "--html", "."), 4, "is a directory"),
    (("m.onnx", "--data", "x.npz", "--provider", "abacus"), 4, "abacus"),
    (("m.onnx", "--kwargs", "[1]"), 4, "is no JSON object"),
    (("m.onnx", "--kwargs", "{"), 4, "--kwargs"),
    (("torch.nn:BatchNorm9d",), 4, "no attribute 'BatchNorm9d'"),
    (("none.safetensors",), 4, "no such file"),
])  # fmt: skip
def test_a_wrong_call_is_one_line(
    bnfold: Cli, fitting: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, says: str
) -> None:
    monkeypatch.chdir(fitting)
    before = sorted(fitting.iterdir())
    done = bnfold("audit", *arguments)
    assert done.code == code and says in done.err and done.err.count("\n") == 1 and done.out == ""
    assert sorted(fitting.iterdir()) == before


def test_statistics_that_do_not_fit_their_type_are_refused(bnfold: Cli, tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["": 18]> g (float16[n,2] x) => (float16[n,2] z) {
      z = BatchNormalization(x, g, o, o, g)
    }"""
    model = onnx.parser.parse_model(text)
    for name, values in (("g", [1, 1]), ("o", [0, 0])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.float16), name))
    onnx.save(model, tmp_path / "h.onnx")
    np.savez(tmp_path / "x.npz", x=(np.arange(200).reshape(100, 2) * 600).clip(0, 65000).astype(np.float16))
    out = tmp_path / "o.onnx"
    done = bnfold("audit", tmp_path / "h.onnx", "--data", tmp_path / "x.npz", "--recalibrate", out)
    assert done.code == 4 and "do not fit into FLOAT16" in done.err and not out.exists()
