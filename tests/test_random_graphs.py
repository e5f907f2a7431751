"""Random models folded: the same function in float64 and on ONNX Runtime, every name its meaning, every count right.

`BNFOLD_RANDOM_GRAPHS` sets how many seeds are tried (CI: 600), `BNFOLD_RANDOM_START` the first. The seed is the test's
name and, in a batch, in the message.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

import bnfold.folding.fold
from bnfold.folding.walk import Plan
from bnfold.graph import annotate, tensor
from bnfold.rewrite import rewrite
from bnfold.verify.reference import Evaluator, Noise
from tests.graphs import Array, at_runtime, exact, feeds, folded, operators
from tests.random_graphs import FAMILIES, made_model, random_model
from tests.random_layers import NORMS

COUNT = int(os.environ.get("BNFOLD_RANDOM_GRAPHS", "600"))
START = int(os.environ.get("BNFOLD_RANDOM_START", "0"))
BATCH = 20
BATCHES = [range(start, min(start + BATCH, START + COUNT)) for start in range(START, START + COUNT, BATCH)]
IDS = [f"seeds {seeds.start} to {seeds.stop - 1}" for seeds in BATCHES]

# In double: some 10³ operations a value, gains of each layer of order one; a wrong fold is wrong by 10⁻³ or more.
TOLERANCE = 1e-9
# Rounding of the weights alone changes an output by S; that of every operation by a few times as much.
MARGIN = 64.0
UNIT = {
    ir.DataType.DOUBLE: 2.0**-53, ir.DataType.FLOAT: 2.0**-24,
    ir.DataType.FLOAT16: 2.0**-11, ir.DataType.BFLOAT16: 2.0**-8,
}  # fmt: skip
NARROW = ("float", "mixed", "float", "float16", "float", "bfloat16")

# What onnx's own evaluator, which shares no code with ours, computes wrongly or not at all in float64.
NOT_IN_ONNX = {
    "Loop": "scan outputs are shaped wrongly", "Scan": "axes other than the first are missing",
    "GroupNormalization": "computes in float32", "Upsample": "has no kernel",
}  # fmt: skip


def normal(model: onnx.ModelProto, seed: int) -> dict[str, Array]:
    """Feeds of standard normal floats."""
    rng = np.random.default_rng([seed, 1])
    drawn = feeds(model, seed)
    return {
        k: rng.normal(size=v.shape).astype(v.dtype) if v.dtype.kind not in "biu" else v for k, v in drawn.items()
    }


def distance(ours: Array, theirs: Array) -> float:
    """The largest difference, as a share of the largest value where that is above one."""
    assert ours.shape == theirs.shape
    wide = theirs.astype(np.float64)
    largest = max(1.0, float(np.abs(wide).max(initial=0.0)))
    return float(np.abs(ours.astype(np.float64) - wide).max(initial=0.0)) / largest


def unit(value: ir.Value) -> float:
    """The unit roundoff of a weight; of integers nothing is rounded."""
    return UNIT.get(value.dtype, 0.0) if value.dtype is not None else 0.0


def sensitivity(model: onnx.ModelProto, inputs: dict[str, Array]) -> dict[str, float]:
    """How far each output moves when every weight moves by its unit roundoff: the largest of four draws."""
    plain = exact(model, inputs)
    moved: dict[str, float] = dict.fromkeys(plain, 0.0)
    for seed in range(4):
        noisy = Evaluator(ir.from_proto(model), Noise(seed, unit)).run(inputs)
        for name, array in noisy.items():
            moved[name] = max(moved[name], distance(array, plain[name]))
    return moved


def passes(model: onnx.ModelProto) -> int:
    """Elementwise passes: 2 for a BatchNormalization, 1 for arithmetic with a constant that is no affine of opset 6."""
    total, twin = 0, ir.from_proto(model)
    annotate(twin)
    for node in twin.graph.all_nodes():
        fixed = [tensor(value) is not None for value in node.inputs]
        single = node.op_type == "Neg" or (node.op_type in ("Mul", "Add", "Sub", "Div") and any(fixed))
        total += 2 if node.op_type == "BatchNormalization" else single and not all(fixed)
    return total


def _saved(plan: Plan) -> int:
    removed = sum(2 if node.op_type == "BatchNormalization" else 1 for node, _ in plan.removed)
    return removed - sum(emission.affine.cost for emission in plan.emitted)


def by_onnx(model: onnx.ModelProto, inputs: dict[str, Array]) -> dict[str, Array] | None:
    """The outputs as onnx's own evaluator computes them; None where it is known to be wrong."""
    grouped = any(node.op_type == "ConvTranspose" and any(a.name == "group" and a.i > 1 for a in node.attribute)
                  for node in model.graph.node)  # fmt: skip
    # Its BatchNormalization mixes batch statistics in before opset 14.
    old = next(domain.version for domain in model.opset_import if not domain.domain) < 14
    if grouped or old or not NOT_IN_ONNX.keys().isdisjoint(operators(model)):
        return None
    return dict(zip((v.name for v in model.graph.output), ReferenceEvaluator(model).run(None, inputs), strict=True))


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Plan]]:
    """The plans that folding commits."""
    committed: list[Plan] = []
    commit = bnfold.folding.fold.commit

    def recorded(plan: Plan, *rest: object) -> object:
        committed.append(plan)
        return commit(plan, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(bnfold.folding.fold, "commit", recorded)
    yield committed


@pytest.mark.parametrize("seeds", BATCHES, ids=IDS)
def test_same_function_in_double(seeds: range, plans: list[Plan]) -> None:
    """Weights of float64 are not rounded, so that nothing but the order of operations may differ."""
    for seed in seeds:
        model = random_model(seed)
        plans.clear()
        result, report = folded(model)
        message = f"seed {seed}: {' '.join(operators(model))}"
        onnx.checker.check_model(result, full_check=True)

        inputs = normal(model, seed)
        before, after = exact(model, inputs, every=True), exact(result, inputs, every=True)
        assert {value.name for value in model.graph.output} <= after.keys(), message
        for name in before.keys() & after.keys():
            assert distance(after[name], before[name]) <= TOLERANCE, f"{message}, value {name}"
        theirs, ours = by_onnx(model, inputs), by_onnx(result, inputs)
        for name, array in (theirs or {}).items():
            assert ours is not None and distance(ours[name], array) <= TOLERANCE, f"{message}, output {name} by onnx"

        flat = model if result.functions else onnx.inliner.inline_local_functions(model)
        saved = [_saved(plan) for plan in plans]
        assert passes(flat) - passes(result) == sum(saved), message
        # What is left in front of a convolution counts double, so a gain may be less than what is saved.
        assert all(0 < plan.gain <= passed for plan, passed in zip(plans, saved, strict=True)), message
        made, left = Counter(operators(flat)), Counter(operators(result))
        copies = left["Identity"] - made["Identity"]
        assert made.total() - left.total() + copies == sum(plan.nodes_removed for plan in plans), message
        assert report.folded == made["BatchNormalization"] - left["BatchNormalization"], message
        assert report.kept == left["BatchNormalization"], message

        again, second = folded(result)
        assert again.SerializeToString(deterministic=True) == result.SerializeToString(deterministic=True), message
        assert (second.folded, second.affines) == (0, 0), message


@pytest.mark.parametrize("seeds", BATCHES, ids=IDS)
def test_rewritten_in_double(seeds: range) -> None:
    """Merging and folding again; what is unused is gone, outputs are equal."""
    for seed in seeds:
        model = random_model(seed)
        twin = ir.from_proto(model)
        rewrite(twin)
        result, inputs = ir.to_proto(twin), normal(model, seed)
        onnx.checker.check_model(result, full_check=True)
        before, after = exact(model, inputs), exact(result, inputs)
        for name, array in before.items():
            assert distance(after[name], array) <= TOLERANCE, f"seed {seed}, output {name}"


@pytest.mark.parametrize("seeds", BATCHES, ids=IDS)
def test_same_function_in_narrow_types(seeds: range) -> None:
    """What rounding the folded weights changes, in float64; float32 on ONNX Runtime without optimizations too."""
    for seed in seeds:
        dtype = NARROW[seed % len(NARROW)]
        made = made_model(seed, dtype)
        model = made.model
        result, _ = folded(model)
        onnx.checker.check_model(result, full_check=True)
        inputs = normal(model, seed)
        reference, rounded = exact(model, inputs), exact(result, inputs)
        limits = sensitivity(model, inputs)
        runs = (at_runtime(model, inputs), at_runtime(result, inputs)) if dtype == "float" and made.opset > 6 else None
        for value in model.graph.output:
            y, name = reference[value.name], value.name
            limit = MARGIN * (limits[name] + UNIT[ir.DataType(value.type.tensor_type.elem_type)])
            assert distance(rounded[name], y) <= limit, f"seed {seed}, output {name} in {dtype}"
            if runs is not None:
                noise = distance(runs[0][name], y)
                assert distance(runs[1][name], y) <= limit + MARGIN * noise, f"seed {seed}, output {name} at runtime"


@dataclass
class Seen:
    """In how many models something was drawn, and in how many of them an affine was folded through or into it."""

    drawn: int = 0
    folded: int = 0

    def __str__(self) -> str:
        return f"drawn {self.drawn} times, folded {self.folded} times"


def test_every_family_is_drawn_and_folds(plans: list[Plan]) -> None:
    """Of 600 models: what each family made is there often enough, and is on the route of a fold often enough."""
    dtypes = ("double", "float", "mixed", "float16", "bfloat16")
    seen: dict[str, Seen] = {}
    for seed in range(600):
        dtype = dtypes[seed % len(dtypes)]
        made = made_model(seed, dtype)
        plans.clear()
        folded(made.model)
        on_route = {node.name for plan in plans for node in (*plan.route, *(node for node, _ in plan.removed))}
        around = {f"opset {made.opset}", dtype} if plans else set()
        touched = around.union(*(made.families.get(name or "", ()) for name in on_route))
        touched |= {"branches"} if any(len(plan.absorbers) > 1 for plan in plans) else set()
        touched |= {"remainder"} if any(plan.emitted and plan.absorbers for plan in plans) else set()
        for family in touched.union(*made.families.values(), {f"opset {made.opset}", dtype}):
            entry = seen.setdefault(family, Seen())
            entry.drawn, entry.folded = entry.drawn + 1, entry.folded + (family in touched)

    named = {family.__name__ for family, _ in FAMILIES} | {*NORMS, *dtypes, "If", "Loop", "Scan", "average"}
    named |= {"branches", "remainder", "float to double", "float to float16"}
    assert named <= seen.keys()
    rare = {name: str(entry) for name, entry in seen.items() if entry.drawn < 5 or entry.folded < 0.03 * entry.drawn}
    assert not rare.keys() & (named - {"float to double"}), rare
    assert all(entry.folded >= 5 for name, entry in seen.items() if name.startswith("opset")), seen
