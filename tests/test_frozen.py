"""The statistics that folding takes out of the graph stay in the metadata, exactly, with the names to find them by."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from bnfold import io
from bnfold.folding.fold import fold
from bnfold.folding.frozen import STATISTICS, Frozen, frozen_nodes, recorded, remembered, write
from bnfold.folding.report import FOLD_MAP
from bnfold.rewrite import rewrite
from tests.conftest import conv_bn

ARRAYS = ("gamma", "beta", "mean", "var")


def same(one: Frozen, other: Frozen) -> bool:
    names = (one.name, one.input, one.output, one.epsilon) == (other.name, other.input, other.output, other.epsilon)
    return names and all(np.array_equal(getattr(one, a), getattr(other, a), equal_nan=True) for a in ARRAYS)


def standing(model: ir.Model) -> list[Frozen]:
    return [frozen for _, frozen in frozen_nodes(model) if frozen is not None]


def test_folding_keeps_the_statistics_bit_for_bit(model: ir.Model, tmp_path: Path) -> None:
    before = standing(model)
    assert recorded(model) == []
    rewrite(model)
    assert not standing(model) and len(before) == 2
    assert all(same(a, b) for a, b in zip(before, recorded(model), strict=True))
    io.save(model, tmp_path / "m.onnx")
    again = io.load(tmp_path / "m.onnx")
    assert all(same(a, b) for a, b in zip(before, recorded(again), strict=True))


@pytest.mark.parametrize("text", ["{", "[" * 10**5, "7", '{"version": 9}'])
def test_notes_that_cannot_be_read_are_none(model: ir.Model, text: str) -> None:
    model.metadata_props[STATISTICS] = model.metadata_props[FOLD_MAP] = text
    assert recorded(model) == []
    assert rewrite(model).folded == 2 and len(recorded(model)) == 2


def test_a_second_run_keeps_what_the_first_noted(model: ir.Model) -> None:
    rewrite(model)
    first = model.metadata_props[STATISTICS]
    rewrite(model)
    assert model.metadata_props[STATISTICS] == first


def test_what_stays_a_node_is_not_noted(model: ir.Model) -> None:
    model.graph.outputs.append(next(n for n in model.graph if n.name == "conv1").outputs[0])
    fold(model)
    assert [frozen.name for frozen in standing(model)] == ["bn1"]
    assert [frozen.name for frozen in recorded(model)] == ["bn0"]


def test_a_merged_batch_norm_is_noted_too() -> None:
    text = """<ir_version: 9, opset_import: ["": 18]> g (float[n,2,4,4] x) => (float[n,2,4,4] y)
      <float[2] g = {1, 2}, float[2] b = {0, 1}, float[2] m = {3, 0}, float[2] v = {1, 4}> {
      z = BatchNormalization(x, g, b, m, v)
      c = Conv <kernel_shape = [1, 1]> (x, w)
      y = Add(z, c)
    }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1), "w"))
    model = ir.from_proto(proto)
    report = rewrite(model)
    assert [entry.judgement for entry in report.entries] == ["merge"]
    assert [(frozen.name, frozen.input, frozen.output) for frozen in recorded(model)] == [("z", "x", "z")]


@pytest.mark.parametrize(("array", "stored"), [
    (np.array([0.1, np.nan, np.inf, -0.0]), "<f8"),
    (np.array([0.1, np.nan, np.inf, -0.0], np.float32), "<f4"),
    (np.array([1e-300, 1e300, 1, 2]), "<f8"),
    (np.zeros(0), "<f4"),
])  # fmt: skip
def test_nothing_is_rounded(model: ir.Model, array: np.ndarray, stored: str) -> None:
    wide = array.astype(np.float64)
    frozen = Frozen('a "name" \\ with ü', "x", "", wide, wide, wide, wide, 1e-3)
    write(model, [frozen])
    (found,) = recorded(model)
    assert same(found, frozen)
    assert json.loads(model.metadata_props[STATISTICS])["batch_norms"][0]["type"] == stored
    write(model, [])
    assert STATISTICS not in model.metadata_props


@pytest.mark.parametrize("text", [
    "", "null", "[]", "{}", '{"version": 2, "batch_norms": []}', '{"version": 1, "batch_norms": [{}]}',
    '{"version":1,"batch_norms":[{"name":"a","input":"x","output":"y","epsilon":1,"type":"|O","data":""}]}',
    '{"version":1,"batch_norms":[{"name":"a","input":"x","output":"y","epsilon":1,"type":"<f4","data":"~"}]}',
])  # fmt: skip
def test_damaged_notes_are_none(model: ir.Model, text: str) -> None:
    model.metadata_props[STATISTICS] = text
    assert recorded(model) == []


def test_a_node_that_stays_is_not_remembered(model: ir.Model) -> None:
    with remembered(model):
        pass
    assert STATISTICS not in model.metadata_props


def test_what_it_costs_is_twenty_two_bytes_a_channel() -> None:
    model = ir.from_proto(conv_bn(channels=256, layers=4))
    rewrite(model)
    assert len(model.metadata_props[STATISTICS]) < 4 * (256 * 22 + 100)
