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

# Seconds: between two looks at what is awaited; within which a large message must be there; between those of a stream.
PROMPT, ARRIVAL, IDLE = 0.1, 30.0, 300.0
# What is still not there at the third look is large or slow. One look would not do: a loop that was held up runs its
# timers before it sees what came meanwhile.
_LOOKS = 3


class Intake:
    """Receives messages: at one time `places` that are not there at once, and from as many streams."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._awaited: dict[asyncio.Timeout, int] = {}
        self._slow: set[asyncio.Timeout] = set()
        self._looking = False
        self._streams = 0

    async def message(self, context: Any) -> bytes:
        """The one message of a call. Raises `Refused` if it has none, or is one too many, or too slow."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._awaited[limit] = 0
                if not self._looking:
                    self._looking = True
                    self._again()
                found = await context.read()
        except TimeoutError:
            if limit in self._slow:
                raise overloaded(f"the message was not there within {ARRIVAL:g} s", "timeout") from None
            raise overloaded(f"{self.places} large messages are on their way already; try again", "memory") from None
        finally:
            self._awaited.pop(limit, None)
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

    def _again(self) -> None:
        asyncio.get_running_loop().call_later(PROMPT, self._look)

    def _look(self) -> None:
        """One timer for all of them: a message that is there at once, as most are, costs none of its own."""
        self._looking = bool(self._awaited)
        if not self._looking:
            return
        now = asyncio.get_running_loop().time()
        for limit, looks in list(self._awaited.items()):
            if looks + 1 < _LOOKS:
                self._awaited[limit] = looks + 1
                continue
            del self._awaited[limit]
            if len(self._slow) < self.places:
                self._slow.add(limit)
                limit.reschedule(now + ARRIVAL)
            else:
                limit.reschedule(now)
        self._again()
