"""Verifications of every outcome, as the documents that the tests of the reports start from."""

from __future__ import annotations

import copy
import functools
from typing import Any

import onnx
import pytest
from onnx import helper, numpy_helper

import bnfold
from bnfold import report
from tests import nets
from tests.conftest import conv_bn

Document = dict[str, Any]


def passed() -> tuple[onnx.ModelProto, Any]:
    return conv_bn(), bnfold.optimize(conv_bn(), verify=False).model


def faulty() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    return nets.plain(0), nets.fold(nets.plain(0), fault="a channel + 0.1 %")


def constant() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = conv_bn()
    model.graph.node[-1].CopyFrom(helper.make_node("Sub", ["b1", "b1"], ["y"]))
    return model, model


def renamed() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    model = nets.plain(0)
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"
    return nets.plain(0), model


def tampered() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Our own fold with one weight changed behind our back."""
    from bnfold.io import serialize

    proto = onnx.ModelProto.FromString(serialize(bnfold.optimize(conv_bn(), verify=False).model))
    for tensor in proto.graph.initializer:
        value = numpy_helper.to_array(tensor).copy()
        if value.ndim == 4:
            value.flat[0] *= 1.01
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
            break
    return conv_bn(), proto


CASES = {"pass": passed, "mismatch": faulty, "inconclusive": constant, "interface": renamed, "certificate": tampered}


@functools.cache
def _document(case: str) -> Document:
    names = {"reference": "models/reference.onnx", "candidate": "models/candidate.onnx"}
    # A mismatch ends a verification; the reports of one are looked at with all that it can hold.
    verdict = bnfold.verify(*CASES[case](), samples=4, keep_going=case == "mismatch")
    return report.document("verify", {**names, **verdict.to_dict()})


def document(name: str, **changes: Any) -> Document:
    return {**copy.deepcopy(_document(name)), **changes}


LAYERS = [
    {"node": "/stem/conv/Conv", "status": "pass", "ratio": 0.02},
    {"node": "/layer1/conv1/Conv", "status": "mismatch", "ratio": 312.0},
    {"node": "/layer1/conv2/Conv", "status": "mismatch", "ratio": None},
]
REGRESSED = {
    "file": "baseline.json", "factor": 2.0, "compared": 2, "missing": [],
    "regressions": [{"where": "output y on cpu, off", "before": 0.125, "now": 0.4}],
}  # fmt: skip


def entry(rule: str, message: str, **where: str) -> Document:
    return {"rule": rule, "message": message, "layer": None, "output": None, "provider": None, "level": None, **where}


EVERY = pytest.mark.parametrize("name", CASES)
