"""The memory that requests take: a budget for all of them together, and its return to the system afterwards."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from bnfold.serve.errors import overloaded

# So many bytes of requests later, and so many seconds, what they took is given back to the system.
_MUCH, _LATER_S = 8 << 20, 2.0


@dataclass
class Budget:
    """Bytes of requests that are held at one time, over all connections. `freed` is told of what is no longer held."""

    limit: int
    held: int = 0
    freed: Callable[[int], None] = lambda size: None

    def take(self, size: int) -> None:
        """Reserve; raises `Refused` where that would be too much."""
        if self.held + size > self.limit:
            raise overloaded("too many large requests at once; try again", "memory")
        self.held += size

    def add(self, size: int) -> None:
        """Count what is there already and has to go out: an answer is not refused, but what comes after it may be."""
        self.held += size

    def give_back(self, size: int) -> None:
        """What was taken is no longer held."""
        self.held -= size
        self.freed(size)


@dataclass
class Share:
    """What one request holds of a budget; it is given back when the `with` ends."""

    budget: Budget
    size: int = 0

    def take(self, size: int) -> None:
        """Reserve more; raises `Refused`."""
        self.budget.take(size)
        self.size += size

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        self.budget.give_back(self.size)


@dataclass
class Trimmer:
    """Has the C library return freed memory, which it would keep for the next large request; on the event loop.

    gRPC's receive buffers, hundreds of megabytes of them, otherwise stay with the process for ever.
    """

    trim: Callable[[], object]
    _freed: int = 0
    _due: asyncio.TimerHandle | None = field(default=None, repr=False)

    def freed(self, size: int) -> None:
        """Count; once it is much, trim a little later, in a thread."""
        self._freed += size
        if self._freed >= _MUCH and self._due is None:
            loop = asyncio.get_running_loop()
            self._due = loop.call_later(_LATER_S, self._start, loop)

    def close(self) -> None:
        """Trim no more."""
        if self._due is not None:
            self._due.cancel()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._freed, self._due = 0, None
        loop.run_in_executor(None, self.trim)


def trim() -> None:
    """glibc's malloc_trim; nothing where there is none."""
    if os.name == "posix" and (found := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        found(0)
