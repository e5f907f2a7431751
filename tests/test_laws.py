"""Every registered rule against its own law, in float64: random shapes, scales of both signs and zero.

    hoist   D∘f(x) = rest∘f′(A₁(x₁) …)        sink    f(A₁(x₁) …) = B∘f′(rest₁(x₁) …)

A rule may refuse, but each judgement of each operator must be seen to pass.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.affine import IDENTITY, Affine
from bnfold.derived import Derived
from bnfold.graph import Op, annotate, is_floating, tensor
from bnfold.rules import RULES
from bnfold.rules.base import Facts, Refusal, Step
from bnfold.verify.kernels import KERNELS, Call, real
from bnfold.verify.reference import attributes
from tests.cases import CASES
from tests.graphs import Array, build, dyadic
from tests.makers import MAKERS, Draw, Made
from tests.more_makers import MORE_MAKERS

ALL = {**MAKERS, **MORE_MAKERS}
EXAMPLES = int(os.environ.get("BNFOLD_LAW_EXAMPLES", "60"))
JUDGEMENTS = [
    pytest.param(op_type, judgement, id=f"{op_type} {judgement}")
    for op_type in sorted(RULES)
    for judgement in ("hoist", "sink")
    if getattr(RULES[op_type], judgement) is not None
]


def random_affine(draw: Draw, shape: tuple[int, ...]) -> Affine:
    """Vary along one axis, most often the second, or several or none; scales of one sign or both, with zeros."""
    rank = len(shape)
    most = draw.of("channel", "channel", "last", "one", "none", "some")
    axes = {
        "channel": [1] if rank > 1 else [0], "last": [rank - 1], "one": [draw.size(0, max(0, rank - 1))],
        "none": [], "some": draw.some(list(range(rank))) if rank else [],
    }[most]  # fmt: skip
    sizes = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    scale, shift = (draw.rng.normal(size=sizes) for _ in range(2))
    if draw.of(True, False, False):
        scale, shift = (_regular(draw, array) for array in (scale, shift))
    kind = draw.of("mixed", "mixed", "positive", "positive", "one")
    scale = {"mixed": scale, "positive": np.abs(scale), "one": np.ones(sizes)}[kind]
    if kind != "one" and draw.of(True, False):
        scale = np.where(draw.rng.random(sizes) < 0.3, 0.0, scale)
    return Affine.of(scale, shift * draw.of(0.0, 1.0, 1.0))


def _regular(draw: Draw, array: Array) -> Array:
    """Repeat what varies, in runs or in turn, as groups, blocks and tiles want it."""
    for axis, size in enumerate(array.shape):
        if size % 2 == 0:
            half = array.take(range(size // 2), axis=axis)
            array = np.repeat(half, 2, axis=axis) if draw.of(True, False) else np.concatenate([half, half], axis=axis)
    return array


def run(node: ir.Node, inputs: Mapping[str, Array], edits: dict[tuple[ir.Node, Any], Any], around: Facts) -> list[Any]:
    """Evaluate one node in float64, with `edits` in place of constants and attributes, its operands mapped first."""
    slots = [slot for at, slot in edits if at is node and isinstance(slot, int)]
    arrays: list[Any] = []
    for slot in range(max([len(node.inputs), *(slot + 1 for slot in slots)])):
        operand = node.inputs[slot] if slot < len(node.inputs) else None
        if (node, slot) in edits:
            array = edits[node, slot]
        elif operand is None:
            array = None
        elif operand.const_value is not None:
            array = real(operand.const_value.numpy())
        elif operand.producer() is None:
            array = inputs[str(operand.name)]
        else:
            producer = operand.producer()
            array = run(producer, inputs, edits, {})[operand.index()]
        arrays.append(around[slot](array) if slot in around else array)
    changed = {slot: new for (at, slot), new in edits.items() if at is node and isinstance(slot, str)}
    call = Call(node.op_type, {**attributes(node), **changed}, Op(node).opset, len(node.outputs))
    with np.errstate(all="ignore"):
        return list(KERNELS[node.op_type](call, arrays))


def edited(step: Step) -> dict[tuple[ir.Node, Any], Any]:
    """The edits of a step as arrays and numbers, before any rounding."""
    result: dict[tuple[ir.Node, Any], Any] = {}
    for edit in step.edits:
        new = edit.value
        if isinstance(new, Derived):
            new = new.exact()
        elif isinstance(new, ir.TensorProtocol):
            new = real(new.numpy())
        result[edit.node, edit.slot] = new
    return result


def agree(ours: Array, theirs: Array, tolerance: float = 1e-9) -> bool:
    scale = max(1.0, float(np.max(np.abs(theirs), initial=0.0, where=np.isfinite(theirs))))
    return bool(np.allclose(ours, theirs, rtol=0.0, atol=tolerance * scale, equal_nan=True))


def holds(
    op: Op, judgement: str, facts: Facts, step: Step, inputs: Mapping[str, Array], tolerance: float
) -> bool:
    """Whether both sides of the law are equal on all outputs."""
    if judgement == "hoist":
        ours, theirs = run(op.node, inputs, edited(step), step.passed), run(op.node, inputs, {}, {})
        left, right = step.rest, facts
    else:
        ours, theirs = run(op.node, inputs, edited(step), step.rest), run(op.node, inputs, {}, facts)
        left, right = step.passed, {}
    return all(
        agree(left.get(k, IDENTITY)(a), right.get(k, IDENTITY)(b), tolerance)
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True))
        if k < len(op.node.outputs) and np.asarray(b).dtype.kind == "f"
    )


def subjects(op: Op, judgement: str) -> dict[int, ir.Value]:
    """What a fact may sit on: outputs for a hoist, computed floating operands for a sink."""
    if judgement == "hoist":
        return dict(enumerate(op.node.outputs))
    given = {k: v for k, v in enumerate(op.node.inputs) if v is not None and v.producer() is None}
    return {k: v for k, v in given.items() if tensor(v) is None and is_floating(v)}


def made_model(made: Made) -> onnx.ModelProto:
    return build(made.text, dtype="double", opset=made.opset, constants=made.constants, checked=made.checked)


def given_inputs(draw: Draw, model: ir.Model) -> dict[str, Array]:
    """Random arrays for the inputs of a model whose sizes are all known."""
    inputs: dict[str, Array] = {}
    for value in model.graph.inputs:
        assert value.shape is not None and value.dtype is not None and value.name is not None
        sizes, wanted = value.shape.numpy(), value.dtype.numpy()
        plain = draw.rng.normal(size=sizes) if wanted.kind == "f" else draw.rng.integers(0, 2, sizes)
        inputs[value.name] = plain.astype(wanted)
    return inputs


def random_facts(draw: Draw, op: Op, judgement: str, inputs: Mapping[str, Array]) -> dict[int, Affine]:
    """Affines on some of what may carry one; on the operands of a join half the time the same."""
    on = subjects(op, judgement)
    if not on:
        return {}
    arrays = run(op.node, inputs, {}, {})
    shapes = {k: np.shape(arrays[k]) if judgement == "hoist" else inputs[str(v.name)].shape for k, v in on.items()}
    facts = {k: random_affine(draw, shapes[k]) for k in draw.some(sorted(on))}
    if judgement == "sink" and draw.of(True, False) and len({shapes[k] for k in on}) == 1:
        facts = dict.fromkeys(on, next(iter(facts.values())))
    return {k: fact for k, fact in facts.items() if not fact.is_identity}


def test_every_rule_has_a_maker_and_a_case() -> None:
    assert ALL.keys() == RULES.keys()
    shown = {word for case in CASES for word in re.findall(r"\w+", case.graph.text)}
    assert RULES.keys() - shown == set()


# Takes knowledge away from a model that is annotated, and returns inputs for what was a constant.
Forget = Callable[[Draw, ir.Model, Op], Mapping[str, Array]]


def granted(op_type: str, judgement: str, seed: int, forget: Forget = lambda draw, model, op: {}) -> int:
    """Ask for a random judgement on a random node; each step that is granted must hold. Returns how many are."""
    draw = Draw(np.random.default_rng(seed))
    made = ALL[op_type](draw)
    model = ir.from_proto(made_model(made))
    annotate(model)
    op = Op(next(node for node in model.graph if node.op_type == op_type))
    inputs = given_inputs(draw, model)
    inputs |= forget(draw, model, op)
    facts = random_facts(draw, op, judgement, inputs)
    if not facts:
        return 0
    outcome = getattr(RULES[op_type], judgement)(op, facts)
    steps = [step for step in (outcome if isinstance(outcome, list) else [outcome]) if not isinstance(step, Refusal)]
    for step in steps:
        assert holds(op, judgement, facts, step, inputs, made.tolerance), made.text
    return len(steps)


@pytest.mark.parametrize(("op_type", "judgement"), JUDGEMENTS)
def test_law(op_type: str, judgement: str) -> None:
    passed = 0

    @settings(max_examples=EXAMPLES, database=None)
    @given(seed=st.integers(0, 2**32 - 1))
    def check(seed: int) -> None:
        nonlocal passed
        passed += granted(op_type, judgement, seed)

    check()
    assert passed, f"{op_type} was never seen to {judgement}"


@given(seed=st.integers(0, 2**32 - 1))
def test_affines_are_a_monoid(seed: int) -> None:
    draw = Draw(np.random.default_rng(seed))
    shape = tuple(draw.shape(3))
    a, b, c = (random_affine(draw, shape) for _ in range(3))
    x = dyadic(draw.rng, shape)
    assert agree((a @ b)(x), a(b(x)))
    assert agree(((a @ b) @ c)(x), (a @ (b @ c))(x))
    assert (IDENTITY @ a) == a == (a @ IDENTITY)
    assert (a.shifting @ a.scaling) == a
