"""The process: sockets, transports, signals, and going down without losing a request."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from bnfold import __version__
from bnfold.serve import http, listeners, log, service
from bnfold.serve.core import Core
from bnfold.serve.observe import Observer
from bnfold.serve.settings import Settings
from bnfold.serve.sockets import bind
from bnfold.serve.watchers import watchers


def run(
    settings: Settings,
    observers: Sequence[Observer] = (),
    *,
    bound: Sequence[socket.socket] | None = None,
    parent: socket.socket | None = None,
    restarts: int = 0,
) -> int:
    """Serve until SIGTERM or SIGINT, then drain; return the exit code 0. Raises `BnfoldError` if it can't start.

    `bound` are sockets for HTTP and metrics that are bound already. `parent` is told when the models are loaded; when
    it closes, that counts as SIGTERM. `restarts` says how often this server was started before.
    """
    events = listeners.event_loop()
    with ExitStack() as stack:
        stack.enter_context(log.Logging(settings.log_format == "json", settings.log_level))
        runner = stack.enter_context(asyncio.Runner(loop_factory=events))
        places = bound or [
            stack.enter_context(bind(settings.host, port)) for port in (settings.http_port, settings.metrics_port)
        ]
        core = Core(settings, (*watchers(settings), *observers))
        core.restarts = restarts
        runner.run(_serve(core, places, parent))
    return 0


async def _serve(core: Core, bound: Sequence[socket.socket], parent: socket.socket | None) -> None:
    settings, loop, stop = core.settings, asyncio.get_running_loop(), stopped()
    if parent is not None:
        loop.add_reader(parent, stop.set)  # it never writes: readable means closed
    secured = listeners.tls(settings)
    rpc, rpc_port = listeners.grpc_server(settings, partial(service.call, core), core.budget, secured)
    servers = [listeners.http_server(app, settings, secured) for app in (http.app(core), http.metrics_app(core))]
    tasks = [loop.create_task(server.serve([place])) for server, place in zip(servers, bound, strict=True)]
    await rpc.start()
    try:
        places = {"http": bound[0].getsockname()[1], "grpc": rpc_port, "metrics": bound[1].getsockname()[1]}
        log.info("bnfold serves", source=settings.source, host=settings.host, **places, version=__version__)
        loading = loop.create_task(core.start())
        stopping = loop.create_task(stop.wait())
        await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            if parent is not None:
                parent.send(b"r")
            log.info("ready" if not core.not_ready() else "not ready", models=len(core.names), reasons=core.not_ready())
            await stopping
        log.info("going down", pending=core.pending)
        await core.drain()
    finally:
        for server in servers:
            server.should_exit = True
        await rpc.stop(0.5)
        await asyncio.gather(*tasks, return_exceptions=True)
        await core.close()
    log.info("gone")


def stopped() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    event, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)
    return event
