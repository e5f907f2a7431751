"""A verification as JUnit XML: a case for each provider, level and output, and one for the verdict as a whole.

A mismatch is a failure and an inconclusive comparison an error, so that neither is taken for a pass. The element and
attribute names are those that Jenkins, GitLab and GitHub's test reporters read.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from xml.etree import ElementTree as ET

from bnfold.report.findings import Document, Finding, against, findings, outcome, status

# XML 1.0 has no way to write these (production Char).
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(document: Document) -> str:
    """The document of a verification as JUnit XML."""
    name = f"bnfold verify {PurePath(document['candidate']).name}"
    suite = ET.Element("testsuite", name=_clean(name))
    properties = ET.SubElement(suite, "properties")
    for key in ("reference", "candidate", "status", "ratio"):
        ET.SubElement(properties, "property", name=key, value=_clean(str(document[key])))
    for cell in document["cells"]:
        case = ET.SubElement(suite, "testcase")
        case.set("classname", _clean(f"bnfold.verify.{cell['provider']}.{cell['level']}"))
        case.set("name", _clean(cell["output"]))
        _outcome(case, status(document, cell), against(document, cell))
        ET.SubElement(case, "system-out").text = _clean(
            f"error {_figure(cell['error'])}, limit {_figure(cell['limit'])}, ratio {_figure(cell['ratio'])}, "
            f"worst on {cell['sample']}, {cell['values']} values"
        )
    _verdict(suite, document)
    cases = suite.findall("testcase")
    counts = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": sum(case.find("error") is not None for case in cases),
        "skipped": 0,
    }
    seconds = sum((document.get("seconds") or {}).values())
    root = ET.Element("testsuites", name="bnfold")
    for element in (root, suite):
        for key, count in counts.items():
            element.set(key, str(count))
        element.set("time", f"{seconds:.3f}")
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _verdict(suite: ET.Element, document: Document) -> None:
    """The case that holds what belongs to no single comparison, so that the suite passes only if the verdict does."""
    case = ET.SubElement(suite, "testcase", classname="bnfold.verify", name="verdict", time="0")
    cells = {str(cell["output"]) for cell in document["cells"]}
    rest = [f for f in findings(document) if f.level == "error" and f.output not in cells]
    _outcome(case, outcome(document)[0], _text(rest) or f"{document['status']}: see the comparisons")
    if document["warnings"]:
        ET.SubElement(case, "system-err").text = _clean("\n".join(document["warnings"]))


def _outcome(case: ET.Element, status: str, message: str | None) -> None:
    tag = {"mismatch": "failure", "inconclusive": "error"}.get(status)
    if tag is not None:
        text = _clean(message or status)
        ET.SubElement(case, tag, type=status, message=text.splitlines()[0]).text = text


def _text(found: list[Finding]) -> str:
    return "\n".join(finding.message for finding in found)


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("�", text)
