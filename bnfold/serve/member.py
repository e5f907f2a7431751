"""A core among others that serve the same, on this machine or on many: what changes in one changes in all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bnfold.serve import log
from bnfold.serve.core import Core
from bnfold.serve.errors import INTERNAL, Refused
from bnfold.serve.observe import Observer
from bnfold.serve.settings import Settings
from bnfold.serve.versions import Serving, State, Versions


@dataclass(frozen=True)
class Target:
    """What a name is to answer with; no version where it was unloaded."""

    version: str | None = None
    digest: str = ""


# Tells all others what a name is to answer with; raises `Refused` for one that can't follow.
Tell = Callable[[str, Target], Awaitable[None]]


class Member(Core):
    """A core that tells the others of every load, unload and roll-back, and follows what it is told."""

    def __init__(self, settings: Settings, observers: Sequence[Observer], tell: Tell) -> None:
        super().__init__(settings, observers)
        self._tell_others = tell
        self._telling: set[asyncio.Task[None]] = set()

    @property
    def targets(self) -> dict[str, Target]:
        """What every name answers with here; one that is still being loaded, or can't be, is left out."""
        found = {}
        for versions in self.names.values():
            if versions.state in (State.READY, State.UNLOADED):
                found[versions.name] = _target(versions.current)
        return found

    async def load(self, name: str, parameters: dict[str, Any] | None = None, version: str | None = None) -> None:
        await super().load(name, parameters, version)
        await self._tell_others(name, _target(self.versions(name).current))

    async def unload(self, name: str) -> None:
        await super().unload(name)
        await self._tell_others(name, Target())

    def roll_back(self, name: str, reason: str) -> None:
        super().roll_back(name, reason)
        task = asyncio.get_running_loop().create_task(self._tell_of(name))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def join(self, targets: Mapping[str, Target]) -> None:
        """Start with what the others answer with, and with all that is in the repository if there are no others."""
        if not targets:
            await super().start()
        for name, target in targets.items():
            await self.follow(name, target)

    async def follow(self, name: str, target: Target) -> None:
        """Answer with what another answers with; raises `Refused`."""
        versions = self.names.setdefault(name, Versions(name))
        if target.version is None:
            await super().unload(name)
        elif target == _target(versions.current):
            return
        elif target == _target(versions.previous):
            super().roll_back(name, "another replica went back")
        else:
            await super().load(name, version=target.version)
            if _target(self.versions(name).current) != target:
                raise Refused(f"model {name!r}, version {target.version}, is another file here", INTERNAL, "load")

    async def _tell_of(self, name: str) -> None:
        try:
            await self._tell_others(name, _target(self.versions(name).current))
        except Refused as error:
            log.error("not followed", model=name, why=error)


def _target(serving: Serving | None) -> Target:
    return Target() if serving is None else Target(serving.model.version, serving.model.digest)
