"""Which tensor of a file is which of a module: wrappers' prefixes, averaged copies, and what does not fit.

A state dict saved from inside a wrapper has longer names: `module.` of DataParallel and of averaged models, `model.`
or `net.` of a LightningModule, `_orig_mod.` of a compiled one. The prefix is the one under which most of the module's
names are found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bnfold.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bnfold.models.weights import StatePath

_COMPILED = "_orig_mod."
_AVERAGED = "ema"
_SHOWN = 3
# Buffers that older files lack and that say nothing about the function.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Match:
    """The tensors by the module's own names, and the names that found no partner, on either side.

    `mismatched` says how each differs; `others` lie outside the prefix.
    """

    state: Mapping[str, Tensor]
    prefix: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def complaint(self, name: str) -> str:
        """What does not fit the module called `name`, in one line."""
        parts = []
        if self.missing:
            parts.append(f"lacks {listed(self.missing)} of {name}")
        if self.unexpected:
            parts.append(f"holds {listed(self.unexpected)}, which {name} has not")
        return "; ".join([*parts, *self.mismatched[:_SHOWN]])


def fit(
    module: nn.Module,
    state: Mapping[str, Tensor],
    path: StatePath,
    *,
    prefix: str | None = None,
    ema: bool = False,
    partial: bool = False,
) -> Match:
    """Match the tensors of a file with those of a module.

    `prefix` stands before the module's names in the file; by default it is found. With `ema` it is one of averaged
    weights. Raises `ModelError` where several prefixes fit equally, or where a name, a shape or a kind of number has no
    partner, unless `partial`.
    """
    own = module.state_dict()
    state = {key.replace(_COMPILED, ""): tensor for key, tensor in state.items()}
    name = type(module).__name__
    chosen = _prefix(own, state, path, ema) if prefix is None else prefix
    # Where the module has the wrapper and the file has not, names are lengthened instead.
    longer = chosen[1:] if chosen.startswith("+") else ""
    chosen = "" if longer else chosen
    found = {longer + key.removeprefix(chosen): t for key, t in state.items() if key.startswith(chosen)}
    missing = tuple(key for key in own if key not in found and not key.endswith(_COUNTER))
    match = Match(
        {key: found[key] for key in own if key in found and not _differs(own[key], found[key])},
        chosen,
        missing,
        tuple(key for key in found if key not in own),
        tuple(
            f"{key} is {found[key].dtype} {tuple(found[key].shape)}, but {name} has {own[key].dtype}"
            f" {tuple(own[key].shape)}"
            for key in own
            if key in found and _differs(own[key], found[key])
        ),
        tuple(key for key in state if not key.startswith(chosen)),
    )
    if not match.state or not (match.fits or partial):
        hint = "build it with the arguments that it was trained with" if match.mismatched else "give its own weights"
        raise ModelError(f"{path}: {match.complaint(name)}; {hint}, or load what fits with --partial")
    return match


def take(
    module: nn.Module, match: Match, *, assign: bool = False, tell: Callable[[str], None] = lambda text: None
) -> None:
    """Load what was matched into the module; `tell` hears of what stays as it was built and of what is left over."""
    own = module.state_dict()
    module.load_state_dict(
        {key: tensor.to(own[key].dtype) for key, tensor in match.state.items()}, assign=assign, strict=False
    )
    if match.prefix:
        left = f"; left out: {listed(match.others)}" if match.others else ""
        tell(f"the weights are those under {match.prefix!r}{left}")
    if not match.fits:
        tell(f"{len(match.state)} of {len(own)} tensors were loaded: {match.complaint(type(module).__name__)}")


def listed(names: Sequence[str]) -> str:
    """`a, b, c and 4 more`."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _differs(own: Tensor, given: Tensor) -> bool:
    return given.shape != own.shape or given.dtype.is_floating_point != own.dtype.is_floating_point


def _prefix(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: StatePath, ema: bool) -> str:
    """The prefix under which most of the module's names are found; `+p` where the module's names have it instead."""
    covered: Counter[str] = Counter()
    ends: dict[str, list[str]] = {}
    for key in state:
        ends.setdefault(key.rpartition(".")[2], []).append(key)
    for key in own:
        for candidate in ends.get(key.rpartition(".")[2], ()):
            if candidate == key or candidate.endswith(f".{key}"):
                covered[candidate[: len(candidate) - len(key)]] += 1
            elif key.endswith(f".{candidate}"):
                covered["+" + key[: len(key) - len(candidate)]] += 1
    # Names that only happen to end alike are no wrapper.
    covered = Counter({p: n for p, n in covered.items() if not p.startswith("+") or n == len(state)})
    averaged = {prefix for prefix in covered if _AVERAGED in prefix.lower()}
    if ema and not averaged:
        raise ModelError(f"{path}: holds no averaged weights; leave out --ema")
    wanted = averaged if ema else covered.keys() - averaged or averaged
    if not wanted:
        return ""
    most = max(covered[prefix] for prefix in wanted)
    best = sorted(prefix for prefix in wanted if covered[prefix] == most)
    if "" in best:
        return ""
    if len(best) > 1:
        if most < sum(not key.endswith(_COUNTER) for key in own):
            return ""
        raise ModelError(f"{path}: holds several models, under {listed(best)}; choose one with --prefix")
    return best[0]
