"""Small models with an answer that is easy to state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper, parser

from tests.conftest import conv_bn

HEAD = '<ir_version: 9, opset_import: ["": 19]> g '
# The protocol's datatype, ONNX's type, numpy's, and values at the edges of the type.
_F = [0.0, -0.0, 1.5, -2.25, np.inf, -np.inf, np.nan, 1e-8]
DTYPES: dict[str, tuple[str, Any, list[Any]]] = {
    "BOOL": ("bool", np.bool_, [True, False, True, True]),
    "UINT8": ("uint8", np.uint8, [0, 1, 127, 255]),
    "UINT16": ("uint16", np.uint16, [0, 1, 2**15, 2**16 - 1]),
    "UINT32": ("uint32", np.uint32, [0, 1, 2**31, 2**32 - 1]),
    "UINT64": ("uint64", np.uint64, [0, 1, 2**63, 2**64 - 1]),
    "INT8": ("int8", np.int8, [0, -1, 127, -128]),
    "INT16": ("int16", np.int16, [0, -1, 2**15 - 1, -(2**15)]),
    "INT32": ("int32", np.int32, [0, -1, 2**31 - 1, -(2**31)]),
    "INT64": ("int64", np.int64, [0, -1, 2**63 - 1, -(2**63)]),
    "FP16": ("float16", np.float16, [*_F, 65504.0, 6e-8]),
    "BF16": ("bfloat16", ml_dtypes.bfloat16, [*_F, 3.3895e38, 1e-40]),
    "FP32": ("float", np.float32, [*_F, 3.4028235e38, 1e-45]),
    "FP64": ("double", np.float64, [*_F, 1.7976931348623157e308, 5e-324]),
    "BYTES": ("string", np.object_, ["", "a", "\u00e9\u4e16", 'q"\\\n', "x" * 300, "\x00z"]),
}


def sample(datatype: str) -> np.ndarray[Any, Any]:
    """The edge values of a type, as two columns."""
    _, kind, values = DTYPES[datatype]
    with np.errstate(over="ignore"):
        return np.array(values, kind).reshape(-1, 2)


def parse(text: str) -> onnx.ModelProto:
    """A model from the body of its graph."""
    return parser.parse_model(HEAD + text)


def identity(datatype: str) -> onnx.ModelProto:
    """y = x."""
    kind = DTYPES[datatype][0]
    return parse(f"({kind}[N,2] x) => ({kind}[N,2] y) {{ y = Identity(x) }}")


def times(factor: float) -> onnx.ModelProto:
    """y = factor · x on (N, 3) float32, row by row."""
    return parse(f"(float[N,3] x) => (float[N,3] y) {{ f = Constant <value_float = {factor}> ()  y = Mul(x, f) }}")


def pair() -> onnx.ModelProto:
    """s = a + b and d = a − b, on (N, K) float32."""
    return parse("(float[N,K] a, float[N,K] b) => (float[N,K] s, float[N,K] d) { s = Add(a, b)  d = Sub(a, b) }")


def scalar() -> onnx.ModelProto:
    """y = −x on a scalar."""
    return parse("(float x) => (float y) { y = Neg(x) }")


def mixer() -> onnx.ModelProto:
    """A softmax over the rows: a batch is not what its rows are."""
    return parse("(float[N,3] x) => (float[N,3] y) { y = Softmax <axis = 0> (x) }")


def gather() -> onnx.ModelProto:
    """y = (10, 20, 30)[x]: not every input of the right type and shape has an answer."""
    return parse("(int64[N] x) => (float[N] y) { t = Constant <value_floats = [10.0, 20.0, 30.0]> ()"
                 "  y = Gather(t, x) }")  # fmt: skip


def slow(size: int = 96) -> onnx.ModelProto:
    """y = x after n products of two matrices, that is, after a time that the request chooses."""
    model = parse(
        f"(float[N,3] x, int64 n) => (float[N,3] y) {{ c = Constant <value_int = 1> ()  t = Cast <to = 9> (c)"
        f"  e = Loop(n, t, w) <body = b (int64 i, bool go, float[{size},{size}] v)"
        f" => (bool more, float[{size},{size}] o) {{ more = Identity(go)  o = MatMul(v, w) }}>"
        f"  z = ReduceSum <keepdims = 0> (e)  k = Sub(z, z)  y = Add(x, k) }}"
    )
    eye = numpy_helper.from_array(np.eye(size, dtype=np.float32), "w")
    model.graph.initializer.append(eye)
    return model


MODELS = {
    "cnn": lambda: conv_bn(channels=8),
    "double": lambda: times(2.0),
    "pair": pair,
    "scalar": scalar,
    "gather": gather,
    "slow": slow,
    **{f"id_{name.lower()}": (lambda name=name: identity(name)) for name in DTYPES},
}


def write(model: onnx.ModelProto, folder: Path, version: int = 1) -> Path:
    """Put a model into a repository, at once."""
    place = folder / str(version)
    place.mkdir(parents=True, exist_ok=True)
    scratch = place / ".model.onnx.tmp"
    onnx.save(model, scratch)
    scratch.rename(place / "model.onnx")
    return place / "model.onnx"


def repository(root: Path, *names: str) -> Path:
    """A repository of these models, all if none is named."""
    for name in names or MODELS:
        write(MODELS[name](), root / name)
    return root
