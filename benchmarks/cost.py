"""What the whole process `bnfold optimize --no-verify` costs: growth with the graph, small models, large weights.

    python benchmarks/cost.py [--runs 5] [--gigabytes 3.2] [--folder FOLDER]

CPU time is user plus system time of the process, the smallest of `--runs` runs; OMP_NUM_THREADS=1 keeps idle threads
out of it. The large model is written to FOLDER (a temporary one by default; twice its size must be free) and
optimized once; its wall time is compared with that of copying its data and hashing both files in the same run.
Prints Markdown, and exits with 1 where a goal is missed. `--gigabytes 0` leaves the large model out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

WIDTH = 4096
STATISTICS = ("gamma", "beta", "mean", "var")

# A small process in between, because a child counts what its parent held when it was started.
METER = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
wall = time.perf_counter() - start
print(json.dumps({"wall": wall, "cpu": used.ru_utime + used.ru_stime, "peak": peak, "done": json.loads(done.stdout)}))
"""


def chain(layers: int) -> onnx.ModelProto:
    """`layers` times Conv → BatchNormalization → Relu on 8 channels."""
    model = _empty("float[N,8,16,16]")
    random = np.random.default_rng(0)
    for layer in range(layers):
        _store(model, f"w{layer}", random.normal(size=(8, 8, 3, 3)))
        pads = onnx.AttributeProto(name="pads", ints=[1] * 4, type=onnx.AttributeProto.INTS)
        _layer(model, layer, layers, onnx.NodeProto(op_type="Conv", input=[f"w{layer}"], attribute=[pads]))
        for name in STATISTICS:
            _store(model, f"{name}{layer}", random.uniform(0.5, 1.5, 8))
    return model


def write_large(path: Path, gigabytes: float) -> int:
    """Write a chain of Linear(4096) → BatchNormalization → Relu with external weights; return the number of layers."""
    layers = max(1, round(gigabytes * 1e9 / (4 * WIDTH * WIDTH)))
    model = _empty(f"float[N,{WIDTH}]")
    random = np.random.default_rng(0)
    weight = (random.standard_normal((WIDTH, WIDTH), dtype=np.float32) / 64).astype(np.float32)
    with open(path.with_suffix(".data"), "wb") as data:
        for layer in range(layers):
            weight = np.roll(weight, 1)
            _store(model, f"w{layer}", weight, data)
            transposed = onnx.AttributeProto(name="transB", i=1, type=onnx.AttributeProto.INT)
            product = onnx.NodeProto(op_type="Gemm", input=[f"w{layer}", f"b{layer}"], attribute=[transposed])
            _layer(model, layer, layers, product)
            for name in ("b", *STATISTICS):
                _store(model, f"{name}{layer}", random.uniform(0.5, 1.5, WIDTH), data)
    path.write_bytes(model.SerializeToString())
    return layers


def _empty(shape: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g ({shape} x) => ({shape} y) {{}}')


def _layer(model: onnx.ModelProto, layer: int, layers: int, linear: onnx.NodeProto) -> None:
    """Append `linear` of what is there so far, a BatchNormalization and a Relu."""
    before = f"r{layer - 1}" if layer else "x"
    after = "y" if layer == layers - 1 else f"r{layer}"
    linear.name, linear.input[:], linear.output[:] = f"linear{layer}", [before, *linear.input], [f"l{layer}"]
    parameters = [f"{name}{layer}" for name in STATISTICS]
    norm = onnx.NodeProto(op_type="BatchNormalization", name=f"bn{layer}", input=[f"l{layer}", *parameters])
    norm.output.append(f"n{layer}")
    relu = onnx.NodeProto(op_type="Relu", name=f"relu{layer}", input=norm.output, output=[after])
    model.graph.node.extend((linear, norm, relu))


def _store(model: onnx.ModelProto, name: str, array: np.ndarray, data: object = None) -> None:
    tensor = numpy_helper.from_array(array.astype(np.float32), name)
    if data is not None:
        place = {"location": Path(data.name).name, "offset": data.tell(), "length": data.write(tensor.raw_data)}
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
    model.graph.initializer.append(tensor)


def optimized(path: Path, runs: int = 1) -> dict[str, float]:
    """Run the command on a model and return the smallest CPU and wall seconds and peak bytes of all runs."""
    output = path.with_name("out.onnx")
    command = [sys.executable, "-m", "bnfold", "optimize", path, "-o", output, "--no-verify", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = []
    for _ in range(runs):
        meter = [sys.executable, "-c", METER, *command]
        found.append(json.loads(subprocess.run(meter, stdout=subprocess.PIPE, check=True, env=environment).stdout))
    best = {key: min(run[key] for run in found) for key in ("cpu", "wall", "peak")}
    return {**best, "folded": found[0]["done"]["fold"]["folded"]}


def copied_and_hashed(data: Path, result: Path) -> float:
    """Seconds that copying `data` and hashing both files take."""
    start = time.perf_counter()
    copy = data.with_suffix(".copy")
    shutil.copyfile(data, copy)
    copy.unlink()
    for file in (data, result):
        with open(file, "rb") as stream:
            hashlib.file_digest(stream, "sha256")
    return time.perf_counter() - start


Row = tuple[str, str, str, bool]


def growth(folder: Path, runs: int) -> list[Row]:
    """A row for each length of chain, and how the time grows with it."""
    cpu = {}
    for layers in (1, 1000, 4000):
        path = folder / f"chain{layers}.onnx"
        onnx.save(chain(layers), path)
        cost = optimized(path, runs)
        assert cost["folded"] == layers
        cpu[layers] = cost["cpu"]
    grown = cpu[4000] / cpu[1000]
    return [
        ("three nodes, CPU", f"{cpu[1]:.2f} s", "≤ 1 s", cpu[1] <= 1),
        ("1,000 Conv+BN+Relu, CPU", f"{cpu[1000]:.2f} s", "", True),
        ("4,000 Conv+BN+Relu, CPU", f"{cpu[4000]:.2f} s", "≤ 5 s", cpu[4000] <= 5),
        ("4,000 against 1,000", f"{grown:.2f}×", "≤ 5×", grown <= 5),
    ]


def large(folder: Path, gigabytes: float) -> list[Row]:
    """The rows of a model with this much external data."""
    path = folder / "large.onnx"
    layers = write_large(path, gigabytes)
    cost = optimized(path)
    data = path.with_suffix(".data")
    (result,) = folder.glob("out.onnx.*.data")
    bare = copied_and_hashed(data, result)
    what = f"{data.stat().st_size / 1e9:.1f} GB in {layers} Linear+BN+Relu"
    peak, ratio = cost["peak"] / 1e6, cost["wall"] / bare
    against = f"{ratio:.2f}× of {bare:.1f} s"
    return [
        (f"{what}, folded", f"{cost['folded']}", f"{layers}", cost["folded"] == layers),
        (f"{what}, peak resident", f"{peak:.0f} MB", "≤ 600 MB", peak <= 600),
        (f"{what}, CPU", f"{cost['cpu']:.1f} s", "", True),
        (f"{what}, wall", f"{cost['wall']:.1f} s", "", True),
        ("… against copying the data and hashing both files", against, "≤ 3×", ratio <= 3),
    ]


def main() -> int:
    """Measure, print a row for each goal, and return 1 if one is missed."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=int, default=5, help="runs of each small model")
    options.add_argument("--gigabytes", type=float, default=3.2, help="external weights of the large model")
    options.add_argument("--folder", type=Path, help="where the models are written")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="bnfold-cost-", dir=chosen.folder) as folder:
        rows = growth(Path(folder), chosen.runs)
        if chosen.gigabytes:
            rows += large(Path(folder), chosen.gigabytes)
    packages = ", ".join(f"{name} {version(name)}" for name in ("bnfold", "onnx", "onnx-ir", "numpy", "protobuf"))
    print(f"{packages}; Python {platform.python_version()}; {os.cpu_count()} cores, {platform.machine()}\n")
    print("| what | measured | goal | |\n|---|---|---|---|")
    for what, measured, goal, met in rows:
        print(f"| {what} | {measured} | {goal} | {('met' if met else 'missed') if goal else ''} |")
    return 0 if all(met for *_, met in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
