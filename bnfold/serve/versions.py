"""The versions of one name: load, verify, warm, and only then swap; the old one answers until then, and may return."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from bnfold.serve.batching import Arrays, Batcher, Job, Limits
from bnfold.serve.errors import Refused, overloaded, unknown
from bnfold.serve.model import Model
from bnfold.serve.observe import Finished, Observer
from bnfold.serve.stats import Stats, Timings
from bnfold.serve.workers import Workers


class State(Enum):
    """What has become of a name; the protocol's repository index calls both of the last two unavailable."""

    LOADING = auto()
    READY = auto()
    FAILED = auto()
    UNLOADED = auto()

    @property
    def indexed(self) -> str:
        """The index's word for it."""
        return self.name if self in (State.LOADING, State.READY) else "UNAVAILABLE"


@dataclass(eq=False)
class Serving:
    """A loaded version and its queue."""

    model: Model
    batcher: Batcher


@dataclass(eq=False)
class Versions:
    """One name. `current` answers requests that name no version; `previous` is kept warm to roll back to."""

    name: str
    current: Serving | None = None
    previous: Serving | None = None
    state: State = State.UNLOADED
    reason: str = ""
    swaps: int = 0
    stats: dict[str, Stats] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def loaded(self) -> list[Serving]:
        """What can answer, the current one first."""
        return [serving for serving in (self.current, self.previous) if serving is not None]

    def begin(self) -> None:
        """A load begins; what is served meanwhile stays ready."""
        if self.current is None:
            self.state, self.reason = State.LOADING, ""

    def fail(self, reason: str) -> None:
        """The load failed; what is served meanwhile stays ready."""
        if self.current is None:
            self.state, self.reason = State.FAILED, reason

    def pick(self, version: str = "") -> Serving:
        """The version that answers; raises `Refused`."""
        if self.current is None:
            why = "it is being loaded; try again" if self.state is State.LOADING else self.reason or "it is not loaded"
            raise overloaded(f"model {self.name!r} is not ready: {why}", "not-ready")
        for serving in self.loaded:
            if version in ("", serving.model.version):
                return serving
        known = ", ".join(serving.model.version for serving in self.loaded)
        raise unknown(f"model {self.name!r} has no version {version!r:.40}; it serves {known}")

    def swap(self, new: Serving) -> Serving | None:
        """Let `new` answer from now on; return the version that is no longer needed."""
        dropped, self.previous, self.current = self.previous, self.current, new
        self.swaps += 1
        self.state, self.reason = State.READY, ""
        return dropped

    def roll_back(self, reason: str) -> None:
        """Let the previous version answer again; raises `Refused` if there is none."""
        if self.previous is None:
            raise Refused(f"model {self.name!r} has no earlier version to go back to")
        self.current, self.previous = self.previous, self.current
        self.swaps += 1
        self.reason = reason

    def clear(self) -> list[Serving]:
        """Serve nothing, as was asked for; return what was served."""
        dropped, self.current, self.previous = self.loaded, None, None
        self.state, self.reason = State.UNLOADED, "unloaded"
        return dropped


def serve(model: Model, stats: Stats, workers: Workers, limits: Limits, observers: Sequence[Observer],
          guard: Callable[[Callable[[], object]], None]) -> Serving:  # fmt: skip
    """Give a model its queue; `guard` runs an observer and survives it."""

    def finished(feeds: Arrays, outputs: Arrays, jobs: Sequence[Job], timings: Timings) -> None:
        if observers:
            batch = Finished(model, feeds, outputs, sum(job.rows for job in jobs), len(jobs), timings)
            for observer in observers:
                guard(lambda observer=observer: observer.finished(batch))  # type: ignore[misc]

    own = Limits(limits.queue, limits.concurrency, model.rows, limits.delay, limits.timeout)
    return Serving(model, Batcher(model.run, workers, own, stats, finished))
