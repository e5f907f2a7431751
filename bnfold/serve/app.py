"""The process: sockets, transports, signals, and going down without losing a request."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import uvicorn
from starlette.applications import Starlette

from bnfold import __version__
from bnfold.errors import InputError, UsageError
from bnfold.files import reason
from bnfold.serve import grpc as rpc_server
from bnfold.serve import http, log
from bnfold.serve.connections import PATIENCE, guarded
from bnfold.serve.core import Core
from bnfold.serve.observe import Observer
from bnfold.serve.settings import Settings
from bnfold.serve.sockets import AddressError, bind
from bnfold.serve.watchers import watchers

KEEP_ALIVE_S = 75


class _Quiet(uvicorn.Server):
    """uvicorn without its signal handlers, for when to go down is decided here, and with a limit to TLS handshakes."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state={}
            )
            return made

        config, loop = self.config, asyncio.get_running_loop()
        patience = None if config.ssl is None else PATIENCE
        self.servers = [
            await loop.create_server(
                protocol, sock=place, ssl=config.ssl, backlog=config.backlog, ssl_handshake_timeout=patience
            )
            for place in sockets or ()
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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
    with log.Logging(settings.log_format == "json", settings.log_level), asyncio.Runner(loop_factory=_loop()) as runner:
        places = bound or [bind(settings.host, port) for port in (settings.http_port, settings.metrics_port)]
        core = Core(settings, (*watchers(settings), *observers))
        core.restarts = restarts
        runner.run(_serve(core, places, parent))
    return 0


async def _serve(core: Core, bound: Sequence[socket.socket], parent: socket.socket | None) -> None:
    stop, settings = asyncio.Event(), core.settings
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if parent is not None:
        loop.add_reader(parent, stop.set)  # it never writes: readable means closed
    tls, credentials = _tls(settings)
    rpc, rpc_port = _bind_grpc(core, credentials, settings)
    servers = [
        _uvicorn(application, settings, tls) for application in (http.app(core), http.metrics_app(core))
    ]
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


def _bind_grpc(core: Core, credentials: grpc.ServerCredentials | None, settings: Settings) -> tuple[Any, int]:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    # gRPC only says that it failed, and writes the reason to stderr.
    bind(settings.host, settings.grpc_port).close()
    try:
        return rpc_server.server(core, credentials, f"{host}:{settings.grpc_port}")
    except RuntimeError as error:
        raise AddressError(f"{host}:{settings.grpc_port}: gRPC can't listen there; choose another port") from error


def _uvicorn(application: Starlette, settings: Settings, tls: ssl.SSLContext | None) -> _Quiet:
    config = uvicorn.Config(
        application,
        http=guarded(settings.max_connections),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
        ssl_context_factory=None if tls is None else lambda config, default: tls,
    )
    return _Quiet(config)


def _tls(settings: Settings) -> tuple[ssl.SSLContext | None, grpc.ServerCredentials | None]:
    if settings.tls_cert is None and settings.tls_key is None:
        return None, None
    if settings.tls_cert is None or settings.tls_key is None:
        raise UsageError("--tls-cert and --tls-key go together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
        pair = (Path(settings.tls_key).read_bytes(), Path(settings.tls_cert).read_bytes())
    except OSError as error:  # ssl.SSLError is one
        raise InputError(f"{settings.tls_cert}, {settings.tls_key}: no certificate and key: {reason(error)}") from error
    return context, grpc.ssl_server_credentials([pair])


def _loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
