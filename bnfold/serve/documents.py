"""What the protocol's GETs answer, as JSON-safe dictionaries that both transports use."""

from __future__ import annotations

from typing import Any

from bnfold import __version__
from bnfold.serve.contract import Port
from bnfold.serve.core import Core
from bnfold.serve.model import Model
from bnfold.serve.stats import Batches, Duration, Stats
from bnfold.serve.versions import Versions

EXTENSIONS = (
    "binary_tensor_data", "model_configuration", "model_repository", "model_repository(unload_dependents)",
    "schedule_policy", "statistics",
)  # fmt: skip
PLATFORM = "onnxruntime_onnx"
Document = dict[str, Any]


def server() -> Document:
    """Name, version and extensions of the server."""
    return {"name": "bnfold", "version": __version__, "extensions": list(EXTENSIONS)}


def model(core: Core, name: str, version: str = "") -> Document:
    """Metadata of a model; raises `Refused`."""
    versions = core.versions(name)
    chosen = versions.pick(version).model
    properties = {
        "sha256": chosen.digest,
        "provider": chosen.provider,
        "placement": dict(chosen.placement),
        "max_batch": chosen.rows,
        **chosen.properties,
        **watched(core, chosen),
    }
    return {
        "name": name,
        "versions": sorted({serving.model.version for serving in versions.loaded}, key=int),
        "platform": PLATFORM,
        "inputs": [_port(port) for port in chosen.contract.inputs.values()],
        "outputs": [_port(port) for port in chosen.contract.outputs.values()],
        "parameters": properties,
    }


def watched(core: Core, model: Model) -> Document:
    """What the observers say of a version; one that fails says nothing."""
    found: Document = {}
    for observer in core.observers:
        core.guard(lambda observer=observer: found.update(observer.status(model)))  # type: ignore[misc]
    return found


def config(core: Core, name: str, version: str = "") -> Document:
    """The part of Triton's model configuration that has a meaning here; raises `Refused`."""
    chosen = core.versions(name).pick(version).model
    batched = chosen.rows > 1

    def ports(items: Any) -> list[Document]:
        return [
            {
                "name": port.name,
                "data_type": "TYPE_STRING" if port.datatype == "BYTES" else f"TYPE_{port.datatype}",
                # Triton leaves the batch out where it batches.
                "dims": port.dims[1:] if batched else port.dims,
            }
            for port in items.values()
        ]

    return {
        "name": name,
        "platform": PLATFORM,
        "backend": "onnxruntime",
        "max_batch_size": chosen.rows if batched else 0,
        "input": ports(chosen.contract.inputs),
        "output": ports(chosen.contract.outputs),
    }


def index(core: Core, *, only_ready: bool = False) -> list[Document]:
    """Every model that is, was or could be served, with its state."""
    found: list[Document] = []
    for name in sorted({*core.names, *core.repository.names()}):
        versions = core.names.get(name, Versions(name))
        if versions.loaded:
            for serving in versions.loaded:
                found.append({"name": name, "version": serving.model.version, "state": "READY", "reason": ""})
        elif not only_ready:
            found.append({"name": name, "version": "", "state": versions.state.indexed, "reason": versions.reason})
    return found


def statistics(core: Core, name: str = "", version: str = "") -> Document:
    """Counters of one version, of a model's versions or of all; raises `Refused` for an unknown one."""
    chosen = [core.versions(name)] if name else list(core.names.values())
    found = [
        _statistics(versions.name, number, stats)
        for versions in chosen
        for number, stats in versions.stats.items()
        if version in ("", number)
    ]
    if version and not found:
        core.versions(name).pick(version)
    return {"model_stats": found}


def _statistics(name: str, version: str, stats: Stats) -> Document:
    return {
        "name": name,
        "version": version,
        "last_inference": stats.last_ms,
        "inference_count": stats.rows,
        "execution_count": stats.executions,
        "inference_stats": {
            "success": _duration(stats.success),
            "fail": _duration(stats.fail),
            "queue": _duration(stats.queue),
            **_batches(stats.compute),
        },
        "batch_stats": [{"batch_size": rows, **_batches(found)} for rows, found in sorted(stats.batches.items())],
    }


def _batches(batches: Batches) -> Document:
    return {
        "compute_input": _duration(batches.join),
        "compute_infer": _duration(batches.run),
        "compute_output": _duration(batches.split),
    }


def _duration(duration: Duration) -> Document:
    return {"count": duration.count, "ns": duration.ns}


def _port(port: Port) -> Document:
    return {"name": port.name, "datatype": port.datatype, "shape": port.dims}
