"""Latency as ratios: models timed in turn within one run, so that what disturbs one disturbs all.

Absolute times on a shared machine drift by more than folding gains. Each round runs every model once, in an order
that is reversed and rotated from round to round; a ratio is taken within each round, and the report gives the median
of the rounds with a bootstrap interval.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from bnfold import runtime
from bnfold.arrays import Array, Float64
from bnfold.errors import InputError, UsageError
from bnfold.inputs import feeds
from bnfold.io import Source, load

SCHEMA_VERSION = 1
WARM_UP = 3
# Runs are timed in blocks of at least this long: below it the clock and the call weigh in.
BLOCK_S = 2e-3
RESAMPLES = 2000
# An interval wider than this share of the ratio does not tell a gain of folding from none.
WIDE = 0.1


@dataclass(frozen=True)
class Row:
    """One model's latency in microseconds per call, and its ratio to the first model's (below 1 is faster)."""

    name: str
    median_us: float
    p10_us: float
    p90_us: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class BenchReport:
    """Latencies of several models, measured against each other; `ratio` is the last model's."""

    rows: tuple[Row, ...]
    provider: str
    threads: int | None
    rounds: int
    inputs: Mapping[str, tuple[int, ...]]
    onnxruntime: str

    @property
    def ratio(self) -> float:
        """The last model's latency over the first's, the median over rounds; 1.0 for a single model."""
        return self.rows[-1].ratio

    @property
    def hint(self) -> str | None:
        """What would make the ratios certain; None where every interval is narrow."""
        widths = {row.name: (row.ratio_high - row.ratio_low) / row.ratio for row in self.rows[1:]}
        name, width = max(widths.items(), key=lambda item: item[1], default=("", 0.0))
        if width <= WIDE:
            return None
        rounds = self.rounds * min(max(2, math.ceil((width / WIDE) ** 2)), 10)
        return f"the interval of {name} is wide: use a quieter machine, or --rounds {rounds}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": SCHEMA_VERSION,
            "rows": [asdict(row) for row in self.rows],
            "ratio": self.ratio,
            "provider": self.provider,
            "threads": self.threads,
            "rounds": self.rounds,
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "onnxruntime": self.onnxruntime,
            "hint": self.hint,
        }

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"{'':{width}}  median µs     p10     p90   ratio to the first (95 %)"]
        for row in self.rows:
            times = f"{row.median_us:9.1f} {row.p10_us:7.1f} {row.p90_us:7.1f}"
            lines.append(f"{row.name:{width}}  {times}   {row.ratio:.3f} ({row.ratio_low:.3f}–{row.ratio_high:.3f})")
        shapes = ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in self.inputs.items())
        threads = "default threads" if self.threads is None else f"{self.threads} thread{'s' * (self.threads > 1)}"
        rounds = f"{self.rounds} round{'s' * (self.rounds > 1)}"
        lines.append(f"{self.provider}, {threads}, {rounds}, {shapes}")
        return "\n".join(lines)


def bench(
    models: Source | Sequence[Source],
    *,
    provider: str = "cpu",
    rounds: int = 30,
    threads: int | None = 1,
    batch: int | None = None,
    dims: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> BenchReport:
    """Time models against each other on one seeded input, as deployed (all of ONNX Runtime's optimizations on).

    `batch` sizes the dynamic leading dimensions, `dims` any dynamic dimension by symbolic name or "input:axis".
    `progress` is called with what is being done. Raises `UsageError` for no model or no round, `InputError` if the
    models take different inputs, and what opening and running them raises.
    """
    sources = [models] if isinstance(models, (str, os.PathLike, onnx.ModelProto, ir.Model)) else list(models)
    if not sources:
        raise UsageError("name at least one model to time")
    for name, number in (("rounds", rounds), ("threads", threads)):
        if number is not None and number < 1:
            raise UsageError(f"{name} must be at least 1, not {number}")
    say = progress or (lambda text: None)
    say("opening sessions")
    loaded = [load(source) for source in sources]
    names = _names(sources)
    _check_interfaces(names, loaded)
    sessions = [runtime.session(s, provider, optimize=True, threads=threads, gate=False) for s in sources]
    if batch is not None and batch > 1 and not feeds.batch_dims(loaded[0]):
        raise UsageError(f"batch {batch}: {names[0]} has no dynamic batch dimension; leave the batch out")
    sizes = {**(dict.fromkeys(feeds.batch_dims(loaded[0]), batch) if batch is not None else {}), **(dims or {})}
    attempt = partial(runtime.attempt, partial(runtime.run, sessions[0]))
    sample = feeds.generated(loaded[0], seed=seed, samples=1, dims=sizes, attempt=attempt)[0]
    times = _timed(sessions, sample.feeds, rounds, say)
    rows = [row(name, times[:, i], times[:, 0], seed) for i, name in enumerate(names)]
    shapes = {name: array.shape for name, array in sample.feeds.items()}
    return BenchReport(tuple(rows), provider, threads, rounds, shapes, runtime.version())


def _names(sources: Sequence[Source]) -> list[str]:
    paths = [os.fspath(s) if isinstance(s, (str, os.PathLike)) else "" for s in sources]
    short = [os.path.basename(p) or f"model {i}" for i, p in enumerate(paths, 1)]
    return short if len(set(short)) == len(short) else [p or s for p, s in zip(paths, short, strict=True)]


def _check_interfaces(names: Sequence[str], models: Sequence[ir.Model]) -> None:
    first = [(v.name, v.dtype) for v in feeds.inputs(models[0])]
    for name, model in zip(names[1:], models[1:], strict=True):
        if [(v.name, v.dtype) for v in feeds.inputs(model)] != first:
            described = ", ".join(feeds.describe(v) for v in feeds.inputs(model)) or "none"
            raise InputError(f"{name} takes other inputs than {names[0]}: {described}; time models that take the same")


def _timed(sessions: Sequence[Any], sample: Mapping[str, Array], rounds: int, say: Callable[[str], None]) -> Float64:
    """Seconds per call `(rounds, sessions)`."""
    repeats = [_repeats(session, sample) for session in sessions]
    times = np.empty((rounds, len(sessions)))
    for index, order in enumerate(orders(len(sessions), rounds)):
        say(f"round {index + 1} of {rounds}")
        for position in order:
            times[index, position] = _block(sessions[position], sample, repeats[position])
    return times


def orders(count: int, rounds: int) -> Iterator[list[int]]:
    """Yield the order of each round: rotated every other round, and reversed in between."""
    for index in range(rounds):
        shift = index // 2 % count
        order = [(i + shift) % count for i in range(count)]
        yield order[::-1] if index % 2 else order


def _repeats(session: Any, sample: Mapping[str, Array]) -> int:
    for _ in range(WARM_UP):
        runtime.run(session, sample)
    return max(1, int(BLOCK_S / max(_block(session, sample, 1), 1e-7)))


def _block(session: Any, sample: Mapping[str, Array], repeats: int) -> float:
    """Seconds per call over `repeats` calls."""
    start = time.perf_counter()
    for _ in range(repeats):
        runtime.run(session, sample)
    return (time.perf_counter() - start) / repeats


def row(name: str, times: Float64, first: Float64, seed: int) -> Row:
    """A model's row from the seconds per call of every round `(rounds,)`, its own and the first model's."""
    ratios = times / first
    rng = np.random.default_rng(seed)
    medians = np.median(ratios[rng.integers(0, len(ratios), (RESAMPLES, len(ratios)))], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    p10, median, p90 = np.percentile(times * 1e6, [10, 50, 90])
    return Row(name, float(median), float(p10), float(p90), float(np.median(ratios)), float(low), float(high))
