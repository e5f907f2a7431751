"""A version's queue: bounded, with deadlines and cancellation; several requests become one batch where that is on.

Requests come and are answered on the event loop; the pool's threads run them. A thread that has run a batch takes the
next by itself, for until the event loop came to give it one it would have nothing to do: so a lock guards the queue.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnfold.arrays import Array
from bnfold.serve.errors import Refused, overloaded
from bnfold.serve.stats import Stats, Timings
from bnfold.serve.workers import Workers

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
    wait: float = 0.0
    deadline: float = 0.0

    @property
    def queued(self) -> bool:
        """Whether it could not be run at once."""
        return self.deadline > 0


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
    workers: Workers
    limits: Limits
    stats: Stats
    finished: Callable[[Arrays, Arrays, Sequence[Job], Timings], None]
    _waiting: dict[Job, None] = field(default_factory=dict)
    _started: deque[list[Job]] = field(default_factory=deque)
    _running: int = 0
    _closed: bool = False
    _timer: asyncio.TimerHandle | None = None
    _alarm: asyncio.TimerHandle | None = None
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

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
        job.wait = min(timeout or self.limits.timeout, self.limits.timeout)
        job.deadline = loop.time() + job.wait
        with self._lock:
            if len(self._waiting) >= self.limits.queue:
                raise overloaded(f"the queue is full: {self.limits.queue} requests wait; try again", "queue-full")
            self._waiting[job] = None
        self._alarm_at(job.deadline)
        job.future.add_done_callback(lambda future: self._leave(job))
        self._pump()
        return job

    async def drain(self) -> None:
        """Wait until nothing waits or runs."""
        while self._waiting or self._running:
            self._idle.clear()
            await self._idle.wait()
        if self._alarm is not None:
            self._alarm.cancel()

    def close(self) -> None:
        """Take nothing more; what was taken is finished."""
        self._closed = True

    def _alarm_at(self, deadline: float) -> None:
        """Look then for what has waited too long. One timer serves all, since nearly all are run long before."""
        if self._alarm is not None:
            if self._alarm.when() <= deadline:
                return
            self._alarm.cancel()
        self._alarm = asyncio.get_running_loop().call_at(deadline, self._expire)

    def _expire(self) -> None:
        self._alarm, now = None, asyncio.get_running_loop().time()
        with self._lock:
            waiting = list(self._waiting)
        for job in waiting:
            if job.deadline > now:
                self._alarm_at(job.deadline)
            elif self._leave(job):
                why = f"timed out after {job.wait:g} s in the queue; try again"
                job.future.set_exception(overloaded(why, "timeout"))

    def _leave(self, job: Job) -> bool:
        """Take a request out of the queue; return whether it still waited there."""
        with self._lock:
            waited = self._waiting.pop(job, False) is None
        self._settle()
        return waited

    def _pump(self) -> None:
        while self._running < self.limits.concurrency and (jobs := self._next()):
            self._start(jobs)

    def _next(self) -> list[Job] | None:
        """Take what is to be run next; None if there is nothing, or if it pays to wait for more."""
        with self._lock:
            return self._gather() if self._waiting else None

    def _gather(self) -> list[Job] | None:
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
        return jobs

    def _overdue(self) -> None:
        self._timer = None
        self._pump()

    def _start(self, jobs: list[Job]) -> None:
        self._running += 1
        self._hand_over(jobs)

    def _hand_over(self, jobs: list[Job]) -> None:
        # Not as an argument, which the thread would hold for as long as it goes on: requests may be large.
        self._started.append(jobs)
        self.workers.submit(self._serve)

    def _serve(self) -> None:
        """Run a batch, in a thread, and then the next: where others want the thread, once it is their turn again."""
        jobs: list[Job] | None = self._started.popleft()
        while jobs is not None:
            jobs = self._report(jobs, _work(self.run, jobs))
            if jobs is not None and self.workers.wanted:
                self._hand_over(jobs)
                jobs = None

    def _report(self, jobs: list[Job], batches: list[Batch]) -> list[Job] | None:
        """Tell the event loop what came of a batch; return the next."""
        # To wait for company takes a timer, and so the event loop.
        following = self._next() if self.limits.delay == 0 else None
        try:
            jobs[0].future.get_loop().call_soon_threadsafe(self._end, batches, following is None)
        except RuntimeError:
            return None  # the loop is closed, so nobody waits any more
        return following

    def _end(self, batches: list[Batch], last: bool) -> None:
        if last:
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
    now = time.perf_counter_ns()
    for job in jobs:
        job.started = now
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
