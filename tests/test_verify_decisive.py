"""Constants that decide, and branches that inputs may never take: what no sample shows is no pass either."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnfold.inputs.feeds import generated
from bnfold.io import load
from bnfold.verify import verify
from bnfold.verify.bisection import bisect
from bnfold.verify.certificate import check
from tests.verifying import model, normal

TABLE = normal(5000, 4)
WRONG = TABLE.copy()
WRONG[4321, 2] *= np.float32(1.001)
NEAR = np.nextafter(TABLE, np.float32(9))
TOKENS = """(int64[N,7] ids) => (float[N,4] y) {
    pads = Equal (ids, pad)  mask = Cast <to = 1> (pads)  wide = Unsqueeze (mask, last)
    words = Gather (table, ids)  shown = Sub (words, wide)
    mean = ReduceMean <axes = [1], keepdims = 0> (shown)  y = MatMul (mean, w) }"""
BOUNDS = "(float[N,8] x) => (float[N,8] y) { a = Clip (x, low, high)  y = Mul (a, w) }"
CHOICE = "(float[N,8] x) => (float[N,8] y) { far = Greater (x, limit)  a = Where (far, other, x)  y = Neg (a) }"
PLACES = """(float[1,S,4] x) => (float[1,S,4] y) {
    size = Shape <start = 1, end = 2> (x)  part = Slice (table, zero, size, zero)  y = Add (x, part) }"""
BOXES = "(float[1,20,4] b, float[1,1,20] scores) => (int64[n,3] y) { y = NonMaxSuppression (b, scores, k, iou) }"

# Graph, its constants, those that the candidate has instead, and the node that has them; None where it is right.
CASES: list[tuple[str, dict[str, Any], dict[str, Any], str | None]] = [
    (TOKENS, {"table": TABLE, "pad": 5, "last": [-1], "w": normal(4, 4)}, {"table": WRONG}, "words"),
    (TOKENS, {"table": TABLE, "pad": 5, "last": [-1], "w": normal(4, 4)}, {"table": NEAR}, None),
    (TOKENS, {"table": TABLE, "pad": 5, "last": [-1], "w": normal(4, 4)}, {"pad": 6}, "pads"),
    (BOUNDS, {"low": -1e30, "high": 1e4, "w": normal(8)}, {"high": 1e30}, "a"),
    (BOUNDS, {"low": -1.0, "high": np.inf, "w": normal(8)}, {}, None),
    (CHOICE, {"limit": 1e9, "other": 0.0}, {"other": np.nan}, "a"),
    (CHOICE, {"limit": 1e9, "other": 0.0}, {"limit": 1e8}, "far"),
    (CHOICE, {"limit": 1e9, "other": 0.0}, {"limit": np.nextafter(np.float32(1e9), np.float32(0))}, None),
    (PLACES, {"table": TABLE, "zero": [0]}, {"table": WRONG}, "part"),
    (BOXES, {"k": [5], "iou": np.float32([0.5])}, {"iou": np.float32([0.55])}, "y"),
]


@pytest.mark.parametrize(("text", "constants", "other", "named"), CASES)
def test_a_constant_that_decides_is_the_originals(
    text: str, constants: dict[str, Any], other: dict[str, Any], named: str | None
) -> None:
    found = check(load(model(text, **constants)), load(model(text, **{**constants, **other})))
    said = [problem.message for problem in found.problems]
    assert [f"the constant of {named!r} is" in text for text in said] == ([] if named is None else [True]), said


def test_bounds_that_are_scaled_and_scaled_back_are_right() -> None:
    """As bnfold does itself: the layer in front of the clip and the one behind it share the scale."""
    text = "(float[N,8] x) => (float[N,8] y) { a = MatMul (x, w) b = Clip (a, low, high) y = MatMul (b, v) }"
    w, v = normal(8, 8), normal(8, 8, seed=1)
    before = model(text, w=w, v=v, low=0.0, high=6.0)
    assert verify(before, model(text, w=2 * w, v=v / 2, low=0.0, high=12.0)).status == "pass"
    verdict = verify(before, model(text, w=2 * w, v=v / 2, low=0.0, high=12.1))
    assert verdict.exit_code == 1


def test_the_layers_name_survives_the_wider_window() -> None:
    constants = {"table": TABLE, "pad": 5, "last": [-1], "w": normal(4, 4)}
    verdict = verify(model(TOKENS, **constants), model(TOKENS, **{**constants, "table": WRONG}))
    assert verdict.exit_code == 1 and [finding.layer for finding in verdict.findings] == ["words"]
    found = bisect(model(TOKENS, **constants), model(TOKENS, **{**constants, "table": WRONG}))
    assert found.exit_code == 3 and "its constants are wrong, which no input that was run shows" in str(found)


BRANCHES = """(float[N,4] x{flag}) => (float[N,4] y) {{
    {made} y = If (c) <then_branch = t () => (float[N,4] a) {{ a = MatMul (x, w) }},
                       else_branch = e () => (float[N,4] b) {{ b = MatMul (x, v) }}> }}"""


def test_both_branches_of_a_flag_are_taken() -> None:
    for flag in (", bool c", ", bool[1] c"):
        text, w = BRANCHES.format(flag=flag, made=""), normal(4, 4)
        good, bad = model(text, w=w, v=w), model(text, w=w, v=w * np.float32(1.01))
        assert verify(good, good).status == "pass" and verify(good, bad).exit_code == 1


def test_a_branch_that_differs_but_was_never_taken_is_inconclusive() -> None:
    made, w = "m = ReduceMax <keepdims = 0> (x) c = Less (m, limit)", normal(4, 4)
    text = BRANCHES.format(flag="", made=made)
    good, bad = (model(text, w=w, v=v, limit=1e9) for v in (w, w * np.float32(1.01)))
    assert verify(good, good).status == "pass"
    verdict = verify(good, bad)
    assert verdict.exit_code == 3 and "differs in If 'y', of which no input ran 'e'" in str(verdict)
    assert verify(good, bad, inputs={"x": np.float32([[1, 2, 3, 4], [1e10, 1, 1, 1]])}).exit_code == 1


def test_a_flag_is_drawn_both_ways_and_a_mask_is_never_empty() -> None:
    text = """(float[2] x, bool[1] c, int64[1] n, int64[1,1] m) => (float[2] y, int64[1,1] k) {
        y = Where (c, x, x) k = Mul (n, m) }"""
    drawn = generated(load(model(text)))
    seen = {name: {int(sample.feeds[name].reshape(())) for sample in drawn} for name in "cnm"}
    assert seen == {"c": {0, 1}, "n": {0, 1}, "m": {1}}
