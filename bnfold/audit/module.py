"""The torch half: what is unsound about a module's BatchNorms, what they see of the data, and new statistics for them.

Every call of `torch.nn.functional.batch_norm` is seen, whoever makes it, by way of a TorchFunctionMode.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from bnfold.audit.data import Data
from bnfold.audit.findings import AuditFinding, Code
from bnfold.audit.health import examine
from bnfold.audit.moments import Moments
from bnfold.audit.observe import Site, Unobserved
from bnfold.audit.subject import Seen
from bnfold.errors import InputError
from bnfold.folding.frozen import Frozen

KERAS = 0.9
"""A momentum from here on is Keras's convention given to PyTorch."""

_RELU = (functional.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
_INITIAL = Code.INITIAL_STATISTICS
_BATCH_NORM = (functional.batch_norm, torch.batch_norm)


def inspect_module(module: nn.Module) -> list[AuditFinding]:
    """What is unsound about the module as it stands, without running it."""
    norms = dict(batch_norms(module))
    found = list(_modes(module, norms))
    for name, norm in norms.items():
        found += _settings(name, norm)
        if norm.running_mean is not None and norm.running_var is not None:
            known = examine(frozen(name, norm))
            untouched = norm.num_batches_tracked is not None and int(norm.num_batches_tracked) == 0
            found += [_never_updated(name) if f.code is _INITIAL and untouched else f for f in known]
    return found


def _never_updated(name: str) -> AuditFinding:
    detail = "num_batches_tracked is 0, running_mean 0 and running_var 1: it has seen no batch in training mode"
    return AuditFinding(Code.NEVER_UPDATED, name, detail, {"num_batches_tracked": 0})


def batch_norms(module: nn.Module) -> Iterator[tuple[str, _BatchNorm]]:
    """Every BatchNorm of the module by name, each once."""
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm):
            yield name or type(part).__name__, part


def _modes(module: nn.Module, norms: dict[str, _BatchNorm]) -> Iterator[AuditFinding]:
    training = [name for name, norm in norms.items() if norm.training]
    if training and len(training) == len(norms) and module.training:
        detail = f"the module and all {len(norms)} BatchNorms are in training mode"
        yield AuditFinding(Code.TRAINING_MODE, type(module).__name__, detail, {"count": len(training)})
    else:
        for name in training:
            detail = f"it is in training mode, {len(norms) - len(training)} of {len(norms)} BatchNorms are not"
            yield AuditFinding(Code.TRAINING_MODE, name, detail, {"count": len(training)})
    for name in training:
        norm = norms[name]
        if norm.affine and not norm.weight.requires_grad and not norm.bias.requires_grad and norm.track_running_stats:
            detail = "gamma and beta are frozen (requires_grad=False), but in training mode the statistics move on"
            yield AuditFinding(Code.FROZEN_BUT_TRAINING, name, detail)


def _settings(name: str, norm: _BatchNorm) -> Iterator[AuditFinding]:
    if norm.running_mean is None:
        detail = "track_running_stats=False: in eval mode too it normalises by each batch's own statistics"
        yield AuditFinding(Code.NO_STATISTICS, name, detail)
        return
    momentum = norm.momentum
    if momentum is None:
        detail = "momentum=None averages over all of training, so that the first batches count as much as the last"
        yield AuditFinding(Code.MOMENTUM, name, detail, {"momentum": None})
    elif momentum >= KERAS or momentum <= 0:
        what = f"the last batch makes up {momentum:.0%} of the statistics" if momentum > 0 else "no batch is taken in"
        yield AuditFinding(Code.MOMENTUM, name, f"momentum={momentum:g}: {what}", {"momentum": momentum})


def frozen(name: str, norm: _BatchNorm) -> Frozen:
    """The module's statistics, gamma and beta."""
    assert norm.running_mean is not None and norm.running_var is not None
    gamma, beta = (None, None) if not norm.affine else (norm.weight, norm.bias)
    return _frozen(name, norm.running_mean, norm.running_var, gamma, beta, norm.eps)


def _frozen(
    name: str, mean: Tensor, var: Tensor, gamma: Tensor | None, beta: Tensor | None, epsilon: float
) -> Frozen:
    ones = torch.ones_like(mean)
    parts = (ones if gamma is None else gamma, 0 * ones if beta is None else beta, mean, var)
    arrays = [_array(part).astype(np.float64) for part in parts]
    return Frozen(name, name, name, arrays[0], arrays[1], arrays[2], arrays[3], epsilon)


def _array(tensor: Tensor) -> Any:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


class _Reached(Exception):
    """The layer that a pass is for has been seen; what follows it is not needed."""


class Watch(TorchFunctionMode):
    """Sees every batch norm of a forward pass by the buffer that holds its running mean.

    `calls` counts them in the order of their first call; `relu` are those that a ReLU reads; with `until`, only that
    one is measured, and the pass ends behind it.
    """

    def __init__(self, module: nn.Module, until: str | None = None) -> None:
        super().__init__()
        self.names = {id(buffer): name.rpartition(".")[0] or name for name, buffer in module.named_buffers()}
        self.names |= {id(part.running_mean): name for name, part in batch_norms(module)}
        self.until = until
        self.examples = 0
        self.weight = 0
        self.calls: Counter[str] = Counter()
        self.frozen: dict[str, Frozen] = {}
        self.buffers: dict[str, tuple[Tensor, Tensor]] = {}
        self.moments: dict[str, Moments] = {}
        self.relu: set[str] = set()
        self._outputs = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RELU and args and args[0] in self._outputs:
            self.relu.add(self._outputs[args[0]])
        if func not in _BATCH_NORM:
            return func(*args, **kwargs)
        name = self._seen(func is torch.batch_norm, args, kwargs)
        if name is not None and name == self.until:
            raise _Reached
        out = func(*args, **kwargs)
        if name is not None:
            self._outputs[out] = name
        return out

    def _seen(self, low: bool, args: Any, kwargs: Any) -> str | None:
        order = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
        if not low:
            order = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        given = {**dict(zip(order, args, strict=False)), **kwargs}
        mean, var = given.get("running_mean"), given.get("running_var")
        if mean is None or var is None:
            return None
        name = self.names.get(id(mean), f"batch_norm_{len(self.calls)}")
        self.calls[name] += 1
        if name not in self.moments:
            self.buffers[name] = (mean, var)
            self.frozen[name] = _frozen(
                name, mean, var, given.get("weight"), given.get("bias"), float(given.get("eps", 1e-5))
            )
            self.moments[name] = Moments(np.nan_to_num(self.frozen[name].mean))
        if self.until in (None, name):
            x = _array(given["input"])
            self.moments[name].add(x, self.examples)
            self.weight += x.nbytes
        return name


def run(module: nn.Module, data: Data, watch: Watch, outputs: Callable[[Any], None] = lambda out: None) -> None:
    """Run the data through the module in eval mode under `watch`; raises `InputError` where it fails on it."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            for batch in data.batches():
                watch.examples, watch.weight = batch.examples, 0
                tensors = [torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in batch.feeds.values()]
                try:
                    with watch:
                        out = module(*tensors)
                except _Reached:
                    out = None
                except Exception as error:
                    lines = str(error).strip().splitlines() or [type(error).__name__]
                    shapes = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in batch.feeds.items())
                    raise InputError(f"the module fails on {shapes}: {lines[0][:200]}") from error
                batch.weight = watch.weight
                outputs(out)
    finally:
        for part, mode in modes:
            part.training = mode


def observe_module(
    module: nn.Module, data: Data, outputs: Callable[[Any], None] = lambda out: None
) -> Seen:
    """What each BatchNorm sees of the data, those that it does not reach, and those with several call sites."""
    watch = Watch(module)
    batches = 0

    def count(out: Any) -> None:
        nonlocal batches
        batches += 1
        outputs(out)

    run(module, data, watch, count)
    repeated = {name: calls // batches for name, calls in watch.calls.items() if calls > batches}
    shared = [
        AuditFinding(Code.SHARED, name, f"called {calls} times in one forward pass", {"calls": calls})
        for name, calls in repeated.items()
    ]
    found = [
        Site(watch.frozen[name], name, "x", np.ones(watch.frozen[name].channels, bool), name in watch.relu)
        for name in watch.calls
    ]
    hidden = [Unobserved(name, "no call of it is seen") for name, _ in batch_norms(module) if name not in watch.calls]
    return Seen(found, [watch.moments[name] for name in watch.calls], hidden, shared)


def recalibrate_module(
    module: nn.Module, data: Data, names: Sequence[str], progress: Callable[[str], None] = lambda text: None
) -> None:
    """Give the BatchNorms `names`, in the order of their calls, the population statistics of the data, in place.

    One pass each, which ends at the layer that it is for: what a layer sees depends on all those before it.
    """
    for index, name in enumerate(names):
        progress(f"measuring layer {index + 1} of {len(names)}")
        watch = Watch(module, name)
        run(module, data, watch)
        mean, var = watch.buffers[name]
        with torch.no_grad():
            mean.copy_(torch.from_numpy(watch.moments[name].mean))
            var.copy_(torch.from_numpy(watch.moments[name].var))
    for _, norm in batch_norms(module):
        if norm.num_batches_tracked is not None and int(norm.num_batches_tracked) == 0:
            norm.num_batches_tracked += 1
