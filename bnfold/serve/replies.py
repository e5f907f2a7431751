"""What is sent over HTTP: documents, refusals, and the answers of models, which may be large."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bnfold.serve.errors import OVERLOADED, UNAUTHORIZED, Refused
from bnfold.serve.memory import Budget

# Bytes that are handed to the connection at one time.
_PIECE = 1 << 18


class Answer(Response):
    """Goes out in pieces, each once the one before has been read; until the last it counts against the budget."""

    def __init__(self, parts: Sequence[bytes], budget: Budget, headers: Mapping[str, str], media_type: str) -> None:
        self._budget, self._size = budget, sum(map(len, parts))
        self._parts = [b"".join(parts)] if self._size <= _PIECE else parts
        super().__init__(None, 200, {**headers, "content-length": str(self._size)}, media_type)
        budget.add(self._size)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = self._size
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for part in self._parts:
                for start in range(0, len(part), _PIECE):
                    piece = part[start : start + _PIECE]  # bytes, for Ray pickles them on their way to its proxy
                    left -= len(piece)
                    await send({"type": "http.response.body", "body": piece, "more_body": left > 0})
        finally:
            self._budget.give_back(self._size)


def refusal(error: Refused) -> Response:
    """What a request is answered with that was refused."""
    response = document({"error": str(error)}, error.status)
    if error.status == OVERLOADED:
        response.headers["retry-after"] = "1"
    if error.status == UNAUTHORIZED:
        response.headers["www-authenticate"] = "Bearer"
    return response


def document(content: Any, status: int = 200) -> Response:
    """A JSON document."""
    return Response(json.dumps(content, separators=(",", ":")), status, media_type="application/json")
