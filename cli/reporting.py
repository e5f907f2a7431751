"""What `verify` and `optimize` do with a verdict besides printing it: hold it against a baseline, write reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bnfold.errors import UsageError


def told(verdict: Any) -> dict[str, Any]:
    """The verdict as the verbs write it: with the seconds of each step, which are no part of what was found."""
    return {**verdict.to_dict(), "seconds": {step: round(value, 3) for step, value in verdict.seconds.items()}}


@dataclass
class Baseline:
    """`--baseline FILE`, with `--update-baseline` and `--baseline-factor`."""

    path: str | None
    update: bool
    factor: float
    known: dict[str, Any] = field(default_factory=dict)

    def check(self, options: Mapping[str, Any], taken: Sequence[str]) -> None:
        """Fail now, not after minutes of work, if the file is not what it should be, or of other `options`.

        `taken` are paths that must not be overwritten.
        """
        from bnfold.files import check_output
        from bnfold.report import baseline, writing

        baseline.check_factor(self.factor)
        if self.path is None:
            if self.update:
                raise UsageError("--update-baseline needs --baseline FILE, the file to write")
        elif self.update:
            check_output(self.path)
            writing.distinct([self.path], taken)
        else:
            self.known = baseline.load(self.path)
            inputs = "generated" if options["inputs"] is None else "given"
            settings = {"inputs": inputs, "seed": options["seed"], "dims": options["dims"] or {}}
            baseline.check_settings(self.known, settings, self.path)

    def apply(self, verdict: Mapping[str, Any]) -> dict[str, Any]:
        """The verdict with what the baseline says about it; where it is to be updated, a pass is written to it."""
        from bnfold.report import baseline

        if self.path is None:
            return dict(verdict)
        if not self.update:
            return baseline.compare(verdict, self.known, self.path, self.factor)
        if verdict["status"] == "pass":
            baseline.save(verdict, self.path)
        return dict(verdict)
