"""The `light_*.onnx` models of the onnx package, filled with seeded weights.

As they come, their large weights are ConstantOfShape nodes, so that the output ignores the input. `filled` puts
initializers in their place: He-scaled for convolutions and matrix products, plausible BatchNorm statistics with
positive variances, so that activations neither die nor explode.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

CLASSES = 1000
SCALES = ("BatchNormalization", "Mul", "Add")
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def names() -> list[str]:
    """The models' short names, such as "resnet50"."""
    return sorted(p.stem.removeprefix("light_") for p in LIGHT.glob("light_*.onnx"))


def path(name: str) -> Path:
    """The file of model `name` as the onnx package ships it."""
    return LIGHT / f"light_{name}.onnx"


def filled(name: str, seed: int = 0) -> onnx.ModelProto:
    """Model `name` with seeded weights in place of its ConstantOfShape nodes."""
    model = onnx.load(path(name))
    graph = model.graph
    rng = np.random.default_rng(seed)
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    shapes: dict[str, list[int]] = {}
    kept = []
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in stored:
            shapes[node.output[0]] = [int(n) for n in stored[node.input[0]]]
        else:
            kept.append(node)
    readers = {v: (n, i) for n in kept for i, v in enumerate(n.input)}

    def role(name: str) -> tuple[str, int]:
        node, index = readers[name]
        return role(node.output[0]) if node.op_type in ("Reshape", "Unsqueeze") else (node.op_type, index)

    # On a residual path every block adds to the variance; smaller gammas keep it from growing 2ⁿ-fold.
    gammas = (0.5, 1.1) if any(n.op_type == "Sum" for n in kept) else (0.7, 1.6)
    # Some small tensors are the trained ones, which do not fit the weights around them: they are drawn anew.
    for name, value in stored.items():
        if name in readers and value.dtype == np.float32 and role(name)[0] in SCALES:
            shapes[name] = list(value.shape)
    weights = [
        numpy_helper.from_array(_weight(rng, *role(v), s, gammas), v) for v, s in shapes.items() if v in readers
    ]
    constants = [t for t in graph.initializer if t.name in readers and t.name not in shapes]
    real_inputs = [v for v in graph.input if v.name not in stored]
    # IR version 3 wants every initializer among the inputs as well; with 4 they are plain constants.
    model.ir_version = max(model.ir_version, 4)
    for field, content in (("node", kept), ("initializer", constants + weights), ("input", real_inputs)):
        del getattr(graph, field)[:]
        getattr(graph, field).extend(content)
    return model


def _weight(
    rng: np.random.Generator, op: str, index: int, shape: list[int], gammas: tuple[float, float]
) -> np.ndarray:
    value = rng.standard_normal(shape)
    if op == "BatchNormalization":
        value = [None, rng.uniform(*gammas, shape), 0.1 * value, 0.1 * value, rng.uniform(0.5, 1.5, shape)][index]
    elif op in ("Conv", "Gemm"):
        sizes = [n for n in shape if n > 1] if op == "Gemm" else shape
        fan_in = math.prod(sizes[1:])
        # The classifiers end in a softmax; small logits keep it from saturating, which would hide every fault.
        gain = 0.002 if CLASSES in shape else 2.0
        value = value * (math.sqrt(gain / fan_in) if len(shape) > 1 else 0.1)
    else:
        value = 1.0 + 0.1 * value if op == "Mul" else 0.1 * value
    return np.asarray(value, dtype=np.float32)
