"""Drift on digits: what is seen, how far it is, and what recalibration gets back. Prints the table of docs/audit.md.

    python benchmarks/drift.py [ARCH]

Statistics are re-estimated on the training images, changed in the same way and without labels; accuracy is that on
the held-out images, so that nothing is measured on what it was fitted to.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bnfold.audit import audit
from bnfold.export import export
from bnfold.models.data import load
from bnfold.models.train import train
from tests.drifting import CORRUPTIONS


def main(arch: str = "resnet") -> None:
    data = load("digits")
    model = export(train(arch, data, epochs=20, quiet=True).module, inputs="1x1x8x8")
    clean = audit(model, {"input": data.test.images, "labels": data.test.labels})
    print(f"{arch}, {len(data.test)} held-out digits, {clean.batch_norms} BatchNorms\n")
    print("| input | accuracy | drift | layers drifted | channels flagged | recalibrated |")
    print("|---|---|---|---|---|---|")
    print(row("as it was", clean, ""))
    for name, (change, strengths) in CORRUPTIONS.items():
        for by in strengths:
            changed = {"input": np.asarray(change(data.test.images, by), np.float32), "labels": data.test.labels}
            report = audit(model, changed)
            fitted = audit(model, {"input": np.asarray(change(data.train.images, by), np.float32)}, recalibrate=True)
            assert fitted.write is not None
            renewed = audit(fitted.write.__self__.model, changed).accuracy[0]
            print(row(f"{name} {by:g}" if len(strengths) > 1 else name, report, f"{renewed:.1%}"), flush=True)


def row(name: str, report: object, after: str) -> str:
    drift, accuracy = report.drift, report.accuracy[0]
    drifted = sum(layer.large for layer in drift.layers)
    flagged, channels = (sum(n) for n in zip(*((l.flagged.sum(), len(l.shift)) for l in drift.layers), strict=True))
    counts = f"{drifted} of {len(drift.layers)} | {flagged} of {channels}"
    return f"| {name} | {accuracy:.1%} | {drift.score:.2f}σ | {counts} | {after} |"


if __name__ == "__main__":
    main(*sys.argv[1:])
