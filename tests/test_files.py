"""Where files go: onto their own source, through symbolic links, and over what killed processes left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from bnfold import io
from bnfold.errors import OutputError
from bnfold.files import STALE_S, replacing
from tests.conftest import Outcome, conv_bn

Bnfold = Callable[..., Outcome]


def external(path: Path) -> None:
    onnx.save(conv_bn(channels=64), path, save_as_external_data=True, location="w.bin", size_threshold=0)


def inline(path: Path) -> None:
    onnx.save(conv_bn(), path)


@pytest.mark.parametrize("save", [inline, external])
def test_a_model_may_be_folded_in_place(bnfold: Bnfold, tmp_path: Path, save: Callable[[Path], None]) -> None:
    path = tmp_path / "m.onnx"
    save(path)
    original = io.load(onnx.load(path))
    for _ in range(2):  # the second time from the data file that the first one made
        assert bnfold("optimize", path, "-o", path, "--samples", "2").code == 0
        onnx.checker.check_model(path, full_check=True)
        assert not any(node.op_type == "BatchNormalization" for node in io.load(path).graph)
    from bnfold.verify import verify

    assert verify(original, path, samples=2).status == "pass"
    kept = {"m.onnx"} if save is inline else {"m.onnx", "w.bin"}  # a data file that we did not make is not ours
    left = {entry.name for entry in tmp_path.iterdir()}
    assert kept <= left and all(name.endswith(".data") for name in left - kept) and len(left - kept) <= 1


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_stays_and_its_file_is_replaced(
    bnfold: Bnfold, model_file: Path, tmp_path: Path, dangling: bool
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    real, link = store / "v1.onnx", tmp_path / "current.onnx"
    if not dangling:
        real.write_bytes(b"the old one")
    link.symlink_to(Path("store") / "v1.onnx")
    assert bnfold("optimize", model_file, "-o", link, "--samples", "2").code == 0
    assert link.is_symlink() and os.readlink(link) == "store/v1.onnx"
    onnx.checker.check_model(real)
    assert [entry.name for entry in store.iterdir()] == ["v1.onnx"]


def test_a_link_to_the_model_itself_is_in_place(bnfold: Bnfold, model_file: Path) -> None:
    link = model_file.with_name("link.onnx")
    link.symlink_to(model_file.name)
    assert bnfold("optimize", model_file, "-o", link, "--samples", "2").code == 0
    assert link.is_symlink() and not any(n.op_type == "BatchNormalization" for n in io.load(model_file).graph)


def test_external_data_goes_beside_the_file_that_a_link_leads_to(bnfold: Bnfold, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    external(tmp_path / "m.onnx")
    link = tmp_path / "current.onnx"
    link.symlink_to(store / "v1.onnx")
    assert bnfold("optimize", tmp_path / "m.onnx", "-o", link, "--samples", "2").code == 0
    assert len(list(store.iterdir())) == 2
    onnx.checker.check_model(store / "v1.onnx", full_check=True)


def test_a_link_into_nowhere_is_refused(bnfold: Bnfold, model_file: Path, tmp_path: Path) -> None:
    link = tmp_path / "current.onnx"
    link.symlink_to("nowhere/v1.onnx")
    outcome = bnfold("optimize", model_file, "-o", link)
    assert outcome.code == 4 and "create it first" in outcome.err and link.is_symlink()


def test_leftovers_of_killed_runs_are_removed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    hour_ago = time.time() - STALE_S - 60
    stale = [".m.onnx.0123456789ab.tmp", ".m.onnx.0123456789ab.data", ".m.onnx.0123456789abcdef.data.0123456789ab.tmp"]
    others = [".other.onnx.0123456789ab.tmp", ".m.onnx.tmp", "m.onnx.0123456789ab.tmp", ".m.onnx.0123456789xy.tmp"]
    for name in (*stale, *others):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (hour_ago, hour_ago))
    living = tmp_path / ".m.onnx.ba9876543210.tmp"
    living.touch()
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
    assert {entry.name for entry in tmp_path.iterdir()} == {"m.onnx", living.name, *others}


def test_a_report_goes_through_a_link_too(tmp_path: Path) -> None:
    link = tmp_path / "latest.xml"
    link.symlink_to("run1.xml")
    with replacing(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink() and (tmp_path / "run1.xml").read_text() == "new"


def test_replacing_keeps_the_mode_and_fails_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(OutputError, match="no such file"), replacing(path):
        pass  # nothing was written
    assert path.read_bytes() == b"new" and [e.name for e in tmp_path.iterdir()] == ["m.onnx"]
