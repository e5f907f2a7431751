"""A version's queue: bounded, with deadlines and cancellation; several requests become one batch where that is on.

Requests come and are answered on the event loop; worker threads run them. One that has run a batch takes the next by
itself, for until the event loop came to give it one it would have nothing to do: so a lock guards the queue.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
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


@dataclass(eq=False, repr=False)
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
    _given: deque[Job] = field(default_factory=deque)
    _running: int = 0
    _closed: bool = False
    _timer: asyncio.TimerHandle | None = None
    _alarm: asyncio.TimerHandle | None = None
    _alarm_time: float = 0.0
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """Threads that run its batches, or were sent for."""
        return self._running

    def submit(self, feeds: dict[str, Array], rows: int, timeout: float | None = None) -> Job:
        """Queue a request; its `future` gets the outputs, or `Refused`. Cancelling the future takes it out again."""
        if self._closed:
            raise overloaded("this version is being unloaded; try again", "unloading")
        job = Job(feeds, rows, self._loop.create_future(), came=time.perf_counter_ns())
        if self.limits.rows > 1:
            job.shape = tuple((array.shape[1:]) for array in feeds.values())
        free = self._running < self.limits.concurrency and self.workers.idle
        if free and not self._waiting and self.limits.delay == 0:
            self._given.append(job)
            self._send_for_thread()
            return job
        job.wait = min(timeout or self.limits.timeout, self.limits.timeout)
        job.deadline = self._loop.time() + job.wait
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
            self._alarm = None

    def close(self) -> None:
        """Take nothing more; what was taken is finished."""
        self._closed = True

    def _alarm_at(self, deadline: float) -> None:
        """Look then for what has waited too long. One timer serves all, since nearly all are run long before."""
        if self._alarm is not None:
            if self._alarm_time <= deadline:
                return
            self._alarm.cancel()
        self._alarm_time, self._alarm = deadline, self._loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        self._alarm, now = None, self._loop.time()
        with self._lock:
            waiting = list(self._waiting)
        for job in waiting:
            if job.deadline > now:
                self._alarm_at(job.deadline)
            elif self._leave(job) and not job.future.done():  # what is cancelled leaves one turn later
                why = f"timed out after {job.wait:g} s in the queue; try again"
                job.future.set_exception(overloaded(why, "timeout"))

    def _leave(self, job: Job) -> bool:
        """Take a request out of the queue; return whether it still waited there."""
        with self._lock:
            waited = self._waiting.pop(job, False) is None
        self._settle()
        return waited

    def _pump(self) -> None:
        """Send for a thread for each batch that is due. It takes one once it comes: until then requests may leave."""
        for _ in range(self._due()):
            if self._running >= self.limits.concurrency:
                return
            self._send_for_thread()

    def _send_for_thread(self) -> None:
        self._running += 1
        self.workers.submit(self._serve)

    def _due(self) -> int:
        """How many batches there are that need not wait for company; for the others a timer looks again."""
        if self.limits.rows == 1:
            return len(self._waiting)
        with self._lock:
            left = [self._left(jobs) for jobs in self._batches()]
        later = [seconds for seconds in left if seconds > 0]
        if later and self._timer is None:
            self._timer = self._loop.call_later(min(later), self._overdue)
        return len(left) - len(later)

    def _left(self, jobs: list[Job]) -> float:
        """Seconds for which a batch may still wait for company."""
        if self._closed or sum(job.rows for job in jobs) >= self.limits.rows:
            return 0.0
        return self.limits.delay - (time.perf_counter_ns() - jobs[0].came) / 1e9

    def _overdue(self) -> None:
        self._timer = None
        self._pump()

    def _batches(self) -> Iterator[list[Job]]:
        """What waits, the oldest first and with each what can go with it."""
        waiting = list(self._waiting)
        if self.limits.rows == 1:
            yield from ([job] for job in waiting)
            return
        while waiting:
            jobs, others, rows = [waiting[0]], [], waiting[0].rows
            for job in waiting[1:]:
                if job.shape == jobs[0].shape and rows + job.rows <= self.limits.rows:
                    jobs.append(job)
                    rows += job.rows
                else:
                    others.append(job)
            yield jobs
            waiting = others

    def _take(self) -> list[Job]:
        """What was given to a thread that was free, else what waits and is due; nothing if that has left."""
        with self._lock:
            if self._given:
                return [self._given.popleft()]
            jobs = next((jobs for jobs in self._batches() if self._left(jobs) <= 0), [])
            for job in jobs:
                del self._waiting[job]
            return jobs

    def _serve(self) -> None:
        """Run a batch, in a thread, and then the next: where others want the thread, once it is their turn again."""
        while self._run_one():
            if self.workers.wanted:
                self.workers.submit(self._serve)
                return

    def _run_one(self) -> bool:
        """Run a batch and tell the event loop; return whether another is to be run at once."""
        batches = _work(self.run, self._take())
        # To wait for company takes a timer, and so the event loop.
        more = self.limits.delay == 0 and bool(self._waiting)
        try:
            self._loop.call_soon_threadsafe(self._end, batches, not more)
        except RuntimeError:
            return False  # the loop is closed, so nobody waits any more
        return more

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
    """Run the jobs as one batch; if that fails, each alone, so that a bad one fails alone. In a worker thread."""
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
