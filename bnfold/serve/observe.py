"""What may look on: each finished batch is shown to every observer, off the reply path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bnfold.arrays import Array
from bnfold.serve.model import Model
from bnfold.serve.stats import Timings

if TYPE_CHECKING:  # the one arrow back: who is looked at shows its observers what it does
    from bnfold.serve.core import Core


@dataclass(frozen=True, slots=True)
class Finished:
    """One batch that was run: the version, its inputs and outputs as they went through the session, and timings.

    The arrays are the session's own: whoever keeps them holds their memory, and nobody may write to them.
    """

    model: Model
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    rows: int
    requests: int
    timings: Timings


class Observer:
    """Shadow, drift, capture and the like derive from this.

    Every method but `admit` and `close` is called on the event loop and must not wait: what takes longer goes to a
    thread of the observer's own. An exception is logged and counted, and hurts no request.
    """

    def attach(self, core: Core) -> None:
        """The server that is looked at, before it loads anything; `core.roll_back` is there for an alarm."""

    def admit(self, model: Model) -> None:
        """A version is warm and about to be served; called in the loading thread, where it may take its time.

        Raising `ModelError` refuses the version: the old one keeps serving. What it learns may go to
        `model.properties`, which the metadata shows.
        """

    def serving(self, model: Model) -> None:
        """A version has begun to be the one that answers."""

    def retired(self, model: Model) -> None:
        """A version is no longer the one that is served; it may come back by a roll-back."""

    def finished(self, batch: Finished) -> None:
        """A batch was run and its requests were answered."""

    def metrics(self) -> Iterable[Any]:
        """Metric families of prometheus_client, at each scrape."""
        return ()

    def status(self, model: Model) -> Mapping[str, Any]:
        """What the status page and the model's metadata show of this observer, JSON-safe."""
        return {}

    async def close(self) -> None:
        """The server goes down; finish or drop what is under way."""
