"""The threads that run models."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

Task = Callable[[], object]


class Workers:
    """So many threads that do one task after the other, in the order in which they are given.

    A task must not raise. That they keep no future of it, and that one thread is woken for it and no other, is why
    this is no executor: a small model takes no longer than an executor's part of its run.
    """

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._tasks: deque[Task | None] = deque()
        self._idle: list[_Worker] = []
        self._all = [_Worker(self, number) for number in range(count)]

    @property
    def wanted(self) -> bool:
        """Whether a task waits for a thread."""
        return bool(self._tasks)

    @property
    def idle(self) -> bool:
        """Whether a thread waits for a task."""
        return bool(self._idle)

    def submit(self, task: Task | None) -> None:
        """Do it once a thread is free."""
        with self._lock:
            # The last that was busy: its core still holds what it needs.
            worker = self._idle.pop() if self._idle else None
            if worker is None:
                self._tasks.append(task)
        if worker is not None:
            worker.wake(task)

    def close(self) -> None:
        """End the threads once they have done what they were given."""
        for _ in self._all:
            self.submit(None)

    def next(self, worker: _Worker) -> Task | None:
        """What `worker` does next, waited for; None if it is to end."""
        with self._lock:
            if self._tasks:
                return self._tasks.popleft()
            self._idle.append(worker)
        return worker.sleep()


class _Worker:
    def __init__(self, workers: Workers, number: int) -> None:
        self._workers = workers
        self._task: Task | None = None
        self._asleep = threading.Lock()
        self._asleep.acquire()
        threading.Thread(target=self._work, name=f"infer_{number}", daemon=True).start()

    def wake(self, task: Task | None) -> None:
        self._task = task
        self._asleep.release()

    def sleep(self) -> Task | None:
        self._asleep.acquire()
        task, self._task = self._task, None
        return task

    def _work(self) -> None:
        while (task := self._workers.next(self)) is not None:
            task()
            del task  # and what it holds, which may be large: the next may be long in coming
