"""A user's `.npz` file: arrays by name, read without unpickling and without trusting what its headers claim."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from bnfold.arrays import Array
from bnfold.errors import InputError

# What numpy, zipfile and zlib raise between them for a file that is damaged, encrypted or no archive of arrays.
_UNREADABLE = (
    AttributeError, EOFError, KeyError, MemoryError, NotImplementedError, RuntimeError, TypeError, ValueError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def load_npz(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read an `.npz` file of arrays by name. Raises `InputError` if it is none."""
    path = Path(path)
    try:
        # numpy leaves the file open when the archive in it is damaged.
        with open(path, "rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"{path}: holds one unnamed array; save it with numpy.savez(path, input_name=array)")
            with archive, zipfile.ZipFile(stream) as members:
                for member in members.infolist():
                    _check_header(path, members, member)
                return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give an .npz of named arrays") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from error
    except _UNREADABLE as error:
        raise InputError(f"{path}: is not an .npz file of plain arrays; write it with numpy.savez") from error


def _check_header(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """numpy would take the memory that a header asks for before it looks for the values."""
    if not member.filename.endswith(".npy"):
        return
    with archive.open(member) as stream:
        first = np.lib.format.read_magic(stream) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        needed = stream.tell() + math.prod(shape) * dtype.itemsize
    if needed > member.file_size and not dtype.hasobject:
        name, sizes = member.filename.removesuffix(".npy"), "×".join(map(str, shape))
        raise InputError(f"{path}: {name!r} is cut short: {sizes} values of {dtype} are not there; write it again")
