"""Branches merged from the ONNX file alone, against the same net merged in its PyTorch source.

    python benchmarks/reparameterize.py [--rounds 200] [--json FILE] [ARCH …]

Each architecture is exported with its BatchNorms and branches and optimized: `merged`. Those that have branches are
merged in PyTorch, exported and folded too: `source`. All are timed in turn within one run on one thread of ONNX
Runtime's CPU provider, by the clock and again in CPU time, which other work on the machine disturbs least. Above 1 the
merged model is the faster one.
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from timing import timed

import bnfold
from bnfold.graph import node_count
from bnfold.models import registry

# Sizes that take some milliseconds a pass on one thread.
SIZES: dict[str, dict[str, Any]] = {
    "resnet": {"width": 32},
    "preact": {"width": 32},
    "mobilenet": {"width": 32},
    "densenet": {"growth": 24, "layers": 4},
    "repvgg": {"width": 32, "blocks": (2, 3, 2), "stem_stride": 2},
    "mobileone": {"width": 48, "blocks": (2, 4, 3), "copies": 4, "stem_stride": 2},
    "fastvit": {"width": 48, "blocks": (2, 3, 2), "stem_stride": 2},
    "mlp": {"hidden": (1024, 512)},
}
IMAGES = {"resnet": 48, "preact": 48, "densenet": 48, "mlp": 24}


def main() -> None:
    """Measure the architectures that are asked for, show the table, and fail where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arch", nargs="*", default=list(SIZES), help="all by default")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    console = Console(highlight=False)
    table = Table(box=SIMPLE_HEAD, title="latency, one thread", title_justify="left")
    sizes = ("", "original ms", "nodes", "folded", "merged", "source")
    for column in (*sizes, "original/merged", "CPU", "source/merged", "CPU"):
        table.add_column(column)
    rows: list[dict[str, Any]] = []
    for arch in options.arch:
        row = measured(arch, options.rounds)
        rows.append(row)
        nodes, ratio = row["nodes"], row["ratio"]
        counts = [str(nodes.get(name, "")) for name in ("original", "folded", "merged", "source")]
        against = [
            text for name in ("original", "source")
            for text in ((interval(ratio[name]), f"{row['cpu'][name]:.2f}") if name in ratio else ("", ""))
        ]  # fmt: skip
        table.add_row(arch, f"{row['original_ms']:.1f}", *counts, *against)
        console.print(f"{arch}: original/merged {interval(ratio['original'])}")
    console.print(table)
    versions = {name: version(name) for name in ("onnxruntime-gpu", "torch", "numpy")}
    console.print(", ".join(f"{name} {number}" for name, number in versions.items()), platform.machine())
    if options.json is not None:
        options.json.write_text(json.dumps({"rounds": options.rounds, "versions": versions, "rows": rows}, indent=2))
    missed = [fault for row in rows for fault in faults(row)]
    if missed:
        raise SystemExit("; ".join(missed))


def measured(arch: str, rounds: int) -> dict[str, Any]:
    """Export, optimize and time one architecture; every ratio with its 95 % interval, over the merged model's time."""
    side = IMAGES.get(arch, 96)
    torch.manual_seed(0)
    module = registry.build(arch, input_shape=(3, side, side), **SIZES[arch])
    with torch.no_grad():
        module(torch.randn(8, 3, side, side))  # running statistics that no two channels share
    module.eval()
    shape = f"1x3x{side}x{side}"
    original = bnfold.export(module, inputs=shape)
    merged = bnfold.optimize(original)
    assert merged.verdict is not None and merged.verdict.status == "pass", merged.verdict
    models = {"merged": merged.model, "original": original}
    nodes = {"folded": bnfold.optimize(original, merge=False, verify=False).nodes_after}
    if hasattr(module, "reparameterized"):
        source = bnfold.export(module.reparameterized(), inputs=shape)
        models["source"] = bnfold.optimize(source, merge=False, verify=False).model
    report = bnfold.bench(list(models.values()), rounds=rounds)
    found = dict(zip(models, report.rows, strict=True))
    cpu = dict(zip(models, timed(*models.values(), rounds=rounds), strict=True))
    return {
        "arch": arch,
        "original_ms": found["original"].median_us / 1e3,
        "nodes": nodes | {name: node_count(model) for name, model in models.items()},
        "cpu": {name: seconds / cpu["merged"] for name, seconds in cpu.items()},
        "ratio": {
            name: (row.ratio, row.ratio_low, row.ratio_high) for name, row in found.items() if name != "merged"
        },
    }


def interval(ratio: tuple[float, float, float]) -> str:
    """`1.23 (1.20–1.25)`."""
    return f"{ratio[0]:.2f} ({ratio[1]:.2f}–{ratio[2]:.2f})"


def faults(row: dict[str, Any]) -> list[str]:
    """What misses its target beyond the noise: never slower, as fast as the source's merge, as few nodes."""
    found, ratio, nodes = [], row["ratio"], row["nodes"]
    if ratio["original"][2] < 0.98:
        found.append(f"{row['arch']} is slower than the original: {interval(ratio['original'])}")
    if "source" in ratio and ratio["source"][2] < 0.95:
        found.append(f"{row['arch']} is slower than its source's merge: {interval(ratio['source'])}")
    if "source" in nodes and nodes["merged"] > nodes["source"]:
        found.append(f"{row['arch']} has {nodes['merged']} nodes, merged at the source {nodes['source']}")
    return found


if __name__ == "__main__":
    main()
