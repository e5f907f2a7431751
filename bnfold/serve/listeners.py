"""What listens: HTTP by uvicorn and gRPC, both with their limits and with or without TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import uvicorn
from starlette.applications import Starlette

from bnfold.errors import InputError, UsageError
from bnfold.files import reason
from bnfold.serve import grpc as rpc
from bnfold.serve.connections import PATIENCE, guarded
from bnfold.serve.memory import Budget
from bnfold.serve.settings import Settings
from bnfold.serve.sockets import AddressError, bind

KEEP_ALIVE_S = 75


class Quiet(uvicorn.Server):
    """uvicorn without its signal handlers, for when to go down is decided elsewhere, and with a limit to handshakes."""

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


@dataclass(frozen=True)
class Tls:
    """The certificate in the two forms that it is wanted in."""

    context: ssl.SSLContext
    credentials: grpc.ServerCredentials


def tls(settings: Settings) -> Tls | None:
    """The certificate that the settings name, None without one. Raises `UsageError` and `InputError`."""
    if settings.tls_cert is None and settings.tls_key is None:
        return None
    if settings.tls_cert is None or settings.tls_key is None:
        raise UsageError("--tls-cert and --tls-key go together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
        pair = (Path(settings.tls_key).read_bytes(), Path(settings.tls_cert).read_bytes())
    except OSError as error:  # ssl.SSLError is one
        raise InputError(f"{settings.tls_cert}, {settings.tls_key}: no certificate and key: {reason(error)}") from error
    return Tls(context, grpc.ssl_server_credentials([pair]))


def http_server(application: Starlette, settings: Settings, secured: Tls | None) -> Quiet:
    """A uvicorn for the application; its `serve` takes the sockets."""
    config = uvicorn.Config(
        application,
        http=guarded(settings.max_connections, settings.max_body),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
        ssl_context_factory=None if secured is None else lambda config, default: secured.context,
    )
    return Quiet(config)


def grpc_server(settings: Settings, call: rpc.Call, budget: Budget, secured: Tls | None) -> tuple[Any, int]:
    """A gRPC server, bound and not started, and its port. Raises `AddressError`."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    # gRPC only says that it failed, and writes the reason to stderr.
    bind(settings.host, settings.grpc_port).close()
    try:
        return rpc.server(settings, call, budget, secured and secured.credentials, f"{host}:{settings.grpc_port}")
    except RuntimeError as error:
        raise AddressError(f"{host}:{settings.grpc_port}: gRPC can't listen there; choose another port") from error


def event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where there is one."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
