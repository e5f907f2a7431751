"""A model for a fleet: a Triton model repository, or a manifest of KServe over one."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from bnfold import io
from bnfold.errors import ModelError, OutputError, UsageError
from bnfold.files import reason, replacing, unwritable
from bnfold.graph import external_tensors
from bnfold.serve.contract import Contract, Port, contract
from bnfold.serve.repository import MODEL_FILE, NAME, default_name

# Of a model's own metadata, what a person who meets it in a fleet can use; the fold map itself stays in the model.
_TOLD = ("bnfold.source",)
# A name in Kubernetes: a DNS label.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Package:
    """What was written, or printed: the model's name and version, and the files by their place."""

    name: str
    version: int
    digest: str
    files: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version, "sha256": self.digest, "files": list(self.files)}


def triton(
    model: str, root: str | os.PathLike[str], name: str | None = None, *, version: int | None = None,
    gpu: bool = False, max_batch: int = 0, instances: int = 1,
) -> Package:  # fmt: skip
    """Put a model into a Triton repository as ROOT/NAME/VERSION/model.onnx, with ROOT/NAME/config.pbtxt.

    Without `name` it is called like its file, without `version` it becomes the one after the newest there. The
    version's folder appears with the whole model or not at all. `max_batch` above 0 lets Triton join requests; the
    model must have rows.

    Raises `ModelError` for a model that can't be served, `UsageError` for what does not fit it and `OutputError`.
    """
    name = default_name(Path(model)) if name is None else name
    if not NAME.fullmatch(name):
        raise UsageError(f"--name {name}: use letters, digits, '_', '-' and '.', at most 128")
    source = io.load(model)
    declared = contract(source, str(model))
    if max_batch and not declared.has_rows:
        raise UsageError(f"--max-batch {max_batch}: {model} has no open dimension before all inputs and outputs")
    folder = Path(root) / name
    there = _versions(folder)
    version = max(there, default=0) + 1 if version is None else version
    if version in there:
        raise UsageError(f"--version {version}: {folder / str(version)} is there already; a version never changes")
    told = {key: source.metadata_props[key] for key in _TOLD if key in source.metadata_props}
    digest = io.digest(source)
    text = config(name, declared, {**told, "bnfold.sha256": digest}, gpu=gpu, max_batch=max_batch, instances=instances)
    scratch, final = folder / f".{version}.{os.urandom(6).hex()}", folder / str(version)
    try:
        scratch.mkdir(parents=True)
        try:
            _copy(Path(model), source, scratch)
            with replacing(folder / "config.pbtxt") as temporary:
                temporary.write_text(text, encoding="utf-8")
            scratch.rename(final)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise unwritable(final, error) from error
    files = [folder / "config.pbtxt", *sorted(f for f in final.rglob("*") if f.is_file())]
    return Package(name, version, digest, tuple(map(str, files)))


def config(
    name: str, declared: Contract, parameters: Mapping[str, str], *, gpu: bool, max_batch: int, instances: int
) -> str:
    """Triton's model configuration as protobuf text."""
    lines = [f"name: {_quoted(name)}", 'platform: "onnxruntime_onnx"', f"max_batch_size: {max_batch}"]
    for kind, ports in (("input", declared.inputs), ("output", declared.outputs)):
        lines += [_port(kind, port, batched=max_batch > 0) for port in ports.values()]
    lines.append(f"instance_group {{ kind: {'KIND_GPU' if gpu else 'KIND_CPU'} count: {instances} }}")
    if max_batch:
        lines.append("dynamic_batching { }")
    # The newest and the one before, as `bnfold serve` keeps them: going back needs no copy.
    lines.append("version_policy { latest { num_versions: 2 } }")
    for key, value in parameters.items():
        lines.append(f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}")
    return "\n".join(lines) + "\n"


def kserve(name: str, storage: str, *, gpu: bool = False, replicas: int = 1, memory: str = "2Gi") -> str:
    """A manifest of KServe, which runs Triton over a repository at `storage`; YAML, in its subset that is JSON.

    Raises `UsageError` for a name or an address that KServe would not take.
    """
    if not _LABEL.fullmatch(name):
        raise UsageError(f"--name {name}: Kubernetes takes lower-case letters, digits and '-', at most 63")
    if "://" not in storage:
        raise UsageError(f"--storage {storage}: give the repository's URI, like s3://bucket/models or pvc://claim/models")
    resources: dict[str, str] = {"cpu": "1", "memory": memory, **({"nvidia.com/gpu": "1"} if gpu else {})}
    manifest = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {
            "predictor": {
                "minReplicas": replicas,
                "model": {
                    "modelFormat": {"name": "triton"},
                    "runtime": "kserve-tritonserver",
                    "protocolVersion": "v2",
                    "storageUri": storage,
                    "resources": {"requests": resources, "limits": resources},
                },
            }
        },
    }
    return json.dumps(manifest, indent=2) + "\n"


def _copy(path: Path, source: ir.Model, folder: Path) -> None:
    """Copy the files byte for byte: what was verified is what is shipped. External data keeps its place beside it."""
    shutil.copyfile(path, folder / MODEL_FILE)
    for location in {str(tensor.location) for tensor in external_tensors(source)}:
        place = folder / location
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / location, place)


def _versions(folder: Path) -> list[int]:
    try:
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder}: is a file, not a folder of versions; choose another name")
        return [int(place.name) for place in folder.iterdir() if place.name.isdecimal()] if folder.exists() else []
    except OSError as error:
        raise ModelError(f"{folder}: can't be read: {reason(error)}; check its permissions") from error


def _port(kind: str, port: Port, *, batched: bool) -> str:
    if port.shape is None:
        raise ModelError(f"{port.name!r} does not state its rank, and Triton's configuration must; export it again")
    dims = ", ".join(str(size) for size in (port.dims[1:] if batched else port.dims))
    datatype = "STRING" if port.datatype == "BYTES" else port.datatype
    return f"{kind} {{ name: {_quoted(port.name)} data_type: TYPE_{datatype} dims: [ {dims} ] }}"


def _quoted(text: str) -> str:
    """A string of protobuf's text format, in ASCII."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and chr(b) not in '"\\' else f"\\{b:03o}" for b in text.encode()) + '"'
