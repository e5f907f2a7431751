"""Discrete Fourier transforms in float64; complex values are pairs (real, imaginary) on a last axis of size 2."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnfold.arrays import Array
from bnfold.verify.kernels.base import Arrays, Call, Unsupported, kernel, optional
from bnfold.verify.kernels.delegate import delegate


@kernel("DFT")
def dft(call: Call, inputs: Arrays) -> Arrays:
    """The transform along one axis (before opset 20 an attribute), cut or padded to `dft_length`."""
    x, length, given = inputs[0], optional(inputs, 1), optional(inputs, 2)
    axis = call.get("axis", 1) if call.opset < 20 else -2 if given is None else int(given)
    # The axis counts the last one, which a complex array doesn't have.
    axis %= x.ndim
    inverse, onesided = bool(call.get("inverse", 0)), bool(call.get("onesided", 0))
    if inverse and onesided:
        raise Unsupported("DFT that is inverse and one-sided")
    values, n = _complex(x), None if length is None else int(length)
    result = (np.fft.ifft if inverse else np.fft.fft)(values, n=n, axis=axis)
    if onesided:
        result = np.take(result, range(result.shape[axis] // 2 + 1), axis=axis)
    return (_pairs(result),)


@kernel("STFT")
def stft(call: Call, inputs: Arrays) -> Arrays:
    """The transforms of windowed frames: [batch, signal, 1 or 2] → [batch, frames, bins, 2]."""
    signal, step = _complex(inputs[0]), int(inputs[1])
    window, length = optional(inputs, 2), optional(inputs, 3)
    size = len(window) if length is None else int(length)
    starts = range(0, signal.shape[1] - size + 1, step)
    frames = np.stack([signal[:, start : start + size] for start in starts], axis=1)
    result = np.fft.fft(frames if window is None else frames * window, axis=-1)
    if call.get("onesided", 1):
        result = result[..., : size // 2 + 1]
    return (_pairs(result),)


@kernel("MelWeightMatrix")
def mel_weight_matrix(call: Call, inputs: Arrays) -> Arrays:
    """The weights of the spectrogram's bins in mel bands, asked for in float64."""
    return delegate(Call(call.op, {"output_datatype": ir.DataType.DOUBLE}, call.opset, 1, call.cache), inputs)


def _complex(x: Array) -> Array:
    if x.ndim == 2:  # ONNX Runtime also takes a real signal without its last axis
        return x
    return x[..., 0] + 1j * x[..., 1] if x.shape[-1] == 2 else x[..., 0]


def _pairs(values: Array) -> Array:
    return np.stack([values.real, values.imag], axis=-1)
