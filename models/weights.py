"""Weights from files, `.safetensors` or what `torch.save` wrote, without running anything that they hold."""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.errors import ModelError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

StatePath = str | os.PathLike[str]

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".tar")
# Where training scripts put the state dict beside optimizers and counters, and the averaged one.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network", "weights", "params")
_EMA = ("state_dict_ema", "ema_state_dict", "model_state_dict_ema", "model_ema", "ema_model", "params_ema", "ema")
_DEEPEST = 4


def read_weights(path: StatePath) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of one that `torch.save` wrote, by name, on the CPU.

    A state dict may lie beside optimizers and counters, under the names that training scripts give it. Pickles are read
    with torch's `weights_only`, which admits tensors and plain containers. Raises `ModelError` where the file can't be
    read, needs more than that, or holds something else.
    """
    return read_state(path)[0]


def read_state(path: StatePath, *, ema: bool = False) -> tuple[dict[str, Tensor], bool]:
    """The same, and whether these are averaged weights, which `ema` asks for where both lie side by side."""
    suffix = Path(path).suffix
    if suffix == ".safetensors":
        return read_safetensors(path)[1], False
    if suffix == ".pt2":
        raise ModelError(f"{path}: is the archive of a program, no weights; export it itself, with --trust")
    if suffix not in PICKLES:
        raise ModelError(f"{path}: weights are read from .safetensors, .pt and .pth files only; convert them")
    return _state_dict(path, _read_pickle(path), ema)


def _state_dict(path: StatePath, content: Any, ema: bool) -> tuple[dict[str, Tensor], bool]:
    """The state dict in what was unpickled, however deep it lies."""
    import torch

    def inner(held: Mapping[Any, Any], keys: tuple[str, ...]) -> Mapping[Any, Any] | None:
        return next((held[key] for key in keys if isinstance(held.get(key), Mapping)), None)

    averaged = False
    for _ in range(_DEEPEST):
        if not isinstance(content, Mapping):
            break
        chosen = inner(content, _EMA) if ema else None
        below = inner(content, _WRAPPERS) if chosen is None else chosen
        if below is None:
            break
        content, averaged = below, averaged or chosen is not None
    if isinstance(content, Mapping):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
        # Counters and settings lie beside the tensors of some state dicts; of lists and objects it is none.
        if tensors and all(isinstance(v, (torch.Tensor, int, float, str, type(None))) for v in content.values()):
            return tensors, averaged
        alone = [key for key in _EMA if isinstance(content.get(key), Mapping)]
        if alone:
            raise ModelError(f"{path}: holds averaged weights alone ({alone[0]}); take them with --ema")
    raise ModelError(f"{path}: holds no state dict; save one with torch.save(model.state_dict(), ...)")


def read_safetensors(path: StatePath) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors, by name and on the CPU, of a safetensors file.

    Raises `ModelError` where the file can't be read as one.
    """
    require_file(path)
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise UsageError(f'{path}: reading it needs safetensors: pip install "bnfold[torch]"') from error
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        what = f"damaged, or no safetensors file ({first_line(error)})"
        raise ModelError(f"{path}: {what}; write or download it again") from error
    except (OSError, ValueError, MemoryError) as error:
        raise ModelError(f"{path}: can't be read: {first_line(error)}") from error


def write_weights(module: nn.Module, path: StatePath) -> None:
    """Write the module's state dict as `.safetensors`, whole or not at all. Raises `OutputError`."""
    from safetensors.torch import save

    from bnfold.files import check_output, replacing

    # Tied weights are written twice: the format knows no sharing.
    content = save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in module.state_dict().items()})
    check_output(path)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load_weights(module: nn.Module, state: Mapping[str, Tensor], path: StatePath, *, assign: bool = False) -> None:
    """Load `state` into `module`, name by name; what is missing, too much or of another shape is a `ModelError`.

    With `assign` the module takes the tensors themselves instead of copying their values.
    """
    from bnfold.models.matching import fit, take

    take(module, fit(module, state, path, prefix=""), assign=assign)


def require_file(path: StatePath) -> None:
    """Raise `ModelError` unless `path` is a file."""
    if not Path(path).exists():
        raise ModelError(f"{path}: no such file; give the path of a weights file")
    if not Path(path).is_file():
        raise ModelError(f"{path}: is not a file; give the path of a weights file")


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something, else its type; 300 characters at most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"


def _read_pickle(path: StatePath) -> Any:
    import pickle

    import torch

    require_file(path)
    mapped = _is_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Mapped, an archive costs the memory of what is copied out of it.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        text = str(error)
        if "global" in text.lower():
            asked = re.search(r"GLOBAL ([\w.]+)", text)
            what = f" (it asks for {asked[1]})" if asked else ""
            raise ModelError(
                f"{path}: holds more than tensors{what}, and loading it could run code; where you trust it, load it in"
                " Python and save its state_dict() as .safetensors"
            ) from error
        raise ModelError(f"{path}: damaged, or no PyTorch weights file; write or download it again") from error
    except MemoryError:
        raise ModelError(f"{path}: needs more memory than there is; is it damaged?") from None
    except Exception as error:
        # A damaged archive surfaces as whatever zipfile, pickle or torch's own reader trips over first.
        if "torch.load" in str(error) or "torch.save" in str(error):
            # Advice to whoever wrote the call, such as to allow code.
            raise ModelError(f"{path}: damaged, or no PyTorch weights file; write or download it again") from error
        raise ModelError(f"{path}: can't be read as PyTorch weights: {first_line(error)}") from error


def _is_archive(path: StatePath) -> bool:
    """Whether the file is what torch.save has written since 1.6: a zip archive, nothing in it compressed.

    Raises `ModelError` for a compressed one, which may grow to any size when it is read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
            scripted = any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
    if scripted:
        raise ModelError(f"{path}: is a TorchScript archive, a program and no weights; save the module's state_dict()")
    if not stored:
        raise ModelError(f"{path}: is a compressed archive, which torch.save does not write; unpack it")
    return True
