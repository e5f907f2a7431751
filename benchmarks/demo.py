"""The main job from end to end on real data: train, export, inspect, optimize, verify, compare, time.

    make demo        (or: python benchmarks/demo.py [FOLDER])

Every step is the command a user would type; its files stay in FOLDER, `demo/` by default.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bnfold.models.data import accuracy, load
from bnfold.report.tables import size
from bnfold.runtime import run, session

CONSOLE = Console(highlight=False)


def main(folder: Path) -> None:
    """Run the steps and print one line each, then the closing table. A step that fails ends the demo."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, model, folded = (str(folder / name) for name in ("digits.safetensors", "digits.onnx", "folded.onnx"))

    trained = step("train", "resnet", "--data", "digits", "-o", checkpoint)
    say(f"{trained['score']:.2%} on held-out images, {trained['seconds']:.0f} s")
    exported = step("export", checkpoint, "-o", model)
    say(f"{exported['nodes']} nodes, {exported['batchnorms']} BatchNorms, opset {exported['opset']}")
    report = step("inspect", model)
    say(f"{report['folded']} can be folded, {report['kept']} can't")
    optimized = step("optimize", model, "-o", folded)
    nodes = optimized["nodes"]
    say(f"{nodes['before']} → {nodes['after']} nodes, written because verified")
    verdict = step("verify", model, folded)
    say(f"{verdict['status']}, worst error ratio {verdict['ratio']:.3g} of the limit")
    CONSOLE.print("[bold]predict the held-out images with both[/]")
    before, after, equal, total = predictions(model, folded)
    say(f"accuracy {before:.2%} and {after:.2%}, {equal} of {total} predictions equal")
    timed = step("bench", model, folded)["rows"][-1]
    latency = f"{timed['ratio']:.3f} ({timed['ratio_low']:.3f}–{timed['ratio_high']:.3f})"
    say(f"latency {latency} of the original's")

    table = Table("", "original", "folded", box=SIMPLE_HEAD, title="digits, resnet", title_justify="left")
    fold = optimized["fold"]
    table.add_row("BatchNorms", str(fold["folded"] + fold["kept"]), f"{fold['kept']} ({fold['folded']} folded)")
    table.add_row("nodes", str(nodes["before"]), str(nodes["after"]))
    table.add_row("file size", *(size(Path(path).stat().st_size) for path in (model, folded)))
    table.add_row("verdict", "", f"{verdict['status']} (error ratio {verdict['ratio']:.3g})")
    table.add_row("held-out accuracy", f"{before:.2%}", f"{after:.2%}")
    table.add_row("predictions equal", "", f"{equal} of {total}")
    table.add_row("latency", "1", latency)
    CONSOLE.print(table)
    CONSOLE.print("ONNX Runtime folds BatchNorm after a convolution itself at load: expect a latency ratio near 1.")
    if equal != total:
        sys.exit("the folded model predicts something else")


def step(verb: str, *arguments: str) -> dict[str, Any]:
    """Run `bnfold VERB …`, show the command, and return its JSON result; progress goes to the terminal."""
    CONSOLE.print(f"[bold]$ bnfold {verb} {' '.join(arguments)}[/]")
    command = [sys.executable, "-m", "bnfold", verb, *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.stderr.write(done.stdout)
        sys.exit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def say(text: str) -> None:
    """The one-line result of a step."""
    CONSOLE.print(f"  {text}")


def predictions(model: str, folded: str) -> tuple[float, float, int, int]:
    """Accuracy of both models on the held-out images, and on how many of them they predict the same digit."""
    test = load("digits").test
    logits = []
    for path in (model, folded):
        opened = session(path, optimize=True)
        logits.append(next(iter(run(opened, {opened.get_inputs()[0].name: test.images}).values())))
    same = int(np.sum(logits[0].argmax(1) == logits[1].argmax(1)))
    return accuracy(logits[0], test.labels), accuracy(logits[1], test.labels), same, len(test)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo"))
