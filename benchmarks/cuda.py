"""Correct folds and injected faults on a CUDA device: float32 with TF32 off and on, and float16.

    python benchmarks/cuda.py [--provider cuda] [--seeds N] [-o results.json]

A correct fold that is called a mismatch is a false alarm, a fault that passes is a miss; float16 can't show those that
are smaller than its rounding, such as an epsilon outside the root. Without the device the script ends with exit code
4, like the verification itself. `--provider cpu` tries the script out; it says nothing of a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bnfold import runtime
from bnfold.errors import ProviderError
from bnfold.verify import verify
from tests import nets

# Faults that float16 weights or TF32 products can't show: they are that rounding.
INVISIBLE = {"weights in float16", "weights in TF32"}


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with float16 weights, inputs and outputs."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*result.graph.input, *result.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del result.graph.value_info[:]
    return result


# name → (how the models are stored, levels)
ARITHMETIC: dict[str, tuple[Any, tuple[str, ...]]] = {
    "float32": (lambda model: model, ("off", "deployed")),
    "float32 with TF32": (lambda model: model, ("tf32",)),
    "float16": (halved, ("off", "deployed")),
}


def judged(name: str, provider: str, seeds: int) -> dict[str, Any]:
    """Count verdicts over all small nets."""
    stored, levels = ARITHMETIC[name]
    correct: Counter[str] = Counter()
    faulty: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    worst = 0.0
    for make in nets.NETS.values():
        for seed in range(seeds):
            original = make(seed, 1.0)
            right = nets.fold(original)
            options: dict[str, Any] = {"providers": (provider,), "levels": levels, "seed": seed}
            verdict = verify(stored(original), stored(right), **options)
            correct[verdict.status] += 1
            worst = max(worst, verdict.ratio) if verdict.cells else worst
            for fault in nets.FAULTS:
                wrong = nets.fold(original, fault=fault, where=seed, seed=seed)
                if wrong.graph.initializer == right.graph.initializer or (name != "float32" and fault in INVISIBLE):
                    continue
                status = verify(stored(original), stored(wrong), **options).status
                faulty[status] += 1
                missed[fault] += status != "mismatch"
    found = {"correct": dict(correct), "faulty": dict(faulty), "missed": dict(+missed)}
    return {**found, "worst_ratio": worst}


def device() -> list[str]:
    """Name and driver of each NVIDIA device, as its driver's own tool tells them."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--output")
    given = parser.parse_args()
    try:
        results = {name: judged(name, given.provider, given.seeds) for name in ARITHMETIC}
    except ProviderError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    versions = {"provider": given.provider, "onnxruntime": runtime.version(), "device": device()}
    found = {**versions, "seeds": given.seeds, "results": results}
    print(json.dumps(found, indent=2))
    if given.output:
        Path(given.output).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
