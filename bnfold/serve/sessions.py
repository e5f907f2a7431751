"""A model's sessions: one with all threads, and one with a single thread for what is too short to be shared."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bnfold import runtime
from bnfold.arrays import Array
from bnfold.providers import named, short
from bnfold.serve.contract import Contract
from bnfold.serve.errors import Refused
from bnfold.serve.machine import cores
from bnfold.serve.runner import Runner
from bnfold.serve.settings import MIB, Settings

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# Seconds; a run of less is not shared by threads: to wake them takes as long as it saves. How often one is timed.
SHORT, _TRIES = 0.002, 5
# Bytes of weights that are held twice; a model of more is hardly ever short.
TWICE = 64 * MIB
# An arena that grows by what is needed, where by default it doubles.
_ARENA = {name: {"arena_extend_strategy": "kSameAsRequested"} for name in ("cuda", "rocm")}


@dataclass(frozen=True)
class Sessions:
    """What runs a model: in one thread if no input of `by_rows` has more than `most` rows, else in `threads`."""

    main: InferenceSession
    shared: Runner
    threads: int
    single: Runner | None = None
    most: float = 0.0
    by_rows: tuple[str, ...] = ()

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run once; raises `Refused`."""
        if self.single is None or any(len(feeds[name]) > self.most for name in self.by_rows):
            return self.shared(feeds)
        return self.single(feeds)

    def stop(self) -> None:
        """End the runs that are under way, and let none begin."""
        for run in (self.shared, self.single):
            if run is not None:
                run.stop()


def open_sessions(path: Path, settings: Settings, declared: Contract, weights: int) -> Sessions:
    """Open a model of so many bytes of weights; raises `ModelError` or `ProviderError`.

    Unless the threads are told, a row is timed where its size is known. Requests of so many rows that one thread should
    answer them in less than `SHORT`, were each to take as long, have one thread, and others run beside them.
    """
    on_cpu, threads = named(settings.provider).on_cpu, settings.threads or cores()
    opened = partial(
        runtime.session,
        path,
        settings.provider,
        optimize=True,
        strict=settings.strict_device,
        gate=False,
        hosting=runtime.Hosting(_provider_options(settings), settings.custom_ops),
    )
    main = opened(threads=threads)
    several = Sessions(main, Runner(main, bind=not on_cpu), threads)
    ports, random = declared.inputs.values(), np.random.default_rng(0)
    if settings.threads or threads == 1 or not on_cpu or weights > TWICE or not all(port.is_plain for port in ports):
        return several
    row = {port.name: port.sample(random) for port in ports}
    if seconds(several.shared, row) >= SHORT:
        return several
    alone = opened(threads=1)
    single = Runner(alone, bind=False)
    took = seconds(single, row)
    if took >= SHORT:
        return several
    if by_rows := tuple(port.name for port in ports if port.shape and not isinstance(port.shape[0], int)):
        return Sessions(main, several.shared, threads, single, SHORT / took, by_rows)
    return Sessions(alone, single, 1)


def seconds(run: Runner, feeds: Mapping[str, Array]) -> float:
    """The least that a run takes; infinite if it fails, which the warm-up tells of."""
    times = [inf]
    with suppress(Refused):
        for _ in range(_TRIES):
            start = time.perf_counter()
            run(feeds)
            times.append(time.perf_counter() - start)
            if min(times) > 10 * SHORT:
                break  # it is not short, however often it is run
    return min(times)


def _provider_options(settings: Settings) -> dict[str, str]:
    options = dict(_ARENA.get(short(settings.provider), {}))
    if options and settings.device_memory is not None:
        options["gpu_mem_limit"] = str(settings.device_memory)
    return options
