"""Addresses to listen on."""

from __future__ import annotations

import socket

from bnfold.errors import BnfoldError
from bnfold.files import reason

# Connections that wait to be taken, while a worker is started anew for one.
BACKLOG = 2048


class AddressError(BnfoldError):
    """An address that can't be listened on."""


def free_port(host: str) -> int:
    """A port that is free now."""
    with bind(host, 0) as place:
        port: int = place.getsockname()[1]
        return port


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; raises `AddressError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = socket.socket(family, socket.SOCK_STREAM)
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((host, port))
        place.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        place.close()
        text = reason(error) if isinstance(error, OSError) else str(error)
        raise AddressError(f"{host}:{port}: can't be listened on: {text}; choose another address or port") from error
    place.setblocking(False)
    return place
