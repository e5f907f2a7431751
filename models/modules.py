"""Modules: where they come from, a checkpoint or a user's factory, and the mode that they are in."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import ModelError, UsageError
from bnfold.models.checkpoint import load_checkpoint
from bnfold.models.matching import fit, take
from bnfold.models.weights import PICKLES, first_line, read_state

if TYPE_CHECKING:
    from torch import nn

# Collections whose models go by a name that is no attribute: `timm:resnet18` is `timm.create_model("resnet18")`.
_ZOOS = {"timm": ("timm", "create_model"), "torchvision": ("torchvision.models", "get_model")}
_FACTORY = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*):([A-Za-z_]\w*(?:\.\w+)*)")


def load_module(
    source: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    prefix: str | None = None,
    ema: bool = False,
    partial: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[nn.Module, tuple[int, ...] | None]:
    """The module that `source` names, and the shape of one example where that is known.

    `source` is the path of a checkpoint of `bnfold train`, or `"package.module:factory"`, imported from the current
    folder too, called with `kwargs` and given `weights`: `prefix` and `ema` say which of those in the file, `partial`
    takes what fits, and `tell` hears what was left. Raises `ModelError` where it can't be loaded, `UsageError` for
    `weights` or `kwargs` beside a checkpoint, which has its own.
    """
    text = os.fspath(source)
    match = None if Path(text).exists() else _FACTORY.fullmatch(text)
    if match:
        module = _call(text, match[1], match[2], kwargs or {})
        if weights is not None:
            state, averaged = read_state(weights, ema=ema)
            match = fit(module, state, weights, prefix=prefix, ema=ema and not averaged, partial=partial)
            take(module, match, tell=tell)
        elif prefix is not None or ema or partial:
            raise UsageError("--prefix, --ema and --partial choose among --weights; give those")
        return module, None
    if weights is not None or kwargs:
        raise UsageError(f"{text} is no package.module:factory, which alone takes weights and arguments")
    if not Path(text).exists():
        raise ModelError(f"{text}: no such file; give a checkpoint of `bnfold train`, or package.module:factory")
    if Path(text).suffix in PICKLES:
        raise ModelError(f"{text}: holds weights but no architecture; name it, package.module:factory --weights {text}")
    checkpoint = load_checkpoint(text)
    return checkpoint.module, checkpoint.meta.input_shape


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """The whole module in eval mode for a block, and then every part in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _imported(text: str, package: str) -> Any:
    import torch

    try:
        return importlib.import_module(package)
    except Exception as error:
        hint = ""
        if package in _ZOOS:
            besides = "" if package == "torchvision" else f"{package} and "
            hint = f"; install {besides}a torchvision that is built for torch {torch.__version__}"
        elif isinstance(error, ModuleNotFoundError) and f"{package}.".startswith(f"{error.name}."):
            hint = "; install it, or call bnfold in the folder that holds it"
        raise ModelError(f"{text}: {type(error).__name__}: {first_line(error)}{hint}") from error


def _call(text: str, package: str, name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    from torch import nn

    # `python script.py` finds modules beside it, an installed command does not: users expect the current folder.
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found = _imported(text, package)
        if package in _ZOOS and not hasattr(found, name):
            home, maker = _ZOOS[package]
            found = partial(getattr(importlib.import_module(home), maker), name)
        else:
            for part in name.split("."):
                found = getattr(found, part)
        module = found if isinstance(found, nn.Module) else found(**kwargs)
        if module is not found and isinstance(module, nn.Module) and module.training:
            # As any module is that was just built; in one that was put into eval mode, what trains was left so.
            module.eval()
    except ModelError:
        raise
    except Exception as error:
        # It is the user's own code: whatever it raises is for them to see, in one line.
        raise ModelError(f"{text}: {type(error).__name__}: {first_line(error)}") from error
    finally:
        if added:
            sys.path.remove(here)
    if not isinstance(module, nn.Module):
        raise ModelError(f"{text}: gave {type(module).__name__}, not a torch.nn.Module")
    return module
