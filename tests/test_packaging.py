"""What is built and installed: one top-level name, every module and data file, pinned versions that fit."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.test_imports import FOLDERS, MODULES

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy of this tree, so that nothing is built inside it."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    for name in (*FOLDERS, "tests"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, copy]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_claims_one_top_level_name(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"bnfold"}


def test_the_wheel_holds_every_module_and_data_file(wheel: zipfile.ZipFile) -> None:
    expected = set()
    for folder, package in FOLDERS.items():
        for path in (REPOSITORY / folder).rglob("*"):
            if path.suffix in (".py", ".json", ".md", ".typed", ".html", ".css") or path.name == "py.typed":
                expected.add(f"{package.replace('.', '/')}/{path.relative_to(REPOSITORY / folder).as_posix()}")
    packed = {name for name in wheel.namelist() if name.startswith("bnfold/")}
    assert expected - packed == set()
    assert {name for name in packed - expected if not name.endswith(".html")} == set()


def test_every_package_is_named() -> None:
    found = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_the_metadata_says_what_is_needed(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    metadata = Parser().parsestr(wheel.read(name).decode())
    needed = metadata.get_all("Requires-Dist") or []
    runtimes = [line for line in needed if line.startswith("onnxruntime")]
    assert len(runtimes) == 2 and all(";" in line for line in runtimes)
    assert metadata["License-Expression"] == "MIT"
    assert {"torch", "train", "all", "dev"} <= set(metadata.get_all("Provides-Extra") or [])
    (points,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "bnfold = bnfold.cli:main" in wheel.read(points).decode()
    assert "[pytest11]\nbnfold = bnfold.pytest_plugin" in wheel.read(points).decode()


def test_every_requirement_is_pinned() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins.values())
    pinned = {normal(name) for name in pins}
    project = PROJECT["project"]
    lists = [project["dependencies"], PROJECT["build-system"]["requires"], *project["optional-dependencies"].values()]
    names = {normal(re.match(r"[\w.-]+", line)[0]) for lines in lists for line in lines}
    # This machine's runtime is the pinned one; the other platforms' package has the same versions.
    assert names - pinned - {"bnfold", "onnxruntime"} == set()


def test_no_index_is_named() -> None:
    """Where packages come from is the user's configuration."""
    for name in ("constraints.txt", "pyproject.toml", "Makefile", ".ci/run"):
        assert not re.search(r"index-url|find-links|https?://", (REPOSITORY / name).read_text(encoding="utf-8"))


def test_python_m_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bnfold", "--version"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert re.fullmatch(r"bnfold \d+\.\d+\.\d+\n", done.stdout)
