"""Reports: every format says what the verdict says, from the JSON document alone, and says pass for nothing else."""

from __future__ import annotations

import copy
import functools
import json
import math
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import onnx
import pytest
from onnx import helper, numpy_helper

import bnfold
from bnfold import report
from bnfold.errors import InputError, OutputError, UsageError
from bnfold.report import svg, writing
from bnfold.report.findings import RULES, against, findings, read, verification
from bnfold.report.html import figure, html
from bnfold.report.junit import junit
from bnfold.report.layout import wrapped
from bnfold.report.markdown import markdown
from bnfold.report.sarif import sarif
from tests import nets
from tests.conftest import Outcome, conv_bn

jsonschema = pytest.importorskip("jsonschema")

Bnfold = Callable[..., Outcome]
Document = dict[str, Any]


def passed() -> tuple[onnx.ModelProto, Any]:
    return conv_bn(), bnfold.optimize(conv_bn(), verify=False).model


def faulty() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    return nets.plain(0), nets.fold(nets.plain(0), fault="a channel + 0.1 %")


def constant() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = conv_bn()
    model.graph.node[-1].CopyFrom(helper.make_node("Sub", ["b1", "b1"], ["y"]))
    return model, model


def renamed() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = nets.plain(0)
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"
    return nets.plain(0), model


def tampered() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Our own fold with one weight changed behind our back."""
    from bnfold.io import serialize

    proto = onnx.ModelProto.FromString(serialize(bnfold.optimize(conv_bn(), verify=False).model))
    for tensor in proto.graph.initializer:
        value = numpy_helper.to_array(tensor).copy()
        if value.ndim == 4:
            value.flat[0] *= 1.01
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
            break
    return conv_bn(), proto


CASES = {"pass": passed, "mismatch": faulty, "inconclusive": constant, "interface": renamed, "certificate": tampered}


@functools.cache
def _document(case: str) -> Document:
    names = {"reference": "models/reference.onnx", "candidate": "models/candidate.onnx"}
    # A mismatch ends a verification; the reports of one are looked at with all that it can hold.
    verdict = bnfold.verify(*CASES[case](), samples=4, keep_going=case == "mismatch")
    return report.document("verify", {**names, **verdict.to_dict()})


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, Document]:
    """The name of each case with its document."""
    return request.param, copy.deepcopy(_document(request.param))


def document(name: str, **changes: Any) -> Document:
    return {**copy.deepcopy(_document(name)), **changes}


LAYERS = [
    {"node": "/stem/conv/Conv", "status": "pass", "ratio": 0.02},
    {"node": "/layer1/conv1/Conv", "status": "mismatch", "ratio": 312.0},
    {"node": "/layer1/conv2/Conv", "status": "mismatch", "ratio": None},
]
REGRESSED = {
    "file": "baseline.json", "factor": 2.0, "compared": 2, "missing": [],
    "regressions": [{"where": "output y on cpu, off", "before": 0.125, "now": 0.4}],
}  # fmt: skip


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


def entry(rule: str, message: str, **where: str) -> Document:
    return {"rule": rule, "message": message, "layer": None, "output": None, "provider": None, "level": None, **where}


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


def test_junit_counts_what_it_holds(case: tuple[str, Document]) -> None:
    name, doc = case
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


# --- SARIF.

# What SARIF 2.1.0 (OASIS, 27 March 2020) asks of the properties used here, section by section.
TEXT = {"type": "object", "properties": {"text": {"type": "string", "minLength": 1}}, "required": ["text"]}
LEVEL = {"enum": ["none", "note", "warning", "error"]}
PHYSICAL = {
    "type": "object",
    "properties": {
        "artifactLocation": {"type": "object", "properties": {"uri": {"type": "string", "pattern": r"^[^\\ ]+$"}}},
        "region": {"type": "object", "properties": {"startLine": {"type": "integer", "minimum": 1}}},
    },
    "required": ["artifactLocation", "region"],
}
RESULT = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "properties": {"type": "object"},
        "ruleId": {"type": "string"},
        "ruleIndex": {"type": "integer", "minimum": 0},
        "level": LEVEL,
        "message": TEXT,
        "locations": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "properties": {
                    "physicalLocation": PHYSICAL,
                    "logicalLocations": {
                        "type": "array",
                        "uniqueItems": True,
                        "items": {"type": "object", "required": ["name", "kind"]},
                    },
                },
                "required": ["physicalLocation"],
            },
        },
        "partialFingerprints": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["ruleId", "level", "message", "locations"],
}
RULE = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "id": {"type": "string"},
        "name": {"type": "string"},
        "shortDescription": TEXT,
        "fullDescription": TEXT,
        "help": TEXT,
        "defaultConfiguration": {"type": "object", "properties": {"level": LEVEL}, "additionalProperties": False},
    },
    "required": ["id", "shortDescription", "help"],
}
DRIVER = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {"const": "bnfold"},
        "semanticVersion": {"type": "string", "pattern": r"^\d+\.\d+\.\d+"},
        "rules": {"type": "array", "uniqueItems": True, "items": RULE},
    },
    "required": ["name", "rules"],
}
INVOCATION = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"executionSuccessful": {"type": "boolean"}, "exitCode": {"type": "integer"}},
    "required": ["executionSuccessful"],
}
SARIF = {
    "type": "object",
    "properties": {
        "version": {"const": "2.1.0"},
        "$schema": {"type": "string", "pattern": "^https://"},
        "runs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "properties": {"type": "object"},
                    "invocations": {"type": "array", "items": INVOCATION},
                    "tool": {"type": "object", "properties": {"driver": DRIVER}, "required": ["driver"]},
                    "artifacts": {"type": "array", "uniqueItems": True},
                    "columnKind": {"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
                    "results": {"type": "array", "items": RESULT},
                },
                "required": ["tool", "results"],
            },
        },
    },
    "required": ["version", "runs"],
}


def test_sarif_is_what_the_standard_asks_for(case: tuple[str, Document]) -> None:
    _, doc = case
    log = json.loads(json.dumps(sarif(doc), allow_nan=False))
    jsonschema.validate(log, SARIF, cls=jsonschema.Draft202012Validator)
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules) == len(RULES)
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    errors = [result for result in run["results"] if result["level"] == "error"]
    assert (errors == []) == (doc["status"] == "pass")
    assert {result["message"]["text"] for result in run["results"]} >= {*doc["reasons"], *doc["warnings"]}


def test_sarif_names_artifact_output_and_layers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    doc = document("mismatch", layers=LAYERS, candidate=str(tmp_path / "out dir" / "c.onnx"))
    doc["findings"].insert(0, entry("layer", "it differs", layer="/layer1/conv1/Conv"))
    results = sarif(doc)["runs"][0]["results"]
    for result in results:
        assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "out%20dir/c.onnx"
    assert results[0]["locations"][0]["logicalLocations"] == [{"name": "/layer1/conv1/Conv", "kind": "layer"}]
    assert {"name": "y", "kind": "output"} in results[-1]["locations"][0]["logicalLocations"]
    prints = [result["partialFingerprints"]["bnfold/v1"] for result in results]
    assert len(set(prints)) == len(prints)
    doc["cells"][0]["ratio"] *= 2
    assert prints == [r["partialFingerprints"]["bnfold/v1"] for r in sarif(doc)["runs"][0]["results"]]
    outside = sarif(document("mismatch", candidate="/elsewhere/c.onnx"))["runs"][0]["results"][0]
    assert outside["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "file:///elsewhere/c.onnx"


# --- Markdown.


def test_markdown_says_it(case: tuple[str, Document]) -> None:
    _, doc = case
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


# --- HTML.


class Page(HTMLParser):
    """Collects what a page refers to, and whether its elements close."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.refers: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.unlabelled = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        self.refers += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")]
        if tag == "svg" and "aria-label" not in found and found.get("aria-hidden") != "true":
            self.unlabelled += 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style",):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_the_page_opens_offline_and_says_it(case: tuple[str, Document]) -> None:
    _, doc = case
    layers = LAYERS if doc["status"] == "mismatch" else [{**layer, "status": "pass"} for layer in LAYERS]
    text = html({**doc, "layers": layers, "seconds": {"float64": 3.0, "sessions": 1.0}})
    page = Page(text)
    assert page.open == [] and page.refers == [] and page.unlabelled == 0
    assert page.tags & {"script", "link", "img", "iframe", "object"} == set()
    assert not re.search(r"url\(|@import|https?://", text.partition("<pre>")[0])
    assert f'class="verdict {doc["status"]}"' in text
    for words in (*doc["reasons"], *doc["warnings"], "/layer1/conv1/Conv"):
        assert words in page.text
    for cell in doc["cells"]:
        assert figure(cell["ratio"]) in page.text and figure(cell["limit"]) in page.text
    assert "75 %" in page.text
    if doc["certificate"].get("worst_case"):
        assert doc["certificate"]["worst_case"]["witness"] in page.text


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100 %"), (0.9999, "99.9 %"), (0.43, "43 %"), (0.004, "0.4 %"), (0.0, "0 %")]
)
def test_a_hundred_per_cent_is_all(share: float, text: str) -> None:
    from bnfold.report.html import _percent

    assert _percent(share) == text


def test_a_layer_that_was_not_checked_is_no_infinite_error() -> None:
    layer = {"node": "conv", "status": "inconclusive", "ratio": None, "reason": "its values are no numbers"}
    page = Page(html(document("pass", layers=[layer, LAYERS[0]])))
    assert "not checked its values are no numbers" in page.text and "∞" not in page.text


def test_the_page_prints_names_as_they_are() -> None:
    doc = document("mismatch", reference="<b>&.onnx")
    doc["cells"][0]["output"] = "</td><script>alert(1)</script>"
    page = Page(html(doc))
    assert "script" not in page.tags and "b" not in page.tags
    assert "</td><script>alert(1)</script>" in page.text and "<b>&.onnx" in page.text


def test_the_json_in_the_page_is_the_document(case: tuple[str, Document]) -> None:
    _, doc = case
    found = re.search(r"<pre><code>(.*)</code></pre>", html(doc), re.S)
    assert found is not None
    from html import unescape

    assert json.loads(unescape(found[1])) == json.loads(json.dumps(doc))


def test_many_layers_are_shown_worst_first_and_none_is_lost() -> None:
    layers = [{"node": f"conv{i}", "status": "pass", "ratio": i / 1000} for i in range(100)]
    text = html(document("pass", layers=layers))
    first, _, rest = text.partition("The other 70 layers")
    assert all(f">conv{i}<" in first for i in range(70, 100))
    assert all(f">conv{i}<" in rest for i in range(70))


def test_without_jinja2_the_page_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UsageError, match=r'pip install "bnfold\[report\]"'):
        writing.check({"html": str(tmp_path / "r.html")})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "∞"), (math.inf, "∞"), (0.0, "0"), (0.25, "0.25"), (41.23, "41.2"), (4.7e-7, "4.70·10⁻⁷"),
        (1218.4, "1,218"), (9.996, "10"), (0.0304, "0.0304"), (12.0, "12"),
        (3e12, "3.00·10¹²"),
    ],
)
def test_figures(value: float | None, text: str) -> None:
    assert figure(value) == text


def test_the_axis_holds_the_limit_and_what_is_off_it_lies_at_its_end() -> None:
    axis = svg.LogAxis.around([0.003, 0.5, None])
    assert (axis.low, axis.high) == (-3, 1)
    assert axis.at(1.0) == 75.0 and axis.at(0.1) == 50.0
    assert axis.at(None) == axis.at(math.inf) == axis.at(1e9) == 100.0
    assert axis.at(0.0) == axis.at(1e-12) == 0.0
    assert [label for _, label in axis.ticks] == ["0.001", "0.01", "0.1", "limit", "10×"]
    assert svg.LogAxis.around([1e30, 1e-30]).ticks[-1][1] == "10⁶×"


@pytest.mark.parametrize(("value", "width"), [(None, "100.0%"), (0.1, "50.0%"), (1.0, "75.0%"), (0.0, None)])
def test_an_infinite_error_fills_its_bar_and_none_has_no_bar(value: float | None, width: str | None) -> None:
    drawn = svg.ratio(svg.LogAxis(-3, 1), value, "mismatch", "it", {"noise": 1.0, "sensitivity": None})
    bars = re.findall(r'<rect class="bar mismatch" [^>]*width="([^"]*)"', drawn)
    assert bars == ([] if width is None else [width])
    assert drawn.count("<circle") == 1 and 'x1="75.0%"' in drawn


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
    assert (monkey.code, monkey.out, monkey.err) == (0, "", "")
    assert {name: (again / name).read_text(encoding="utf-8") for name in names.values()} == texts


def test_optimize_reports_its_verification(bnfold: Bnfold, model_file: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "folded.onnx", tmp_path / "v.html"
    outcome = bnfold("optimize", model_file, "-o", out, "--html", page, "--json", "--samples", "2")
    doc = json.loads(outcome.out)
    assert outcome.code == 0 and Page(page.read_text()).text.count(str(out)) >= 1
    assert verification(doc)["candidate"] == str(out) and verification(doc)["cells"] == doc["verdict"]["cells"]
    (tmp_path / "o.json").write_text(outcome.out)
    assert bnfold("report", "verify", tmp_path / "o.json", "--junit", tmp_path / "o.xml").code == 0


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


def test_the_documents_meet_their_schemas(case: tuple[str, Document]) -> None:
    _, doc = case
    jsonschema.validate(doc, report.schema("verify"), cls=jsonschema.Draft202012Validator)


# --- Terminal.


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (80, ["← /layer1/layer1.0/conv1/Conv ← stages.0/Add"]),
        (40, ["← /layer1/layer1.0/conv1/Conv", "← stages.0/Add"]),
        (20, ["← /layer1/layer1.0/", "conv1/Conv", "← stages.0/Add"]),
        (6, ["← /", "layer1", "/", "layer1", ".0/", "conv1/", "Conv", "←", "stages", ".0/Add"]),
    ],
)
def test_names_wrap_where_a_person_would(width: int, expected: list[str]) -> None:
    text = "← /layer1/layer1.0/conv1/Conv ← stages.0/Add"
    lines = wrapped(text, width)
    assert all(len(line) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    if width > 6:
        assert lines == expected


LONG = "/backbone/features/denseblock4/denselayer16/norm2/very_long_name_of_a_node"


def tables_of_everything() -> list[Any]:
    """Every table with names that no terminal is wide enough for."""
    from bnfold.audit.findings import AuditFinding, Code
    from bnfold.bench import BenchReport, Row
    from bnfold.folding.report import Entry, FoldReport
    from bnfold.merging.costs import Cost
    from bnfold.merging.report import Merge
    from bnfold.report import tables
    from bnfold.rules.base import Reason

    reason = next(iter(Reason))
    entries = (
        Entry(LONG, "BatchNormalization", 2048, "folded", "hoist", (LONG, LONG), (LONG,)),
        Entry(LONG, "BatchNormalization", None, "kept", reason=reason, blocking=LONG, detail=f"also read by {LONG}"),
    )
    dear, cheap = Cost(1e9), Cost(9e8)
    merges = (
        Merge("sum", (LONG, LONG), LONG, dear, cheap, 4),
        Merge("composition", (LONG,), None, cheap, dear, 4, "one layer would cost more"),
    )
    folds = FoldReport(entries, 1, 0, 2000, 1500, merges)
    unsound = [AuditFinding(Code.VANISHING_VARIANCE, LONG, "running_var is below epsilon in 2 of 8 channels (0, 5)")]
    row = Row(LONG, 123456.7, 123456.7, 123456.7, 1.0, 0.5, 1.5)
    bench = BenchReport((row, row), "cpu", 1, 1, {"x": (1,)}, "")
    names = {"output": LONG, "sample": "normal (batch=3, height=224)"}
    cells = [{**cell, **names} for cell in document("mismatch")["cells"]]
    reasons = [f"output {LONG!r} on cpu, off: error 1.2e-05, 41.2 times the limit 4.7e-07"] * 20
    verdict = document("mismatch", cells=cells, layers=LAYERS, reasons=reasons, warnings=["w" * 30])
    return [*tables.inspected(folds, unsound), *tables.bench(bench), *tables.verdict(verdict)]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_every_table_fits_the_terminal(width: int) -> None:
    import io

    from rich.console import Console

    stream = io.StringIO()
    console = Console(width=width, file=stream, highlight=False, emoji=False)
    for part in tables_of_everything():
        console.print(part)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    if width >= 80:
        # Numbers and status words are whole, and on a wide terminal a route is too.
        text = stream.getvalue()
        assert all(word in text for word in ("mismatch", "folded", "123456.7", "0.500–1.500", "900,000,000"))
        assert (f"← {LONG}" in text) == (width == 200)
