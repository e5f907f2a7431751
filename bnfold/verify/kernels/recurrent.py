"""LSTM, GRU and RNN in float64 after the ONNX specification, with gates in its order (iofc, zrh)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bnfold.arrays import Array
from bnfold.verify.kernels.base import Arrays, Call, Unsupported, kernel, optional
from bnfold.verify.kernels.elementwise import hard_sigmoid, sigmoid

Activation = Callable[[Array], Any]

# name → (formula of x, alpha, beta; default alpha, beta)
ACTIVATIONS: dict[str, tuple[Callable[..., Any], float, float]] = {
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "elu": (lambda x, a, b: np.where(x >= 0, x, a * np.expm1(x)), 1.0, 0.0),
    "hardsigmoid": (hard_sigmoid, float(np.float32(0.2)), 0.5),
    "leakyrelu": (lambda x, a, b: np.where(x >= 0, x, a * x), float(np.float32(0.01)), 0.0),
    "relu": (lambda x, a, b: np.maximum(x, 0.0), 0.0, 0.0),
    "scaledtanh": (lambda x, a, b: a * np.tanh(b * x), 1.0, 1.0),
    "sigmoid": (lambda x, a, b: sigmoid(x), 0.0, 0.0),
    "softplus": (lambda x, a, b: np.logaddexp(0.0, x), 0.0, 0.0),
    "softsign": (lambda x, a, b: x / (1.0 + np.abs(x)), 0.0, 0.0),
    "tanh": (lambda x, a, b: np.tanh(x), 0.0, 0.0),
    "thresholdedrelu": (lambda x, a, b: np.where(x >= a, x, 0.0), 1.0, 0.0),
}

DEFAULTS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}


def _activations(call: Call, directions: int) -> list[Activation]:
    names = [str(n).lower() for n in call.get("activations") or DEFAULTS[call.op] * directions]
    alphas, betas = list(call.get("activation_alpha") or []), list(call.get("activation_beta") or [])
    clip = call.get("clip")
    result: list[Activation] = []
    for name in names:
        if name not in ACTIVATIONS:
            raise Unsupported(f"{call.op} with activation {name}")
        formula, alpha, beta = ACTIVATIONS[name]
        # Alphas and betas are listed only for the activations that take one, in order.
        if name in ("affine", "elu", "hardsigmoid", "leakyrelu", "scaledtanh", "thresholdedrelu") and alphas:
            alpha = alphas.pop(0)
        if name in ("affine", "hardsigmoid", "scaledtanh") and betas:
            beta = betas.pop(0)

        def apply(x: Array, formula: Any = formula, alpha: float = alpha, beta: float = beta) -> Any:
            return formula(x if clip is None else np.clip(x, -clip, clip), alpha, beta)

        result.append(apply)
    return result


def _lstm(call: Call, act: list[Activation], x: Array, h: Array, c: Array, w: Any) -> tuple[Array, Array]:
    f, g, last = act
    gates = x @ w["W"].T + h @ w["R"].T + w["Wb"] + w["Rb"]
    i, o, fo, z = np.split(gates, 4, axis=-1)
    pi, po, pf = np.split(w["P"], 3)
    i = f(i + pi * c)
    fo = 1.0 - i if call.get("input_forget", 0) else f(fo + pf * c)
    c = fo * c + i * g(z)
    return f(o + po * c) * last(c), c


def _gru(call: Call, act: list[Activation], x: Array, h: Array, c: Array, w: Any) -> tuple[Array, Array]:
    f, g = act
    wz, wr, wh = np.split(x @ w["W"].T + w["Wb"], 3, axis=-1)
    rz, rr, rh = np.split(w["R"], 3, axis=0)
    bz, br, bh = np.split(w["Rb"], 3)
    z, r = f(wz + h @ rz.T + bz), f(wr + h @ rr.T + br)
    hidden = r * (h @ rh.T + bh) if call.get("linear_before_reset", 0) else (r * h) @ rh.T + bh
    return (1.0 - z) * g(wh + hidden) + z * h, c


def _rnn(call: Call, act: list[Activation], x: Array, h: Array, c: Array, w: Any) -> tuple[Array, Array]:
    return act[0](x @ w["W"].T + h @ w["R"].T + w["Wb"] + w["Rb"]), c


CELLS = {"LSTM": (_lstm, 4, 3), "GRU": (_gru, 3, 2), "RNN": (_rnn, 1, 1)}


@kernel("LSTM", "GRU", "RNN")
def recurrent(call: Call, inputs: Arrays) -> Arrays:
    """Run x [T, N, I] (or [N, T, I] with layout 1) through the cell in each direction."""
    cell, gates, per_direction = CELLS[call.op]
    x, weight, recurrence = inputs[:3]
    if call.get("layout", 0):
        x = x.transpose(1, 0, 2)
    steps, batch = x.shape[:2]
    directions, hidden = recurrence.shape[0], recurrence.shape[-1]
    activations = _activations(call, directions)
    lengths = optional(inputs, 4)
    lengths = np.full(batch, steps) if lengths is None else lengths

    def given(index: int, shape: tuple[int, ...]) -> Array:
        value = optional(inputs, index)
        return np.zeros(shape) if value is None else value

    initial = [given(i, (directions, batch, hidden)) for i in (5, 6)]
    if call.get("layout", 0):
        for i, index in enumerate((5, 6)):
            initial[i] = initial[i] if optional(inputs, index) is None else initial[i].transpose(1, 0, 2)
    bias = given(3, (directions, 2 * gates * hidden))
    peephole = given(7, (directions, 3 * hidden)) if call.op == "LSTM" else np.zeros((directions, 3 * hidden))

    y = np.zeros((steps, directions, batch, hidden))
    final_h, final_c = np.zeros((directions, batch, hidden)), np.zeros((directions, batch, hidden))
    for d in range(directions):
        backward = d == 1 or call.get("direction", "forward") == "reverse"
        parts = {"W": weight[d], "R": recurrence[d], "P": peephole[d]}
        parts["Wb"], parts["Rb"] = np.split(bias[d], 2)
        act = activations[d * per_direction : (d + 1) * per_direction]
        h, c = initial[0][d], initial[1][d]
        for step in range(steps):
            # A shorter sequence is reversed within its own length; where it has ended, the state stays.
            at = np.where(step < lengths, lengths - 1 - step, step) if backward else np.full(batch, step)
            at = at.astype(np.int64)
            live = (step < lengths)[:, None]
            new_h, new_c = cell(call, act, x[at, np.arange(batch)], h, c, parts)
            h, c = np.where(live, new_h, h), np.where(live, new_c, c)
            y[at, d, np.arange(batch)] = np.where(live, h, 0.0)
        final_h[d], final_c[d] = h, c
    if call.get("layout", 0):
        y, final_h, final_c = y.transpose(2, 0, 1, 3), final_h.transpose(1, 0, 2), final_c.transpose(1, 0, 2)
    return (y, final_h, final_c)[: max(call.outputs, 1)]
