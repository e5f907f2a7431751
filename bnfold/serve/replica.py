"""A replica on Ray Serve: the core and its HTTP application in one of Ray's processes, and what others ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client.core import Metric
from ray import serve
from ray.serve.exceptions import RayServeException
from starlette.applications import Starlette

from bnfold.errors import BnfoldError
from bnfold.serve import http, log, service
from bnfold.serve.errors import INTERNAL, Refused
from bnfold.serve.member import Member, Target
from bnfold.serve.metrics import Families
from bnfold.serve.settings import Settings
from bnfold.serve.watchers import watchers

APPLICATION = DEPLOYMENT = "bnfold"
# How long the others have to follow a load, in seconds.
FOLLOW_S = 600.0


class Replica:
    """What Ray runs, as often as the load asks for; every method but the constructor is called from outside."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Ray awaits it
        self._logging = log.Logging(settings.log_format == "json", settings.log_level)
        self._logging.__enter__()
        self.id = str(serve.get_replica_context().replica_tag)
        self.core = Member(settings, watchers(settings), self._tell)
        self.error: str | None = None
        others = await self._ask("targets")
        try:
            await self.core.join(next((found for found in others if found), {}))
        except (BnfoldError, Refused) as error:
            if others:
                raise  # Ray tries again, elsewhere if it can
            self.error = str(error)  # nobody serves yet: whoever started us will tell, and end it

    def __serve_build_asgi_app__(self) -> Starlette:
        return http.app(self.core)

    async def call(self, method: str, data: bytes, remaining: float | None) -> tuple[int, bytes | str]:
        """A call of gRPC: 200 and the answer's bytes, or the status and message of what it was refused with."""
        try:
            return 200, await service.call(self.core, method, data, remaining)
        except Refused as error:
            error.forget()
            return error.status, str(error)

    async def targets(self) -> dict[str, Target]:
        """What this replica answers with."""
        return self.core.targets

    async def follow(self, teller: str, name: str, target: Target) -> str | None:
        """Answer with what the teller does; returns why not."""
        if teller == self.id:
            return None
        try:
            await self.core.follow(name, target)
        except Refused as error:
            return str(error)
        return None

    async def state(self) -> tuple[str | None, list[str], dict[str, Target]]:
        """Why it could not start, why it is not ready, and what it answers with."""
        return self.error, self.core.not_ready(), self.core.targets

    async def metrics(self) -> tuple[str, list[Metric]]:
        """The replica's name and its metric families."""
        return self.id, list(Families(self.core).collect())

    async def drain(self) -> None:
        """Take nothing more, and answer what was taken."""
        await self.core.drain()

    async def __del__(self) -> None:
        await self.core.drain()
        await self.core.close()
        self._logging.__exit__()

    async def _tell(self, name: str, target: Target) -> None:
        for why in await self._ask("follow", self.id, name, target):
            if why is not None:
                raise Refused(f"a replica does not follow: {why}", INTERNAL, "load")

    async def _ask(self, method: str, *values: object) -> Sequence[Any]:
        handle = serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
        return await ask(handle, method, *values, timeout=FOLLOW_S)


async def ask(handle: Any, method: str, *values: object, timeout: float) -> Sequence[Any]:
    """Have all replicas answer; those that die meanwhile, or do not answer within `timeout` seconds, have no say."""
    try:
        found = await handle.broadcast(method, *values).results_async(timeout_s=timeout, return_exceptions=True)
    except (TimeoutError, RayServeException):  # the latter if there is none
        return []
    return [item for item in found if not isinstance(item, BaseException)]
