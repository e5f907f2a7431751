"""Elementwise operators in float64: a table of formulas, then the few that need more than a line."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.arrays import Array
from bnfold.verify.kernels.base import Arrays, Call, Unsupported, is_float, kernel, optional, real

_erf = np.frompyfunc(math.erf, 1, 1)


def _f32(value: float) -> float:
    """A default that the specification writes in decimals and every runtime stores in float32."""
    return float(np.float32(value))


def erf(x: Array) -> Array:
    """The error function in float64 (onnx's kernel computes it in float32)."""
    return np.asarray(_erf(x)).astype(np.float64)


def sigmoid(x: Array) -> Array:
    """The logistic function without overflow at either end."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0 / (1.0 + small), small / (1.0 + small))


def hard_sigmoid(x: Array, alpha: float, beta: float) -> Array:
    """Clip(alpha·x + beta, 0, 1)."""
    return np.clip(alpha * x + beta, 0.0, 1.0)


UNARY: dict[str, Callable[[Array], Any]] = {
    "Abs": np.abs, "Acos": np.arccos, "Acosh": np.arccosh, "Asin": np.arcsin, "Asinh": np.arcsinh,
    "Atan": np.arctan, "Atanh": np.arctanh, "BitwiseNot": np.bitwise_not, "Ceil": np.ceil, "Cos": np.cos,
    "Cosh": np.cosh, "Erf": erf, "Exp": np.exp, "Floor": np.floor, "Identity": lambda x: x, "IsNaN": np.isnan,
    "Log": np.log, "Neg": np.negative, "Not": np.logical_not, "Reciprocal": lambda x: 1.0 / x,
    "Relu": lambda x: np.maximum(x, 0), "Round": np.rint, "Sigmoid": sigmoid, "Sign": np.sign, "Sin": np.sin,
    "Sinh": np.sinh, "Softplus": lambda x: np.logaddexp(0.0, x), "Softsign": lambda x: x / (1.0 + np.abs(x)),
    "Sqrt": np.sqrt, "Tan": np.tan, "Tanh": np.tanh,
    "HardSwish": lambda x: x * hard_sigmoid(x, _f32(1 / 6), 0.5),
    "Mish": lambda x: x * np.tanh(np.logaddexp(0.0, x)),
}  # fmt: skip

BINARY: dict[str, Callable[[Array, Array], Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "And": np.logical_and, "Or": np.logical_or,
    "Xor": np.logical_xor, "Equal": np.equal, "Greater": np.greater, "GreaterOrEqual": np.greater_equal,
    "Less": np.less, "LessOrEqual": np.less_equal, "BitwiseAnd": np.bitwise_and, "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor, "PRelu": lambda x, slope: np.where(x > 0, x, x * slope),
    "Pow": lambda x, p: np.power(x, p).astype(x.dtype),
}  # fmt: skip

VARIADIC: dict[str, Callable[[Arrays], Any]] = {
    "Max": lambda xs: reduce(np.maximum, xs),
    "Min": lambda xs: reduce(np.minimum, xs),
    "Sum": lambda xs: reduce(np.add, xs),
    "Mean": lambda xs: reduce(np.add, xs) / len(xs),
}

# op → (formula of x and its attributes, the attributes' defaults)
PARAMETRIC: dict[str, tuple[Callable[..., Any], dict[str, float]]] = {
    "Celu": (lambda x, alpha: np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(x / alpha)), {"alpha": 1.0}),
    "Elu": (lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(x)), {"alpha": 1.0}),
    "HardSigmoid": (hard_sigmoid, {"alpha": _f32(0.2), "beta": 0.5}),
    "LeakyRelu": (lambda x, alpha: np.where(x >= 0, x, alpha * x), {"alpha": _f32(0.01)}),
    "Selu": (
        lambda x, alpha, gamma: gamma * np.where(x > 0, x, alpha * np.expm1(x)),
        {"alpha": _f32(1.67326319217681884765625), "gamma": _f32(1.05070102214813232421875)},
    ),
    "Shrink": (
        lambda x, bias, lambd: np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0.0)),
        {"bias": 0.0, "lambd": 0.5},
    ),
    "Swish": (lambda x, alpha: x * sigmoid(alpha * x), {"alpha": 1.0}),
    "ThresholdedRelu": (lambda x, alpha: np.where(x > alpha, x, 0.0), {"alpha": 1.0}),
}


@kernel(*UNARY)
def unary(call: Call, inputs: Arrays) -> Arrays:
    """One array in, one of the same shape out."""
    x = inputs[0]
    return (np.asarray(UNARY[call.op](x)) if isinstance(x, np.ndarray) else x,)


def _aligned(call: Call, x: Array, y: Array) -> tuple[Array, Array]:
    """Before opset 7 the second operand broadcasts if asked to, along the axes that `axis` begins or the last ones."""
    if call.opset >= 7 or np.shape(x) == np.shape(y):
        return x, y
    if not call.get("broadcast", call.op == "PRelu"):
        raise Unsupported(f"{call.op} of opset {call.opset} does not broadcast by itself")
    first = call.get("axis", 1 if call.op == "PRelu" else np.ndim(x) - np.ndim(y)) % max(np.ndim(x), 1)
    return x, np.reshape(y, np.shape(y) + (1,) * (np.ndim(x) - np.ndim(y) - first))


@kernel(*BINARY)
def binary(call: Call, inputs: Arrays) -> Arrays:
    """Two arrays that broadcast against each other."""
    x, y = _aligned(call, *inputs)
    return (np.asarray(BINARY[call.op](x, y)),)


@kernel(*VARIADIC)
def variadic(call: Call, inputs: Arrays) -> Arrays:
    """Any number of arrays that broadcast against each other."""
    return (np.asarray(VARIADIC[call.op](inputs)),)


@kernel(*PARAMETRIC)
def parametric(call: Call, inputs: Arrays) -> Arrays:
    """One array and constant attributes."""
    formula, defaults = PARAMETRIC[call.op]
    return (np.asarray(formula(inputs[0], **{k: call.get(k, v) for k, v in defaults.items()})),)


@kernel("Gelu")
def gelu(call: Call, inputs: Arrays) -> Arrays:
    """x·Φ(x), or its tanh approximation."""
    x = inputs[0]
    if call.get("approximate", "none") == "tanh":
        return (0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + _f32(0.044715) * x**3))),)
    return (0.5 * x * (1.0 + erf(x / math.sqrt(2.0))),)


@kernel("Div")
def div(call: Call, inputs: Arrays) -> Arrays:
    """Division; of integers, truncated towards zero."""
    a, b = _aligned(call, *inputs)
    if a.dtype.kind == "f":
        return (np.asarray(a / b),)
    quotient = np.floor_divide(a, b)
    return (np.asarray(quotient + ((a - quotient * b != 0) & ((a < 0) != (b < 0)))).astype(a.dtype),)


@kernel("Mod")
def mod(call: Call, inputs: Arrays) -> Arrays:
    """Remainder with the divisor's sign, or the dividend's where fmod is set."""
    return (np.asarray((np.fmod if call.get("fmod", 0) else np.mod)(inputs[0], inputs[1])),)


@kernel("Clip")
def clip(call: Call, inputs: Arrays) -> Arrays:
    """Limit to [min, max]: attributes before opset 11, inputs since."""
    x = inputs[0]
    low, high = (optional(inputs, 1), optional(inputs, 2)) if call.opset >= 11 else (call.get("min"), call.get("max"))
    x = x if low is None else np.maximum(x, low)
    return (np.asarray(x if high is None else np.minimum(x, high)),)


@kernel("Where")
def where(call: Call, inputs: Arrays) -> Arrays:
    """Choose elementwise between two arrays."""
    return (np.where(inputs[0], inputs[1], inputs[2]),)


@kernel("IsInf")
def is_inf(call: Call, inputs: Arrays) -> Arrays:
    """Which elements are infinite, of the signs asked for."""
    x = inputs[0]
    found = (x == np.inf) & bool(call.get("detect_positive", 1)) | (x == -np.inf) & bool(call.get("detect_negative", 1))
    return (np.asarray(found),)


@kernel("Dropout")
def dropout(call: Call, inputs: Arrays) -> Arrays:
    """The identity (and an all-true mask) in inference."""
    training = optional(inputs, 2)
    if training is not None and bool(np.all(training)):
        raise Unsupported("Dropout in training mode")
    return (inputs[0], np.ones(inputs[0].shape, dtype=bool))[: max(call.outputs, 1)]


@kernel("Cast", "CastLike")
def cast(call: Call, inputs: Arrays) -> Arrays:
    """Convert the element type; every float type stays float64 here, that is the point of the reference."""
    x = inputs[0]
    if call.op == "CastLike":
        return (x if is_float(inputs[1]) and is_float(x) else real(x.astype(inputs[1].dtype)),)
    target = ir.DataType(call.get("to"))
    if target in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return (x.astype(np.float64),)
    if target.is_floating_point() or target == ir.DataType.STRING:
        raise Unsupported(f"Cast to {target.name}")
    return (x.astype(target.numpy()),)
