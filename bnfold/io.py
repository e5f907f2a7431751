"""Models from and to files: a failure to read is a one-line `ModelError`, a write is all or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from bnfold.derived import Derived, is_external, release
from bnfold.errors import ModelError, innermost, one_line
from bnfold.files import check_output, reason, replacing, scratch, target, unwritable
from bnfold.graph.operators import in_one_domain
from bnfold.graph.skeleton import check, withdrawn
from bnfold.graph.soundness import check_external, check_functions, check_nodes, check_stored
from bnfold.graph.tensors import external_tensors, nbytes, tensors, total_bytes

Source = str | os.PathLike[str] | onnx.ModelProto | ir.Model

# protobuf can't hold 2 GiB in one message; the margin is for the graph itself.
INLINE_LIMIT = 2**31 - 2**26
# Below this size a tensor stays in the model file even when the others are external.
EXTERNAL_MINIMUM = 1024
_CHUNK = 1 << 20
_PATH = "bnfold.path"


def load(source: Source) -> ir.Model:
    """Read and check a model; its external tensors stay memory-mapped. An `ir.Model` is returned as it is.

    Only where it imports ONNX's own domain by its other name, see `bnfold.graph.operators`, a renamed copy is returned.

    Raises `ModelError` for whatever can't be read as a valid ONNX model with all its data.
    """
    if isinstance(source, ir.Model):
        return in_one_domain(source)
    if isinstance(source, onnx.ModelProto):
        return _from_proto(source, "the given ModelProto", None)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        model = _from_proto(_parse(path), str(path), path)
        model.meta[_PATH] = path.absolute()
        return model
    raise TypeError(f"a model is a path, an onnx.ModelProto or an onnx_ir.Model, not {type(source).__name__}")


def checked(source: Source) -> ir.Model:
    """Like `load`, with an `ir.Model` checked too: one that was built or edited may never have been.

    Raises `ModelError` for what is no valid ONNX model.
    """
    model = load(source)
    if isinstance(source, ir.Model):
        try:
            check_nodes(model)
            check(model)
        except Exception as error:  # as in `_from_proto`
            raise _invalid("the given model", error) from error
    return model


def source_path(model: ir.Model) -> Path | None:
    """Return the file that the model was loaded from, None if from none."""
    path: Path | None = model.meta.get(_PATH)
    return path


def detached(model: ir.Model) -> ir.Model:
    """Return the model, which is about to be changed, as one that no file holds any more."""
    model.meta.pop(_PATH, None)
    return model


def digest(source: Source) -> str:
    """sha256 of a model, as hexadecimal: of its file and external data, or of what `save` would serialize.

    A model that was edited after it was loaded still has the digest of its file.
    """
    if isinstance(source, (str, os.PathLike)):
        source = load(source)
    if isinstance(source, ir.Model) and _PATH in source.meta:
        files = {Path(tensor.path) for tensor in external_tensors(source)}
        hashed = hashlib.sha256()
        for file in [source.meta[_PATH], *sorted(files)]:
            with open(file, "rb") as stream:
                while block := stream.read(_CHUNK):
                    hashed.update(block)
        return hashed.hexdigest()
    if isinstance(source, onnx.ModelProto):
        return hashlib.sha256(source.SerializeToString(deterministic=True)).hexdigest()
    hashed = hashlib.sha256(serialize(source))
    for tensor in external_tensors(source):
        hashed.update(tensor.tobytes())
    return hashed.hexdigest()


def serialize(model: ir.Model) -> bytes:
    """The model as protobuf; equal models give equal bytes. External tensors stay references to files."""
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def save(model: ir.Model, path: str | os.PathLike[str], *, external: bool | None = None) -> None:
    """Write the model so that `path` holds either what it held before or the complete new model.

    The large tensors go to `NAME.<sha256>.data` beside it when `external` says so or the model is too big for
    one protobuf message; by default when any of them is external now. The name follows the content, so that
    an older model at `path` keeps its own data until it is replaced.

    Raises `OutputError` when it can't be written; nothing new is left behind then, nor after an interrupt.
    """
    check_output(path)
    path = target(path)
    if external is None:
        external = any(external_tensors(model))
    data = None
    try:
        if external or total_bytes(model) > INLINE_LIMIT:
            data = _save_external(model, path)
        else:
            with replacing(path) as temporary, _moved(model, {}, path):
                temporary.write_bytes(serialize(model))
    except OSError as error:
        raise unwritable(path, error) from error
    # Only what an earlier `save` to this path left behind: the pattern holds sixteen digits of its digest.
    for stale in path.parent.iterdir():
        if stale != data and re.fullmatch(re.escape(path.name) + r"\.[0-9a-f]{16}\.data", stale.name):
            stale.unlink(missing_ok=True)


def _parse(path: Path) -> onnx.ModelProto:
    try:
        str(path).encode()
        if not path.exists():
            raise ModelError(f"{path}: no such file; give the path of an ONNX model")
        if path.is_dir():
            raise ModelError(f"{path}: is a directory; give the path of the .onnx file in it")
        data = path.read_bytes()
    except UnicodeEncodeError as error:
        raise ModelError(f"{path}: is no UTF-8, and ONNX opens no other path; rename it") from error
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {reason(error)}; check its permissions") from error
    if not data:
        raise ModelError(f"{path}: is empty; export or copy it again")
    if data.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path}: is a Git LFS pointer, not the model; run `git lfs pull`")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{path}: is not an ONNX model, or is cut short; export or copy it again") from error
    if not proto.HasField("graph"):
        raise ModelError(f"{path}: is not an ONNX model (it holds no graph); export or copy it again")
    return proto


def _from_proto(proto: onnx.ModelProto, name: str, path: Path | None) -> ir.Model:
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        if _holds_map(value.type):
            raise ModelError(
                f"{name}: {value.name!r} is or holds a map, and maps are not supported here; export it with tensors, "
                "by skl2onnx with options={'zipmap': False}"
            )
    if any(graph.sparse_initializer for graph in _protos(proto.graph)):
        raise ModelError(f"{name}: stores sparse initializers, which are not read here; store them as dense tensors")
    try:
        model = ir.from_proto(proto)
        check_nodes(model)
        check_functions(model, name)
        for tensor in tensors(model):
            if is_external(tensor):
                check_external(tensor, name, path)
            else:
                check_stored(tensor)
        standard = in_one_domain(model)
        if standard is not model or withdrawn(model):
            check(standard)
        else:
            onnx.checker.check_model(proto if path is None else path)
    except ModelError:
        raise
    except Exception as error:  # onnx and onnx_ir raise a dozen types for a malformed model
        raise _invalid(name, error) from error
    return standard


def _protos(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and its bodies."""
    yield graph
    kinds = onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS
    for attribute in (a for node in graph.node for a in node.attribute if a.type in kinds):
        for body in attribute.graphs or (attribute.g,):
            yield from _protos(body)


def _holds_map(kind: onnx.TypeProto) -> bool:
    which = kind.WhichOneof("value")
    if which in ("sequence_type", "optional_type"):
        return _holds_map(getattr(kind, which).elem_type)
    return bool(which == "map_type")


def _invalid(name: str, error: Exception) -> ModelError:
    why = one_line(str(innermost(error)).rstrip(". \n"))
    return ModelError(f"{name}: is not a valid ONNX model: {why}; export it again")


def _graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    yield from model.graphs()
    for function in model.functions.values():
        yield function
        yield from function.subgraphs()


def _save_external(model: ir.Model, path: Path) -> Path:
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.data")
    with scratch(temporary):
        with open(temporary, "wb") as stream:
            places, name = _write_tensors(model, stream)
        data = path.with_name(f"{path.name}.{name[:16]}.data")
        existed = data.exists()
        try:
            with replacing(data) as renamed:
                os.replace(temporary, renamed)
            with replacing(path) as written, _moved(model, places, data):
                written.write_bytes(serialize(model))
        except BaseException:
            if not existed:
                data.unlink(missing_ok=True)
            raise
    return data


def _write_tensors(model: ir.Model, stream: IO[bytes]) -> tuple[dict[int, tuple[int, int]], str]:
    """Write the large tensors; return each one's offset and length by its id, and the sha256 of them all."""
    places: dict[int, tuple[int, int]] = {}
    hashed = hashlib.sha256()
    offset = 0
    for tensor in tensors(model):
        if id(tensor) in places or nbytes(tensor) < EXTERNAL_MINIMUM:
            continue
        start = offset
        for block in _blocks(tensor):
            stream.write(block)
            hashed.update(block)
            offset += len(block)
        places[id(tensor)] = (start, offset - start)
    return places, hashed.hexdigest()


def _blocks(tensor: ir.TensorProtocol) -> Iterator[bytes | memoryview]:
    """The tensor's bytes in pieces; what is computed or memory-mapped is held one piece at a time."""
    if isinstance(tensor, Derived):
        yield from tensor.blocks()
        return
    view = memoryview(tensor.tobytes())
    for start in range(0, len(view), _CHUNK):
        yield view[start : start + _CHUNK]
    view.release()
    release(tensor)


@contextlib.contextmanager
def _moved(model: ir.Model, places: dict[int, tuple[int, int]], data: Path) -> Iterator[None]:
    """While the block runs, the model's large tensors are references into `data` and no other file."""

    def moved(tensor: Any) -> Any:
        if id(tensor) not in places:
            return ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
        offset, length = places[id(tensor)]
        shape, name = tensor.shape, tensor.name or ""
        return ir.ExternalTensor(
            data.name, offset, length, tensor.dtype, shape=shape, name=name, base_dir=data.parent
        )

    def concerned(tensor: Any) -> bool:
        return id(tensor) in places or is_external(tensor)

    values: list[tuple[ir.Value, Any]] = []
    attributes: list[tuple[ir.Node, ir.Attr]] = []
    try:
        for graph in _graphs(model):
            for value in graph.initializers.values() if isinstance(graph, ir.Graph) else ():
                if concerned(value.const_value):
                    values.append((value, value.const_value))
                    value.const_value = moved(value.const_value)
            for node in graph:
                for attr in list(node.attributes.values()):
                    tensor = None if attr.is_ref() else attr.value
                    if attr.type == ir.AttributeType.TENSOR and concerned(tensor):
                        attributes.append((node, attr))
                        node.attributes[attr.name] = ir.AttrTensor(attr.name, moved(tensor))
        yield
    finally:
        for value, tensor in values:
            value.const_value = tensor
        for node, attr in attributes:
            node.attributes[attr.name] = attr
