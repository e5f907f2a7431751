"""Sessions and providers: the only module that imports ONNX Runtime.

ONNX Runtime replaces a provider that does not load by the CPU and says so only in its log. Here a provider that was
asked for either runs or raises `ProviderError`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

from bnfold.arrays import Array
from bnfold.errors import ModelError, ProviderError, one_line
from bnfold.files import scratch_folder
from bnfold.graph import external_tensors, total_bytes
from bnfold.io import INLINE_LIMIT, Source, save, serialize, source_path
from bnfold.providers import PROVIDERS, named, short

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


Level = Literal["off", "basic", "extended", "all"]
OPTIMIZATION: dict[Level, str] = {
    "off": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL",
}  # fmt: skip

_PROBE = '<ir_version: 8, opset_import: ["": 13]> g (float[4] x) => (float[4] y) { y = Relu (x) }'


@dataclass(frozen=True)
class Hosting:
    """What a server asks of a session: options of the provider and libraries of custom operators.

    On the CPU such a session has no arena: what a large request took goes back to the system after it. Its threads do
    not spin while they wait: other models, and the transports, need the cores.
    """

    provider_options: Mapping[str, str] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()


class RunError(ModelError):
    """ONNX Runtime refused or failed to run the model on these inputs."""


def available_providers() -> list[str]:
    """Return the providers that this ONNX Runtime was built with, by short name where there is one.

    That one is listed does not mean that it runs: its libraries or its device may be missing, see `usable`.
    """
    import onnxruntime

    return [short(name) for name in onnxruntime.get_available_providers()]


def usable(provider: str) -> str | None:
    """Return None if a session on `provider` really runs there, else one line that says why not."""
    try:
        probe = session(onnx.parser.parse_model(_PROBE), provider, optimize=False, strict=True)
        run(probe, {"x": np.zeros(4, np.float32)})
    except (ProviderError, ModelError) as error:
        return str(error)
    return None


def session(
    model: Source,
    provider: str = "cpu",
    *,
    optimize: bool | Level,
    threads: int | None = None,
    strict: bool = False,
    gate: bool = True,
    hosting: Hosting | None = None,
) -> InferenceSession:
    """Open a session on `provider`: with ORT_ENABLE_ALL if `optimize`, with ORT_DISABLE_ALL if not, or at a level.

    `threads` limits the operators' threads. `strict` refuses nodes that fall back to the CPU. `gate` asks for
    reproducible full-precision arithmetic (no TF32, deterministic kernels); False leaves the provider's defaults.
    Models over 2 GB go through a file. Raises `ProviderError` if the provider does not run here and `ModelError`
    if ONNX Runtime does not load the model.
    """
    import onnxruntime as ort

    wanted = named(provider)
    if wanted.full not in ort.get_available_providers():
        raise ProviderError(
            f"provider {provider!r} is not in this ONNX Runtime build (it has {', '.join(available_providers())}); "
            f"install the package that brings it"
        )
    options = _options(optimize, threads, gate, hosting)
    if not wanted.on_cpu:
        _require(provider, wanted.full)
        if strict:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    settings = {**(wanted.gate if gate else {}), **(hosting.provider_options if hosting is not None else {})}
    fallback = [] if wanted.on_cpu or strict else [PROVIDERS["cpu"].full]
    providers: list[Any] = [(wanted.full, settings), *fallback]
    content, folder = _content(model, options)
    try:
        for library in hosting.libraries if hosting is not None else ():
            options.register_custom_ops_library(library)
        result = ort.InferenceSession(content, options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        if not wanted.on_cpu and provider_fault(str(error), wanted.full):
            raise ProviderError(f"provider {provider!r} does not run here: {_line(error)}") from error
        raise ModelError(f"{_name(model)}: ONNX Runtime does not load it on {provider}: {_line(error)}") from error
    if result.get_providers()[0] != wanted.full:
        raise ProviderError(_fallen_back(provider, result))
    if folder is not None:
        weakref.finalize(result, folder.cleanup)
    return result


def run(session: InferenceSession, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run the session once; return its outputs by name, in its order. Raises `RunError` if it fails."""
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    except Exception as error:  # see above
        raise RunError(f"ONNX Runtime does not run the model on these inputs: {_line(error)}") from error


def attempt(run: Callable[[Mapping[str, Array]], Mapping[str, Array]], feeds: Mapping[str, Array]) -> list[Array] | str:
    """Return the outputs of one run, or why the model can't run on these inputs."""
    try:
        return list(run(feeds).values())
    except RunError as error:
        return str(error)


def is_session(made: Any) -> bool:
    """Whether something is an ONNX Runtime session."""
    from onnxruntime import InferenceSession

    return isinstance(made, InferenceSession)


def run_options() -> Any:
    """Options that runs can share; setting `terminate` on them ends those runs, with an error."""
    import onnxruntime

    return onnxruntime.RunOptions()


def is_optimized(session: InferenceSession) -> bool:
    """Whether the session rewrites its graph: a reference must not, it would fold BatchNorm by itself."""
    from onnxruntime import GraphOptimizationLevel

    return bool(session.get_session_options().graph_optimization_level != GraphOptimizationLevel.ORT_DISABLE_ALL)


def placement(session: InferenceSession) -> dict[str, int]:
    """Return how many nodes each provider runs, by ONNX Runtime's names; empty where this build does not tell."""
    counts: Counter[str] = Counter()
    for part in _assigned(session):
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)


def elsewhere(session: InferenceSession, provider: str) -> list[tuple[str, str]]:
    """Return operator and name of each node that another provider than `provider` runs; empty if none is known."""
    name = named(provider).full
    return [(n.op_type, n.name) for part in _assigned(session) if part.ep_name != name for n in part.get_nodes()]


def unproven(session: InferenceSession, provider: str) -> str | None:
    """Return why it is not proven that `provider` runs the session's nodes, or None if it is."""
    name = named(provider).full
    if session.get_providers() == [name]:
        return None  # there is no other that could run anything
    placed = placement(session)
    if not placed:
        return f"this ONNX Runtime does not tell which provider runs what, so {provider} is unproven"
    if not placed.get(name):
        return f"no node of the model runs on {provider}: {sum(placed.values())} run elsewhere"
    return None


def version() -> str:
    """ONNX Runtime's version."""
    import onnxruntime

    return str(onnxruntime.__version__)


def provider_fault(message: str, name: str) -> bool:
    """Whether a failed session is the provider's fault (library, device, fallback refused) and not the model's."""
    signs = ("libraries", "no cuda-capable", "cudart", "cudnn", "cublas", "disable_cpu_ep_fallback", "fallback to cpu")
    return any(sign in message.lower() for sign in (*signs, "device", name.lower()))


def _assigned(session: InferenceSession) -> list[Any]:
    """The parts of the graph with the provider that runs each; none where this build does not tell."""
    try:
        return list(session.get_provider_graph_assignment_info())
    except (AttributeError, RuntimeError):
        return []


@functools.cache
def _require(provider: str, name: str) -> None:
    """Raise `ProviderError` unless a trivial session really opens on the provider."""
    import onnxruntime as ort

    if name in (PROVIDERS["cuda"].full, PROVIDERS["tensorrt"].full) and hasattr(ort, "preload_dlls"):
        # pip puts CUDA's libraries where the loader does not look; what is missing is said below, once.
        with contextlib.redirect_stdout(None):
            ort.preload_dlls()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    probe = onnx.parser.parse_model(_PROBE).SerializeToString()
    try:
        result = ort.InferenceSession(probe, options, providers=[name], enable_fallback=0)
    except Exception as error:  # see `session`
        raise ProviderError(f"provider {provider!r} does not run here: {_line(error)}") from error
    if result.get_providers()[0] != name:
        raise ProviderError(_fallen_back(provider, result))


def _options(optimize: bool | Level, threads: int | None, gate: bool, hosting: Hosting | None) -> Any:
    """The options of a session; what they mean is said at `session`."""
    import onnxruntime as ort

    # ONNX Runtime writes what goes wrong to stderr as well; our exceptions say it once.
    ort.set_default_logger_severity(4)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    level: Level = optimize if isinstance(optimize, str) else "all" if optimize else "off"
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, OPTIMIZATION[level])
    options.use_deterministic_compute = gate
    if gate or hosting is not None:
        # Several sessions and numpy share the cores; idle threads that spin would take them from each other.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    if hosting is not None:
        options.enable_cpu_mem_arena = False
    return options


def _fallen_back(provider: str, session: InferenceSession) -> str:
    return (
        f"provider {provider!r} does not run here: ONNX Runtime fell back to {', '.join(session.get_providers())}, "
        f"so its libraries or its device are missing; `bnfold doctor` says which"
    )


def _content(model: Source, options: Any) -> tuple[str | bytes, tempfile.TemporaryDirectory[str] | None]:
    """Return what InferenceSession reads, and the folder to delete after it where one had to be written."""
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model), None
    if isinstance(model, onnx.ModelProto):
        return model.SerializeToString(), None
    folders = {str(tensor.base_dir) for tensor in external_tensors(model)}
    if len(folders) == 1:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folders.pop())
        return serialize(model), None
    if not folders and total_bytes(model) < INLINE_LIMIT:
        return serialize(model), None
    folder = scratch_folder()
    path = Path(folder.name) / "model.onnx"
    save(model, path)
    return str(path), folder


def _name(model: Source) -> str:
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    path = source_path(model) if isinstance(model, ir.Model) else None
    return "the given model" if path is None else str(path)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    # "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : what happened"
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    # The C++ source location and signature say nothing to a user, nor does the file that the caller names anyway.
    text = re.sub(r"^Load model from .*? failed:", "", text)
    text = re.sub(r"(?:^|(?<=: ))/\S+:\d+ .*?\)(?: const)? (?=[A-Z])", "", text)
    return one_line(text)
