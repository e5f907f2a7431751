"""The protocol's gRPC methods over the core: a message's bytes in, the answer's bytes out, whatever carries them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import DecodeError

from bnfold.serve import documents, rpc
from bnfold.serve.core import Core
from bnfold.serve.errors import Refused
from bnfold.serve.messages import MESSAGES

# The core, the request's message and the seconds that the client still waits, None if it does not say.
Method = Callable[[Core, Any, float | None], Awaitable[Any]]
# gRPC's health service counts so.
_SERVING, _NOT_SERVING = 1, 2


async def call(core: Core, method: str, data: bytes, remaining: float | None) -> bytes:
    """Answer one call of a method in `METHODS`; raises `Refused`."""
    handler, request, response = METHODS[method]
    asked = handler(core, parse(request, data), remaining)
    del data  # which would be held twice while the request waits
    answer = await asked
    if not isinstance(answer, dict):
        return bytes(answer.SerializeToString())
    return bytes(MESSAGES[response](**answer).SerializeToString())


def parse(name: str, data: bytes) -> Any:
    """Here and not by gRPC, which would call a client's broken message an internal error; raises `Refused`."""
    try:
        return MESSAGES[name].FromString(data)
    except DecodeError:
        raise Refused(f"the message is no {name}") from None


async def _infer(core: Core, message: Any, remaining: float | None) -> Any:
    request = rpc.request(message, remaining)
    del message  # its tensors are the request's now
    return rpc.response(await core.infer(request))


async def _live(core: Core, message: Any, remaining: float | None) -> Any:
    return {"live": True}


async def _ready(core: Core, message: Any, remaining: float | None) -> Any:
    return {"ready": not core.not_ready()}


async def _health(core: Core, message: Any, remaining: float | None) -> Any:
    return {"status": _NOT_SERVING if core.not_ready() else _SERVING}


async def _model_ready(core: Core, message: Any, remaining: float | None) -> Any:
    return {"ready": core.ready(message.name, message.version)}


async def _server(core: Core, message: Any, remaining: float | None) -> Any:
    return documents.server()


async def _model(core: Core, message: Any, remaining: float | None) -> Any:
    found = documents.model(core, message.name, message.version)
    found.pop("parameters")  # the protocol's message has no place for them
    return found


async def _config(core: Core, message: Any, remaining: float | None) -> Any:
    found = documents.config(core, message.name, message.version)
    for port in (*found["input"], *found["output"]):
        port["data_type"] = rpc.TYPES[port["data_type"]]
    return {"config": found}


async def _statistics(core: Core, message: Any, remaining: float | None) -> Any:
    return documents.statistics(core, message.name, message.version)


async def _index(core: Core, message: Any, remaining: float | None) -> Any:
    return {"models": documents.index(core, only_ready=message.ready)}


async def _load(core: Core, message: Any, remaining: float | None) -> Any:
    await core.load(message.model_name, rpc.parameters(message.parameters))
    return {}


async def _unload(core: Core, message: Any, remaining: float | None) -> Any:
    await core.unload(message.model_name)
    return {}


METHODS: dict[str, tuple[Method, str, str]] = {
    "ServerLive": (_live, "Empty", "ServerLiveResponse"),
    "ServerReady": (_ready, "Empty", "ServerReadyResponse"),
    "ModelReady": (_model_ready, "NameVersion", "ModelReadyResponse"),
    "ServerMetadata": (_server, "Empty", "ServerMetadataResponse"),
    "ModelMetadata": (_model, "NameVersion", "ModelMetadataResponse"),
    "ModelInfer": (_infer, "ModelInferRequest", "ModelInferResponse"),
    "ModelConfig": (_config, "NameVersion", "ModelConfigResponse"),
    "ModelStatistics": (_statistics, "NameVersion", "ModelStatisticsResponse"),
    "RepositoryIndex": (_index, "RepositoryIndexRequest", "RepositoryIndexResponse"),
    "RepositoryModelLoad": (_load, "RepositoryModelRequest", "Empty"),
    "RepositoryModelUnload": (_unload, "RepositoryModelRequest", "Empty"),
    # Of grpc.health.v1.
    "Check": (_health, "HealthCheckRequest", "HealthCheckResponse"),
}
