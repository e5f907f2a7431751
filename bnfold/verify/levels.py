"""At what a candidate is compared on a provider: optimization level, arithmetic, and the precision that this has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bnfold import runtime
from bnfold.errors import UsageError

TF32_UNIT = 2.0**-11
TF32_PROVIDERS = ("cuda", "tensorrt")


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

    Raises `UsageError` for a name that is none.
    """
    if names is None:
        names = (*DEFAULT, "tf32") if provider.lower() in TF32_PROVIDERS else DEFAULT
    unknown = [name for name in names if name not in LEVELS]
    if unknown or not names:
        raise UsageError(f"no level is called {', '.join(unknown) or 'so'}; give any of {', '.join(LEVELS)}")
    return [LEVELS[name] for name in names]
