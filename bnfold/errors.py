"""The errors a user can cause: one line that says what happened, where, and what to do.

Everything else that is raised is a bug. The command line prints a `BnfoldError` without a traceback and exits
with its `exit_code`.
"""

from __future__ import annotations

LONGEST = 240


def one_line(text: object) -> str:
    """What somebody else's exception says, without its line breaks and cut where nobody reads on."""
    flat = " ".join(str(text).split())
    return flat if len(flat) <= LONGEST else f"{flat[: LONGEST - 3]}..."


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
