"""The certificate in a model's metadata: what it was verified to be, and a hash that shows it still is that.

The hash covers the graph and the contents of all tensors, not where they are stored nor any metadata, so that a model
may be moved, and its weights with it. It is no signature: it shows damage and mistakes, not malice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from bnfold import __version__, metadata
from bnfold.derived import release
from bnfold.errors import ModelError
from bnfold.graph.skeleton import STORED_BYTES, skeleton
from bnfold.graph.tensors import nbytes

CERTIFICATE = "bnfold.certificate"
_VERSION = 1
# What is read of a certificate besides its version, and as what.
_FIELDS = {"bnfold": str, "sha256": str, "source": str, "providers": list}


def fingerprint(model: ir.Model) -> str:
    """sha256 of the graph and of all tensors' contents, as hexadecimal; the same before saving and after loading."""
    hashed = hashlib.sha256(skeleton(model).SerializeToString(deterministic=True))
    for name, value in sorted(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and nbytes(tensor) > STORED_BYTES:
            hashed.update(f"{name} {tensor.dtype} {tensor.shape.numpy()}".encode())
            hashed.update(tensor.tobytes())
            release(tensor)
    return hashed.hexdigest()


def seal(model: ir.Model, source: str, providers: Sequence[str]) -> None:
    """Certify a model that passed on `providers` against the source of that digest; an older certificate goes."""
    content = {
        "version": _VERSION,
        "bnfold": __version__,
        "sha256": fingerprint(model),
        "source": source,
        "providers": sorted(set(providers)),
    }
    metadata.write(model, CERTIFICATE, content)


def certificate(model: ir.Model, where: str) -> dict[str, Any] | None:
    """Return the model's certificate, None if it has none.

    Raises `ModelError`, which names the model as `where`, if the certificate can't be read or is another model's.
    """
    if CERTIFICATE not in model.metadata_props:
        return None
    try:
        found = _read(model)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{where}: its certificate can't be read; optimize the original model again") from error
    if (version := found["version"]) != _VERSION:
        raise ModelError(f"{where}: its certificate is of version {version}; this bnfold reads version {_VERSION}")
    if found["sha256"] != fingerprint(model):
        raise ModelError(f"{where}: was changed after it was verified; optimize the original model again")
    return found


def _read(model: ir.Model) -> dict[str, Any]:
    """Whatever is there as a certificate; raises `ValueError`, `KeyError` or `TypeError` for what is none."""
    found = metadata.read(model, CERTIFICATE)
    if found["version"] == _VERSION and not all(isinstance(found[name], kind) for name, kind in _FIELDS.items()):
        raise TypeError
    return dict(found)
