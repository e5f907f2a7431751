"""A version's queue: bounded, with deadlines and cancellation; several requests become one batch where that is on.

Everything here happens on the event loop, except `_work`, which runs a batch in the pool. So there are no locks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnfold.arrays import Array
from bnfold.serve.errors import Refused, overloaded
from bnfold.serve.stats import Stats, Timings

Arrays = Mapping[str, Array]
Run = Callable[[Arrays], dict[str, Array]]


@dataclass(eq=False, slots=True)
class Job:
    """One request in the queue: its inputs, how many rows they have, and where the outputs go."""

    feeds: dict[str, Array]
    rows: int
    future: asyncio.Future[dict[str, Array]]
    shape: tuple[Any, ...] = ()
    came: int = 0
    started: int = 0
    expiry: asyncio.TimerHandle | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of everything: requests that wait, batches at once, rows in a batch, seconds that a batch waits."""

    queue: int = 64
    concurrency: int = 1
    rows: int = 1
    delay: float = 0.0
    timeout: float = 30.0


@dataclass
class Batcher:
    """Runs requests in the order in which they come. `limits.rows` above 1 joins those of equal shape along axis 0.

    `finished` is called after each batch, when its requests have their answers.
    """

    run: Run
    pool: Executor
    limits: Limits
    stats: Stats
    finished: Callable[[Arrays, Arrays, Sequence[Job], Timings], None]
    _waiting: dict[Job, None] = field(default_factory=dict)
    _running: int = 0
    _closed: bool = False
    _timer: asyncio.TimerHandle | None = None
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """Batches that run."""
        return self._running

    def submit(self, feeds: dict[str, Array], rows: int, timeout: float | None = None) -> Job:
        """Queue a request; its `future` gets the outputs, or `Refused`. Cancelling the future takes it out again."""
        if self._closed:
            raise overloaded("this version is being unloaded; try again", "unloading")
        loop = asyncio.get_running_loop()
        job = Job(feeds, rows, loop.create_future(), came=time.perf_counter_ns())
        if self.limits.rows > 1:
            job.shape = tuple((array.shape[1:]) for array in feeds.values())
        if self._running < self.limits.concurrency and not self._waiting and self.limits.delay == 0:
            self._start([job])
            return job
        if len(self._waiting) >= self.limits.queue:
            raise overloaded(f"the queue is full: {self.limits.queue} requests wait; try again", "queue-full")
        wait = min(timeout or self.limits.timeout, self.limits.timeout)
        job.expiry = loop.call_later(wait, self._expire, job, wait)
        self._waiting[job] = None
        job.future.add_done_callback(lambda future: self._waiting.pop(job, None))
        self._pump()
        return job

    async def drain(self) -> None:
        """Wait until nothing waits or runs."""
        while self._waiting or self._running:
            self._idle.clear()
            await self._idle.wait()

    def close(self) -> None:
        """Take nothing more; what was taken is finished."""
        self._closed = True

    def _expire(self, job: Job, wait: float) -> None:
        if not job.future.done():
            job.future.set_exception(overloaded(f"timed out after {wait:g} s in the queue; try again", "timeout"))
        self._settle()

    def _pump(self) -> None:
        while self._waiting and self._running < self.limits.concurrency:
            jobs = self._gather()
            if jobs is None:
                return
            self._start(jobs)

    def _gather(self) -> list[Job] | None:
        """Take the oldest request and those that can go with it; None if it pays to wait for more."""
        first = next(iter(self._waiting))
        jobs, rows = [first], first.rows
        for job in self._waiting:
            if job is not first and job.shape == first.shape and rows + job.rows <= self.limits.rows:
                jobs.append(job)
                rows += job.rows
        if rows < self.limits.rows and self.limits.delay and not self._closed:
            left = self.limits.delay - (time.perf_counter_ns() - first.came) / 1e9
            if left > 0:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(left, self._overdue)
                return None
        for job in jobs:
            del self._waiting[job]
            if job.expiry is not None:
                job.expiry.cancel()
        return jobs

    def _overdue(self) -> None:
        self._timer = None
        self._pump()

    def _start(self, jobs: list[Job]) -> None:
        self._running += 1
        loop = asyncio.get_running_loop()
        now = time.perf_counter_ns()
        for job in jobs:
            job.started = now
        work = self.pool.submit(_work, self.run, jobs)
        work.add_done_callback(lambda done: loop.call_soon_threadsafe(self._end, jobs, done.result()))

    def _end(self, jobs: list[Job], batches: list[Batch]) -> None:
        self._running -= 1
        self._pump()
        for batch in batches:
            for job, answer in zip(batch.jobs, batch.answers, strict=True):
                if job.future.done():
                    continue
                if isinstance(answer, BaseException):
                    job.future.set_exception(answer)
                else:
                    job.future.set_result(answer)
            if batch.outputs is not None:
                self.stats.ran(sum(job.rows for job in batch.jobs), len(batch.jobs), batch.timings)
                self.finished(batch.feeds, batch.outputs, batch.jobs, batch.timings)
        self._settle()

    def _settle(self) -> None:
        if not self._waiting and not self._running:
            self._idle.set()


@dataclass(slots=True)
class Batch:
    """What came of some jobs: an answer or an error for each, and the whole batch as it was run."""

    jobs: Sequence[Job]
    answers: Sequence[dict[str, Array] | BaseException]
    feeds: Arrays = field(default_factory=dict)
    outputs: Arrays | None = None
    timings: Timings = field(default_factory=Timings)


def _work(run: Run, jobs: list[Job]) -> list[Batch]:
    """Run the jobs as one batch; if that fails, each alone, so that a bad one fails alone. Runs in the pool."""
    jobs = [job for job in jobs if not job.future.done()]  # cancelled since it was taken
    if not jobs:
        return []
    try:
        return [_together(run, jobs)]
    except Exception as error:  # whatever it is, the request must hear of it
        if len(jobs) == 1:
            return [Batch(jobs, [error])]
        return [batch for job in jobs for batch in _work(run, [job])]


def _together(run: Run, jobs: list[Job]) -> Batch:
    start = time.perf_counter_ns()
    feeds: Arrays = jobs[0].feeds
    if len(jobs) > 1:
        feeds = {name: np.concatenate([job.feeds[name] for job in jobs]) for name in feeds}
    joined = time.perf_counter_ns()
    outputs = run(feeds)
    done = time.perf_counter_ns()
    answers = [outputs]
    if len(jobs) > 1:
        rows = sum(job.rows for job in jobs)
        if any(array.shape[:1] != (rows,) for array in outputs.values()):
            raise Refused("the model does not keep the rows of a batch apart; serve it without batching", 500, "failed")
        ends = np.cumsum([job.rows for job in jobs]).tolist()
        answers = [
            {name: array[end - job.rows : end] for name, array in outputs.items()}
            for job, end in zip(jobs, ends, strict=True)
        ]
    return Batch(jobs, answers, feeds, outputs, Timings(joined - start, done - joined, time.perf_counter_ns() - done))
