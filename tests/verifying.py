"""Small models and inputs that the tests of the verification share."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper, parser

from bnfold.arrays import Array
from bnfold.folding.fold import fold
from bnfold.io import load
from bnfold.verify.windows import Windows

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def model(text: str, **constants: Any) -> onnx.ModelProto:
    """A model from ONNX text, with float32 (or given) constants."""
    made = parser.parse_model(f"{HEAD} g {text}")
    for name, value in constants.items():
        value = np.asarray(value)
        value = value.astype(np.float32) if value.dtype == np.float64 else value
        made.graph.initializer.append(numpy_helper.from_array(value, name))
    return made


def own(source: onnx.ModelProto) -> ir.Model:
    """The model as bnfold folds it, with its fold map."""
    folded = load(source).clone()
    fold(folded)
    return folded


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cut(original: onnx.ModelProto, candidate: onnx.ModelProto | ir.Model, trusted: bool = False) -> Windows:
    """The windows of two models."""
    return Windows(load(original), load(candidate), trusted=trusted)


def tensor(made: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """The initializer of a name."""
    return next(t for t in made.graph.initializer if t.name == name)
