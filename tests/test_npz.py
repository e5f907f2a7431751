"""Arrays from a user's `.npz`: those that can be read, and one line for whatever else is in such a file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from bnfold.errors import InputError
from bnfold.npz import load_npz


def test_arrays_by_name(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", a=np.arange(3.0), b=np.ones((2, 2), np.int8))
    found = load_npz(tmp_path / "x.npz")
    assert found["a"].tolist() == [0.0, 1.0, 2.0] and found["b"].dtype == np.int8 and len(found) == 2


def damaged() -> list[bytes]:
    stream = io.BytesIO()
    np.savez_compressed(stream, x=np.random.default_rng(0).normal(size=(8, 8)))
    whole = stream.getvalue()
    header, values = bytearray(whole), bytearray(whole)
    header[60:90] = bytes(30)
    values[300:320] = bytes(20)
    encrypted = bytearray(whole)
    for place in (whole.index(b"PK\x03\x04") + 6, whole.index(b"PK\x01\x02") + 8):
        encrypted[place] |= 1
    return [b"", b"text", b"PK\x03\x04 cut short", whole[: len(whole) // 2], header, values, encrypted]


@pytest.mark.parametrize("content", damaged(), ids=range(len(damaged())))
def test_a_file_that_is_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.npz: is not an \.npz file of plain arrays"):
        load_npz(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_npz(tmp_path / "none.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(InputError, match="can't be read"):
        load_npz(tmp_path / "folder.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(InputError, match="one unnamed array"):
        load_npz(tmp_path / "one.npy")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match="plain arrays"):
        load_npz(tmp_path / "objects.npz")
