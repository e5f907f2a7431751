"""Kernels taken from onnx's reference implementation, where it is exact in float64.

Only the operators named here are delegated: each was compared with ONNX Runtime (tests/test_reference.py). The rest of
onnx's kernels compute in float32 inside, draw random numbers, or are wrong for some attribute; they stay out, so that
a model which uses them is inconclusive by name instead of being judged by a doubtful reference.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.verify.kernels.base import Arrays, Call, Unsupported, is_float, kernel, real

DELEGATED = (
    "ArgMax", "ArgMin", "Attention", "BitShift", "BlackmanWindow", "CenterCropPad", "Col2Im", "Compress",
    "ConcatFromSequence", "CumProd", "CumSum", "DepthToSpace", "Det", "Expand", "GatherND",
    "HammingWindow", "HannWindow", "MaxUnpool", "NegativeLogLikelihoodLoss", "NonZero", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "ReverseSequence", "RoiAlign", "RotaryEmbedding", "ScatterElements", "ScatterND", "SequenceAt",
    "SequenceConstruct", "SequenceErase", "SequenceInsert", "SequenceLength", "Slice", "SoftmaxCrossEntropyLoss",
    "SpaceToDepth", "Split", "SplitToSequence", "Squeeze", "TensorScatter", "Tile", "TopK", "Trilu", "Unique",
    "Unsqueeze",
)  # fmt: skip


@kernel(*DELEGATED)
def delegate(call: Call, inputs: Arrays) -> Arrays:
    """Run onnx's reference kernel for the node's opset; refuse it if it returns anything narrower than float64."""
    # One for each thread: onnx does not say whether two runs may share an instance.
    mine = f"instance {threading.get_ident()}"
    instance = call.cache.get(mine)
    if instance is None:
        instance = call.cache[mine] = _instance(call, len(inputs))
    try:
        results = instance.run(*inputs)
    except (NotImplementedError, RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
        raise Unsupported(f"{call.op}: {str(error).splitlines()[0]}") from error
    if any(is_float(r) and r.dtype != np.float64 for r in results) and any(is_float(v) for v in inputs):
        raise Unsupported(f"{call.op}: onnx's kernel does not compute in float64")
    return [real(r) if isinstance(r, np.ndarray) else r for r in results]


def _instance(call: Call, arity: int) -> Any:
    from onnx.reference.ops import load_op

    node = ir.node(
        call.op,
        [ir.Value(name=f"x{i}") for i in range(arity)],
        {k: v if not isinstance(v, np.ndarray) else ir.tensor(v) for k, v in call.attrs.items()},
        outputs=[ir.Value(name=f"y{i}") for i in range(max(call.outputs, 1))],
    )
    parameters = {"log": lambda *_: None, "opsets": {"": call.opset}, "verbose": 0, "new_ops": None}
    try:
        return load_op("", call.op, call.opset)(ir.serde.serialize_node(node), parameters)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise Unsupported(f"{call.op} (opset {call.opset})") from error
