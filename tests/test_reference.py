"""The float64 kernels against ONNX Runtime, torch and closed forms; the evaluator's order, memory and noise."""

from __future__ import annotations

import importlib.util
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from bnfold.arrays import Array
from bnfold.verify import control
from bnfold.verify.kernels import KERNELS, Call, Unsupported
from bnfold.verify.reference import Evaluator, Noise, fixed_values, unsupported

TORCH = importlib.util.find_spec("torch") is not None


def f(*shape: int) -> Array:
    """Seeded float32 values of a shape."""
    return np.random.default_rng(zlib.crc32(str(shape).encode())).standard_normal(shape).astype(np.float32)


def pos(*shape: int) -> Array:
    """Positive float32 values of a shape."""
    return np.abs(f(*shape)) + np.float32(0.1)


def i(*values: Any) -> Array:
    """An int64 array."""
    return np.array(values, dtype=np.int64)


def b(*shape: int) -> Array:
    """Seeded booleans of a shape."""
    return f(*shape) > 0


def q(*shape: int) -> Array:
    """Seeded unsigned bytes of a shape."""
    return np.random.default_rng(7).integers(0, 256, shape, dtype=np.uint8)


X = (2, 3, 8, 9)
N = np.float32("nan")
EMPTY = np.zeros(0, np.float32)

# (operator, inputs, attributes, opset, outputs). What changes a kernel's path has a row.
CASES: list[tuple[str, Sequence[Array | None], dict[str, Any], int, int]] = [
    # convolutions
    ("Conv", [f(*X), f(4, 3, 3, 3)], {}, 11, 1),
    ("Conv", [f(*X), f(4, 3, 3, 3), f(4)], {"pads": [1, 2, 0, 1], "strides": [2, 1]}, 11, 1),
    ("Conv", [f(*X), f(4, 3, 3, 2)], {"dilations": [2, 3]}, 11, 1),
    ("Conv", [f(*X), f(4, 3, 3, 4)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, 11, 1),
    ("Conv", [f(*X), f(4, 3, 3, 4)], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, 11, 1),
    ("Conv", [f(*X), f(4, 3, 3, 4)], {"auto_pad": "VALID"}, 11, 1),
    ("Conv", [f(2, 4, 7, 7), f(6, 2, 3, 3), f(6)], {"group": 2}, 11, 1),
    ("Conv", [f(2, 4, 7, 7), f(8, 1, 3, 3), f(8)], {"group": 4, "pads": [1, 1, 1, 1]}, 11, 1),
    ("Conv", [f(2, 3, 11), f(4, 3, 5)], {"pads": [2, 2]}, 11, 1),
    ("Conv", [f(1, 2, 5, 6, 7), f(3, 2, 2, 3, 2), f(3)], {"strides": [1, 2, 1]}, 11, 1),
    ("ConvTranspose", [f(*X), f(3, 4, 3, 3), f(4)], {}, 11, 1),
    ("ConvTranspose", [f(*X), f(3, 4, 3, 3)], {"strides": [2, 3], "pads": [1, 0, 1, 2]}, 11, 1),
    ("ConvTranspose", [f(*X), f(3, 4, 3, 3)], {"strides": [2, 2], "output_padding": [1, 1]}, 11, 1),
    ("ConvTranspose", [f(*X), f(3, 4, 2, 3)], {"dilations": [2, 2], "strides": [2, 1]}, 11, 1),
    ("ConvTranspose", [f(2, 4, 5, 5), f(4, 3, 3, 3), f(6)], {"group": 2, "strides": [2, 2]}, 11, 1),
    ("ConvTranspose", [f(2, 4, 5, 5), f(4, 1, 3, 3)], {"group": 4}, 11, 1),
    ("ConvTranspose", [f(*X), f(3, 4, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, 11, 1),
    ("ConvTranspose", [f(*X), f(3, 4, 3, 3)], {"strides": [2, 2], "output_shape": [16, 19]}, 11, 1),
    ("ConvTranspose", [f(2, 3, 6), f(3, 2, 4)], {"strides": [2], "pads": [1, 1]}, 11, 1),
    # products
    ("Gemm", [f(3, 4), f(4, 5), f(5)], {"alpha": 0.3, "beta": 1.7}, 13, 1),
    ("Gemm", [f(4, 3), f(5, 4), f(3, 1)], {"transA": 1, "transB": 1}, 13, 1),
    ("Gemm", [f(3, 4), f(4, 5)], {}, 13, 1),
    ("MatMul", [f(2, 1, 3, 4), f(5, 4, 2)], {}, 13, 1),
    ("MatMul", [f(4), f(4)], {}, 13, 1),
    ("Einsum", [f(2, 3, 4), f(2, 4, 5)], {"equation": "bij, bjk -> bik"}, 13, 1),
    # pools
    ("MaxPool", [f(*X)], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}, 12, 1),
    ("MaxPool", [f(*X)], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, 12, 1),
    ("MaxPool", [f(*X)], {"kernel_shape": [2, 2], "dilations": [2, 3]}, 12, 1),
    ("MaxPool", [f(2, 3, 1, 6)], {"kernel_shape": [2, 2], "strides": [2, 2]}, 12, 1),
    ("MaxPool", [f(*X)], {"kernel_shape": [2, 2], "strides": [2, 2]}, 12, 2),
    ("MaxPool", [f(2, 3, 9)], {"kernel_shape": [4], "auto_pad": "SAME_LOWER"}, 12, 1),
    ("AveragePool", [f(*X)], {"kernel_shape": [3, 2], "pads": [1, 1, 1, 0]}, 11, 1),
    ("AveragePool", [f(*X)], {"kernel_shape": [3, 2], "pads": [1, 1, 1, 0], "count_include_pad": 1}, 11, 1),
    ("AveragePool", [f(*X)], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, 19, 1),
    ("AveragePool", [f(*X)], {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}, 11, 1),
    ("LpPool", [f(*X)], {"kernel_shape": [2, 2], "p": 3}, 11, 1),
    ("GlobalAveragePool", [f(*X)], {}, 11, 1),
    ("GlobalMaxPool", [f(*X)], {}, 11, 1),
    ("GlobalLpPool", [f(*X)], {"p": 2}, 11, 1),
    # norms
    ("BatchNormalization", [f(*X), f(3), f(3), f(3) * 2, pos(3)], {"epsilon": 1e-3}, 15, 1),
    ("BatchNormalization", [f(*X), f(3), f(3), f(3) * 2, pos(3)], {}, 9, 1),
    ("BatchNormalization", [f(4, 3), f(3), f(3), f(3) * 2, pos(3)], {}, 7, 1),
    ("InstanceNormalization", [f(*X), f(3), f(3) * 2], {}, 13, 1),
    ("LayerNormalization", [f(2, 3, 5), f(5), f(5) * 2], {}, 17, 1),
    ("LayerNormalization", [f(2, 3, 5), f(3, 5)], {"axis": 1, "epsilon": 1e-3}, 17, 3),
    ("GroupNormalization", [f(2, 6, 4, 4), f(3), f(3) * 2], {"num_groups": 3}, 18, 1),
    ("GroupNormalization", [f(2, 6, 4, 4), f(6), f(6) * 2], {"num_groups": 3}, 21, 1),
    ("RMSNormalization", [f(2, 3, 5), f(5)], {}, 23, 1),
    ("MeanVarianceNormalization", [f(*X)], {}, 13, 1),
    ("LRN", [f(2, 7, 4, 4)], {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 1.5}, 13, 1),
    ("LpNormalization", [f(2, 3, 5)], {"p": 1, "axis": 1}, 13, 1),
    ("LpNormalization", [f(2, 3, 5)], {}, 13, 1),
    ("Softmax", [f(2, 3, 4)], {}, 13, 1),
    ("Softmax", [f(2, 3, 4)], {"axis": 1}, 11, 1),
    ("LogSoftmax", [f(2, 3, 4) * 50], {"axis": 1}, 13, 1),
    ("Hardmax", [f(2, 3, 4)], {"axis": 1}, 13, 1),
    # elementwise
    *[(op, [f(3, 4)], {}, 20, 1) for op in (
        "Abs", "Atan", "Asinh", "Ceil", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
        "Identity", "IsNaN", "LeakyRelu", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign",
        "Sin", "Sinh", "Softplus", "Softsign", "Tan", "Tanh", "ThresholdedRelu", "Celu", "Mish",
    )],
    ("Gelu", [f(3, 4)], {"approximate": "tanh"}, 20, 1),
    ("Elu", [f(3, 4)], {"alpha": 0.3}, 13, 1),
    ("Celu", [f(3, 4)], {"alpha": 0.3}, 13, 1),
    ("HardSigmoid", [f(3, 4)], {"alpha": 0.3, "beta": 0.1}, 13, 1),
    ("LeakyRelu", [f(3, 4)], {"alpha": -0.3}, 13, 1),
    *[(op, [f(3, 4) / 5], {}, 20, 1) for op in ("Acos", "Asin", "Atanh")],
    *[(op, [pos(3, 4) + 1], {}, 20, 1) for op in ("Acosh", "Log", "Sqrt")],
    *[(op, [f(3, 4), pos(4)], {}, 14, 1) for op in ("Add", "Sub", "Mul", "Div", "PRelu", "Greater", "Less", "Equal")],
    *[(op, [f(3, 4), pos(4)], {}, 16, 1) for op in ("GreaterOrEqual", "LessOrEqual")],
    *[(op, [b(3, 4), b(4)], {}, 14, 1) for op in ("And", "Or", "Xor")],
    *[(op, [i(5, -7, 9), i(3, 2, -4)], {}, 18, 1) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Mod")],
    ("Mod", [f(5), pos(5)], {"fmod": 1}, 13, 1),
    ("BitwiseNot", [i(5, -7)], {}, 18, 1),
    ("BitShift", [q(4), np.full(4, 2, np.uint8)], {"direction": "LEFT"}, 13, 1),
    ("Not", [b(3)], {}, 13, 1),
    ("Pow", [pos(3, 4), f(4)], {}, 15, 1),
    *[(op, [f(3, 4), f(4), f(3, 1)], {}, 13, 1) for op in ("Max", "Min", "Sum", "Mean")],
    ("Clip", [f(3, 4), np.float32(-0.3), np.float32(0.4)], {}, 13, 1),
    ("Clip", [f(3, 4), None, np.float32(0.4)], {}, 13, 1),
    ("Clip", [f(3, 4)], {"min": -0.3, "max": 0.3}, 6, 1),
    ("Where", [b(3, 4), f(3, 4), f(4)], {}, 16, 1),
    ("IsInf", [np.array([1, np.inf, -np.inf, N], np.float32)], {"detect_negative": 0}, 20, 1),
    ("Dropout", [f(3, 4)], {}, 13, 2),
    ("Cast", [f(3, 4) * 5], {"to": TensorProto.INT32}, 13, 1),
    ("Cast", [b(3, 4)], {"to": TensorProto.FLOAT}, 13, 1),
    ("CastLike", [i(1, 2), f(2)], {}, 15, 1),
    ("DequantizeLinear", [q(3, 4), pos(3), q(3)], {"axis": 0}, 13, 1),
    ("DequantizeLinear", [q(3, 4), np.float32(0.5)], {}, 13, 1),
    ("QuantizeLinear", [f(3, 4) * 50, np.float32(0.7), np.uint8(128)], {}, 13, 1),
    ("DynamicQuantizeLinear", [f(3, 4)], {}, 11, 3),
    ("DynamicQuantizeLinear", [pos(3, 4)], {}, 11, 3),
    ("MatMulInteger", [q(2, 3, 4), q(4, 5).view(np.int8), np.uint8(7), np.arange(5).astype(np.int8)], {}, 10, 1),
    ("MatMulInteger", [q(3, 4), q(4, 5)], {}, 10, 1),
    ("ConvInteger", [q(1, 4, 6, 6), q(6, 2, 3, 3), np.uint8(9), np.uint8(128)],
     {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 2]}, 10, 1),
    ("QLinearMatMul", [q(3, 4), np.float32(0.05), np.uint8(130), q(4, 5), np.float32(0.03), np.uint8(120),
                       np.float32(0.4), np.uint8(11)], {}, 10, 1),
    ("QLinearConv", [q(1, 4, 6, 6), np.float32(0.05), np.uint8(130), q(6, 2, 3, 3).view(np.int8),
                     pos(6) * np.float32(0.1), np.zeros(6, np.int8), np.float32(0.4), np.uint8(11),
                     np.arange(6, dtype=np.int32) * 1000],
     {"group": 2, "pads": [1, 1, 1, 1]}, 10, 1),
    # moves
    ("Concat", [f(2, 3), f(2, 4)], {"axis": -1}, 13, 1),
    ("Reshape", [f(2, 3, 4), i(0, -1)], {}, 14, 1),
    ("Flatten", [f(2, 3, 4)], {"axis": -1}, 13, 1),
    ("Flatten", [f(2, 3, 4)], {"axis": 0}, 13, 1),
    ("Transpose", [f(2, 3, 4)], {"perm": [2, 0, 1]}, 13, 1),
    ("Transpose", [f(2, 3, 4)], {}, 13, 1),
    ("Squeeze", [f(2, 1, 4), i(1)], {}, 13, 1),
    ("Squeeze", [f(2, 1, 4)], {"axes": [1]}, 11, 1),
    ("Unsqueeze", [f(2, 4), i(1, -1)], {}, 13, 1),
    ("Slice", [f(5, 6), i(4, 1), i(-100, 5), i(0, 1), i(-2, 2)], {}, 13, 1),
    ("Slice", [f(5, 6)], {"starts": [1], "ends": [-1], "axes": [1]}, 9, 1),
    ("Split", [f(5, 6), i(2, 4)], {"axis": 1}, 13, 2),
    ("Split", [f(5, 6)], {"axis": 0, "num_outputs": 2}, 18, 2),
    ("Gather", [f(5, 6), i(4, 0, -1)], {"axis": 1}, 13, 1),
    ("GatherElements", [f(3, 3), np.array([[1, 2, 0]], np.int64)], {}, 13, 1),
    ("GatherElements", [f(4, 5), np.array([[1, -2], [2, 4]], np.int64)], {"axis": 1}, 13, 1),
    ("DFT", [f(2, 10, 1)], {"onesided": 1}, 17, 1),
    ("DFT", [f(2, 6, 4, 2), np.int64(8)], {"axis": 1}, 17, 1),
    ("DFT", [f(2, 6, 4, 2)], {"axis": 2, "inverse": 1}, 17, 1),
    ("DFT", [f(2, 6, 4, 1), None, np.int64(1)], {"onesided": 1}, 20, 1),
    ("DFT", [f(2, 6, 4, 1)], {}, 20, 1),
    ("STFT", [f(2, 40, 1), np.int64(5), f(8)], {}, 17, 1),
    ("STFT", [f(2, 40), np.int64(5), f(8)], {}, 17, 1),
    ("STFT", [f(2, 40, 1), np.int64(4), None, np.int64(9)], {"onesided": 0}, 17, 1),
    ("STFT", [f(1, 40, 2), np.int64(4), f(8), np.int64(8)], {"onesided": 0}, 17, 1),
    ("GatherND", [f(3, 4), np.array([[0, 1], [2, 3]], np.int64)], {}, 13, 1),
    ("ScatterElements", [f(3, 3), np.array([[1, 2, 0]], np.int64), f(1, 3)], {}, 18, 1),
    ("ScatterND", [f(3, 4), np.array([[0], [2]], np.int64), f(2, 4)], {}, 18, 1),
    ("Expand", [f(3, 1), i(2, 3, 4)], {}, 13, 1),
    ("Tile", [f(2, 3), i(2, 2)], {}, 13, 1),
    ("Pad", [f(2, 3), i(1, 0, 0, 2), np.float32(1.5)], {}, 13, 1),
    ("Pad", [f(4, 5), i(2, 1, 1, 2)], {"mode": "reflect"}, 13, 1),
    ("Pad", [f(4, 5), i(1, -1, -2, 3), np.float32(0.5)], {}, 13, 1),
    ("Pad", [f(6, 7), i(1, -1, -2, 3)], {"mode": "reflect"}, 13, 1),
    ("Pad", [f(2, 4, 5), i(2, 1), np.float32(0.5), i(-2)], {}, 18, 1),
    ("Pad", [f(2, 3, 5), i(2, 1, 0, 4), None, i(1, 2)], {"mode": "wrap"}, 19, 1),
    ("Pad", [f(4, 5), i(2, 1, 1, 2)], {"mode": "edge"}, 13, 1),
    ("Pad", [f(2, 3)], {"pads": [1, 0, 0, 2], "value": 0.5}, 2, 1),
    ("DepthToSpace", [f(1, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}, 13, 1),
    ("SpaceToDepth", [f(1, 2, 4, 6)], {"blocksize": 2}, 13, 1),
    ("Trilu", [f(4, 5), np.int64(1)], {"upper": 0}, 14, 1),
    ("CumSum", [f(4, 5), np.int64(1)], {"reverse": 1, "exclusive": 1}, 14, 1),
    ("ReverseSequence", [f(4, 3, 2), i(1, 4, 2)], {"time_axis": 0, "batch_axis": 1}, 10, 1),
    ("CenterCropPad", [f(4, 5), i(2, 7)], {}, 18, 1),
    ("Compress", [f(4, 3), np.array([True, False, True])], {"axis": 0}, 11, 1),
    ("Range", [np.float32(1), np.float32(4), np.float32(0.75)], {}, 11, 1),
    ("ConstantOfShape", [i(2, 3)], {"value": numpy_helper.from_array(np.array([2.5], np.float32))}, 9, 1),
    ("Shape", [f(2, 3, 4)], {"start": 1}, 15, 1),
    ("Size", [f(2, 3, 4)], {}, 13, 1),
    ("EyeLike", [f(3, 4)], {"k": 1}, 9, 1),
    ("OneHot", [i(0, 2, 1), i(4), np.array([-1, 2], np.float32)], {}, 11, 1),
    ("NonZero", [f(3, 4) * b(3, 4)], {}, 13, 1),
    ("Unique", [i(3, 1, 3, 2)], {}, 11, 4),
    ("MaxUnpool", [f(1, 1, 2, 2), i([[[[0, 3], [9, 15]]]])[0]], {"kernel_shape": [2, 2], "strides": [2, 2]}, 11, 1),
    ("Resize", [f(1, 2, 4, 5), None, np.array([1, 1, 2, 1.5], np.float32)], {"mode": "linear"}, 13, 1),
    ("Resize", [f(1, 2, 4, 5), None, None, i(1, 2, 7, 3)], {"mode": "cubic"}, 13, 1),
    ("Resize", [f(1, 2, 4, 5), EMPTY, np.array([1, 1, 2, 2], np.float32)],
     {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, 11, 1),
    ("Resize", [f(1, 2, 4, 5), EMPTY, np.array([1, 1, 2, 3], np.float32)],
     {"mode": "linear", "coordinate_transformation_mode": "align_corners"}, 11, 1),
    ("Resize", [f(1, 2, 4, 5), np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}, 10, 1),
    ("Upsample", [f(1, 2, 4, 5), np.array([1, 1, 2, 3], np.float32)], {"mode": "nearest"}, 9, 1),
    ("Upsample", [f(1, 2, 4, 5), np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}, 9, 1),
    # reductions and search
    *[(op, [pos(2, 3, 4)], {"axes": [1], "keepdims": 0}, 11, 1) for op in (
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceProd", "ReduceSum", "ReduceSumSquare",
    )],
    *[(op, [pos(2, 3, 4), i(-1)], {}, 18, 1) for op in ("ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2")],
    ("ArgMax", [f(3, 4)], {"axis": 1}, 13, 1),
    ("ArgMin", [f(3, 4)], {"axis": 0, "keepdims": 0}, 13, 1),
    ("TopK", [f(3, 6), i(2)], {"axis": 1}, 11, 2),
    ("Det", [f(2, 3, 3)], {}, 11, 1),
    ("NonMaxSuppression", [pos(1, 6, 4), pos(1, 1, 6), np.int64(3), np.float32(0.5)], {}, 11, 1),
    ("RoiAlign", [f(1, 2, 8, 8), np.array([[0, 0, 4, 5]], np.float32), i(0)],
     {"output_height": 2, "output_width": 3, "sampling_ratio": 2, "mode": "avg"}, 16, 1),
    # recurrent
    ("LSTM", [f(5, 2, 3), f(1, 16, 3), f(1, 16, 4)], {"hidden_size": 4}, 14, 3),
    ("LSTM", [f(5, 2, 3), f(2, 16, 3), f(2, 16, 4), f(2, 32), np.array([5, 3], np.int32), f(2, 2, 4), f(2, 2, 4) / 2,
              f(2, 12)], {"hidden_size": 4, "direction": "bidirectional"}, 14, 3),
    ("GRU", [f(5, 2, 3), f(1, 12, 3), f(1, 12, 4), f(1, 24)], {"hidden_size": 4, "direction": "reverse"}, 14, 2),
    ("GRU", [f(5, 2, 3), f(1, 12, 3), f(1, 12, 4), f(1, 24), None, f(1, 2, 4)],
     {"hidden_size": 4, "linear_before_reset": 1}, 14, 2),
    ("RNN", [f(5, 2, 3), f(2, 4, 3), f(2, 4, 4), f(2, 8)],
     {"hidden_size": 4, "direction": "bidirectional", "activations": ["Relu", "Tanh"]}, 14, 2),
]  # fmt: skip

# No such kernel in ONNX Runtime's CPU provider for these, or no tensors in and out.
UNCOMPARED = {
    "Constant", "ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceErase", "SequenceInsert",
    "SequenceLength", "SplitToSequence", "Swish",
}  # fmt: skip


def single(
    op: str, inputs: Sequence[Array | None], attrs: dict[str, Any], opset: int, outputs: int
) -> onnx.ModelProto:
    """A model of one node whose inputs are graph inputs."""
    names = [f"x{n}" if x is not None else "" for n, x in enumerate(inputs)]
    node = helper.make_node(op, names, [f"y{n}" for n in range(outputs)], **attrs)
    given = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(np.asarray(x).dtype), np.asarray(x).shape)
        for n, x in zip(names, inputs, strict=True)
        if x is not None
    ]
    results = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "g", given, results)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def runtime_outputs(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "opset", "outputs"), CASES, ids=[f"{n}-{case[0]}" for n, case in enumerate(CASES)]
)
def test_kernel_agrees_with_onnx_runtime(
    op: str, inputs: Sequence[Array | None], attrs: dict[str, Any], opset: int, outputs: int
) -> None:
    model = single(op, inputs, attrs, opset, outputs)
    feeds = {f"x{n}": np.asarray(x) for n, x in enumerate(inputs) if x is not None}
    expected = runtime_outputs(model, feeds)
    found = Evaluator(ir.from_proto(model)).run(feeds)
    for want, have in zip(expected, found.values(), strict=True):
        assert have.shape == want.shape
        if want.dtype.kind != "f":
            np.testing.assert_array_equal(have, want)
            continue
        assert have.dtype == np.float64
        scale = np.max(np.abs(want), initial=0.0, where=np.isfinite(want))
        # float32 rounding of sums of some fifty terms; anything wrong is of the order of the values themselves
        np.testing.assert_allclose(have, want, rtol=2e-5, atol=5e-6 * scale)


def test_every_kernel_was_compared() -> None:
    assert set(KERNELS) - {case[0] for case in CASES} == UNCOMPARED


# ONNX Runtime's CPU provider has double kernels for these.
DOUBLE = ("Gemm", "MatMul", "Softmax", "BatchNormalization", "ReduceMean", "Exp", "Tanh", "LayerNormalization", "Add")


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "opset", "outputs"), [case for case in CASES if case[0] in DOUBLE]
)
def test_kernel_is_double_where_the_runtime_has_doubles(
    op: str, inputs: Sequence[Array | None], attrs: dict[str, Any], opset: int, outputs: int
) -> None:
    wide = [x.astype(np.float64) if x is not None and x.dtype == np.float32 else x for x in inputs]
    feeds = {f"x{n}": x for n, x in enumerate(wide) if x is not None}
    model = single(op, wide, attrs, opset, outputs)
    found = Evaluator(ir.from_proto(model)).run(feeds)
    for want, have in zip(runtime_outputs(model, feeds), found.values(), strict=True):
        if want.dtype == np.float64:  # LayerNormalization gives its mean in float32
            np.testing.assert_allclose(have, want, rtol=1e-12, atol=1e-13)


# Their outputs are rounded or chosen by intent, or do not depend on the floats' low bits.
STEPS = {"Ceil", "Floor", "Round", "Sign", "Hardmax", "Shape", "Size", "EyeLike", "QuantizeLinear", "CastLike"}


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "opset", "outputs"), [case for case in CASES if case[0] not in STEPS]
)
def test_no_kernel_takes_a_float32_step(
    op: str, inputs: Sequence[Array | None], attrs: dict[str, Any], opset: int, outputs: int
) -> None:
    """Inputs moved by 2⁻⁴⁰, far below float32's resolution, must show in the output, but only as they should."""
    wide = {f"x{n}": np.asarray(x) for n, x in enumerate(inputs) if x is not None}
    near = {n: x.astype(np.float64) if x.dtype == np.float32 else x for n, x in wide.items()}
    scales = near.keys() - {"x0"} if op in ("Resize", "Upsample") else set()
    moved = {n: x * (1 + 2.0**-40) if x.dtype == np.float64 and n not in scales else x for n, x in near.items()}
    e = Evaluator(ir.from_proto(single(op, inputs, attrs, opset, outputs)))
    for have, want in zip(e.run(moved).values(), e.run(near).values(), strict=True):
        if have.dtype == np.float64 and any(x.dtype == np.float64 for x in near.values()):
            finite = np.isfinite(want)
            change = np.abs(have[finite] - want[finite])
            assert change.max() < 1e-8 * max(np.abs(want[finite]).max(), 1.0)
            if op not in ("Softmax", "LogSoftmax", "LpNormalization", "IsInf"):  # invariant, or nearly so
                assert change.max() > 0


def test_erf_and_what_is_made_of_it_are_double() -> None:
    """onnx's Erf computes in float32; so do the bodies of its function operators."""
    x = np.linspace(-3, 3, 41)
    exact = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(KERNELS["Erf"](Call("Erf"), [x])[0], exact, rtol=1e-15)
    gelu = 0.5 * x * (1 + np.array([math.erf(v / math.sqrt(2)) for v in x]))
    np.testing.assert_allclose(KERNELS["Gelu"](Call("Gelu"), [x])[0], gelu, rtol=1e-15)
    swish = x / (1 + np.exp(-0.7 * x))
    np.testing.assert_allclose(KERNELS["Swish"](Call("Swish", {"alpha": 0.7}), [x])[0], swish, rtol=1e-14)


def test_sequences_agree_with_onnx_runtime() -> None:
    text = f"""{HEAD} g (float[6,2] x) => (float[p,2] y, int64 n) {{
        one = Constant <value = int64 {{1}}> ()
        two = Constant <value = int64 {{2}}> ()
        s = SplitToSequence <axis=0> (x, two)
        a = SequenceAt (s, one)
        t = SequenceInsert (s, a)
        u = SequenceErase (t, one)
        v = SequenceConstruct (a, a)
        y = ConcatFromSequence <axis=0> (u)
        n = SequenceLength (v)
    }}"""
    expected = runtime_outputs(parser.parse_model(text), {"x": f(6, 2)})
    for want, have in zip(expected, evaluator(text).run({"x": f(6, 2)}).values(), strict=True):
        np.testing.assert_array_equal(have, want)


@pytest.mark.skipif(not TORCH, reason="torch is not installed")
@pytest.mark.parametrize("seed", range(30))
def test_convolutions_and_pools_agree_with_torch_in_double(seed: int) -> None:
    import torch
    import torch.nn.functional as F

    rng = np.random.default_rng(seed)
    rank, group = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2, 3]))
    size = [int(n) for n in rng.integers(6, 10, rank)]
    kernel, stride, dilation = ([int(n) for n in rng.integers(1, top, rank)] for top in (4, 3, 3))
    pad = [int(rng.integers(0, k // 2 + 1)) for k in kernel]
    inside, outside = group * int(rng.integers(1, 3)), group * int(rng.integers(1, 3))
    x = rng.standard_normal((2, inside, *size))
    attrs = {"strides": stride, "dilations": dilation, "pads": pad * 2, "group": group}
    w = rng.standard_normal((outside, inside // group, *kernel))
    exact = getattr(F, f"conv{rank}d")(torch.tensor(x), torch.tensor(w), None, stride, pad, dilation, group).numpy()
    np.testing.assert_allclose(KERNELS["Conv"](Call("Conv", attrs), [x, w])[0], exact, atol=1e-12)
    w = rng.standard_normal((inside, outside // group, *kernel))
    extra = [int(rng.integers(0, max(s, d))) for s, d in zip(stride, dilation, strict=True)]
    extra = [min(e, max(s, d) - 1) for e, s, d in zip(extra, stride, dilation, strict=True)]
    exact = getattr(F, f"conv_transpose{rank}d")(
        torch.tensor(x), torch.tensor(w), None, stride, pad, extra, group, dilation
    ).numpy()
    found = KERNELS["ConvTranspose"](Call("ConvTranspose", {**attrs, "output_padding": extra}), [x, w])[0]
    np.testing.assert_allclose(found, exact, atol=1e-12)
    pooled = getattr(F, f"max_pool{rank}d")(torch.tensor(x), kernel, stride, pad, dilation).numpy()
    found = KERNELS["MaxPool"](Call("MaxPool", {**attrs, "kernel_shape": kernel}), [x])[0]
    np.testing.assert_array_equal(found, pooled)
    pooled = getattr(F, f"avg_pool{rank}d")(torch.tensor(x), kernel, stride, pad, count_include_pad=False).numpy()
    call = Call("AveragePool", {"kernel_shape": kernel, "strides": stride, "pads": pad * 2})
    np.testing.assert_allclose(KERNELS["AveragePool"](call, [x])[0], pooled, atol=1e-12)


def evaluator(text: str, constants: dict[str, Array] | None = None, **kwargs: Any) -> Evaluator:
    model = parser.parse_model(text)
    for name, array in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return Evaluator(ir.from_proto(model), **kwargs)


HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def test_epsilon_is_the_stored_float32_value() -> None:
    text = f"{HEAD} g (float[1,1] x) => (float[1,1] y) {{ y = BatchNormalization <epsilon=0.1> (x, s, b, m, v) }}"
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    e = evaluator(text, {"s": one, "b": zero, "m": zero, "v": zero})
    assert e.run({"x": np.ones((1, 1), np.float32)})["y"].item() == 1 / np.sqrt(np.float64(np.float32(0.1)))


def test_if_takes_the_branch_and_sees_outer_values() -> None:
    e = evaluator(
        f"""{HEAD} g (float[2] x, bool c) => (float[2] y) {{
        z = Neg (x)
        y = If (c) <then_branch = t () => (float[2] a) {{ a = Add (x, z) }},
                    else_branch = f () => (float[2] b) {{ b = Mul (z, w) }}>
        }}""",
        {"w": np.array([2, 3], np.float32)},
    )
    x = np.array([1, 2], np.float32)
    assert e.run({"x": x, "c": np.array(True)})["y"].tolist() == [0, 0]
    assert e.run({"x": x, "c": np.array(False)})["y"].tolist() == [-2, -6]


def test_loop_carries_stacks_and_stops() -> None:
    e = evaluator(
        f"""{HEAD} g (float[2] x, int64 n) => (float[2] last, float[k,2] all) {{
        t = Constant <value = bool {{1}}> ()
        last, all = Loop (n, t, x) <body = b (int64 step, bool go, float[2] s) => (bool on, float[2] r, float[2] o) {{
            on = Identity (go)
            r = Mul (s, w)
            o = Identity (r) }}>
        }}""",
        {"w": np.array([2, 3], np.float32)},
    )
    found = e.run({"x": np.ones(2, np.float32), "n": np.array(3)})
    assert found["last"].tolist() == [8, 27]
    assert found["all"].tolist() == [[2, 3], [4, 9], [8, 27]]


def test_scan_agrees_with_onnx_runtime() -> None:
    text = f"""{HEAD} g (float[2] s, float[4,2] x) => (float[2] last, float[4,2] all) {{
        last, all = Scan <num_scan_inputs=1, scan_input_directions=[1], body = b (float[2] i, float[2] e)
            => (float[2] o, float[2] z) {{ o = Add (i, e)  z = Mul (o, e) }}> (s, x)
        }}"""
    feeds = {"s": f(2), "x": f(4, 2)}
    expected = runtime_outputs(parser.parse_model(text), feeds)
    for want, have in zip(expected, evaluator(text).run(feeds).values(), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5)


def test_local_functions_are_evaluated() -> None:
    e = evaluator(
        """<ir_version: 8, opset_import: ["": 17, "own": 1]> g (float[2] x) => (float[2] y) { y = own.twice (x) }
        <opset_import: ["": 17], domain: "own"> twice (a) => (b) { b = Add (a, a) }"""
    )
    assert e.run({"x": np.array([1, 2], np.float32)})["y"].tolist() == [2, 4]


def test_unknown_operators_are_named() -> None:
    model = parser.parse_model(
        f"{HEAD} g (float[2] x) => (float[2] y) {{ z = RandomNormalLike (x) y = Bernoulli (z) }}"
    )
    assert unsupported(ir.from_proto(model)) == ["Bernoulli", "RandomNormalLike"]
    with pytest.raises(Unsupported, match="Bernoulli, RandomNormalLike"):
        Evaluator(ir.from_proto(model))


def test_training_mode_is_no_inference() -> None:
    model = single("BatchNormalization", [f(*X), f(3), f(3), f(3), pos(3)], {"training_mode": 1}, 15, 3)
    with pytest.raises(Unsupported, match="training mode"):
        Evaluator(ir.from_proto(model)).run({f"x{n}": x for n, x in enumerate([f(*X), f(3), f(3), f(3), pos(3)])})


def test_values_are_freed_after_their_last_use() -> None:
    """A chain of thirty layers never holds more than a few of their outputs."""
    body = "\n".join(f"v{n + 1} = Neg (v{n})" for n in range(30))
    e = evaluator(f"{HEAD} g (float[1000] v0) => (float[1000] v30) {{ {body} }}")
    held: list[int] = []
    env: dict[ir.Value, Any] = {e.model.graph.inputs[0]: np.ones(1000)}
    e.run_graph(e.model.graph, env, lambda node, inputs, results: held.append(len(env)))
    assert max(held) <= 2


def test_inputs_are_never_changed() -> None:
    """Kernels work out of place: a view of a weight or an input must survive them."""
    for op, inputs, attrs, opset, outputs in CASES:
        feeds = {f"x{n}": np.array(x) for n, x in enumerate(inputs) if x is not None}
        wide = {n: x.astype(np.float64) if x.dtype == np.float32 else x for n, x in feeds.items()}
        for x in wide.values():
            x.setflags(write=False)
        Evaluator(ir.from_proto(single(op, inputs, attrs, opset, outputs))).run(wide)


NOISY = f"""{HEAD} g (float[N,4] x) => (float[N,4] y) {{
    a = MatMul (x, w)
    n = Constant <value = float[4] {{1.0, 2.0, 3.0, 4.0}}> ()
    b = Mul (a, n)
    c = Pow (b, two)
    d = Clip (c, low, high)
    r = Shape (d)
    f = Cast <to = 1> (r)
    h = Mul (f, half)
    k = Cast <to = 7> (h)
    m = Mul (k, i2)
    y = Reshape (d, m)
}}"""


def test_noise_moves_weights_and_nothing_else() -> None:
    """Exponents, Clip bounds and arithmetic on shapes stay: perturbing them would change more than rounding does."""
    constants = {
        "w": f(4, 4), "two": np.float32(2), "low": np.float32(-1e9), "high": np.float32(1e9),
        "half": np.float32(0.5), "i2": np.array(2, np.int64),
    }  # fmt: skip
    x = {"x": f(2, 4)}
    constants = {k: np.asarray(v) for k, v in constants.items()}
    y = evaluator(NOISY, constants).run(x)["y"]
    u = 2.0**-24
    changes = []
    for seed in range(3):
        z = evaluator(NOISY, constants, noise=Noise(seed, lambda value: u)).run(x)["y"]
        assert z.shape == y.shape
        changes.append(np.abs(z - y).max() / np.abs(y).max())
    assert all(0 < change < 20 * u for change in changes)
    assert len(set(changes)) == 3


def test_fixed_values_are_those_no_input_reaches() -> None:
    constants = {name: np.ones(1, np.float32) for name in ("w", "two", "low", "high", "half", "i2")}
    fixed = fixed_values(evaluator(NOISY, constants).model.graph)
    assert {v.name for v in fixed} - constants.keys() == {"n", "r", "f", "h", "k", "m"}


def test_control_flow_has_its_own_table() -> None:
    assert not set(control.CONTROL) & set(KERNELS)
