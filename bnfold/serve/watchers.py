"""Which observers a server has, by its settings."""

from __future__ import annotations

from pathlib import Path

from bnfold.serve.capture import Capture
from bnfold.serve.observe import Observer
from bnfold.serve.settings import Settings


def watchers(settings: Settings) -> tuple[Observer, ...]:
    """Return the observers that the settings ask for. Raises `OutputError` if captured inputs can't be kept."""
    capture = None if settings.capture is None else Capture(Path(settings.capture))
    found: list[Observer] = []
    if settings.shadow_rate > 0:
        from bnfold.serve.shadow import Shadow

        original = None if settings.shadow is None else Path(settings.shadow)
        found.append(Shadow(original, settings.shadow_rate, roll_back=settings.roll_back, capture=capture))
    if settings.drift_rate > 0:
        from bnfold.serve.drift import Drift

        found.append(Drift(settings.drift_rate, capture))
    return tuple(found)
