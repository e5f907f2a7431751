"""What the verification finds, what it takes, and what it wrongly accuses.

    python benchmarks/verify.py rates [--seeds N]      faults found and correct folds accused, check by check
    python benchmarks/verify.py time MODEL [CANDIDATE]  where the time goes, with defaults and with --quick
    python benchmarks/verify.py oracle MODEL            float64 seconds and peak memory against the live tensors'
    python benchmarks/verify.py seeds [--seeds N]       verdict and error ratio over the inputs' seeds
    python benchmarks/verify.py memory [--gigabytes N]  peak memory and CPU of the command on a model with external data

CPU seconds are reported, which a busy machine changes less. MODEL is a path, or the name of one of onnx's light models
or resnet18, filled with seeded weights.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bnfold
from benchmarks import cost
from bnfold.inputs import feeds
from bnfold.io import load
from bnfold.verify import verify
from bnfold.verify.bisection import bisect
from bnfold.verify.reference import Evaluator
from tests import light, nets

BNFOLD = [sys.executable, "-m", "bnfold"]


def same(a: onnx.ModelProto, b: onnx.ModelProto) -> bool:
    return a.graph.initializer == b.graph.initializer


def rates(seeds: int) -> None:
    """Inject every fault into every small net, in another layer for each seed."""
    found: Counter[str] = Counter()
    injected = alarms = clean = named = accused = 0
    for make in nets.NETS.values():
        for seed in range(seeds):
            original = make(seed, 10.0 ** (3 * (seed % 3 - 1)))
            norms = [n.output[0] for n in original.graph.node if n.op_type == "BatchNormalization"]
            for dtype in (np.float64, np.float32):
                good = nets.fold(original, dtype=dtype)
                clean += 1
                alarms += verify(original, good, seed=seed, keep_going=True).exit_code == 1
                accused += bool(bisect(original, good, seed=seed, method="local").layers)
            right = nets.fold(original)
            for fault in nets.FAULTS:
                faulty = nets.fold(original, fault=fault, where=seed, seed=seed)
                if same(faulty, right):
                    continue
                injected += 1
                verdict = verify(original, faulty, seed=seed, keep_going=True)
                seen = {
                    "V1": any(r.startswith("certificate:") for r in verdict.reasons),
                    "V2": any(layer["status"] == "mismatch" for layer in verdict.layers),
                    "V3": any(cell.status == "mismatch" for cell in verdict.cells),
                }
                found.update([name for name, hit in seen.items() if hit])
                found["any"] += verdict.exit_code == 1
                names = [layer["output"] for layer in verdict.layers if layer["status"] == "mismatch"]
                named += names == [norms[seed % len(norms)]]
    print(f"correct folds {clean}, accused {alarms}, layers of them accused {accused}")
    shares = (f"{name} {found[name] / injected:.1%}" for name in ("V1", "V2", "V3", "any"))
    print(f"faults {injected}: {', '.join(shares)}")
    print(f"V2 names the right layer and no other: {named / injected:.1%}")


def timed(reference: str, candidate: str | None) -> None:
    original = model(reference)
    other: Any = candidate or bnfold.optimize(original, verify=False).model
    for quick in (False, True):
        start, cpu = time.perf_counter(), time.process_time()
        verdict = verify(original, other, quick=quick)
        took, wall = time.process_time() - cpu, time.perf_counter() - start
        print(f"{'quick' if quick else 'defaults'}: {verdict.status}, {took:.1f} s CPU, {wall:.1f} s")
        print("  " + ", ".join(f"{step} {value:.1f}" for step, value in verdict.seconds.items()))
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


def oracle(reference: str) -> None:
    """The float64 evaluation of one sample, and the peak of its arrays against what must be alive at once."""
    import tracemalloc

    loaded = load(model(reference))
    evaluator = Evaluator(loaded)
    sample = feeds.generated(loaded, samples=1)[0]
    evaluator.run(sample.feeds)
    cpu = time.process_time()
    evaluator.run(sample.feeds)
    print(f"{time.process_time() - cpu:.2f} s CPU for a sample")
    sizes: dict[Any, int] = {}
    last = {v: node for node in evaluator.model.graph for v in node.inputs if v is not None}
    live = [0, 0]

    def observe(node: Any, inputs: Any, results: Any) -> None:
        for value, array in zip(node.outputs, results, strict=False):
            sizes[value] = array.nbytes
            live[0] += array.nbytes
        live[1] = max(live[1], live[0])
        live[0] -= sum(sizes.pop(v, 0) for v in set(node.inputs) if v is not None and last[v] is node)

    evaluator.run(sample.feeds, observe)
    tracemalloc.start()
    evaluator.run(sample.feeds)
    peak = tracemalloc.get_traced_memory()[1]
    print(f"peak {peak / 1e6:.1f} MB, live tensors {live[1] / 1e6:.1f} MB: {peak / live[1]:.2f} times")


def spread(seeds: int) -> None:
    """Verify each small net's correct folds and each of its faults with inputs and perturbations from many seeds."""
    for net, make in nets.NETS.items():
        for scale in (1e-3, 1.0, 1e3):
            original = make(0, scale)
            for dtype in (np.float64, np.float32):
                verdicts = [verify(original, nets.fold(original, dtype=dtype), seed=seed) for seed in range(seeds)]
                low, middle, high = np.quantile([v.ratio for v in verdicts], (0.0, 0.5, 1.0))
                said = "/".join(sorted({v.status for v in verdicts}))
                what = f"{net}, scale {scale:g}, {dtype.__name__}"
                print(f"{what}: {said}, ratio {low:.3f} {middle:.3f} {high:.3f}", flush=True)
        original = make(0, 1.0)
        right, undecided = nets.fold(original), []
        for fault in nets.FAULTS:
            wrong = nets.fold(original, fault=fault, where=1)
            said = {verify(original, wrong, seed=seed).status for seed in range(seeds)}
            if not same(wrong, right) and said != {"mismatch"}:
                undecided.append(fault)
        print(f"{net}, {len(nets.FAULTS)} faults: {', '.join(undecided) or 'mismatch for every seed'}", flush=True)


def memory(gigabytes: float) -> None:
    """Fold a model of linear layers with external weights, then verify the result, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        original, folded = Path(folder) / "original.onnx", Path(folder) / "folded.onnx"
        layers = cost.write_large(original, gigabytes)
        size = original.with_suffix(".data").stat().st_size
        subprocess.run([*BNFOLD, "optimize", original, "-o", folded, "--no-verify", "-q"], check=True)
        for options in ([], ["--quick"]):
            status, peak, anonymous, cpu = watched([*BNFOLD, "verify", original, folded, *options, "--json"])
            what = f"{layers} layers, {size / 1e9:.2f} GB, {' '.join(options) or 'defaults'}"
            print(f"{what}: {status}, peak {peak:.2f} GB, {anonymous:.2f} GB without mapped files, {cpu:.0f} s CPU")


def watched(command: list[Any]) -> tuple[str, float, float, float]:
    """Run a verification; return its status, peak GB, the peak without mapped files (Linux), and CPU seconds."""
    with tempfile.TemporaryFile("w+") as output:
        child, anonymous = subprocess.Popen(command, stdout=output), 0
        while True:
            done, code, used = os.wait4(child.pid, os.WNOHANG)
            if done:
                break
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
            held = next((line for line in lines if line.startswith("RssAnon:")), "RssAnon: 0")
            anonymous = max(anonymous, int(held.split()[1]))
            time.sleep(0.02)
        output.seek(0)
        status = json.load(output)["status"] if code == 0 else f"exit {os.waitstatus_to_exitcode(code)}"
    return status, used.ru_maxrss / 1e6, anonymous / 1e6, used.ru_utime + used.ru_stime


def resnet18() -> onnx.ModelProto:
    """ResNet-18 (He et al. 2015, table 1) with seeded weights: 11.7 million of them, N×3×224×224."""
    b = nets.Builder(0, 3).conv(64, kernel=7, strides=[2, 2]).norm().relu()
    b.node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for width, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        shortcut, before = b.at, b.width
        b.conv(width, strides=[stride] * 2).norm().relu().conv(width).norm()
        if width != before:
            deep, b.at, b.width = b.at, shortcut, before
            shortcut, b.at = b.conv(width, kernel=1, strides=[stride] * 2).norm().at, deep
        b.node("Add", shortcut)
        b.relu()
    b.node("GlobalAveragePool")
    b.node("Flatten")
    return b.gemm(1000).model(["N", 3, 224, 224])


def model(text: str) -> Any:
    if text == "resnet18":
        return resnet18()
    return light.filled(text) if text in light.names() else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rates", "time", "oracle", "seeds", "memory"))
    parser.add_argument("models", nargs="*")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    given = parser.parse_args()
    if given.what == "rates":
        rates(given.seeds)
    elif given.what == "seeds":
        spread(given.seeds)
    elif given.what == "memory":
        memory(given.gigabytes)
    elif given.what == "oracle":
        oracle(given.models[0])
    else:
        timed(given.models[0], given.models[1] if len(given.models) > 1 else None)


if __name__ == "__main__":
    main()
