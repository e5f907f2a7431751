"""Structured logs on stderr: one line an event, as text or JSON; a reader that does not read holds nothing up."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import logging.handlers
import os
import queue
import sys
import time
from typing import Any

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
_LOGGER = logging.getLogger("bnfold.serve")
_HELD = 10_000  # lines that wait for a slow reader; more are dropped
_STUCK_S = 2.0
# Of our own request ids: unlike those of another process, and cheaper than to ask the system for each.
_PREFIX, _COUNTER = os.urandom(4).hex(), itertools.count()


def event(level: int, message: str, *, error: BaseException | None = None, **fields: Any) -> None:
    """Log a message and what it is about; `error` adds a traceback."""
    if _LOGGER.isEnabledFor(level):
        _LOGGER.log(level, message, exc_info=error, extra={"fields": fields})


def debug(message: str, **fields: Any) -> None:
    event(logging.DEBUG, message, **fields)


def info(message: str, **fields: Any) -> None:
    event(logging.INFO, message, **fields)


def warning(message: str, **fields: Any) -> None:
    event(logging.WARNING, message, **fields)


def error(message: str, **fields: Any) -> None:
    event(logging.ERROR, message, **fields)


def answered(request: str, what: str, status: int, start: int, why: str = "", **fields: Any) -> None:
    """Log one request that came at `start` on `time.perf_counter_ns`: a success at debug, what was refused at info."""
    level = logging.DEBUG if status < 400 else logging.INFO if status < 500 else logging.WARNING
    if _LOGGER.isEnabledFor(level):
        took = (time.perf_counter_ns() - start) / 1e6
        if why:
            fields["why"] = why
        event(level, what, request=request, status=status, ms=round(took, 3), **fields)


def request_id(given: str | None) -> str:
    """The id that a client gave its request, if that can stand in a header and a log line; else a new one."""
    if given and len(given) <= 128 and given.isascii() and given.isprintable() and " " not in given:
        return given
    return f"{_PREFIX}{next(_COUNTER):08x}"


class Lines(logging.Formatter):
    """`TIME LEVEL message key=value …`, or the same as a JSON object."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        level, message = record.levelname.lower(), record.getMessage()
        fields: dict[str, Any] = getattr(record, "fields", {})
        trace = self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""
        if self._as_json:
            more = {"trace": trace} if trace else {}
            return json.dumps({"time": stamp, "level": level, "message": message, **fields, **more}, default=str)
        words = [f"{key}={_word(value)}" for key, value in fields.items()]
        return " ".join([stamp, f"{level:7}", _plain(message), *words]) + ("\n" + trace if trace else "")


class _Dropping(logging.handlers.QueueHandler):
    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def handleError(self, record: logging.LogRecord) -> None:
        pass  # the queue is full


class _Writer(logging.handlers.QueueListener):
    def __init__(self, waiting: queue.Queue[Any], writer: logging.Handler) -> None:
        super().__init__(waiting, writer)
        self._waiting = waiting

    def enqueue_sentinel(self) -> None:
        """Make room for the end of the queue, if a stuck reader has let it fill up."""
        while True:
            try:
                return self._waiting.put_nowait(None)
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._waiting.get_nowait()

    def stop(self) -> None:
        """Write what waits, but do not stay because of a reader that never reads."""
        self.enqueue_sentinel()
        if self._thread is not None:
            self._thread.join(_STUCK_S)


class Logging:
    """While this is open, the server's events go to stderr."""

    def __init__(self, as_json: bool, level: str) -> None:
        waiting: queue.Queue[Any] = queue.Queue(_HELD)
        writer = logging.StreamHandler(sys.stderr)
        writer.setFormatter(Lines(as_json))
        self._listener = _Writer(waiting, writer)
        self._handler = _Dropping(waiting)
        self._level = level.upper()

    def __enter__(self) -> None:
        _LOGGER.setLevel(self._level)
        _LOGGER.propagate = False
        _LOGGER.addHandler(self._handler)
        # What uvicorn has to say about a request is in our own lines; its failures are not.
        uvicorn = logging.getLogger("uvicorn.error")
        uvicorn.setLevel(logging.ERROR)
        uvicorn.addHandler(self._handler)
        self._listener.start()

    def __exit__(self, *_: object) -> None:
        for name in ("bnfold.serve", "uvicorn.error"):
            logging.getLogger(name).removeHandler(self._handler)
        self._listener.stop()


def _plain(text: str) -> str:
    """A client's words must not start a line of their own, nor steer a terminal."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _word(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if not text.isprintable() or not text or any(sign in text for sign in ' "=\\') else text
