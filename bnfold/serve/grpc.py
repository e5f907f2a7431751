"""The Open Inference Protocol over gRPC: the same core, the protocol's messages."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from bnfold.serve import documents, log, rpc
from bnfold.serve.core import Core
from bnfold.serve.errors import (
    INTERNAL,
    INVALID,
    OVERLOADED,
    TOO_LARGE,
    UNAUTHORIZED,
    UNKNOWN,
    UNSUPPORTED,
    Refused,
)
from bnfold.serve.messages import MESSAGES, SERVICE
from bnfold.serve.security import authorize, read_token

Context = Any  # grpc.aio.ServicerContext; grpc has no types
Unary = Callable[[Core, Any, Context], Awaitable[Any]]

CODES = {
    INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    UNKNOWN: grpc.StatusCode.NOT_FOUND,
    TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    INTERNAL: grpc.StatusCode.INTERNAL,
    UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    OVERLOADED: grpc.StatusCode.UNAVAILABLE,
}
# Names and numbers around a message's tensors; what a body of the same tensors would not have over HTTP.
_ENVELOPE = 64 * 1024
# gRPC's health service counts so.
_SERVING, _NOT_SERVING = 1, 2


def server(core: Core, credentials: grpc.ServerCredentials | None, address: str) -> tuple[grpc.aio.Server, int]:
    """Return a gRPC server bound to `address`, not started, and its port; raises `RuntimeError` if it can't be."""
    limits = core.settings
    size = limits.max_body + _ENVELOPE
    options = (
        ("grpc.max_receive_message_length", size),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.max_concurrent_streams", limits.max_connections),
        ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared
        ("grpc.server_handshake_timeout_ms", 8_000),
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    )
    result = grpc.aio.server(options=options, maximum_concurrent_rpcs=limits.max_connections)
    token = read_token(limits.token_file)
    result.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(SERVICE, _handlers(core, token)),
            grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": _unary(core, None, *_HEALTH)}),
        )
    )
    port = result.add_secure_port(address, credentials) if credentials else result.add_insecure_port(address)
    return result, port


def _handlers(core: Core, token: bytes | None) -> dict[str, Any]:
    handlers = {name: _unary(core, None if name in _OPEN else token, *row) for name, row in _UNARY.items()}

    async def stream(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        await _authorize(token, context)
        async for data in requests:
            answer, request = MESSAGES["ModelStreamInferResponse"](), None
            try:
                request = _parse("ModelInferRequest", data)
                answer.infer_response.CopyFrom(await infer(core, request, context))
            except Refused as error:
                answer.error_message = str(error)
                answer.infer_response.id = "" if request is None else request.id
            yield answer

    handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
        stream,
        response_serializer=MESSAGES["ModelStreamInferResponse"].SerializeToString,
    )
    return handlers


def _unary(core: Core, token: bytes | None, handler: Unary, request: str, response: str) -> Any:
    what = handler.__name__.strip("_")

    async def call(data: bytes, context: Context) -> Any:
        start = time.perf_counter_ns()
        sent = dict(context.invocation_metadata() or ())
        name = log.request_id(sent.get("x-request-id"))
        context.set_trailing_metadata((("x-request-id", name),))
        try:
            authorize(token, sent.get("authorization"))
            answer = await handler(core, _parse(request, data), context)
        except Refused as error:
            refused = error
        except Exception as error:
            log.error("failed", request=name, method=what, error=error)
            refused = Refused("the server failed on this request; its log says more", INTERNAL, "failed")
        else:
            log.answered(name, f"gRPC {what}", 200, start)
            return answer
        log.answered(name, f"gRPC {what}", refused.status, start, str(refused))
        return await context.abort(CODES[refused.status], str(refused))

    return grpc.unary_unary_rpc_method_handler(
        call,
        response_serializer=MESSAGES[response].SerializeToString,
    )


def _parse(name: str, data: bytes) -> Any:
    """Here and not by gRPC, which would call a client's broken message an internal error."""
    try:
        return MESSAGES[name].FromString(data)
    except DecodeError:
        raise Refused(f"the message is no {name}") from None


async def _authorize(token: bytes | None, context: Context) -> None:
    if token is not None:
        sent = dict(context.invocation_metadata() or ())
        try:
            authorize(token, sent.get("authorization"))
        except Refused as error:
            await context.abort(CODES[error.status], str(error))


async def infer(core: Core, message: Any, context: Context) -> Any:
    request = rpc.request(message, context.time_remaining())
    return rpc.response(await core.infer(request))


async def _live(core: Core, message: Any, context: Context) -> Any:
    return MESSAGES["ServerLiveResponse"](live=True)


async def _ready(core: Core, message: Any, context: Context) -> Any:
    return MESSAGES["ServerReadyResponse"](ready=not core.not_ready())


async def _health(core: Core, message: Any, context: Context) -> Any:
    return MESSAGES["HealthCheckResponse"](status=_NOT_SERVING if core.not_ready() else _SERVING)


async def _model_ready(core: Core, message: Any, context: Context) -> Any:
    return MESSAGES["ModelReadyResponse"](ready=core.ready(message.name, message.version))


async def _server(core: Core, message: Any, context: Context) -> Any:
    return MESSAGES["ServerMetadataResponse"](**documents.server())


async def _model(core: Core, message: Any, context: Context) -> Any:
    found = documents.model(core, message.name, message.version)
    found.pop("parameters")  # the protocol's message has no place for them
    return MESSAGES["ModelMetadataResponse"](**found)


async def _config(core: Core, message: Any, context: Context) -> Any:
    found = documents.config(core, message.name, message.version)
    for port in (*found["input"], *found["output"]):
        port["data_type"] = rpc.TYPES[port["data_type"]]
    return MESSAGES["ModelConfigResponse"](config=found)


async def _statistics(core: Core, message: Any, context: Context) -> Any:
    return MESSAGES["ModelStatisticsResponse"](**documents.statistics(core, message.name, message.version))


async def _index(core: Core, message: Any, context: Context) -> Any:
    return MESSAGES["RepositoryIndexResponse"](models=documents.index(core, only_ready=message.ready))


async def _load(core: Core, message: Any, context: Context) -> Any:
    await core.load(message.model_name, rpc.parameters(message.parameters))
    return MESSAGES["Empty"]()


async def _unload(core: Core, message: Any, context: Context) -> Any:
    await core.unload(message.model_name)
    return MESSAGES["Empty"]()


_HEALTH = (_health, "HealthCheckRequest", "HealthCheckResponse")
_OPEN = ("ServerLive", "ServerReady")
_UNARY: dict[str, tuple[Unary, str, str]] = {
    "ServerLive": (_live, "Empty", "ServerLiveResponse"),
    "ServerReady": (_ready, "Empty", "ServerReadyResponse"),
    "ModelReady": (_model_ready, "NameVersion", "ModelReadyResponse"),
    "ServerMetadata": (_server, "Empty", "ServerMetadataResponse"),
    "ModelMetadata": (_model, "NameVersion", "ModelMetadataResponse"),
    "ModelInfer": (infer, "ModelInferRequest", "ModelInferResponse"),
    "ModelConfig": (_config, "NameVersion", "ModelConfigResponse"),
    "ModelStatistics": (_statistics, "NameVersion", "ModelStatisticsResponse"),
    "RepositoryIndex": (_index, "RepositoryIndexRequest", "RepositoryIndexResponse"),
    "RepositoryModelLoad": (_load, "RepositoryModelRequest", "Empty"),
    "RepositoryModelUnload": (_unload, "RepositoryModelRequest", "Empty"),
}
