"""Fold BatchNorm into the neighbouring linear layers of an ONNX model, and prove that it is the same model.

>>> import bnfold
>>> bnfold.optimize("model.onnx").verdict          # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnfold.audit import audit
    from bnfold.bench import bench
    from bnfold.export import export
    from bnfold.io import digest, load, save
    from bnfold.pipeline import inspect, optimize
    from bnfold.verify import verify
    from bnfold.verify.bisection import bisect

__version__ = "0.1.0"

# Each name is imported on first use: `import bnfold` must not cost what onnx, ONNX Runtime and torch cost.
_HOME = {
    "audit": "bnfold.audit",
    "bench": "bnfold.bench",
    "bisect": "bnfold.verify.bisection",
    "digest": "bnfold.io",
    "export": "bnfold.export",
    "inspect": "bnfold.pipeline",
    "load": "bnfold.io",
    "optimize": "bnfold.pipeline",
    "save": "bnfold.io",
    "verify": "bnfold.verify",
}

__all__ = [
    "__version__", "audit", "bench", "bisect", "digest", "export", "inspect", "load", "optimize", "save", "verify",
]  # fmt: skip


class _Callable(ModuleType):
    """A module named like the function in it: `bnfold.verify(…)` and `bnfold.verify.verdict` both work."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    """Importing a submodule binds its name here; where that is a function's name too, the module answers calls."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == value.__name__:
            value.__class__ = _Callable
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    module = importlib.import_module(home)
    return module if isinstance(module, _Callable) else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
