"""At what a candidate is compared on a provider: optimization level, arithmetic, and the precision that this has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bnfold import runtime
from bnfold.errors import UsageError
from bnfold.providers import TF32_UNIT, named


@dataclass(frozen=True)
class Level:
    """One way to run the candidate; `gate` asks for reproducible full precision, `unit` is set where that is given up.

    The original runs without optimizations, but with the same arithmetic.
    """

    name: str
    optimize: runtime.Level
    gate: bool = True
    unit: float | None = None


LEVELS = {
    level.name: level
    for level in (
        Level("off", "off"),
        Level("basic", "basic"),
        Level("extended", "extended"),
        Level("deployed", "all"),
        Level("tf32", "all", gate=False, unit=TF32_UNIT),
    )
}
DEFAULT = ("off", "deployed")
ALL = ("off", "basic", "extended", "deployed")


def chosen(names: Sequence[str] | None, provider: str) -> list[Level]:
    """The levels to compare at on a provider; by default without optimizations and as deployed, TF32 where it has it.

    A provider that can't be told to leave TF32 out is held to TF32's precision at every level. Raises `UsageError`
    for a name that is no level's.
    """
    wanted = named(provider)
    if names is None:
        names = (*DEFAULT, "tf32") if wanted.tf32 and wanted.tellable else DEFAULT
    unknown = [name for name in names if name not in LEVELS]
    if unknown or not names:
        raise UsageError(f"no level is called {', '.join(unknown) or 'so'}; give any of {', '.join(LEVELS)}")
    return [replace(LEVELS[name], unit=LEVELS[name].unit or wanted.unit or None) for name in names]
