"""Drift on digits: what is seen, how far it is, and what recalibration gets back. Prints the tables of docs/audit.md.

    python benchmarks/drift.py [ARCH …] [--seeds 3] [--normalize] [--clean]

Statistics are re-estimated on the training images, changed in the same way and without labels; accuracy is that on
the held-out images, so that nothing is measured on what it was fitted to. One architecture is measured in every
strength of every change, several in the strongest. With `--clean` every architecture is trained and audited on its own
held-out data, which should find nothing.
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
import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bnfold.audit import audit
from bnfold.audit.result import AuditReport
from bnfold.export import export
from bnfold.models.data import Dataset, Split, load
from bnfold.models.registry import ARCHITECTURES
from bnfold.models.tasks import task
from bnfold.models.train import train
from tests.drifting import CORRUPTIONS

Results = dict[str, tuple[AuditReport, float]]

PLAIN = "as it was"
NEGATIVE = "inverted 1"
TURNED = f"{NEGATIVE}, --negate"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("arch", nargs="*", default=["resnet"], metavar="ARCH")
    options.add_argument("--seeds", type=int, default=3, help="trainings; the table of strengths shows the first")
    options.add_argument("--normalize", action="store_true", help="train with the inputs' normalisation in the model")
    options.add_argument("--clean", action="store_true", help="all architectures on their own held-out data instead")
    chosen = options.parse_args()
    if chosen.clean:
        clean()
    elif len(chosen.arch) == 1:
        strengths(chosen.arch[0], chosen.seeds, chosen.normalize)
    else:
        architectures(chosen.arch, chosen.seeds, chosen.normalize)


def strengths(arch: str, seeds: int, normalize: bool) -> None:
    """Every kind of change in every strength, and what recalibration gets back of it."""
    data = load("digits")
    found = [measured(arch, data, seed, 0, normalize) for seed in range(seeds)]
    print(f"{arch}, {len(data.test)} held-out digits, {found[0][PLAIN][0].batch_norms} BatchNorms\n")
    print("| input | accuracy | drift | layers drifted | channels flagged | recalibrated |")
    print("|---|---|---|---|---|---|")
    for name, (report, after) in found[0].items():
        print(f"| {name} | {accuracy(report):.1%} | {figures(report)} | {after:.1%} |")
    print(f"\nthe strongest change over {seeds} trainings: median, lowest and highest\n")
    print("| input | accuracy | recalibrated | of what was lost |")
    print("|---|---|---|---|")
    for name in strongest():
        cells = [f"{median(values):.1%} ({min(values):.1%} … {max(values):.1%})" for values in recovered(found, name)]
        print(f"| {name} | {' | '.join(cells)} |")
    ranked = all(
        ordered([one[label(name, by)][0] for by in row]) for one in found for name, (_, row) in CORRUPTIONS.items()
    )
    print(f"\nwithin each kind the drift grows with the strength in every training: {'yes' if ranked else 'NO'}")


def architectures(names: list[str], seeds: int, normalize: bool) -> None:
    """The strongest change of each kind: accuracy before and after, medians over the trainings."""
    data = load("digits")
    print(f"| architecture | {PLAIN} | {' | '.join(strongest())} |")
    print("|---" * (2 + len(strongest())) + "|")
    for arch in names:
        found = [measured(arch, data, seed, -1, normalize) for seed in range(seeds)]
        cells = [f"{median(accuracy(one[PLAIN][0]) for one in found):.1%}"]
        for name in strongest():
            before, after, _ = recovered(found, name)
            cells.append(f"{median(before):.0%} → {median(after):.1%}")
        print(f"| {arch} | {' | '.join(cells)} |", flush=True)


def measured(arch: str, data: Dataset, seed: int, weakest: int, normalize: bool) -> Results:
    """Each change, from the strength of that index on: the audit of the held-out images, and their accuracy after."""
    module = train(arch, data, epochs=20, seed=seed, normalize=normalize, quiet=True).module
    model = export(module, inputs="1x1x8x8")
    plain = audit(model, feeds(data.test.images, data.test))
    results: Results = {PLAIN: (plain, accuracy(plain))}
    for name, (change, row) in CORRUPTIONS.items():
        for by in row[weakest:]:
            images = feeds(change(data.test.images, by), data.test)
            fitted = np.asarray(change(data.train.images, by), np.float32)
            results[label(name, by)] = (audit(model, images), renewed(model, fitted, images))
            if label(name, by) == NEGATIVE:
                results[TURNED] = (audit(model, images), renewed(model, fitted, images, negate=True))
    return results


def renewed(model: ir.Model, fitted: Any, images: dict[str, Any], **how: bool) -> float:
    """The accuracy on `images` once the model is recalibrated on `fitted`."""
    with tempfile.TemporaryDirectory() as folder:
        audit(model, {"input": fitted}, recalibrate=True, **how).save(f"{folder}/renewed.onnx")
        return accuracy(audit(f"{folder}/renewed.onnx", images))


def label(name: str, by: float) -> str:
    return f"{name} {by:g}"


def strongest() -> list[str]:
    """The strongest change of each kind, and what `--negate` makes of inverted images."""
    found = [label(name, row[-1]) for name, (_, row) in CORRUPTIONS.items()]
    found.insert(found.index(NEGATIVE) + 1, TURNED)
    return found


def feeds(images: Any, split: Split) -> dict[str, Any]:
    return {"input": np.asarray(images, np.float32), "labels": split.labels}


def accuracy(report: AuditReport) -> float:
    assert report.accuracy[0] is not None
    return report.accuracy[0]


def ordered(reports: list[AuditReport]) -> bool:
    scores = [report.drift.score for report in reports if report.drift is not None]
    return scores == sorted(scores) and len(set(scores)) == len(scores)


def recovered(found: list[Results], name: str) -> tuple[list[float], list[float], list[float]]:
    """Accuracy changed and recalibrated, and the share of the loss that came back, each over the trainings."""
    whole = [accuracy(one[PLAIN][0]) for one in found]
    before = [accuracy(one[name][0]) for one in found]
    after = [one[name][1] for one in found]
    return before, after, [(c - b) / (a - b) for a, b, c in zip(whole, before, after, strict=True)]


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
