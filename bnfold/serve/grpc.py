"""The Open Inference Protocol over gRPC: a server in front of whoever answers `bnfold.serve.service`'s methods."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc
import grpc.aio

from bnfold.serve import log
from bnfold.serve.errors import (
    INTERNAL,
    INVALID,
    OVERLOADED,
    TOO_LARGE,
    UNAUTHORIZED,
    UNKNOWN,
    UNSUPPORTED,
    Refused,
    failed,
)
from bnfold.serve.intake import Intake
from bnfold.serve.memory import Budget, Share
from bnfold.serve.messages import MESSAGES, SERVICE
from bnfold.serve.security import authorize, read_token
from bnfold.serve.service import METHODS, parse
from bnfold.serve.settings import Settings

Context = Any  # grpc.aio.ServicerContext; grpc has no types
# Method, message and the seconds that are left; returns the answer's bytes or raises `Refused`.
Call = Callable[[str, bytes, float | None], Awaitable[bytes]]

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
# Answers from this size on count against the budget until they are sent.
_COUNTED = 64 * 1024
# What a probe asks: it needs no token, and has no part in the memory of requests.
_OPEN = ("ServerLive", "ServerReady", "Check")


def server(
    settings: Settings, call: Call, budget: Budget, credentials: grpc.ServerCredentials | None, address: str
) -> tuple[grpc.aio.Server, int]:
    """Return a gRPC server bound to `address`, not started, and its port; raises `RuntimeError` if it can't be.

    `budget` is what requests and answers count against.
    """
    size = settings.max_body + _ENVELOPE
    options = (
        ("grpc.max_receive_message_length", size),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", 16 * 1024),
        ("grpc.max_concurrent_streams", settings.max_connections),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.http2.bdp_probe", 0),  # which would let every stream send megabytes before anyone asks for them
        ("grpc.so_reuseport", 0),  # a port that is taken is an error, not shared
        ("grpc.server_handshake_timeout_ms", 8_000),
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    )
    result = grpc.aio.server(options=options, maximum_concurrent_rpcs=settings.max_connections)
    token = read_token(settings.token_file)
    intake = Intake(max(1, settings.max_pending // settings.max_body))
    counted = partial(_counted, call, budget)
    unary = {name: _unary(counted, budget, intake, name, token) for name in METHODS}
    unary |= {name: _unary(call, budget, intake, name, None) for name in _OPEN}
    services = {
        "grpc.health.v1.Health": {"Check": unary.pop("Check")},
        SERVICE: {**unary, "ModelStreamInfer": _stream(counted, intake, token)},
    }
    result.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items())
    )
    port = result.add_secure_port(address, credentials) if credentials else result.add_insecure_port(address)
    return result, port


async def _counted(call: Call, budget: Budget, method: str, data: bytes, remaining: float | None) -> bytes:
    with Share(budget) as share:
        share.take(len(data))
        asked = call(method, data, remaining)
        del data  # so that only who is asked holds it
        return await asked


def _unary(call: Call, budget: Budget, intake: Intake, method: str, token: bytes | None) -> Any:
    async def answer(_: Any, context: Context) -> bytes:
        start = time.perf_counter_ns()
        sent = dict(context.invocation_metadata() or ())
        name = log.request_id(sent.get("x-request-id"))
        context.set_trailing_metadata((("x-request-id", name),))
        try:
            authorize(token, sent.get("authorization"))
            found = await call(method, await intake.message(context), context.time_remaining())
        except Refused as error:
            refused = error
            error.forget()
        except Exception as error:
            log.error("failed", request=name, method=method, error=error)
            refused = failed()
        else:
            _count_until_sent(budget, len(found), context)
            log.answered(name, f"gRPC {method}", 200, start)
            return found
        log.answered(name, f"gRPC {method}", refused.status, start, str(refused))
        return bytes(await context.abort(CODES[refused.status], str(refused)))

    # On the wire a call of one message is a stream of one; so declared, it is read when we ask for it.
    return grpc.stream_unary_rpc_method_handler(answer)


def _count_until_sent(budget: Budget, size: int, context: Context) -> None:
    if size > _COUNTED:
        budget.add(size)
        context.add_done_callback(lambda _: budget.give_back(size))


def _stream(call: Call, intake: Intake, token: bytes | None) -> Any:
    async def stream(_: Any, context: Context) -> AsyncIterator[bytes]:
        try:
            authorize(token, dict(context.invocation_metadata() or ()).get("authorization"))
            async with aclosing(intake.messages(context)) as messages:
                async for data in messages:
                    yield await _reply(call, data, context.time_remaining())
        except Refused as error:
            await context.abort(CODES[error.status], str(error))

    return grpc.stream_stream_rpc_method_handler(stream)


async def _reply(call: Call, data: bytes, remaining: float | None) -> bytes:
    """The answer to one message of a stream; an error does not end the stream."""
    answer = MESSAGES["ModelStreamInferResponse"]()
    try:
        answer.infer_response.MergeFromString(await call("ModelInfer", data, remaining))
    except Refused as error:
        answer.error_message = str(error)
        error.forget()
        answer.infer_response.id = _id(data)
    except Exception as error:
        log.error("failed", method="ModelStreamInfer", error=error)
        answer.error_message = str(failed())
    return bytes(answer.SerializeToString())


def _id(data: bytes) -> str:
    try:
        return str(parse("ModelInferRequest", data).id)
    except Refused:
        return ""
