"""Export, inspection and folding of more weights than protobuf holds in one message: peak memory of each.

    python benchmarks/large.py [--width 12000]

The module is four wide linear layers with BatchNorm; 12000 makes 2.3 GB of float32 weights. It needs 5 times that in
memory and as much on the disk of the temporary folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

LAYERS = 4


def net(width: int) -> object:
    """`(N, 64)` → `(N, 10)`; what `bnfold export large:net` calls."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    parts: list[nn.Module] = [nn.Linear(64, width)]
    for _ in range(LAYERS):
        norm = nn.BatchNorm1d(width)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.num_batches_tracked += 1
        parts += [nn.Linear(width, width, bias=False), norm, nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=12000)
    width = parser.parse_args().width
    weights = 4 * (LAYERS * width * (width + 4) + 75 * width) / 1e9
    print(f"{weights:.1f} GB of weights\n\n| command | peak memory, of the weights' size |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for words in (
            f"export large:net --arg width={width} --input 1x64 -o {folder}/m.onnx",
            f"export large:net --arg width={width} --input 1x64 -o {folder}/m.onnx --no-verify",
            f"inspect {folder}/m.onnx",
            f"optimize {folder}/m.onnx -o {folder}/m.onnx --no-verify",
        ):
            print(f"| {words.replace(folder, '.')} | {peak(words.split()) / weights:.1f} |", flush=True)


def peak(words: list[str]) -> float:
    """The largest resident set of the command, in GB; a process of its own, since the system keeps one maximum each."""
    child = subprocess.Popen([sys.executable, "-m", "bnfold", *words, "-q"], cwd=Path(__file__).parent)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"bnfold {' '.join(words)} failed")
    return usage.ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
