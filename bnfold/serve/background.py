"""Observers that take their time: a share of the batches, one at a time, in a thread of their own."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakKeyDictionary

from bnfold.serve import log
from bnfold.serve.model import Model
from bnfold.serve.observe import Finished, Observer

T = TypeVar("T")


def alive(seen: WeakKeyDictionary[Model, T]) -> list[tuple[Model, T]]:
    """Each version that is alive and what is known of it, though the loading thread may add one meanwhile."""
    return [(model, seen[model]) for model in (ref() for ref in seen.keyrefs()) if model is not None]


class Background(Observer):
    """Looks at the share `rate` of the requests' batches; what comes while it is busy is skipped and counted.

    Derive from it and write `look`.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.skipped = self.failures = 0
        self._due = 0.0
        self._busy = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pool = ThreadPoolExecutor(1, type(self).__name__.lower())

    def look(self, batch: Finished) -> None:
        """Do the work; called in the thread, never twice at a time."""
        raise NotImplementedError

    def wants(self, batch: Finished) -> bool:
        """Whether there is anything to do for this version."""
        return True

    def finished(self, batch: Finished) -> None:
        if not self.wants(batch):
            return
        self._due += self.rate * batch.requests
        if self._due < 1.0:
            return
        self._due %= 1.0
        if self._busy:
            self.skipped += batch.requests
            return
        self._busy = True
        self._loop = asyncio.get_running_loop()
        self._pool.submit(self.look, batch).add_done_callback(self._over)

    async def idle(self) -> None:
        """Wait until the batch that is looked at, if any, is done with."""
        while self._busy:
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def later(self, call: object, *values: object) -> None:
        """Have the event loop call something; from the thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *values)  # type: ignore[arg-type]

    def _over(self, work: Future[None]) -> None:
        self._busy = False
        if not work.cancelled() and (error := work.exception()) is not None:
            self.failures += 1
            log.error("an observer failed", observer=type(self).__name__, error=error)
