"""Counters of one model version: the statistics endpoint, the metrics and the status page all read these."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

# Upper bounds in seconds of the latency histogram's buckets.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass
class Duration:
    """How often, and how long in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns


@dataclass
class Timings:
    """One batch, in nanoseconds: joining the inputs, the run, splitting the outputs."""

    join: int = 0
    run: int = 0
    split: int = 0


@dataclass
class Batches:
    """All batches of one number of rows."""

    join: Duration = field(default_factory=Duration)
    run: Duration = field(default_factory=Duration)
    split: Duration = field(default_factory=Duration)


@dataclass
class Recent:
    """Events of the last `span` seconds, counted by the second."""

    span: int = 60
    seconds: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    began: float = 0.0

    def __post_init__(self) -> None:
        self.seconds, self.counts = [-1] * self.span, [0] * self.span
        self.began = time.monotonic()

    def add(self) -> None:
        """Count an event now."""
        second = int(time.monotonic())
        place = second % self.span
        if self.seconds[place] != second:
            self.seconds[place], self.counts[place] = second, 0
        self.counts[place] += 1

    def history(self) -> list[int]:
        """Events in each of the whole seconds behind us, the oldest first."""
        now = int(time.monotonic())
        found = dict(zip(self.seconds, self.counts, strict=True))
        return [found.get(second, 0) for second in range(now - self.span + 1, now)]

    def rate(self) -> float:
        """Events a second; over the time since the beginning while that is shorter than the span."""
        now = time.monotonic()
        held = sum(n for second, n in zip(self.seconds, self.counts, strict=True) if second > now - self.span)
        return held / max(1.0, min(self.span, now - self.began))


@dataclass
class Stats:
    """Requests and batches of one version since the server started; only the event loop's thread writes."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute: Batches = field(default_factory=Batches)
    batches: dict[int, Batches] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    executions: int = 0
    cancelled: int = 0
    last_ms: int = 0
    recent: Recent = field(default_factory=Recent)
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def answered(self, ns: int, rows: int, queued: int) -> None:
        """A request was answered `ns` after it came, of which it waited `queued`."""
        self.success.add(ns)
        self.recent.add()
        self.queue.add(queued)
        self.rows += rows
        self.buckets[bisect_left(BOUNDS, ns / 1e9)] += 1
        self.last_ms = time.time_ns() // 1_000_000

    def failed(self, ns: int, reason: str) -> None:
        """A request was refused or failed."""
        self.fail.add(ns)
        self.refused[reason] += 1

    def ran(self, rows: int, requests: int, timings: Timings) -> None:
        """A batch of `rows` from `requests` requests was run."""
        self.executions += 1
        for batches in (self.compute, self.batches.setdefault(rows, Batches())):
            batches.join.add(timings.join)
            batches.run.add(timings.run)
            batches.split.add(timings.split)

    def percentile(self, share: float) -> float:
        """The upper bound, in seconds, of the bucket in which that share of the answers lies; NaN without any."""
        total = sum(self.buckets)
        if not total:
            return float("nan")
        seen = 0
        for count, bound in zip(self.buckets, (*BOUNDS, float("inf")), strict=True):
            seen += count
            if seen >= share * total:
                return bound
        return float("inf")
