"""Standard output and standard error of a verb: what happens when nobody can read them."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from bnfold.errors import OutputError
from bnfold.files import reason


class ReaderGone(Exception):
    """Who reads standard output has gone, as in `bnfold … | head`."""


class _Stdout:
    """Standard output whose failures are a user's error and not a bug.

    Not an `OSError`: click and rich each take a broken pipe for their own business and exit with 1, our code for a
    mismatch.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._given = stream is not None
        self._stream = stream if stream is not None else io.StringIO()

    def write(self, text: str) -> int:
        if text and not self._given:
            raise OutputError(f"{_WHAT}: is closed; {_MEND}")
        with _blamed():
            return self._stream.write(text)

    def flush(self) -> None:
        with _blamed():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Stderr:
    """Standard error that may be closed or full: nobody is there to be told, and the exit code still tells."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if stream is not None else io.StringIO()

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_WHAT = "standard output"
_MEND = "send it elsewhere, or give -q"


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """While the block runs, what is written to standard output or error is checked."""
    before = sys.stdout, sys.stderr
    for descriptor in range(3):
        _occupy(descriptor)
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without our arrows is no reason to fail
    sys.stdout, sys.stderr = cast(TextIO, _Stdout(sys.stdout)), cast(TextIO, _Stderr(sys.stderr))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            _settle(stream)


def _occupy(descriptor: int) -> None:
    """A closed descriptor is given to the next file that is opened: a model would get what libraries print."""
    try:
        os.fstat(descriptor)
    except OSError:
        os.open(os.devnull, os.O_RDWR)


@contextlib.contextmanager
def _blamed() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise ReaderGone from error
        raise OutputError(f"{_WHAT}: can't be written: {reason(error)}; {_MEND}") from error


def _settle(stream: TextIO | None) -> None:
    """What a stream still holds and can't write must not fail again, with another exit code, when Python ends."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
