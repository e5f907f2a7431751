"""What runs on this machine: versions, providers that really compute, and the command that mends the rest."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

CORE = ("onnx", "onnx-ir", "onnxsim", "numpy", "click", "rich", "threadpoolctl")
EXTRAS = {
    "torch": ("torch", "onnxscript", "safetensors"),
    "train": ("lightning", "scikit-learn"),
    "serve": ("grpcio", "httptools", "jinja2", "orjson", "prometheus-client", "protobuf", "starlette", "uvicorn"),
    "ray": ("ray",),
    "report": ("jinja2",),
}
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
PROBE_S = 120.0


@dataclass(frozen=True)
class Package:
    """An installed or missing package; `extra` names those that ask for it, None is the core."""

    name: str
    version: str | None
    extra: str | None


@dataclass(frozen=True)
class Probe:
    """An execution provider that this ONNX Runtime was built with, and whether a model ran on it just now."""

    name: str
    works: bool
    detail: str


@dataclass(frozen=True)
class Finding:
    """Something wrong, and the command that mends it."""

    what: str
    mend: str


@dataclass(frozen=True)
class Health:
    """Everything that `bnfold doctor` says."""

    python: str
    system: str
    packages: tuple[Package, ...]
    providers: tuple[Probe, ...]
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """1 if anything was found."""
        return 1 if self.findings else 0

    @property
    def missing_extras(self) -> tuple[str, ...]:
        """The extras of which a package is not installed; that is nobody's fault, so no finding."""
        missing = {package.name for package in self.packages if package.version is None}
        return tuple(extra for extra, names in EXTRAS.items() if missing & {*names})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine() -> Health:
    """Look at the installed packages and run a small model on every provider, each in a process of its own."""
    from bnfold import __version__

    packages = [Package("bnfold", __version__, None)]
    packages += [Package(name, _version(name), None) for name in CORE]
    packages += [Package(name, version, None) for name in RUNTIMES if (version := _version(name))]
    packages += [Package(name, _version(name), ", ".join(extras)) for name, extras in _optional().items()]
    providers = tuple(_probe(name) for name in _built_in())
    return Health(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages=tuple(packages),
        providers=providers,
        findings=(*_package_findings(packages), *_provider_findings(providers)),
    )


def wanted_runtime() -> str:
    """The ONNX Runtime package for this machine, as the package metadata asks for it."""
    gpu = platform.system() == "Windows" or (platform.system(), platform.machine()) == ("Linux", "x86_64")
    return "onnxruntime-gpu" if gpu else "onnxruntime"


def _optional() -> dict[str, list[str]]:
    """Every package that is asked for by an extra, with those that ask for it."""
    asked: dict[str, list[str]] = {}
    for extra, names in EXTRAS.items():
        for name in names:
            asked.setdefault(name, []).append(extra)
    return asked


def _package_findings(packages: list[Package]) -> list[Finding]:
    found = []
    missing = [package.name for package in packages if package.extra is None and package.version is None]
    if missing:
        found.append(Finding(f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}"))
    runtimes = [package.name for package in packages if package.name in RUNTIMES]
    wanted = wanted_runtime()
    if len(runtimes) == 2:
        # Both hold the same files, so each overwrites the other's, and removing one breaks both.
        mend = f"pip uninstall -y {' '.join(RUNTIMES)} && pip install {wanted}"
        found.append(Finding("onnxruntime and onnxruntime-gpu are both installed and overwrite each other", mend))
    elif not runtimes:
        found.append(Finding("ONNX Runtime is not installed", f"pip install {wanted}"))
    return found


def _provider_findings(providers: tuple[Probe, ...]) -> list[Finding]:
    found = []
    for provider in providers:
        if provider.works:
            continue
        if provider.name == "cpu":
            mend = f"pip install --force-reinstall {wanted_runtime()}"
            found.append(Finding(f"ONNX Runtime does not compute: {provider.detail}", mend))
        elif provider.name == "cuda" and _has_gpu():
            mend = 'pip install "onnxruntime-gpu[cuda,cudnn]"'
            found.append(Finding(f"there is a GPU, but CUDA does not run on it: {provider.detail}", mend))
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _has_gpu() -> bool:
    # The driver's own traces; the last is WSL's.
    return any(Path(path).exists() for path in ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/dxg"))


def _built_in() -> list[str]:
    try:
        from bnfold.runtime import available_providers

        return list(available_providers())
    except Exception:  # a broken install raises ImportError, OSError or AttributeError; the finding says so
        return ["cpu"]


def _probe(name: str) -> Probe:
    """A provider that crashes must not take the doctor with it."""
    command = [sys.executable, "-m", "bnfold.doctor", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_S, check=False)
    except subprocess.TimeoutExpired:
        return Probe(name, False, f"no answer within {PROBE_S:g} s")
    if done.returncode == 0:
        return Probe(name, True, "")
    if done.returncode < 0:
        return Probe(name, False, f"killed by signal {-done.returncode}")
    if name in ("cuda", "tensorrt") and not _has_gpu():
        return Probe(name, False, "no NVIDIA GPU on this machine")
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return Probe(name, False, lines[-1] if lines else f"exit code {done.returncode}")


if __name__ == "__main__":
    from bnfold.runtime import usable

    sys.exit(usable(sys.argv[1]))
