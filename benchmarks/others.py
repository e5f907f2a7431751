"""What other tools fold of the networks of this repository: BatchNorms and nodes that they leave.

    python benchmarks/others.py [ARCH …]

Every registered architecture, with statistics far from 0 and 1, is exported with its BatchNorms and given to `bnfold
optimize --simplify`, onnxsim, onnxscript's optimizer and rewriter, and ONNX Runtime, which writes what it makes of a
model at its extended level, the highest that is not bound to the machine. Constants don't count as nodes. What `bnfold
verify --quick` calls a mismatch is marked with ✗. Prints Markdown.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
from rewriters import TOOLS, Tool

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bnfold
from bnfold.graph import BATCH_NORM, node_count
from bnfold.models import registry
from tests.architectures import seeded


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    return ir.to_proto(bnfold.optimize(model, simplify="always", verify=False).model)


ALL: dict[str, Tool] = {
    f"bnfold {bnfold.__version__}": folded, **{name: tool for name, tool in TOOLS.items() if "basic" not in name},
}  # fmt: skip


def main() -> None:
    print(f"| network | original | {' | '.join(ALL)} |\n|{'---|' * (len(ALL) + 2)}")
    left: Counter[str] = Counter()
    for arch in sys.argv[1:] or registry.ARCHITECTURES:
        entry = registry.architecture(arch)
        module = seeded(registry.build(arch))
        shape = "x".join(map(str, (1, *entry.input_shape())))
        model = ir.to_proto(bnfold.export(module, inputs=shape, verify=False))
        cells = [cell(model)]
        for name, tool in ALL.items():
            result = tool(model)
            left[name] += norms(result)
            verdict = bnfold.verify(model, result, quick=True)
            cells.append(cell(result) + " ✗" * (verdict.status == "mismatch"))
        left["original"] += norms(model)
        print(f"| {arch} | {' | '.join(cells)} |", flush=True)
    print(f"| all | {' | '.join(str(left[name]) for name in ('original', *ALL))} |")


def norms(model: onnx.ModelProto) -> int:
    return node_count(ir.from_proto(model), BATCH_NORM)


def cell(model: onnx.ModelProto) -> str:
    """BatchNorms and nodes."""
    graph = ir.from_proto(model)
    return f"{norms(model)} / {node_count(graph) - node_count(graph, 'Constant')}"


if __name__ == "__main__":
    main()
