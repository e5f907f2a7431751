"""LSTM, GRU and RNN read `W·x + Wb` at every step: they sink an affine of their input into W and Wb.

    sink    W′ = W·s        Wb′ = Wb + Σ W·t        for every direction; B = [Wb, Rb] keeps its recurrent half

The input's last axis holds the features in either layout. What comes out has passed a nonlinearity: nothing hoists.
"""

from __future__ import annotations

import numpy as np

from bnfold.affine import ranked
from bnfold.arrays import Float64
from bnfold.graph import Op
from bnfold.rules.base import Refusal, Rule, Table
from bnfold.rules.linear import View, sinking
from bnfold.rules.quantized import weight


def _gates(op: Op) -> View | Refusal:
    """W[directions, gates·hidden, features] and B[directions, 2·gates·hidden]."""
    held = weight(op, 1)
    if isinstance(held, Refusal):
        return held
    directions, rows, features = held.shape

    def respond(t: Float64) -> Float64:
        vector = np.broadcast_to(ranked(t, 3), (1, 1, features)).reshape(features)
        return np.concatenate([held.values() @ vector, np.zeros((directions, rows))], axis=1)

    return View(
        held, x=0, slot=1, x_rank=3, y_rank=2, x_axes=frozenset({2}), y_axes=frozenset(),
        out=lambda a: a, into=lambda a: a, respond=respond,
        bias=lambda a: a, bias_slot=3, bias_shape=(directions, 2 * rows),
    )  # fmt: skip


TABLE: Table = {op_type: Rule("recurrent", sink=sinking(_gates)) for op_type in ("LSTM", "GRU", "RNN")}
