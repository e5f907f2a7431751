"""The sessions of one verification, each proven to run where it was asked to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bnfold import runtime
from bnfold.errors import ProviderError
from bnfold.io import Source
from bnfold.verify.levels import Level
from bnfold.verify.options import Options
from bnfold.verify.reference import WEIGHTS
from bnfold.verify.sides import Reference, Run
from bnfold.verify.verdict import Finding, inconclusive

# Sessions of models up to this size stay open side by side; of larger ones, one at a time.
OPEN_BYTES = 1 << 28
# Nodes that hold weights must run where they were asked to; others, arithmetic on shapes mostly, are named.
HEAVY = frozenset(WEIGHTS) - {"Mul", "Add", "Sub", "Div", "Sum"}


@dataclass
class Sessions:
    """Opens what is to be compared; `placed` says which provider runs how many nodes of each, and what runs elsewhere.

    Raises `ProviderError` where a provider does not run here, or it is not proven that it runs the model.
    """

    model: Source
    options: Options
    size: int
    doubts: list[Finding]
    placed: dict[str, Any] = field(default_factory=dict)
    _open: dict[Any, Run] = field(default_factory=dict)

    def reference(self, side: Reference, provider: str, *, gate: bool) -> Run:
        """The original on a provider, without optimizations."""

        def opening() -> Run:
            session = side.session(provider, gate=gate, strict=self.options.strict)
            if not runtime.is_session(session):
                return session  # type: ignore[no-any-return]
            if runtime.is_optimized(session):
                text = f"the reference session on {provider} is optimized: it may fold BatchNorm itself"
                self.doubts.append(inconclusive(text))
            self.placed[f"{provider}, reference"] = placed(session, provider)
            return partial(runtime.run, session)

        return self._kept(("reference", provider, gate), opening)

    def candidate(self, provider: str, level: Level) -> Run:
        """The candidate on a provider at a level."""

        def opening() -> Run:
            session = runtime.session(
                self.model, provider, optimize=level.optimize, gate=level.gate, strict=self.options.strict
            )
            self.placed[f"{provider}, {level.name}"] = placed(session, provider)
            return partial(runtime.run, session)

        return self._kept(("candidate", provider, level.name), opening)

    def release(self) -> None:
        """Close what a large model has open, while something else needs the memory."""
        if self.size > OPEN_BYTES:
            self._open.clear()

    def _kept(self, key: Any, opening: Callable[[], Run]) -> Run:
        if key not in self._open:
            self.release()
            self._open[key] = opening()
        return self._open[key]


def placed(session: Any, provider: str) -> dict[str, Any]:
    """Return how many nodes run on each provider, and which run elsewhere.

    Raises `ProviderError` unless it is proven that every node that holds weights runs on `provider`.
    """
    fault = runtime.unproven(session, provider)
    if fault is not None:
        raise ProviderError(f"{fault}; verify on another provider")
    away = runtime.elsewhere(session, provider)
    heavy = [name or op for op, name in away if op in HEAVY]
    if heavy:
        more = f" and {len(heavy) - 1} more" if len(heavy) > 1 else ""
        raise ProviderError(f"{heavy[0]!r}{more} would not run on {provider}, which has no kernel for it")
    return {"nodes": runtime.placement(session), "elsewhere": [name or op for op, name in away]}
