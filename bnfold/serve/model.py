"""One loaded version of a model: opened, checked, warmed up, ready to answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from bnfold import io, runtime
from bnfold.arrays import Array
from bnfold.errors import ModelError, ProviderError
from bnfold.graph import external_tensors, total_bytes
from bnfold.providers import named
from bnfold.seal import certificate
from bnfold.serve.contract import Contract, contract
from bnfold.serve.errors import Refused
from bnfold.serve.sessions import Sessions, open_sessions
from bnfold.serve.settings import Settings

# The batch that GPUs are given by default; a CPU gains nothing from batches.
GPU_BATCH = 32


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
    run: Sessions
    rows: int
    provider: str
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
    sessions = open_sessions(path, settings, declared, total_bytes(source))
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
        run=sessions,
        rows=wish if declared.has_rows else 1,
        provider=settings.provider,
        placement=runtime.placement(sessions.main),
        unproven=None if on_cpu else runtime.unproven(sessions.main, settings.provider),
        _source=source,
        properties={} if certified is None else {"certificate": certified},
    )
    if settings.strict_device and model.unproven:
        raise ProviderError(f"{path}: {model.unproven}, and --strict-device asks for it")
    mixed = warm_up(model)
    if mixed and settings.max_batch is not None:
        raise ModelError(f"{path}: {mixed}; serve it with --max-batch 1")
    return model


def warm_up(model: Model) -> str | None:
    """Run the model before anyone waits for it; return why its rows can't be batched, None if they can.

    Where they can't, and where that can't be seen, batching is off. What could not be run, for its open dimensions or
    the meaning of its inputs can't be guessed, is in the properties. Raises `ModelError` if a model fails whose inputs
    are all of known shape and floating-point: no request could succeed.
    """
    ports = model.contract.inputs.values()
    random = np.random.default_rng(0)
    samples = [{port.name: port.sample(random) for port in ports} for _ in range(3)]
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
