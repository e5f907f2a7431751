"""Models of timm through `bnfold.export` by name, weights from a file, by both exporters; then folded and verified.

    pip install timm torchvision        (a torchvision that is built for the installed torch)
    python benchmarks/exports.py [NAME …]

Weights are random, statistics far from 0 and 1, images 64×64; nothing is downloaded. It fails where an export is not
the module, or a folded model not the exported one.
"""

from __future__ import annotations

import sys
import tempfile

from architectures import model_of
from safetensors.torch import save_file

import bnfold

NAMES = """
    mobilenetv3_small_050 efficientnet_b0 resnet18 repvgg_a0 densenet121 ghostnet_050 regnety_002 mobileone_s0
    fastvit_t8
"""


def main() -> None:
    print("| model | exporter | nodes | BatchNorms | folded | nodes left |\n|---|---|---|---|---|---|")
    for name in sys.argv[1:] or NAMES.split():
        module, _ = model_of(name)
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as weights:
            save_file({key: tensor.contiguous() for key, tensor in module.state_dict().items()}, weights.name)
            for exporter in ("dynamo", "torchscript"):
                model = bnfold.export(f"timm:{name}", weights=weights.name, inputs="1x3x64x64", exporter=exporter)
                done = bnfold.optimize(model, simplify="never")
                assert done.verdict is not None and done.verdict.status == "pass", (name, done.verdict)
                total = done.report.folded + done.report.kept
                cells = (name, exporter, done.nodes_before, total, done.report.folded, done.nodes_after)
                print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
