"""CPU time of models that run in turn, on one thread: other work on the machine disturbs it least.

Imported by the scripts that compare latencies; `bnfold bench` is the same by the clock, for users.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold.runtime import run, session

ROUNDS = 60
WARM_UP = 3


def timed(*models: ir.Model, rounds: int = ROUNDS) -> list[float]:
    """Seconds of CPU per run of each: the median of rounds in which all run in turn."""
    return [float(seconds) for seconds in np.median(times(*models, rounds=rounds), axis=0)]


def ratio(first: ir.Model, second: ir.Model, *, rounds: int = ROUNDS) -> float:
    """CPU time of the first over that of the second: the median of the rounds' ratios."""
    found = times(first, second, rounds=rounds)
    return float(np.median(found[:, 0] / found[:, 1]))


def times(*models: ir.Model, rounds: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seconds of CPU per run, one row a round; from round to round the order is reversed."""
    sessions = [session(each, optimize=True, threads=1) for each in models]
    feeds = [{i.name: np.ones([n if isinstance(n, int) else 1 for n in i.shape], np.float32) for i in each.get_inputs()}
             for each in sessions]  # fmt: skip
    found = np.empty((rounds, len(models)))
    for index in range(-WARM_UP, rounds):  # what the first rounds write at negative places, later ones overwrite
        for place in range(len(models))[:: 1 if index % 2 else -1]:
            start = time.thread_time()
            run(sessions[place], feeds[place])
            found[index, place] = time.thread_time() - start
    return found
