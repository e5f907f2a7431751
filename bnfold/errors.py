"""The errors a user can cause: one line that says what happened, where, and what to do.

Everything else that is raised is a bug. The command line prints a `BnfoldError` without a traceback and exits
with its `exit_code`.
"""

from __future__ import annotations

import re

LONGEST = 240
# A word that is longer loses its middle: what follows it has to be read too.
LONGEST_WORD = 120


def one_line(text: object) -> str:
    """What somebody else's exception says, without its line breaks and cut where nobody reads on."""
    flat = " ".join(str(text).split())
    half = LONGEST_WORD // 2
    flat = re.sub(rf"(\S{{{half}}})\S+(\S{{{half}}})", r"\1...\2", flat)
    return flat if len(flat) <= LONGEST else f"{flat[: LONGEST - 3]}..."


def innermost(error: BaseException) -> BaseException:
    """The exception that the others of a chain were raised from: the one that says what is wrong."""
    while (cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        error = cause
    return error


def printable(text: str) -> str:
    """Text for a terminal: what would move its cursor or turn its direction is escaped, as in `repr`."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()


class BnfoldError(Exception):
    """The input can't be processed; the message says what to do."""

    exit_code = 4


class ModelError(BnfoldError):
    """A model that is missing, unreadable or invalid."""


class InputError(BnfoldError):
    """Data for a model, a checkpoint or another input file that does not fit."""


class OutputError(BnfoldError):
    """A result that can't be written where it was asked for."""


class ProviderError(BnfoldError):
    """An execution provider that is not there or does not work."""


class RejectedError(BnfoldError):
    """A model that can be processed, but is not good enough for what was asked."""

    exit_code = 1


class UsageError(BnfoldError):
    """Arguments that contradict each other or name something unknown."""

    exit_code = 2
