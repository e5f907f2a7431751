"""Reports: every format says what the verdict says, from the JSON document alone, and says pass for nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import onnx
import pytest

from bnfold import report
from bnfold.errors import InputError, OutputError
from bnfold.report import writing
from bnfold.report.findings import against, findings, read, verification
from bnfold.report.html import html
from bnfold.report.junit import junit
from bnfold.report.markdown import markdown
from bnfold.report.sarif import sarif
from tests.conftest import Outcome
from tests.reports import EVERY, LAYERS, REGRESSED, document, entry, faulty

jsonschema = pytest.importorskip("jsonschema")

Bnfold = Callable[..., Outcome]

# --- Findings.


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("pass", set()),
        ("mismatch", {"certificate", "layer", "output"}),
        ("inconclusive", {"inconclusive"}),
        ("interface", {"interface"}),
        ("certificate", {"certificate"}),
    ],
)
def test_every_reason_has_its_rule(name: str, rules: set[str]) -> None:
    found = [finding for finding in findings(document(name)) if finding.level == "error"]
    assert {finding.rule for finding in found} == rules
    # Each is said once, under the rule that the verification gave it.
    assert sorted(f.message for f in found) == sorted(document(name)["reasons"])
    assert {f.message: f.rule for f in found} == {f["message"]: f["rule"] for f in document(name)["findings"]}


def test_a_finding_belongs_to_its_comparison_or_to_all_of_its_output() -> None:
    cells = [{**document("mismatch")["cells"][0], "level": level, "status": "pass"} for level in ("off", "deployed")]
    own = entry("class", "the best class differs", output="y", provider="cpu", level="off")
    every = entry("inconclusive", "it never varies", output="y")
    elsewhere = entry("inconclusive", "another's", output="z")
    doc = document("inconclusive", cells=cells, findings=[own, every, elsewhere], warnings=[])
    assert [f.cell for f in findings(doc)] == [cells[0], None, None]
    assert [against(doc, cell) for cell in cells] == ["the best class differs\nit never varies", "it never varies"]
    rest = ET.fromstring(junit(doc)).findall(".//testcase[@name='verdict']/error")
    assert [error.text for error in rest] == ["another's"]


def test_layers_come_first_and_once() -> None:
    reasons = [entry("layer", f"layer {layer['node']!r}", layer=layer["node"]) for layer in LAYERS[1:]]
    doc = document("mismatch", layers=LAYERS)
    doc["findings"] += reasons
    del doc["findings"][: len(doc["findings"]) - 3]
    found = findings(doc)
    assert [finding.layer for finding in found] == ["/layer1/conv1/Conv", "/layer1/conv2/Conv", None]
    # A table of layers shows a ratio; where there is none, only the message says what is wrong.
    assert [finding.tabled for finding in found] == [True, False, True]


def test_a_result_without_rules_is_still_read() -> None:
    old = document("mismatch")
    del old["findings"]
    assert [f.message for f in findings(verification(old))] == old["reasons"] and not old["warnings"]


# --- JUnit.


@EVERY
def test_junit_counts_what_it_holds(name: str) -> None:
    doc = document(name)
    root = ET.fromstring(junit(doc))
    (suite,) = root.findall("testsuite")
    cases = suite.findall("testcase")
    comparisons = {(c.get("classname"), c.get("name")) for c in cases}
    for cell in doc["cells"]:
        assert (f"bnfold.verify.{cell['provider']}.{cell['level']}", cell["output"]) in comparisons
    assert len(cases) == len(doc["cells"]) + 1 == len(comparisons)
    for element in (root, suite):
        assert int(element.get("tests", "")) == len(cases)
        assert int(element.get("failures", "")) == len(suite.findall("testcase/failure"))
        assert int(element.get("errors", "")) == len(suite.findall("testcase/error"))
    bad = len(suite.findall("testcase/failure")), len(suite.findall("testcase/error"))
    assert (bad == (0, 0)) == (doc["status"] == "pass"), name
    assert (bad[0] > 0) == (doc["status"] == "mismatch")
    assert (bad[1] > 0) == (doc["status"] == "inconclusive")
    if name == "inconclusive":  # its one output is constant: no comparison of it may be called a pass
        assert bad[1] == len(cases) and "✅" not in markdown(doc) and 'status pass"' not in html(doc)
    text = "\n".join(element.text or "" for element in suite.iter() if element.tag in ("failure", "error"))
    assert all(reason in text for reason in doc["reasons"])


def test_junit_has_no_pass_without_comparisons() -> None:
    doc = document("inconclusive", cells=[], reasons=["nothing was compared"])
    assert ET.fromstring(junit(doc)).get("errors") == "1"


def test_junit_is_xml_whatever_the_names_are() -> None:
    doc = document("mismatch", warnings=["]]> & <b>\x00"])
    doc["cells"][0]["output"] = "a\x00<&\"'\x1b\ud800]]>"
    root = ET.fromstring(junit(doc).encode("utf-8"))
    assert root.findall(".//testcase")[0].get("name") == "a�<&\"'��]]>"


def test_a_regression_is_a_failure_of_its_own() -> None:
    doc = document("pass", baseline=REGRESSED, exit_code=1)
    assert ET.fromstring(junit(doc)).get("failures") == "1"
    assert [result["ruleId"] for result in sarif(doc)["runs"][0]["results"]] == ["bnfold/regression"]
    assert "❌" in markdown(doc) and "worse than the baseline" in markdown(doc)
    assert 'class="verdict mismatch"' in html(doc) and "worse than the baseline" in html(doc)


# --- Markdown.


@EVERY
def test_markdown_says_it(name: str) -> None:
    doc = document(name)
    text = markdown(doc)
    assert text.startswith("### ") and text.splitlines()[0].endswith(f": {doc['status']}")
    assert ("✅" in text.splitlines()[0]) == (doc["status"] == "pass")
    assert text.count("\n| ") - 1 == len(doc["cells"]) or not doc["cells"]
    assert "None" not in text and "nan" not in text


def test_markdown_stays_small_and_plain() -> None:
    cell = document("mismatch")["cells"][0]
    cells = [{**cell, "output": f"out_{i}|<script>*x*", "status": "pass"} for i in range(5000)] + [cell]
    doc = document("mismatch", cells=cells, reasons=[f"reason {i} | `x`" for i in range(5000)])
    text = markdown(doc)
    assert len(text.encode()) < 1 << 16
    assert "<script>" not in text and "and 4941 more comparisons" in text
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 8 for line in table)
    assert cell["output"] in table[1]  # what failed is shown before what passed


# --- The files.


def test_all_files_come_from_one_document(bnfold: Bnfold, tmp_path: Path) -> None:
    original, candidate = faulty()
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for proto, path in zip((original, candidate), paths, strict=True):
        onnx.save(proto, path)
    names = {"json-file": "v.json", "junit": "v.xml", "sarif": "v.sarif", "markdown": "v.md", "html": "v.html"}
    options = [word for option, name in names.items() for word in (f"--{option}", tmp_path / name)]
    outcome = bnfold("verify", *paths, "--samples", "2", "--json", *options)
    assert outcome.code == 1
    doc = json.loads(outcome.out)
    assert json.loads((tmp_path / "v.json").read_text()) == doc
    jsonschema.validate(doc, report.schema("verify"), cls=jsonschema.Draft202012Validator)
    texts = {name: (tmp_path / name).read_text(encoding="utf-8") for name in names.values()}
    assert texts["v.xml"] == junit(doc) and texts["v.html"] == html(doc) and texts["v.md"] == markdown(doc)
    again = tmp_path / "again"
    again.mkdir()
    options = [word for option, name in names.items() for word in (f"--{option}", again / name)]
    monkey = bnfold("report", "verify", tmp_path / "v.json", *options)
    assert monkey.code == 0 and monkey.out.startswith(f"{paths[0]}, {paths[1]}: mismatch → {again / 'v.json'}, ")
    assert {name: (again / name).read_text(encoding="utf-8") for name in names.values()} == texts


def test_optimize_reports_its_verification(bnfold: Bnfold, model_file: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "folded.onnx", tmp_path / "v.html"
    outcome = bnfold("optimize", model_file, "-o", out, "--html", page, "--json", "--samples", "2")
    doc = json.loads(outcome.out)
    assert outcome.code == 0 and str(out) in page.read_text()
    assert verification(doc)["candidate"] == str(out) and verification(doc)["cells"] == doc["verdict"]["cells"]
    (tmp_path / "o.json").write_text(outcome.out)
    assert bnfold("report", "verify", tmp_path / "o.json", "--junit", tmp_path / "o.xml", "-q").out == ""
    assert (tmp_path / "o.xml").exists()


REFUSED = [
    (("--html", "%D/no/v.html"), 4, "create it first"),
    (("--html", "%D"), 4, "is a directory"),
    (("--junit", "%D/v", "--sarif", "%D/v"), 2, "asked for twice"),
    (("--junit", "%M"), 2, "is the model itself"),
]


@pytest.mark.parametrize(("options", "code", "said"), REFUSED, ids=[said for _, _, said in REFUSED])
@pytest.mark.parametrize("verb", ["verify", "optimize"])
def test_a_report_that_cannot_be_is_refused_before_any_work(
    bnfold: Bnfold, model_file: Path, tmp_path: Path, verb: str, options: tuple[str, ...], code: int, said: str
) -> None:
    before = model_file.read_bytes()
    out = tmp_path / "out.onnx"
    words = [option.replace("%D", str(tmp_path)).replace("%M", str(model_file)) for option in options]
    second = [model_file] if verb == "verify" else ["-o", out]
    outcome = bnfold(verb, model_file, *second, *words)
    assert outcome.code == code and said in outcome.err and len(outcome.err.splitlines()) == 1
    assert model_file.read_bytes() == before and list(tmp_path.iterdir()) == [model_file.parent]


def test_reports_need_a_verification(bnfold: Bnfold, model_file: Path, tmp_path: Path) -> None:
    words = ["optimize", model_file, "-o", tmp_path / "f.onnx", "--no-verify"]
    assert bnfold(*words, "--html", tmp_path / "v.html").code == 2
    assert bnfold(*words, "--baseline", tmp_path / "b.json").code == 2


def test_a_result_that_is_none(bnfold: Bnfold, tmp_path: Path) -> None:
    out, path = tmp_path / "v.html", tmp_path / "r.json"
    assert bnfold("report", "verify", path).code == 2
    made = {
        "no such file": None, "is no JSON": "{", "holds no result": "[]",
        "is no result of": '{"schema": "bnfold.bench/1"}',
        "holds no verdict": '{"schema": "bnfold.optimize/1", "model": "m", "verdict": null}',
    }  # fmt: skip
    for said, content in made.items():
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content)
        outcome = bnfold("report", "verify", path, "--html", out)
        assert outcome.code == 4 and said in outcome.err and len(outcome.err.splitlines()) == 1, said
        assert not out.exists()
    with pytest.raises(InputError):
        read(tmp_path)


def test_a_failed_write_leaves_the_old_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "v.xml"
    path.write_text("the old one")

    def full(self: Path, *args: Any, **options: Any) -> None:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="no space left"):
        writing.write(document("pass"), {"junit": str(path)})
    assert path.read_bytes() == b"the old one" and list(tmp_path.iterdir()) == [path]


# --- The schemas.


def test_optimize_carries_the_verdict_that_verify_prints() -> None:
    """Two files for one shape: they must not drift apart."""
    verify, optimize = report.schema("verify"), report.schema("optimize")
    own = {"schema", "reference", "candidate"}
    (verdict,) = (part for part in optimize["properties"]["verdict"]["anyOf"] if part["type"] == "object")
    assert verdict["properties"] == {k: v for k, v in verify["properties"].items() if k not in own}
    assert set(verdict["required"]) == set(verify["required"]) - own
    for name, shape in verify["$defs"].items():
        assert optimize["$defs"][name] == shape


@EVERY
def test_the_documents_meet_their_schemas(name: str) -> None:
    doc = document(name)
    jsonschema.validate(doc, report.schema("verify"), cls=jsonschema.Draft202012Validator)
