"""gRPC's messages on their way in: how many large ones there may be at one time, and for how long.

gRPC collects a message before it hands it over, says nothing of it until then, and lets Python set no quota of memory.
But it makes room for one only once it is asked for it. So it is asked after the caller is known, and what is not there
at once, being large or slow, needs one of as many places as the memory budget holds messages of the largest size. A
stream may bring a message at any moment, and needs a place for as long as it is open.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import grpc.aio

from bnfold.serve.errors import Refused, overloaded

# Seconds: what takes twice as long is large or slow; within which it must be there; between two messages of a stream.
PROMPT, ARRIVAL, IDLE = 0.1, 30.0, 300.0


class Intake:
    """Receives messages: at one time `places` that are not there at once, and from as many streams."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._slow: set[asyncio.Timeout] = set()
        self._timers: dict[asyncio.Timeout, asyncio.TimerHandle] = {}
        self._streams = 0

    async def message(self, context: Any) -> bytes:
        """The one message of a call. Raises `Refused` if it has none, or is one too many, or too slow."""
        limit = asyncio.timeout(ARRIVAL)
        try:
            async with limit:
                self._later(limit, again=True)
                found = await context.read()
        except TimeoutError:
            if limit in self._slow:
                raise overloaded(f"the message was not there within {ARRIVAL:g} s", "timeout") from None
            raise overloaded(f"{self.places} large messages are on their way already; try again", "memory") from None
        finally:
            self._timers.pop(limit).cancel()
            self._slow.discard(limit)
        if found is grpc.aio.EOF:
            raise Refused("the call has no message")
        return bytes(found)

    async def messages(self, context: Any) -> AsyncGenerator[bytes, None]:
        """The messages of a stream. Raises `Refused` if there are too many streams, or nothing comes for long."""
        if self._streams >= self.places:
            full = f"{self.places} streams are open already; a smaller --max-body or a larger --max-pending allows more"
            raise overloaded(full, "memory")
        self._streams += 1
        try:
            while True:
                async with asyncio.timeout(IDLE):
                    found = await context.read()
                if found is grpc.aio.EOF:
                    return
                yield bytes(found)
        except TimeoutError:
            raise overloaded(f"nothing came for {IDLE:g} s", "timeout") from None
        finally:
            self._streams -= 1

    def _later(self, limit: asyncio.Timeout, *, again: bool) -> None:
        self._timers[limit] = asyncio.get_running_loop().call_later(PROMPT, self._late, limit, again)

    def _late(self, limit: asyncio.Timeout, again: bool) -> None:
        # A loop that was held up runs its timers before it sees what came meanwhile; hence the second look.
        if again:
            self._later(limit, again=False)
        elif len(self._slow) < self.places:
            self._slow.add(limit)
        else:
            limit.reschedule(asyncio.get_running_loop().time())
