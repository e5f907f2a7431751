"""The Open Inference Protocol over HTTP, as an ASGI application over the core."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from bnfold.serve import documents, log, wire
from bnfold.serve import metrics as exposition
from bnfold.serve.connections import CONNECTION
from bnfold.serve.core import Core, Pending
from bnfold.serve.errors import OVERLOADED, Refused, failed, too_large, unsupported
from bnfold.serve.memory import Share
from bnfold.serve.page import REFRESH, page
from bnfold.serve.replies import Answer, document, refusal
from bnfold.serve.request import Response as Inference
from bnfold.serve.security import accepted, authorize, compress, decompress, read_token

Handler = Callable[[Core, Request], Awaitable[Response]]

# Answers smaller than this are not worth compressing.
_SMALL = 1024
_GONE = 499  # what nginx logs for it
_OPEN = ("/v2/health/live", "/v2/health/ready")


# What the first two of `_ROUTES` say.
_INFER = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")


class Gone(Exception):
    """The client closed the connection before it had its answer."""


class Application(Starlette):
    """Hands inference over by itself: Starlette's middleware and routes would take a quarter of what it costs."""

    def __init__(self, core: Core, rows: Sequence[tuple[str, str, Handler]]) -> None:
        made = partial(_endpoint, core, read_token(core.settings.token_file))
        routes = [Route(path, made(handler), methods=[method]) for method, path, handler in rows]
        super().__init__(routes=routes, exception_handlers={HTTPException: _no_route})
        self.state.registry = exposition.registry(core)
        self._infer = made(infer) if any(handler is infer for _, _, handler in rows) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            self._infer is not None
            and (scope["type"], scope.get("method")) == ("http", "POST")
            and (found := _INFER.fullmatch(scope["path"]))
        ):
            scope["path_params"] = found.groupdict("")
            response = await self._infer(Request(scope, receive, send))
            await response(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def app(core: Core) -> Application:
    """Return the ASGI application; `core` must be started by whoever runs it."""
    return Application(core, _ROUTES)


def metrics_app(core: Core) -> Application:
    """Return the ASGI application of the metrics' own port."""
    return Application(core, tuple(row for row in _ROUTES if row[2] in (live, metrics)))


def _endpoint(core: Core, token: bytes | None, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def call(request: Request) -> Response:
        start, path, why = time.perf_counter_ns(), request.scope["path"], ""
        name = log.request_id(request.headers.get("x-request-id"))
        try:
            if path not in _OPEN:
                authorize(token, request.headers.get("authorization"))
            response = await handler(core, request)
        except Refused as error:
            response, why = refusal(error), str(error)
            error.forget()
        except Gone:
            response, why = Response(status_code=_GONE), "the client went away"
        except Exception as error:
            log.error("failed", request=name, method=request.method, path=path, error=error)
            response = refusal(failed())
        response.headers["x-request-id"] = name
        log.answered(name, f"{request.method} {path}", response.status_code, start, why)
        return response

    return call


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    text = "no such address" if status == 404 else f"{request.method} is not possible here"
    return document({"error": f"{text}: {request.url.path:.200}"}, status)


async def infer(core: Core, request: Request) -> Response:
    """POST …/infer."""
    with Share(core.budget) as share:
        asked, wishes = wire.parse(
            request.path_params["name"],
            request.path_params.get("version", ""),
            await _body(request, core.settings.max_body, share),
            request.headers.get(wire.HEADER_LENGTH),
        )
        answer = await _answer(request, core.submit(asked))
        parts, header = wire.render(answer, wishes)
    headers = {} if header is None else {wire.HEADER_LENGTH: str(header)}
    media = "application/json" if header is None else "application/octet-stream"
    encoding = accepted(request.headers.get("accept-encoding")) if sum(map(len, parts)) >= _SMALL else ""
    if encoding:
        parts, headers["content-encoding"] = [compress(encoding, b"".join(parts))], encoding
    return Answer(parts, core.budget, headers, media)


async def server(core: Core, request: Request) -> Response:
    """GET /v2."""
    return document(documents.server())


async def status(core: Core, request: Request) -> Response:
    """GET /: the page for a person."""
    return HTMLResponse(page(core), headers={"refresh": str(REFRESH), "cache-control": "no-store"})


async def live(core: Core, request: Request) -> Response:
    """GET /v2/health/live: the process answers."""
    return document({"live": True})


async def ready(core: Core, request: Request) -> Response:
    """GET /v2/health/ready: every model that should be served is, on the provider that was asked for."""
    why = core.not_ready()
    return document({"ready": not why, "reasons": why}, OVERLOADED if why else 200)


async def model(core: Core, request: Request) -> Response:
    """GET /v2/models/{name}[/versions/{version}]."""
    return document(documents.model(core, request.path_params["name"], request.path_params.get("version", "")))


async def model_ready(core: Core, request: Request) -> Response:
    """GET …/ready."""
    name, version = request.path_params["name"], request.path_params.get("version", "")
    is_ready = core.ready(name, version)
    return document({"name": name, "ready": is_ready}, 200 if is_ready else OVERLOADED)


async def model_config(core: Core, request: Request) -> Response:
    """GET …/config, of Triton's protocol."""
    return document(documents.config(core, request.path_params["name"], request.path_params.get("version", "")))


async def statistics(core: Core, request: Request) -> Response:
    """GET …/stats and /v2/models/stats."""
    name, version = request.path_params.get("name", ""), request.path_params.get("version", "")
    return document(documents.statistics(core, name, version))


async def index(core: Core, request: Request) -> Response:
    """POST /v2/repository/index."""
    content = await _parameters(core, request)
    return document(documents.index(core, only_ready=content.get("ready") is True))


async def load(core: Core, request: Request) -> Response:
    """POST /v2/repository/models/{name}/load."""
    content = await _parameters(core, request)
    parameters = content.get("parameters", {})
    if not isinstance(parameters, dict):
        raise Refused("parameters must be an object")
    await core.load(request.path_params["name"], parameters)
    return document({})


async def unload(core: Core, request: Request) -> Response:
    """POST /v2/repository/models/{name}/unload."""
    await _parameters(core, request)
    await core.unload(request.path_params["name"])
    return document({})


async def roll_back(core: Core, request: Request) -> Response:
    """POST /v2/repository/models/{name}/rollback, our own: the version before the current one answers again."""
    await _parameters(core, request)
    core.roll_back(request.path_params["name"], "asked for")
    return document({})


async def metrics(core: Core, request: Request) -> Response:
    """GET /metrics, for Prometheus."""
    return Response(exposition.render(request.app.state.registry), media_type=exposition.CONTENT_TYPE)


async def shared_memory(core: Core, request: Request) -> Response:
    """Triton's shared memory, tracing and log settings."""
    raise unsupported("this part of Triton's protocol is not supported")


_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/v2/models/{name}/infer", infer),
    ("POST", "/v2/models/{name}/versions/{version}/infer", infer),
    ("GET", "/v2/health/live", live),
    ("GET", "/v2/health/ready", ready),
    ("GET", "/", status),
    ("GET", "/v2", server),
    ("GET", "/metrics", metrics),
    ("GET", "/v2/models/stats", statistics),
    ("GET", "/v2/models/{name}", model),
    ("GET", "/v2/models/{name}/ready", model_ready),
    ("GET", "/v2/models/{name}/config", model_config),
    ("GET", "/v2/models/{name}/stats", statistics),
    ("GET", "/v2/models/{name}/versions/{version}", model),
    ("GET", "/v2/models/{name}/versions/{version}/ready", model_ready),
    ("GET", "/v2/models/{name}/versions/{version}/config", model_config),
    ("GET", "/v2/models/{name}/versions/{version}/stats", statistics),
    ("POST", "/v2/repository/index", index),
    ("POST", "/v2/repository/models/{name}/load", load),
    ("POST", "/v2/repository/models/{name}/unload", unload),
    ("POST", "/v2/repository/models/{name}/rollback", roll_back),
    *((method, f"/v2/{what}/{{rest:path}}", shared_memory) for method in ("GET", "POST")
      for what in ("systemsharedmemory", "cudasharedmemory", "trace", "logging")),
)  # fmt: skip


async def _body(request: Request, limit: int, share: Share) -> bytes | bytearray:
    """Read a body within the limits; return it, decompressed."""
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large(f"the body has {int(announced)} bytes, and {limit} are allowed")
    body, more = bytearray(), True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Gone
        piece = message.get("body", b"")
        if len(body) + len(piece) > limit:
            raise too_large(f"the body has more than the {limit} bytes that are allowed")
        share.take(len(piece))
        body += piece
        more = message.get("more_body", False)
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if not encoding:
        return body
    full = decompress(encoding, body, limit)
    share.take(len(full))
    return full


async def _parameters(core: Core, request: Request) -> dict[str, Any]:
    """The JSON object of a small request; an empty body is an empty one."""
    with Share(core.budget) as share:
        body = await _body(request, core.settings.max_body, share)
        return wire.parse_object(body, "request") if body.strip() else {}


async def _answer(request: Request, pending: Pending) -> Inference:
    """Wait for the outputs; if the client goes away before its request is run, take it out and raise `Gone`."""
    connection = request.scope.get(CONNECTION)
    if not pending.job.queued:
        return await pending.answer()
    if connection is None:  # another's listener
        await _watch(request, pending)
        return await pending.answer()
    connection.watch(pending.job.future.cancel)
    try:
        return await pending.answer()
    except asyncio.CancelledError:
        if connection.left:
            raise Gone from None
        raise
    finally:
        connection.watch(None)


async def _watch(request: Request, pending: Pending) -> None:
    """Wait for a queued request's outputs; if its client goes away first, take it out and raise `Gone`."""
    gone: asyncio.Future[None] = asyncio.ensure_future(_gone(request))
    waited: set[asyncio.Future[Any]] = {gone, pending.job.future}
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not pending.job.future.done():
            pending.cancel()
            raise Gone
    except asyncio.CancelledError:
        pending.cancel()
        raise
    finally:
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
