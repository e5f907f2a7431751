"""Samples evaluated side by side, each on one core.

A BLAS that spreads every product over all cores waits for the slowest of them in a busy loop: on a machine that does
other work too, that costs several times the products' own CPU time. Here a product stays on its sample's core, unless
the model is so large that a core has to take them all, node by node. How many run at once changes no result.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# What the live tensors of all samples that are evaluated at once may take together.
LIVE_BYTES = 1 << 30
# Weights above this size are held once: samples go one after the other through each node.
LARGE_BYTES = 1 << 28
# What their live tensors may take beside such weights.
TOGETHER_BYTES = 1 << 28


def room(peak: int, size: int) -> int:
    """How many samples of a model of `size` bytes fit side by side if each holds `peak` bytes; one while that is 0."""
    return max(1, min(_cores(), LIVE_BYTES // peak)) if peak and size <= LARGE_BYTES else 1


def together(peak: int, size: int) -> int:
    """How many samples of a model of `size` bytes may go through its nodes together if each holds `peak` bytes.

    Of large weights what is not kept has to be widened and perturbed anew each time; it is once for all of these.
    """
    return max(1, TOGETHER_BYTES // peak) if peak and size > LARGE_BYTES else 1


def parts(items: Sequence[T], length: int) -> list[Sequence[T]]:
    """Cut items into parts of a length; the last may be shorter."""
    return [items[start : start + length] for start in range(0, len(items), length)]


def each(function: Callable[[T], R], items: Sequence[T], workers: int) -> list[R]:
    """Apply a function to every item, `workers` at once, and return the results in order."""
    if min(workers, len(items)) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))


def one_core_products(size: int) -> AbstractContextManager[None]:
    """Within it, numpy's matrix products stay on the core that asks for them; `size` is the model's in bytes."""
    return nullcontext() if size > LARGE_BYTES else _limit.imposed()


class _Limit:
    """One limit on BLAS for all who ask for it at once; it ends with the last of them."""

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.held: Any = None

    @contextmanager
    def imposed(self) -> Iterator[None]:
        from threadpoolctl import threadpool_limits

        with self.lock:
            self.users += 1
            self.held = self.held or threadpool_limits(1, user_api="blas")
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    self.held.restore_original_limits()
                    self.held = None


_limit = _Limit()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
