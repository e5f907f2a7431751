"""The reference: an ONNX model evaluated in float64, node by node, freeing each value after its last use.

ONNX Runtime's CPU provider has no double kernels for most of the operators that matter, so the exact output comes
from here. Weights are the stored values, widened; nothing is rounded on the way. With a `Noise`, every float weight
is perturbed by its unit roundoff: what that changes in the output is what rounding the weights may change.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.arrays import Array
from bnfold.graph import bodies, nodes_within
from bnfold.verify import control
from bnfold.verify.kernels import KERNELS, Call, Unsupported, real
from bnfold.verify.kernels.base import Kernel, is_float

# Widened weights are kept between runs up to this many bytes; beyond it they are widened again at each use.
CACHE_BYTES = 1 << 29

# The inputs that hold weights. Exponents, Resize scales and roi, Clip bounds and pad values are never perturbed.
WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1), "Einsum": (0, 1, 2, 3),
    "LSTM": (1, 2, 3, 5, 6, 7), "GRU": (1, 2, 3, 5), "RNN": (1, 2, 3, 5), "BatchNormalization": (1, 2, 3, 4),
    "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2), "GroupNormalization": (1, 2),
    "RMSNormalization": (1,), "PRelu": (1,), "Mul": (0, 1), "Add": (0, 1), "Sub": (0, 1), "Div": (0, 1),
    "Sum": tuple(range(16)),
}  # fmt: skip

# Their outputs depend on the shapes of the inputs only.
SHAPE_ONLY = ("Shape", "Size", "ConstantOfShape", "EyeLike")

# A tensor that is mapped from a file may be opened by one thread at a time, whichever evaluator asks.
_reading = threading.RLock()

# Called with each node, its inputs and its outputs, before any of them is freed.
Observer = Callable[[ir.Node, Sequence[Any], Sequence[Any]], None]


@dataclass(frozen=True)
class Noise:
    """Seeded relative perturbations: weight × (1 + uξ), ξ uniform in (−1, 1), the same for every use of a weight."""

    seed: int
    unit: Callable[[ir.Value], float]

    def __call__(self, value: ir.Value, array: Array) -> Array:
        rng = np.random.default_rng([self.seed, zlib.crc32((value.name or "").encode())])
        return np.asarray(array * (1.0 + self.unit(value) * rng.uniform(-1.0, 1.0, array.shape)))


@dataclass(frozen=True)
class Step:
    """One node, ready to run, with the values that nobody needs after it."""

    node: ir.Node
    call: Call
    kernel: Kernel | None
    weights: tuple[int, ...]
    frees: tuple[ir.Value, ...]


@dataclass
class Evaluator:
    """Evaluates `model` in float64; raises `Unsupported` for an operator without an exact kernel.

    `feeds` map input names to arrays; the result maps output names to arrays: float64 for every float type,
    the model's own types otherwise. An evaluator holds no state between runs but widened weights, so that threads may
    share it; `peak` is what the values of one run held at most, in bytes.
    """

    model: ir.Model
    noise: Noise | None = None
    cache_bytes: int = CACHE_BYTES
    _plans: dict[ir.Graph, list[Step]] = field(default_factory=dict)
    _cache: dict[tuple[ir.Value, bool], Array] = field(default_factory=dict)
    _cached: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    peak: int = 0

    def __post_init__(self) -> None:
        if self.model.functions:
            self.model = inlined(self.model)
        missing = unsupported(self.model)
        if missing:
            raise Unsupported(", ".join(missing))
        self.fixed = fixed_values(self.model.graph)
        self.opset = self.model.graph.opset_imports.get("", 1)

    def run(self, feeds: Mapping[str, Array], observe: Observer | None = None) -> dict[str, Array]:
        """Evaluate the graph for one set of inputs."""
        return self.runs([feeds], observe)[0]

    def runs(self, feeds: Sequence[Mapping[str, Array]], observe: Observer | None = None) -> list[dict[str, Array]]:
        """Evaluate the graph for several sets of inputs node by node, so that each weight is opened once for all."""
        graph = self.model.graph
        envs: list[dict[ir.Value, Any]] = [
            {v: real(np.asarray(each[str(v.name)])) for v in graph.inputs if v.name in each} for each in feeds
        ]
        with np.errstate(all="ignore"):
            results = self._run(graph, envs, observe) if envs else []
        return [{str(v.name): r for v, r in zip(graph.outputs, each, strict=True)} for each in results]

    def run_graph(self, graph: ir.Graph, env: dict[ir.Value, Any], observe: Observer | None = None) -> list[Any]:
        """Evaluate a graph or a control-flow body in `env`, which already holds its inputs and outer values."""
        return self._run(graph, [env], observe)[0]

    def _run(self, graph: ir.Graph, envs: Sequence[dict[ir.Value, Any]], observe: Observer | None) -> list[list[Any]]:
        plan = self._plans.get(graph)
        if plan is None:
            with _reading:
                plan = self._plans[graph] = self._plan(graph)
        for step in plan:
            stored = ((i, v) for i, v in enumerate(step.node.inputs) if v is not None and v.const_value is not None)
            held = {i: self._value(v, {}, i in step.weights) for i, v in stored if v not in envs[0]}
            for env in envs:
                self._step(step, held, env, observe)
            del held
        return [[self._value(v, env, False) for v in graph.outputs] for env in envs]

    def _step(
        self, step: Step, held: Mapping[int, Any], env: dict[ir.Value, Any], observe: Observer | None
    ) -> None:
        """Evaluate one node in `env`; `held` are its inputs that are weights, by their places."""
        node = step.node
        inputs = [
            held[i] if i in held else None if v is None else self._value(v, env, i in step.weights)
            for i, v in enumerate(node.inputs)
        ]
        try:
            if step.kernel is None:
                results = control.CONTROL[node.op_type](self, node, inputs, env, observe)
            else:
                results = step.kernel(step.call, inputs)
        except Unsupported:
            raise
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:160]
            raise Unsupported(f"{node.op_type} (node {node.name!r}): {reason}") from error
        for output, result in zip(node.outputs, results, strict=False):
            env[output] = result
        self.peak = max(self.peak, sum(array.nbytes for array in env.values() if isinstance(array, np.ndarray)))
        if observe is not None:
            observe(node, inputs, results)
        for value in step.frees:
            env.pop(value, None)

    def _value(self, value: ir.Value, env: Mapping[ir.Value, Any], weight: bool) -> Any:
        noisy = weight and self.noise is not None and value in self.fixed
        found = self._cache.get((value, noisy))
        if found is not None:
            return found
        if value in env:
            array = env[value]
        elif value.const_value is not None:
            with _reading:
                array = real(value.const_value.numpy())
        else:
            raise Unsupported(f"value {value.name!r} has no data")
        if noisy and is_float(array):
            assert self.noise is not None
            array = self.noise(value, array)
        if value.const_value is not None and self._cached + array.nbytes <= self.cache_bytes:
            with self._lock:
                # Another thread may have been faster.
                array, before = self._cache.setdefault((value, noisy), array), array
                self._cached += array.nbytes if array is before else 0
        return array

    def _plan(self, graph: ir.Graph) -> list[Step]:
        """Order is the graph's own; a value is freed after the last node that reads it, bodies included."""
        nodes = list(graph)
        last: dict[ir.Value, int] = {}
        for index, node in enumerate(nodes):
            for value in node.outputs:
                last[value] = index
            for value in reads(node):
                last[value] = index
        kept = set(graph.outputs)
        owned = {v for node in nodes for v in node.outputs} | set(graph.inputs)
        frees: list[list[ir.Value]] = [[] for _ in nodes]
        for value, index in last.items():
            if value in owned and value not in kept:
                frees[index].append(value)
        steps = []
        for node, dead in zip(nodes, frees, strict=True):
            # A node that no input reaches computes a constant, a shape perhaps: rounding there is not noise.
            live = any(v not in self.fixed for v in node.outputs)
            weights = WEIGHTS.get(node.op_type, ()) if live else ()
            call = Call(node.op_type, attributes(node), self.opset, _used_outputs(node))
            steps.append(Step(node, call, KERNELS.get(node.op_type), weights, tuple(dead)))
        return steps


def inlined(model: ir.Model) -> ir.Model:
    """A copy of the model without local functions."""
    from onnx_ir.passes.common import InlinePass

    copy = model.clone()
    InlinePass()(copy)
    return copy


def unsupported(model: ir.Model) -> list[str]:
    """Return the operators that have no float64 kernel here, by name and sorted."""
    found = set()
    for node in nodes_within(model.graph):
        if node.domain:
            found.add(f"{node.domain}.{node.op_type}")
        elif node.op_type not in KERNELS and node.op_type not in control.CONTROL:
            found.add(node.op_type)
    return sorted(found)


def fixed_values(graph: ir.Graph) -> set[ir.Value]:
    """Return the values that no input's data reaches: constants, and what follows from them and from shapes."""
    fixed: set[ir.Value] = set()

    def visit(body: ir.Graph) -> None:
        fixed.update(body.initializers.values())
        for node in body:
            for inner in bodies(node):
                visit(inner)
            if node.op_type in SHAPE_ONLY or all(v in fixed for v in reads(node) if v.graph is not None):
                fixed.update(node.outputs)

    visit(graph)
    return fixed


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """Yield every value that a node reads, its own inputs and what its bodies capture or use inside."""
    yield from (v for v in node.inputs if v is not None)
    for body in bodies(node):
        for inner in body:
            yield from reads(inner)
        yield from body.outputs


def captured(node: ir.Node) -> list[ir.Value]:
    """The values of the node's own graph that its bodies read, in order and as often as they do."""
    return [value for body in bodies(node) for inner in body for value in reads(inner) if value.graph is node.graph] + [
        value for body in bodies(node) for value in body.outputs if value.graph is node.graph
    ]


def _used_outputs(node: ir.Node) -> int:
    named = [i for i, v in enumerate(node.outputs) if v.name]
    return named[-1] + 1 if named else 1


def attributes(node: ir.Node) -> dict[str, Any]:
    """Return a node's attributes as plain values; floats are the float32 numbers that a model file stores."""
    result: dict[str, Any] = {}
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.FLOAT:
            result[attr.name] = float(np.float32(attr.as_float()))
        elif attr.type == ir.AttributeType.FLOATS:
            result[attr.name] = [float(np.float32(v)) for v in attr.as_floats()]
        elif attr.type == ir.AttributeType.TENSOR:
            result[attr.name] = attr.as_tensor().numpy()
        elif attr.type in (
            ir.AttributeType.INT,
            ir.AttributeType.INTS,
            ir.AttributeType.STRING,
            ir.AttributeType.STRINGS,
        ):
            result[attr.name] = attr.value
    return result
