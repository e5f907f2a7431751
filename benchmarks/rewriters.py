"""What the verification says of other tools' results, all of which are right.

    python benchmarks/rewriters.py [--seeds N]

onnxsim, onnxscript's rewriter with its optimizer, and the graphs that ONNX Runtime writes at its basic and extended
levels take the small networks of the tests at three output scales. Of each tool: how many results pass, how many
BatchNorms they have folded, and how many of the changed layers the certificate recomputed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
import onnxsim
from onnxscript import optimizer, rewriter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bnfold.verify import verify
from tests import nets

Tool = Callable[[onnx.ModelProto], onnx.ModelProto]


def simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnxsim.simplify(model)[0]


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    copy: Any = ir.from_proto(model)
    optimizer.optimize_ir(copy)
    return ir.to_proto(rewriter.rewrite(copy))


def at(level: str) -> Tool:
    """What ONNX Runtime makes of a model when it loads it, written to a file."""

    def optimized(model: onnx.ModelProto) -> onnx.ModelProto:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        with tempfile.TemporaryDirectory() as folder:
            options.optimized_model_filepath = str(Path(folder) / "model.onnx")
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return onnx.load(options.optimized_model_filepath)

    return optimized


TOOLS: dict[str, Tool] = {
    f"onnxsim {version('onnxsim')}": simplified,
    f"onnxscript {version('onnxscript')}": rewritten,
    f"ONNX Runtime {onnxruntime.__version__}, basic": at("BASIC"),
    f"ONNX Runtime {onnxruntime.__version__}, extended": at("EXTENDED"),
}


def norms(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "BatchNormalization" for node in model.graph.node)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    seeds = parser.parse_args().seeds
    wrong = 0
    for name, tool in TOOLS.items():
        seen: Counter[str] = Counter()
        worst = 0.0
        for net, make in nets.NETS.items():
            for seed in range(seeds):
                original = make(seed, 10.0 ** (3 * (seed % 3 - 1)))
                result = tool(original)
                verdict = verify(original, result, seed=seed)
                seen.update({
                    "results": 1, verdict.status: 1, "norms": norms(original), "kept": norms(result),
                    "changed": verdict.certificate["changed"], "recomputed": verdict.certificate["recomputed"],
                })  # fmt: skip
                worst = max(worst, verdict.ratio)
                if verdict.status != "pass":
                    wrong += 1
                    print(f"{name}, {net} {seed}: {verdict}")
        folded = seen["norms"] - seen["kept"]
        print(
            f"{name}: {seen['pass']} of {seen['results']} pass, worst ratio {worst:.2f}; {folded} of {seen['norms']} "
            f"BatchNorms folded, {seen['recomputed']} of {seen['changed']} changed layers recomputed",
            flush=True,
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
