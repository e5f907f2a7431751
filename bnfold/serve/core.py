"""The server without a transport: models by name, inference, loading and unloading, health and going down.

Everything runs on one event loop; loading and inference run in threads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.errors import BnfoldError, ModelError, ProviderError
from bnfold.serve import log
from bnfold.serve.batching import Job, Limits
from bnfold.serve.errors import INTERNAL, INVALID, UNSUPPORTED, Refused, failed, overloaded, unknown
from bnfold.serve.machine import cores
from bnfold.serve.memory import Budget, Trimmer, trim
from bnfold.serve.model import Model, open_model, signature
from bnfold.serve.observe import Observer
from bnfold.serve.repository import repository
from bnfold.serve.request import Request, Response
from bnfold.serve.settings import Settings
from bnfold.serve.stats import Stats
from bnfold.serve.versions import Serving, State, Versions, serve
from bnfold.serve.workers import Workers


@dataclass(slots=True)
class Pending:
    """A request that was taken: `answer` must be awaited, once."""

    request: Request
    serving: Serving
    wanted: tuple[str, ...]
    job: Job
    start: int

    def cancel(self) -> None:
        """Nobody waits for it any more: take it out of the queue, instead of awaiting `answer`."""
        if self.job.future.cancel():
            self.serving.batcher.stats.cancelled += 1

    async def answer(self) -> Response:
        """Wait for the outputs; raises `Refused`. Cancelling the call takes the request out of the queue."""
        stats = self.serving.batcher.stats
        try:
            outputs = await self.job.future
        except Refused as error:
            stats.failed(time.perf_counter_ns() - self.start, error.reason)
            raise
        except asyncio.CancelledError:
            stats.cancelled += 1
            raise
        except Exception as error:
            stats.failed(time.perf_counter_ns() - self.start, "failed")
            log.error("failed", model=self.request.model, error=error)
            raise failed() from error
        job, model = self.job, self.serving.model
        stats.answered(time.perf_counter_ns() - self.start, job.rows, job.started - job.came)
        ports = model.contract.outputs
        return Response(
            model.name,
            model.version,
            self.request.id,
            {name: outputs[name] for name in self.wanted},
            {name: ports[name].datatype for name in self.wanted},
        )


class Core:
    """The models of a repository and what can be asked of them; every transport calls the same methods."""

    def __init__(self, settings: Settings, observers: Sequence[Observer] = ()) -> None:
        self.settings = settings
        self.repository = repository(Path(settings.source), settings.name)
        self.names: dict[str, Versions] = {}
        self.observers = tuple(observers)
        self.observer_errors = self.restarts = 0
        self.draining = False
        self.pending = 0
        self._trimmer = Trimmer(trim)
        self.budget = Budget(settings.max_pending, freed=self._trimmer.freed)
        self.began = time.time()
        concurrency = settings.concurrency or cores()
        self._limits = Limits(settings.queue, concurrency, 1, settings.batch_delay, settings.timeout)
        self._workers = Workers(concurrency)
        self._loader = ThreadPoolExecutor(1, "load")
        self._retiring: set[asyncio.Task[None]] = set()
        for observer in self.observers:
            observer.attach(self)

    async def start(self) -> None:
        """Load every model. Raises the first's error if none can be loaded; one that can't makes us not ready."""
        errors: dict[str, Refused | BnfoldError] = {}
        for name in self.repository.names():
            try:
                await self.load(name)
            except (Refused, BnfoldError) as error:
                errors[name] = error
        fatal = None if any(versions.current for versions in self.names.values()) else next(iter(errors.values()), None)
        for name, why in errors.items():
            if why is not fatal:  # which whoever started us will tell
                log.error("not served", model=name, reason=why)
        if fatal is not None:
            raise fatal if isinstance(fatal, BnfoldError) else ModelError(str(fatal))

    # Asking

    def submit(self, request: Request) -> Pending:
        """Take a request into its model's queue; raises `Refused`."""
        start = time.perf_counter_ns()
        if self.draining:
            raise overloaded("the server is going down", "draining")
        serving = self.versions(request.model).pick(request.version)
        contract, stats = serving.model.contract, serving.batcher.stats
        try:
            feeds, wanted = contract.feeds(request.inputs), contract.wanted(request.outputs)
            rows = len(next(iter(feeds.values()))) if contract.has_rows else 1
            job = serving.batcher.submit(feeds, rows, request.timeout)
        except Refused as error:
            stats.failed(time.perf_counter_ns() - start, error.reason)
            raise
        self.pending += 1
        job.future.add_done_callback(self._settled)
        return Pending(request, serving, wanted, job, start)

    async def infer(self, request: Request) -> Response:
        """Answer a request; raises `Refused`. Cancelling the call takes the request out of the queue."""
        return await self.submit(request).answer()

    def versions(self, name: str) -> Versions:
        """A model by name; raises `Refused`."""
        found = self.names.get(name)
        if found is None:
            raise unknown(f"there is no model {name!r:.130}; GET /v2/repository/index lists them")
        return found

    def not_ready(self) -> list[str]:
        """Why the server is not ready, nothing if it is."""
        why = ["the server is going down"] if self.draining else []
        for versions in self.names.values():
            if versions.state in (State.LOADING, State.FAILED):
                why.append(f"{versions.name}: {versions.reason or 'loading'}")
            elif versions.current is not None and versions.current.model.unproven:
                why.append(f"{versions.name}: {versions.current.model.unproven}")
        return why

    def ready(self, name: str, version: str = "") -> bool:
        """Whether this version answers; raises `Refused` for an unknown name."""
        versions = self.versions(name)
        if self.draining or versions.current is None:
            return False
        return not versions.pick(version).model.unproven

    # Changing

    async def load(self, name: str, parameters: dict[str, Any] | None = None, version: str | None = None) -> None:
        """Load or renew a model: a version, by default the newest, is opened, checked, warmed, and then swapped in.

        Raises `Refused` if it can't be: the version that was served before still is.
        """
        _check_load(parameters or {})
        found = self.repository.versions(name)
        versions = self.names.setdefault(name, Versions(name))
        async with versions.lock:
            version = version or next(reversed(found))
            if version not in found:
                raise unknown(f"model {name!r} has no version {version!r:.40} in the repository")
            path = found[version]
            current = versions.current
            if current and _unchanged(current.model, version, path):
                return
            versions.begin()
            try:
                model = await asyncio.get_running_loop().run_in_executor(self._loader, self._open, name, version, path)
            except (ModelError, ProviderError) as error:
                versions.fail(str(error))
                raise Refused(str(error), INVALID if isinstance(error, ModelError) else INTERNAL, "load") from error
            except BaseException:
                versions.fail("the load was cut off; the log may say why")
                raise
            stats = versions.stats.setdefault(version, Stats())
            new = serve(model, stats, self._workers, self._limits, self.observers, self.guard)
            self._retire(versions.swap(new))
            self._tell(versions.current, current)
            threads = f"{model.run.threads}" if model.run.single is None else f"1-{model.run.threads}"
            facts = {"provider": model.provider, "threads": threads, "sha256": model.digest[:12]}
            log.info("served", model=name, version=version, path=path, **facts)

    async def unload(self, name: str) -> None:
        """Stop serving a model; what is in its queue is still answered. Raises `Refused` for an unknown name."""
        versions = self.versions(name)
        async with versions.lock:
            for serving in versions.clear():
                self._retire(serving)
            log.info("unloaded", model=name)

    def roll_back(self, name: str, reason: str) -> None:
        """Let the version before the current one answer again, at once; raises `Refused` if there is none."""
        versions = self.versions(name)
        old = versions.current
        versions.roll_back(reason)
        self._tell(versions.current, old)
        log.warning("rolled back", model=name, reason=reason)

    async def drain(self) -> None:
        """Take nothing more, answer what was taken; gives up after `settings.drain` seconds."""
        self.draining = True
        batchers = [serving.batcher for versions in self.names.values() for serving in versions.loaded]
        try:
            async with asyncio.timeout(self.settings.drain):
                await asyncio.gather(*(batcher.drain() for batcher in batchers), *self._retiring)
                while self.pending:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            log.error("not drained in time", pending=self.pending, seconds=self.settings.drain)
            for versions in self.names.values():
                for serving in versions.loaded:
                    serving.model.run.stop()

    async def close(self) -> None:
        """Give everything back."""
        self._trimmer.close()
        for observer in self.observers:
            await observer.close()
        self._workers.close()
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _settled(self, future: asyncio.Future[Any]) -> None:
        self.pending -= 1

    def _open(self, name: str, version: str, path: Path) -> Model:
        self.repository.check(path, self.settings.custom_ops)
        model = open_model(name, version, path, self.settings)
        for observer in self.observers:
            observer.admit(model)
        model.forget_source()
        for key in ("warm_up", "batching"):
            if key in model.properties:
                log.warning("checked in part", model=name, **{key: model.properties[key]})
        return model

    def _retire(self, serving: Serving | None) -> None:
        """Let a version answer what it was given, then forget it."""
        if serving is not None:
            task = asyncio.get_running_loop().create_task(_finish(serving))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def _tell(self, new: Serving | None, old: Serving | None) -> None:
        for observer in self.observers:
            if old is not None:
                self.guard(lambda observer=observer: observer.retired(old.model))  # type: ignore[misc]
            if new is not None:
                self.guard(lambda observer=observer: observer.serving(new.model))  # type: ignore[misc]

    def guard(self, call: Callable[[], object]) -> None:
        """An observer that fails is told of in the log, and hurts nobody."""
        try:
            call()
        except Exception as error:  # a bug of an observer must cost no request
            self.observer_errors += 1
            log.error("an observer failed", error=error)


def _unchanged(model: Model, version: str, path: Path) -> bool:
    return (model.version, model.path) == (version, path) and model.signature == signature(model.files)


async def _finish(serving: Serving) -> None:
    serving.batcher.close()
    await serving.batcher.drain()


def _check_load(parameters: dict[str, Any]) -> None:
    for key in parameters:
        if key.startswith("file:"):
            raise Refused("a model's files are not taken from a request; put them into the repository", INVALID)
        if key == "config":
            raise Refused("a configuration is not taken from a request", UNSUPPORTED, "unsupported")
