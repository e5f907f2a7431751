"""A verification as SARIF 2.1.0, the format of code scanning: every finding with its rule, artifact and layers."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bnfold import __version__
from bnfold.report.findings import RULES, Document, Finding, findings

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif(document: Document) -> dict[str, Any]:
    """The document of a verification as a SARIF log of one run."""
    found = findings(document)
    order = list(RULES)
    rules = [
        {
            "id": f"bnfold/{name}",
            "name": "".join(part.capitalize() for part in name.split("-")),
            "shortDescription": {"text": rule.title},
            "fullDescription": {"text": rule.help},
            "help": {"text": rule.help},
            "defaultConfiguration": {"level": "warning" if name == "warning" else "error"},
        }
        for name, rule in RULES.items()
    ]
    artifact = _uri(document["candidate"])
    run = {
        "tool": {"driver": {"name": "bnfold", "semanticVersion": __version__, "rules": rules}},
        "invocations": [{"executionSuccessful": True, "exitCode": document["exit_code"]}],
        "artifacts": [{"location": {"uri": uri}} for uri in dict.fromkeys((artifact, _uri(document["reference"])))],
        "columnKind": "unicodeCodePoints",
        "properties": {"status": document["status"], "ratio": document["ratio"]},
        "results": [_result(finding, order.index(finding.rule), artifact) for finding in found],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _result(finding: Finding, index: int, artifact: str) -> dict[str, Any]:
    # A model has no lines, but GitHub drops results without a region.
    physical = {"artifactLocation": {"uri": artifact, "index": 0}, "region": {"startLine": 1}}
    location: dict[str, Any] = {"physicalLocation": physical}
    names = [(name, kind) for name, kind in ((finding.layer, "layer"), (finding.output, "output")) if name is not None]
    if names:
        location["logicalLocations"] = [{"name": name, "kind": kind} for name, kind in names]
    result: dict[str, Any] = {
        "ruleId": f"bnfold/{finding.rule}",
        "ruleIndex": index,
        "level": finding.level,
        "message": {"text": finding.message},
        "locations": [location],
        # Figures change from run to run; what makes a finding the same one is where it is.
        "partialFingerprints": {"bnfold/v1": _fingerprint(finding, artifact)},
    }
    if finding.cell is not None:
        keys = ("provider", "level", "output", "status", "ratio", "error", "limit", "sample")
        result["properties"] = {key: finding.cell[key] for key in keys}
    return result


def _fingerprint(finding: Finding, artifact: str) -> str:
    cell = finding.cell or {}
    named = [name for name in (finding.layer, finding.output) if name is not None]
    where = [str(cell[key]) for key in ("provider", "level") if key in cell]
    parts = [finding.rule, artifact, *(named or [finding.message]), *where]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _uri(path: str) -> str:
    """Relative to the working directory where it lies below it, as code scanning wants it; absolute otherwise."""
    full = Path(os.path.abspath(path))
    if full.is_relative_to(Path.cwd()):
        return quote(full.relative_to(Path.cwd()).as_posix())
    return full.as_uri()
