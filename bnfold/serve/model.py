"""One loaded version of a model: opened, checked, warmed up, ready to answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from bnfold import io, runtime
from bnfold.arrays import Array
from bnfold.errors import ModelError, ProviderError
from bnfold.graph import external_tensors
from bnfold.providers import named, short
from bnfold.seal import certificate
from bnfold.serve.contract import Contract, Port, contract
from bnfold.serve.errors import Refused
from bnfold.serve.machine import cores
from bnfold.serve.runner import Runner
from bnfold.serve.settings import Settings
from bnfold.serve.tensors import DTYPES, TEXT

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# The batch that GPUs are given by default; a CPU gains nothing from batches.
GPU_BATCH = 32
# A run of less is not shared by threads: to wake them takes as long. How often one is timed.
SHORT_S, _TRIES = 0.002, 5
# An arena that grows by what is needed, where by default it doubles.
_ARENA = {name: {"arena_extend_strategy": "kSameAsRequested"} for name in ("cuda", "rocm")}


@dataclass(eq=False)
class Model:
    """A version that is ready to run. `properties` are what the metadata says about it beyond the protocol."""

    name: str
    version: str
    path: Path
    digest: str
    files: tuple[Path, ...]
    signature: tuple[Any, ...]
    contract: Contract
    run: Runner
    rows: int
    provider: str
    threads: int
    placement: Mapping[str, int]
    unproven: str | None
    _source: ir.Model | None
    loaded: float = field(default_factory=time.time)
    properties: dict[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> ir.Model:
        """The model as it was read; there until it is admitted, since the session holds the weights as well."""
        if self._source is None:
            raise RuntimeError(f"the source of {self.name} is needed when it is served already")
        return self._source

    def forget_source(self) -> None:
        """Let its memory go."""
        self._source = None


def signature(files: Sequence[Path]) -> tuple[Any, ...]:
    """What changes when one of the files is written anew; None for one that is not there."""
    found: list[Any] = []
    for file in files:
        try:
            status = file.stat()
            found.append((str(file), status.st_size, status.st_mtime_ns, status.st_ino))
        except OSError:
            found.append(None)
    return tuple(found)


def open_model(name: str, version: str, path: Path, settings: Settings) -> Model:
    """Read, check and warm up a model file, which takes its time. Raises `ModelError` or `ProviderError`."""
    before = signature([path])
    source = io.load(path)
    external = {Path(tensor.path) for tensor in external_tensors(source)}
    files = (path, *sorted(external))
    before += signature(files[1:])
    certified = certificate(source, str(path))
    declared = contract(source, name)
    on_cpu = named(settings.provider).on_cpu
    session = _session(path, settings, declared)
    if signature(files) != before:
        raise ModelError(f"{path}: changed while it was loaded; write it elsewhere and move it into place")
    wish = settings.max_batch if settings.max_batch is not None else 1 if on_cpu else GPU_BATCH
    model = Model(
        name=name,
        version=version,
        path=path,
        digest=io.digest(source),
        files=files,
        signature=before,
        contract=declared,
        run=Runner(session, bind=not on_cpu),
        rows=wish if declared.has_rows else 1,
        provider=settings.provider,
        threads=session.get_session_options().intra_op_num_threads,
        placement=runtime.placement(session),
        unproven=None if on_cpu else runtime.unproven(session, settings.provider),
        _source=source,
        properties={} if certified is None else {"certificate": certified},
    )
    if settings.strict_device and model.unproven:
        raise ProviderError(f"{path}: {model.unproven}, and --strict-device asks for it")
    mixed = warm_up(model)
    if mixed and settings.max_batch is not None:
        raise ModelError(f"{path}: {mixed}; serve it with --max-batch 1")
    return model


def _session(path: Path, settings: Settings, declared: Contract) -> InferenceSession:
    """Open it with as many threads as may be; with one, where a run is so short that to share it gains nothing.

    That is seen where one row's size is known. A request more is then run beside it instead, which costs less.
    """

    def opened(threads: int) -> InferenceSession:
        hosting = runtime.Hosting(_provider_options(settings), settings.custom_ops)
        strict = settings.strict_device
        return runtime.session(
            path, settings.provider, optimize=True, threads=threads, strict=strict, gate=False, hosting=hosting
        )

    session, ports = opened(settings.threads or cores()), declared.inputs.values()
    if settings.threads or cores() == 1 or not named(settings.provider).on_cpu or not all(p.is_plain for p in ports):
        return session
    random = np.random.default_rng(0)
    feeds = {port.name: _sample(port, random) for port in ports}
    if _seconds(session, feeds) < SHORT_S and _seconds(alone := opened(1), feeds) < SHORT_S:
        return alone
    return session


def _seconds(session: InferenceSession, feeds: Mapping[str, Array]) -> float:
    """The least that a run takes; infinite if it fails, which the warm-up tells of."""
    run, times = Runner(session, bind=False), [inf]
    with suppress(Refused):
        for _ in range(_TRIES):
            start = time.perf_counter()
            run(feeds)
            times.append(time.perf_counter() - start)
    return min(times)


def warm_up(model: Model) -> str | None:
    """Run the model before anyone waits for it; return why its rows can't be batched, None if they can.

    Where they can't, and where that can't be seen, batching is off. What could not be run, for its open dimensions or
    the meaning of its inputs can't be guessed, is in the properties. Raises `ModelError` if a model fails whose inputs
    are all of known shape and floating-point: no request could succeed.
    """
    ports = model.contract.inputs.values()
    random = np.random.default_rng(0)
    samples = [{port.name: _sample(port, random) for port in ports} for _ in range(3)]
    try:
        single = [model.run(feeds) for feeds in samples]
        mixed = _mixes_rows(model, samples, single) if model.rows > 1 else None
    except Refused as error:
        if all(port.is_plain for port in ports):
            raise ModelError(f"{model.path}: fails on its first run: {error}") from error
        model.properties["warm_up"] = str(error)
        model.rows = 1
        return None
    if mixed:
        model.rows = 1
        model.properties["batching"] = mixed
    return mixed


def _mixes_rows(model: Model, samples: list[dict[str, Array]], single: list[dict[str, Array]]) -> str | None:
    joined = model.run({name: np.concatenate([feeds[name] for feeds in samples]) for name in samples[0]})
    for name, array in joined.items():
        apart = np.concatenate([outputs[name] for outputs in single])
        if array.shape != apart.shape or not _close(array, apart):
            return f"output {name!r} of a batch is not that of its rows one by one: the model mixes rows"
    return None


def _provider_options(settings: Settings) -> dict[str, str]:
    options = dict(_ARENA.get(short(settings.provider), {}))
    if options and settings.device_memory is not None:
        options["gpu_mem_limit"] = str(settings.device_memory)
    return options


def _close(left: Array, right: Array) -> bool:
    if left.dtype.kind not in "fV":
        return bool(np.array_equal(left, right))
    # A provider may take another kernel for another batch: its rounding differs, its rows do not.
    bound = {8: 2.0**-30, 4: 2.0**-12}.get(left.dtype.itemsize, 2.0**-5)
    a, b = left.astype(np.float64), right.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    scale = float(np.abs(b[finite]).max(initial=0.0))
    return bool(np.all(np.abs(a - b)[finite] <= bound * scale))


def _sample(port: Port, random: np.random.Generator) -> Array:
    shape = [size if isinstance(size, int) else 1 for size in port.shape or ()]
    if port.datatype == TEXT:
        return np.full(shape, "a", object)
    dtype = DTYPES[port.datatype]
    if dtype.kind in "fV":
        return np.asarray(random.standard_normal(shape)).astype(dtype)
    return random.integers(0, 2, shape).astype(dtype)
