"""What a rule is: a law of one operator, read in two directions.

    hoist   A∘f = f′∘(A₁ … Aₙ)    meet a demand A on the output: edit f, demand Aᵢ of its inputs
    sink    f∘(A₁ … Aₙ) = B∘f′    the inputs carry facts Aᵢ: edit f, pass the fact B on

A rule may do a part of what is asked. On a hoist `rest` is what remains to be computed *after* the operator, on a
sink what remains to be computed *before* it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import onnx_ir as ir

from bnfold.affine import Affine
from bnfold.arrays import Float64
from bnfold.graph import Op


class Reason(Enum):
    """Why an affine could not be absorbed: the closed set of codes, each with a hint that says what would help."""

    TRAINING_MODE = "training-mode", "export the model in eval mode, so that it uses its running statistics"
    NON_FINITE = "non-finite", "repair the statistics: variance plus epsilon must be positive, everything finite"
    NOT_CONSTANT = "not-constant", "the parameter is computed at run time; simplify the model first"
    OVERRIDABLE = "overridable", "the initializer is also a graph input; use --freeze-initializers"
    UNKNOWN_SHAPE = "unknown-shape", "declare the shape of the value, or run shape inference that covers it"
    NOT_FLOATING = "not-floating", "only floating-point values carry an affine"
    ENLARGES = "enlarges", "give the constant no axis that is larger than the value's: it is no map of elements"
    GRAPH_INPUT = "graph-input", "nothing before it can absorb: put the same affine into the data preparation"
    GRAPH_OUTPUT = "graph-output", "drop this output of the model, or make the normalized value the output instead"
    READERS = "other-readers", "let the other readers read the normalized value, or give it a linear layer of its own"
    BODY = "body", "put the layer and the affine into the same If, Loop or Scan body"
    FUNCTION = "function", "the function's operators mean something else in the model's opset; export both with one"
    BARRIER = "barrier", "place the affine next to a linear layer; no law lets one pass this operator"
    SIGN = "negative-scale", "place it before the operator, or train with gammas of one sign"
    SHIFT = "shift-blocked", "place it on the other side of the operator, which passes a scale but no shift"
    PADDING = "padding", "place it behind the convolution, or pad before it: its shift would be missing in the zeros"
    AXIS = "axis", "make it uniform along the axis that the operator mixes, or place it on the other side"
    UNEQUAL = "unequal-branches", "give all inputs of the operator the same affine, or place one behind it"
    VARIABLE = "variable-operand", "make the other operand a constant; simplify the model first if it could be one"
    NARROWING = "narrowing-cast", "cast behind it; the constants would lose digits in the type before the cast"
    RANGE = "out-of-range", "the folded weights would overflow or vanish in their type; export in a wider one"
    MALFORMED = "malformed", "the operator contradicts its operands and no runtime would run it; repair the export"
    NO_GAIN = "no-gain", "place it next to a linear layer; absorbing a part would leave as much to compute"

    def __init__(self, code: str, hint: str) -> None:
        self.code = code
        self.hint = hint


@dataclass(frozen=True)
class Refusal:
    """A law that does not hold here: a reason, the value where it stopped, and particulars."""

    reason: Reason
    value: str = ""
    detail: str = ""

    def on(self, value: ir.Value | None) -> Refusal:
        """Return the refusal with the blocking value named, unless it names one already."""
        return self if self.value or value is None else Refusal(self.reason, value.name or "", self.detail)


@dataclass(frozen=True)
class Edit:
    """One change to a node: a new constant for an input slot (int) or a new attribute (str), and its formula."""

    node: ir.Node
    slot: int | str
    value: ir.TensorProtocol | float | int
    formula: str


Facts = Mapping[int, Affine]


@dataclass(frozen=True)
class Step:
    """What one operator does with what it was asked.

    `passed` holds demands by input slot (hoist) or facts by output index (sink); what is absent is the identity.
    `absorbs` says that the operator took the affine into its own constants, `blocked` why there is a rest.
    """

    passed: Facts = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    rest: Facts = field(default_factory=dict)
    absorbs: bool = False
    blocked: Refusal | None = None


Outcome = Step | Refusal
Judgement = Callable[[Op, Facts], Outcome | list[Step]]


@dataclass(frozen=True)
class Rule:
    """The two judgements of one operator; a hoist may offer alternatives, the likeliest first."""

    family: str
    hoist: Judgement | None = None
    sink: Judgement | None = None


@dataclass(frozen=True)
class Law(Rule):
    """A rule with both judgements."""

    hoist: Judgement
    sink: Judgement


Table = dict[str, Rule]


def signs(scale: Float64) -> Affine:
    """Return the scale of ones and minus ones that makes `scale` nonnegative: s = σ·|s|."""
    return Affine.of(np.where(scale < 0.0, -1.0, 1.0), 0.0)


def unless_varying(op: Op, affine: Affine, rank: int, axes: frozenset[int]) -> Refusal | None:
    """Refuse an affine that varies along axes other than `axes` of a value of `rank`."""
    outside = affine.axes(rank) - axes
    if outside:
        return Refusal(Reason.AXIS, detail=f"{op.type} can't take an affine that varies along axis {min(outside)}")
    return None
