"""Drift on digits: what is seen, how far it is, and what recalibration gets back. Prints the tables of docs/audit.md.

    python benchmarks/drift.py [ARCH] [--seeds 3] [--clean]

Statistics are re-estimated on the training images, changed in the same way and without labels; accuracy is that on
the held-out images, so that nothing is measured on what it was fitted to. With `--clean` every architecture is trained
and audited on its own held-out data, which should find nothing.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bnfold.audit import audit
from bnfold.audit.result import AuditReport
from bnfold.export import export
from bnfold.models.data import Dataset, Split, load
from bnfold.models.registry import ARCHITECTURES
from bnfold.models.tasks import task
from bnfold.models.train import train
from tests.drifting import CORRUPTIONS

Results = dict[tuple[str, float], tuple[AuditReport, float]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("arch", nargs="?", default="resnet", metavar="ARCH")
    options.add_argument("--seeds", type=int, default=3, help="trainings; the first table shows the first of them")
    options.add_argument("--clean", action="store_true", help="all architectures on their own held-out data instead")
    chosen = options.parse_args()
    if chosen.clean:
        clean()
    else:
        changed(chosen.arch, chosen.seeds)


def changed(arch: str, seeds: int) -> None:
    """Every kind of change in every strength, and what recalibration gets back of it."""
    data = load("digits")
    found = [measured(arch, data, seed) for seed in range(seeds)]
    results, first = found[0], found[0]["as it was", 0.0][0]
    print(f"{arch}, {len(data.test)} held-out digits, {first.batch_norms} BatchNorms\n")
    print("| input | accuracy | drift | layers drifted | channels flagged | recalibrated |")
    print("|---|---|---|---|---|---|")
    for (name, by), (report, after) in results.items():
        print(row(f"{name} {by:g}" if by else name, report, after))
    print(f"\nthe strongest change over {seeds} trainings: median, lowest and highest\n")
    print("| input | accuracy | recalibrated | of what was lost |")
    print("|---|---|---|---|")
    for name, (_, strengths) in CORRUPTIONS.items():
        print(f"| {name} {strengths[-1]:g} | " + " | ".join(recovered(found, name, strengths[-1])) + " |")
    ranked = all(
        ordered([one[name, by][0] for by in strengths]) for one in found for name, (_, strengths) in CORRUPTIONS.items()
    )
    print(f"\nwithin each kind the drift grows with the strength in every training: {'yes' if ranked else 'NO'}")


def measured(arch: str, data: Dataset, seed: int) -> Results:
    """Each change in each strength: the audit of the held-out images, and their accuracy once recalibrated."""
    model = export(train(arch, data, epochs=20, seed=seed, quiet=True).module, inputs="1x1x8x8")
    plain = audit(model, feeds(data.test.images, data.test))
    results: Results = {("as it was", 0.0): (plain, accuracy(plain))}
    for name, (change, strengths) in CORRUPTIONS.items():
        for by in strengths:
            images = feeds(change(data.test.images, by), data.test)
            fitted = audit(model, {"input": np.asarray(change(data.train.images, by), np.float32)}, recalibrate=True)
            with tempfile.TemporaryDirectory() as folder:
                fitted.save(f"{folder}/renewed.onnx")
                results[name, by] = audit(model, images), accuracy(audit(f"{folder}/renewed.onnx", images))
    return results


def feeds(images: Any, split: Split) -> dict[str, Any]:
    return {"input": np.asarray(images, np.float32), "labels": split.labels}


def accuracy(report: AuditReport) -> float:
    assert report.accuracy[0] is not None
    return report.accuracy[0]


def ordered(reports: list[AuditReport]) -> bool:
    scores = [report.drift.score for report in reports if report.drift is not None]
    return scores == sorted(scores) and len(set(scores)) == len(scores)


def recovered(found: list[Results], name: str, by: float) -> list[str]:
    """Accuracy changed and recalibrated, and the share of the loss that came back, over the trainings."""
    whole = [accuracy(one["as it was", 0.0][0]) for one in found]
    before = [accuracy(one[name, by][0]) for one in found]
    after = [one[name, by][1] for one in found]
    share = [(c - b) / (a - b) for a, b, c in zip(whole, before, after, strict=True)]
    return [f"{median(values):.1%} ({min(values):.1%} … {max(values):.1%})" for values in (before, after, share)]


def row(name: str, report: AuditReport, after: float) -> str:
    return f"| {name} | {accuracy(report):.1%} | {figures(report)} | {after:.1%} |"


def figures(report: AuditReport) -> str:
    """Drift, layers and channels as three cells."""
    assert report.drift is not None
    layers = report.drift.layers
    drifted, flagged = sum(layer.large for layer in layers), sum(int(layer.flagged.sum()) for layer in layers)
    channels = sum(len(layer.shift) for layer in layers)
    return f"{report.drift.score:.2f}σ | {drifted} of {len(layers)} | {flagged} of {channels}"


def clean() -> None:
    """Every architecture on the held-out data of its own task."""
    print("| architecture | drift | layers drifted | channels flagged |")
    print("|---|---|---|---|")
    for arch, entry in ARCHITECTURES.items():
        data = load("digits")
        module = train(arch, data, quiet=True).module
        name = next(iter(inspect.signature(module.forward).parameters))
        report = audit(module, {name: task(entry.task).data(data).test.images})
        print(f"| {arch} | {figures(report)} |", flush=True)


if __name__ == "__main__":
    main()
