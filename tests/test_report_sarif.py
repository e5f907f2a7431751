"""SARIF: what the standard asks for, and what code scanning does with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bnfold.report.findings import RULES
from bnfold.report.sarif import sarif
from tests.reports import EVERY, LAYERS, REGRESSED, document, entry

jsonschema = pytest.importorskip("jsonschema")

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


@EVERY
def test_sarif_is_what_the_standard_asks_for(name: str) -> None:
    doc = document(name)
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


@pytest.mark.skipif("BNFOLD_SARIF_SCHEMA" not in os.environ, reason="BNFOLD_SARIF_SCHEMA names no file")
@EVERY
def test_sarif_meets_the_official_schema(name: str) -> None:
    """OASIS's schema is no part of this repository; `npm pack @microsoft/jest-sarif` brings it in lib/schemas."""
    schema = json.loads(Path(os.environ["BNFOLD_SARIF_SCHEMA"]).read_text(encoding="utf-8"))
    checker = jsonschema.validators.validator_for(schema)
    # Names that no URI can hold as they are, and all that a report can say.
    doc = document(name, candidate="/models of ours/ü#?%.onnx", layers=LAYERS, baseline=REGRESSED, warnings=["w\n", ""])
    for log in (sarif(document(name)), sarif(doc)):
        checker(schema, format_checker=checker.FORMAT_CHECKER).validate(json.loads(json.dumps(log, allow_nan=False)))


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
