"""V1: the certificate covers the whole candidate, and the fold map says what was done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import bnfold
from bnfold.constants import CONSTANTS, noted
from bnfold.folding.report import FOLD_MAP
from bnfold.io import load, save
from bnfold.verify import certificate, verify
from bnfold.verify.certificate import check
from bnfold.verify.simplified import simplified
from tests import nets
from tests.verifying import model, normal, own


def changed(change: Callable[[ir.Model], None]) -> tuple[ir.Model, ir.Model]:
    original = load(nets.residual(0))
    candidate = own(ir.to_proto(original))
    change(candidate)
    return original, candidate


def _ulp_of_unfolded(m: ir.Model) -> None:
    value = next(node for node in reversed(m.graph) if node.op_type == "Conv").inputs[1]
    assert value is not None and value.const_value is not None
    array = value.const_value.numpy().copy()
    array.flat[5] = np.nextafter(array.flat[5], np.float32(9))
    value.const_value = ir.tensor(array, name=value.name)


def _attribute(m: ir.Model) -> None:
    node = next(node for node in m.graph if node.op_type == "Conv")
    node.attributes["pads"] = ir.AttrInt64s("pads", [0, 2, 2, 0])


def _edge(m: ir.Model) -> None:
    node = next(node for node in m.graph if node.op_type == "Add")
    node.replace_input_with(0, node.inputs[1])


def _added_node(m: ir.Model) -> None:
    node = next(node for node in m.graph if node.op_type == "Add")
    extra = ir.node("Relu", [node.inputs[0]])
    m.graph.insert_before(node, extra)
    extra.outputs[0].name = "extra"
    node.replace_input_with(0, extra.outputs[0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_ulp_of_unfolded, "1 of 432 values differ"),
        (_attribute, "attribute 'pads'"),
        (_edge, "inputs"),
        (_added_node, "an added Relu computes 'extra'"),
    ],
)
def test_the_certificate_names_any_other_change(change: Callable[[ir.Model], None], named: str) -> None:
    original, candidate = changed(change)
    verdict = verify(original, candidate)
    assert verdict.exit_code == 1
    assert any(named in reason for reason in verdict.reasons), verdict.reasons
    assert not verdict.cells  # it ends before any input is run


def test_the_certificate_survives_the_file(tmp_path: Path) -> None:
    original = load(nets.plain(1))
    save(own(nets.plain(1)), tmp_path / "folded.onnx", external=True)
    verdict = verify(original, tmp_path / "folded.onnx")
    assert verdict.status == "pass" and verdict.certificate["applies"]


def test_a_candidate_of_another_original_is_a_mismatch_and_says_so() -> None:
    candidate = bnfold.optimize(nets.plain(1), verify=False).model
    verdict = verify(nets.plain(2), candidate)
    assert verdict.exit_code == 1 and any("another file" in w for w in verdict.warnings)


def test_a_fold_map_without_folds_is_inconclusive() -> None:
    original = nets.plain(0)
    claimed = load(original).clone()
    claimed.metadata_props[FOLD_MAP] = own(original).metadata_props[FOLD_MAP]
    verdict = verify(original, claimed)
    assert verdict.exit_code == 3 and "fold map" in verdict.reasons[0]


def test_the_fold_of_another_release_is_judged_by_its_output() -> None:
    original = nets.plain(0)
    candidate = load(own(original)).clone()
    found = json.loads(candidate.metadata_props[FOLD_MAP])
    candidate.metadata_props[FOLD_MAP] = json.dumps({**found, "bnfold": "0.0.1"})
    verdict = verify(original, candidate)
    assert verdict.status == "pass" and not verdict.certificate["applies"]
    assert any("bnfold 0.0.1 folded the candidate" in warning for warning in verdict.warnings)


@pytest.mark.parametrize("text", ["{", "[" * 10**5])
def test_a_fold_map_that_cannot_be_read_is_inconclusive(text: str) -> None:
    original = nets.plain(0)
    candidate = load(nets.fold(original)).clone()
    candidate.metadata_props[FOLD_MAP] = text
    assert verify(original, candidate).exit_code == 3


# --- Simplification is made again without onnxsim where the candidate notes what it did.

SIZED = """(float[N,3,8,8] x) => (float[N,4] y) {
    [conv] a = Conv (x, w)
    [bn] b = BatchNormalization (a, one, shift, zero, one)
    shape = Shape (b)  wide = Slice (shape, i1, i4)  few = Mod (i5, i2)  size = Gather (shape, few)
    seven = Mul (size, i2)  flat = Concat <axis = 0> (minus, size)
    real = Cast <to = 1> (seven)  root = Sqrt (real)
    [mean] c = ReduceMean <axes = [2, 3]> (b)  [least] d = Max (c, root)
    e = Unsqueeze (wide, i0)  f = Cast <to = 1> (e)  g = ReduceSum (f)
    [flat] h = Reshape (d, flat)  [last] y = Max (h, g) }"""


def sized() -> ir.Model:
    """Sizes of an input whose batch is not known, arithmetic with them, and what is made of that in float32."""
    integers = {"i0": [0], "i1": [1], "i2": [2], "i4": [4], "i5": [5], "minus": [-1]}
    arrays = {name: np.array(value, np.int64) for name, value in integers.items()}
    return load(model(SIZED, w=normal(4, 3, 1, 1), one=np.ones(4), shift=normal(4), zero=np.zeros(4), **arrays))


@pytest.fixture
def without_onnxsim(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise AssertionError("onnxsim takes seconds")

    monkeypatch.setattr(certificate, "simplify", refused)


@pytest.fixture(scope="module")
def simpler() -> ir.Model:
    done = bnfold.optimize(sized(), simplify="always", verify=False)
    assert done.simplified.status == "done" and done.nodes_after == 5, done.simplified.reason
    return done.model


@pytest.mark.usefixtures("without_onnxsim")
def test_simplification_is_made_again_from_what_is_noted(simpler: ir.Model) -> None:
    verdict = verify(sized(), simpler)
    assert verdict.status == "pass" and verdict.certificate["applies"], verdict


@pytest.mark.usefixtures("without_onnxsim")
def test_constants_are_the_originals_whatever_is_noted(simpler: ir.Model) -> None:
    names = dict(noted(simpler) or {})
    exact = simplified(sized(), names)
    assert exact is not None and {*names.values()} <= {*exact.graph.initializers}
    first = next(iter(names))
    wrong = ({"d": "k"}, {"shape": "k"}, {"size": "w"}, {"size": "few"}, {"none": "k"}, {"size": "k", "few": "k"})
    assert [simplified(sized(), {**names, **other}) for other in wrong] == [None] * len(wrong)
    assert simplified(sized(), {**names, first: "x"}) is None


def test_a_changed_constant_of_a_simplified_model_is_found(simpler: ir.Model) -> None:
    changed = simpler.clone()
    value = next(node for node in changed.graph if node.op_type == "Max").inputs[1]
    assert value is not None and value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1 + 2e-7), name=value.name)
    found = check(sized(), changed)
    assert any(f"{value.name!r}: 1 of 1 values differ" in problem.message for problem in found.problems)


def test_notes_that_cannot_be_read_cost_time_only(simpler: ir.Model) -> None:
    changed = simpler.clone()
    for note in ("[1]", '{"size": 3}', "null", "["):
        changed.metadata_props[CONSTANTS] = note
        assert noted(changed) is None
    found = check(sized(), changed)
    assert found.applies and not found.problems
