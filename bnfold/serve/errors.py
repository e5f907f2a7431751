"""What a request is refused with: a status of HTTP's, from which each transport makes its own."""

from __future__ import annotations

INVALID, UNKNOWN, TOO_LARGE, INTERNAL, UNSUPPORTED, OVERLOADED = 400, 404, 413, 500, 501, 503
UNAUTHORIZED = 401


class Refused(Exception):
    """A request that is answered with an error: `status` is HTTP's, `reason` the word that the counters use."""

    def __init__(self, message: str, status: int = INVALID, reason: str = "invalid") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason

    def forget(self) -> None:
        """Let go of where it was raised: those frames hold the request, and what awaited this, in a circle."""
        self.__traceback__ = self.__cause__ = self.__context__ = None


def unknown(message: str) -> Refused:
    """There is no such model, version or address."""
    return Refused(message, UNKNOWN, "unknown")


def too_large(message: str) -> Refused:
    """More than the limits let in."""
    return Refused(message, TOO_LARGE, "too-large")


def unsupported(message: str) -> Refused:
    """Part of the protocol, but not of this server."""
    return Refused(message, UNSUPPORTED, "unsupported")


def overloaded(message: str, reason: str) -> Refused:
    """Right, but not now: the queue is full, the time is up, or the server is going down."""
    return Refused(message, OVERLOADED, reason)


def failed() -> Refused:
    """A fault of ours."""
    return Refused("the server failed on this request; its log says more", INTERNAL, "failed")
