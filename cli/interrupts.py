"""Ctrl-C and SIGTERM while a library computes: Python calls its handlers only when the library returns."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

# How long the orderly way out may take before the process ends where it stands.
GRACE_S = 3.0


class Terminated(BaseException):
    """SIGTERM, as an exception, so that every `finally` on the way out removes what is half-written."""


def terminate(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough; the way out must not be interrupted
    raise Terminated


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """While the block runs, Ctrl-C or SIGTERM ends the process at the latest `GRACE_S` after it came."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno())
    threading.Thread(target=_watch, args=(ours,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        theirs.close()


def _watch(ours: socket.socket) -> None:
    with ours:
        number = _ours(ours)
        if number is None:
            return
        orderly = _closes(ours)
    if orderly:
        time.sleep(GRACE_S)  # Python may wait for threads that are in a library too; if not, this one ends with it
    else:
        _say("interrupted" if number == signal.SIGINT else "terminated")
    from bnfold.files import abandon

    abandon()
    os._exit(128 + number)


def _ours(signals: socket.socket) -> int | None:
    """Wait for a signal that our handlers are there for; None if the block ends without one."""
    while numbers := signals.recv(1):
        # Who put another handler in place, as Lightning does, sees to it.
        if signal.getsignal(numbers[0]) in (terminate, signal.default_int_handler, signal.SIG_IGN):
            return numbers[0]
    return None


def _closes(signals: socket.socket) -> bool:
    """Whether the block ends in time; further signals don't hurry it."""
    deadline = time.monotonic() + GRACE_S
    while (left := deadline - time.monotonic()) > 0:
        if select.select([signals], [], [], left)[0] and not signals.recv(1):
            return True
    return False


def _say(text: str) -> None:
    shown = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""  # the spinner's line goes, the cursor comes back
    with contextlib.suppress(OSError):
        os.write(2, f"{shown}bnfold: {text}\n".encode())
