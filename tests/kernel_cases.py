"""What each float64 kernel is compared on, one row for whatever changes its path."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from bnfold.arrays import Array


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
    # places that are computed
    *[("GridSample", [f(2, 3, 5, 6), 2 * f(2, 7, 8, 2)],
       {"mode": mode, "padding_mode": padding, "align_corners": aligned}, 20, 1)
      for mode in ("nearest", "linear", "cubic") for padding in ("zeros", "border", "reflection")
      for aligned in (0, 1)],
    *[("GridSample", [f(2, 3, 5, 1), 2 * f(2, 7, 8, 2)], {"mode": mode, "padding_mode": "reflection"}, 16, 1)
      for mode in ("nearest", "bilinear", "bicubic")],
    *[("GridSample", [f(1, 2, 3, 4, 5), 2 * f(1, 4, 3, 2, 3)], {"mode": mode, "padding_mode": padding}, 20, 1)
      for mode in ("nearest", "linear") for padding in ("zeros", "border", "reflection")],
    ("GridSample", [f(2, 3, 5, 6), f(2, 7, 8, 2)], {}, 22, 1),
    ("AffineGrid", [f(2, 2, 3), i(2, 3, 4, 5)], {}, 20, 1),
    ("AffineGrid", [f(2, 3, 4), i(2, 3, 4, 5, 6)], {"align_corners": 1}, 20, 1),
    ("MaxRoiPool", [f(2, 3, 9, 8), np.array([[0, 0, 0, 7, 7], [1, 2, 3, 15, 11], [0, 5, 5, 4, 4]], np.float32)],
     {"pooled_shape": [2, 3], "spatial_scale": 0.5}, 21, 1),
    ("DeformConv", [f(1, 4, 6, 6), f(4, 2, 3, 3), f(1, 36, 4, 4), f(4), pos(1, 18, 4, 4)],
     {"group": 2, "offset_group": 2}, 19, 1),
    ("DeformConv", [f(1, 2, 6, 7), f(3, 2, 2, 2), f(1, 8, 4, 4)],
     {"strides": [2, 2], "pads": [1, 1, 1, 1], "dilations": [1, 1]}, 19, 1),
    # attention
    ("Attention", [f(2, 3, 4, 8), f(2, 3, 5, 8), f(2, 3, 5, 6)], {}, 23, 1),
    ("Attention", [f(2, 6, 4, 8), f(2, 3, 5, 8), f(2, 3, 5, 6)], {"is_causal": 1, "scale": 0.3}, 23, 1),
    ("Attention", [f(2, 4, 24), f(2, 5, 24), f(2, 5, 24), f(4, 5)],
     {"q_num_heads": 3, "kv_num_heads": 3, "softcap": 2.0}, 23, 1),
    ("Attention", [f(2, 3, 4, 8), f(2, 3, 5, 8), f(2, 3, 5, 6), b(4, 7), f(2, 3, 2, 8), f(2, 3, 2, 6)], {}, 23, 3),
    ("RotaryEmbedding", [f(2, 3, 4, 8), f(10, 4), f(10, 4), i([0, 1, 2, 3], [3, 2, 1, 0])], {}, 23, 1),
    ("RotaryEmbedding", [f(2, 3, 4, 8), f(2, 4, 2), f(2, 4, 2)], {"rotary_embedding_dim": 4, "interleaved": 1}, 23, 1),
    ("RotaryEmbedding", [f(2, 4, 24), f(2, 4, 4), f(2, 4, 4)], {"num_heads": 3}, 23, 1),
    ("TensorScatter", [f(2, 3, 5, 4), f(2, 3, 2, 4), i(1, 2)], {}, 24, 1),
    # signals
    ("HannWindow", [np.int64(10)], {}, 17, 1),
    ("HammingWindow", [np.int64(10)], {"periodic": 0}, 17, 1),
    ("BlackmanWindow", [np.int64(9)], {}, 17, 1),
    ("MelWeightMatrix", [np.int64(8), np.int64(64), np.int64(8192), np.float32(20), np.float32(4000)], {}, 17, 1),
    # the rest
    ("Col2Im", [f(2, 12, 20), i(5, 6), i(2, 2)], {}, 18, 1),
    ("Col2Im", [f(1, 8, 9), i(6, 8), i(2, 2)], {"strides": [2, 3], "dilations": [2, 1], "pads": [1, 0, 1, 1]}, 18, 1),
    ("CumProd", [f(2, 5), np.int64(1)], {"exclusive": 1}, 26, 1),
    ("Scatter", [f(3, 4), i([0, 1, 2, 0]), f(1, 4)], {}, 10, 1),
    ("Scatter", [f(3, 4), i([1, 3]), f(1, 2)], {"axis": 1}, 9, 1),
    ("NegativeLogLikelihoodLoss", [f(3, 5), i(0, 1, 4), pos(5)], {"ignore_index": 1}, 13, 1),
    ("SoftmaxCrossEntropyLoss", [f(3, 5, 2), i([0, 1], [4, 2], [3, 3])], {"reduction": "sum"}, 13, 1),
]  # fmt: skip

# No such kernel in ONNX Runtime's CPU provider for these, or no tensors in and out.
UNCOMPARED = {
    "Constant", "ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt",
    "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SplitToSequence",
    "Swish",
}  # fmt: skip
