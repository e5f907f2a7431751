"""Fold and merge real architectures of timm: what is left of their BatchNorms, why, and what that is worth.

    pip install timm torchvision
    python benchmarks/architectures.py [--rounds 21] [--source] [NAME …]

Weights are random, statistics far from 0 and 1. Each model is exported with its BatchNorms, rewritten, and compared
with the original on ONNX Runtime without graph optimizations (`worst` is the largest difference over the largest
output). Then both are timed in turn within one run, with all of ONNX Runtime's optimizations, on one thread and in CPU
time, which other work on the machine disturbs least: `latency` is the median of the rounds' ratios, original over
rewritten, above 1 where the rewritten model is the faster one. It fails where a latency is below 0.98.

With `--source` the net is also merged in PyTorch by timm's own `reparameterize_model`, exported and folded; the columns
then hold the nodes of both and the latency of that model over the one merged from the ONNX file. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import io
import logging
import time
import warnings
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from timing import ratio

from bnfold import runtime
from bnfold.graph import node_count, total_bytes
from bnfold.rewrite import rewrite

NAMES = """
    mobileone_s0 repvgg_a0 repghostnet_050 fastvit_t8 levit_128s visformer_tiny repvit_m0_9 efficientformer_l1
    densenet121 dpn48b resnetv2_50 xception41 xception65 convmixer_768_32 resnet18 resnet50 dla34 hrnet_w18_small
    regnetx_002 regnety_002 res2net50_26w_4s resnest14d selecsls42 skresnet18 vovnet39a cspresnet50 darknet53 gernet_s
    inception_v3 inception_v4 inception_resnet_v2 mobilenetv2_050 mobilenetv3_small_050 efficientnet_b0
    tf_efficientnetv2_b0 ghostnet_050 mixnet_s mnasnet_050 hardcorenas_a ese_vovnet19b_dw mobilevit_xxs efficientvit_b0
    lcnet_050 tinynet_e
"""


def model_of(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return a timm model in eval mode with statistics that matter, and one input."""
    import timm

    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False, exportable=True).eval()
    for child in module.modules():
        if isinstance(child, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(child.weight, 0.5, 1.5)
            torch.nn.init.normal_(child.bias, std=0.1)
            child.running_mean.normal_(std=0.1)
            child.running_var.uniform_(0.5, 2.0)
    return module, torch.randn(1, *module.default_cfg.get("input_size", (3, 224, 224)))


def exported(module: torch.nn.Module, x: torch.Tensor) -> onnx.ModelProto:
    """Export with every BatchNorm kept (the TorchScript exporter, for speed)."""
    buffer = io.BytesIO()
    with torch.no_grad():
        torch.onnx.export(
            module, (x,), buffer, dynamo=False, training=torch.onnx.TrainingMode.PRESERVE, opset_version=17,
            input_names=["input"], dynamic_axes={"input": {0: "batch"}},
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


def run(model: ir.Model, x: torch.Tensor) -> np.ndarray[Any, Any]:
    session = runtime.session(model, "cpu", optimize=False, threads=1)
    return next(iter(runtime.run(session, {"input": x.numpy()}).values()))


# What users of branched networks merge in PyTorch, and with which function.
BRANCHED = "mobileone_s0 repvgg_a0 repghostnet_050 fastvit_t8 levit_128s repvit_m0_9"
SLOWER = 0.98
SLOWER_THAN_SOURCE = 0.95


def main() -> None:
    """Measure the architectures that are asked for and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="all by default")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--source", action="store_true", help="compare with what timm merges in PyTorch")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    names = options.names or (BRANCHED if options.source else NAMES).split()
    measure, columns = (against_source, SOURCE) if options.source else (against_original, ORIGINAL)
    print("|", " | ".join(columns), "|\n|" + "---|" * len(columns))
    rows = [measure(name, options.rounds) for name in names]
    if not options.source:
        print(f"\n{sum(row['folded'] for row in rows)} of {sum(row['BatchNorms'] for row in rows)} BatchNorms folded")
    limit = SLOWER_THAN_SOURCE if options.source else SLOWER
    slow = [f"{row['architecture']} {row['latency']:.3f}" for row in rows if row["latency"] < limit]
    if slow:
        raise SystemExit(f"slower than {limit}: {', '.join(slow)}")


ORIGINAL = (
    "architecture", "BatchNorms", "folded", "left, and why", "layers merged away", "nodes", "weights", "worst",
    "latency", "seconds",
)  # fmt: skip
SOURCE = ("architecture", "nodes", "merged", "merged at the source", "original / merged", "source / merged")


def against_original(name: str, rounds: int) -> dict[str, Any]:
    """Rewrite one architecture and print its row."""
    module, x = model_of(name)
    original = ir.from_proto(exported(module, x))
    model = original.clone()
    start = time.perf_counter()
    report = rewrite(model)
    seconds = time.perf_counter() - start
    before, after = run(original, x), run(model, x)
    worst = float(np.abs(after - before).max() / np.abs(before).max())
    left = Counter(entry.reason.code for entry in report.entries if entry.reason is not None)
    why = ", ".join(f"{count} {code}" for code, count in left.most_common())
    merged = sum(len(merge.nodes) - 1 for merge in report.merges if merge.into is not None)
    nodes = f"{report.nodes_before} → {node_count(model)}"
    weights = f"{total_bytes(original) / 1e6:.1f} → {total_bytes(model) / 1e6:.1f} MB"
    latency = ratio(original, model, rounds=rounds)
    count = report.folded + report.kept
    figures = (f"{worst:.0e}", f"{latency:.2f}", f"{seconds:.1f}")
    cells = (name, count, report.folded, why, merged, nodes, weights, *figures)
    print("|", " | ".join(map(str, cells)), "|", flush=True)
    return {"architecture": name, "BatchNorms": count, "folded": report.folded, "latency": latency}


def against_source(name: str, rounds: int) -> dict[str, Any]:
    """Merge one architecture from its ONNX file and in PyTorch, and print its row."""
    from timm.utils.model import reparameterize_model

    module, x = model_of(name)
    original = ir.from_proto(exported(module, x))
    merged, source = original.clone(), ir.from_proto(exported(reparameterize_model(module), x))
    rewrite(merged)
    rewrite(source, merge=False)
    before, after = run(source, x), run(merged, x)
    assert np.abs(after - before).max() < 1e-4 * np.abs(before).max(), name
    latency, gain = ratio(source, merged, rounds=rounds), ratio(original, merged, rounds=rounds)
    cells = (name, *map(node_count, (original, merged, source)), f"{gain:.2f}", f"{latency:.2f}")
    print("|", " | ".join(map(str, cells)), "|", flush=True)
    return {"architecture": name, "latency": latency}


if __name__ == "__main__":
    main()
