"""What `bnfold doctor` finds on a machine, and that a broken one does not break it."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Callable
from typing import Any

import pytest

from bnfold import doctor
from tests.conftest import REPOSITORY, Outcome, document

Bnfold = Callable[..., Outcome]


def test_doctor(bnfold: Bnfold) -> None:
    outcome = bnfold("doctor", "--json")
    found = document(outcome, "doctor")
    assert outcome.code == (1 if found["findings"] else 0)
    assert {"name": "cpu", "works": True, "detail": ""} in found["providers"]
    assert "onnx-ir" in bnfold("doctor").out


def test_doctor_says_how_to_install_what_is_missing(bnfold: Bnfold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("torch", "grpcio", "onnxruntime") else "9.9")
    monkeypatch.setattr(doctor, "_built_in", list)
    outcome = bnfold("doctor")
    assert outcome.code == 0
    assert "for what is not installed: pip install 'bnfold[torch,serve]'" in outcome.out


def test_doctor_finds_clashing_and_missing_packages(bnfold: Bnfold, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"onnx": None, "onnxruntime": "1.0", "onnxruntime-gpu": "1.0"}
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, "9.9"))
    monkeypatch.setattr(doctor, "_built_in", list)
    outcome = bnfold("doctor")
    assert outcome.code == 1
    assert f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install {doctor.wanted_runtime()}" in outcome.out
    assert "pip install onnx\n" in outcome.out
    assert len(document(bnfold("doctor", "--json"), "doctor")["findings"]) == 2


def test_doctor_survives_a_provider_that_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> Any:
        return subprocess.CompletedProcess(command, -11, "", "")

    monkeypatch.setattr(doctor.subprocess, "run", run)
    monkeypatch.setattr(doctor, "_built_in", lambda: ["cuda", "cpu"])
    monkeypatch.setattr(doctor, "_has_gpu", lambda: True)
    health = doctor.examine()
    assert [provider.detail for provider in health.providers] == ["killed by signal 11"] * 2
    assert len(health.findings) == 2 and health.exit_code == 1


def test_doctor_knows_what_is_installed_and_by_what() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(lines: list[str]) -> set[str]:
        return {re.split(r"[\[<>=;]", line)[0] for line in lines}

    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name not in ("all", "dev")}
    asked = {
        name: names([line for line in lines if not line.startswith("bnfold") and ";" not in line])
        for name, lines in extras.items()
    }
    assert {name: set(packages) for name, packages in doctor.EXTRAS.items()} == asked
    assert {*doctor.CORE, *doctor.RUNTIMES} == names(project["dependencies"])
