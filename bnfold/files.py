"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bnfold.errors import OutputError

# What a process that was killed left half-written is removed by the next that writes there; a living one writes on.
STALE_S = 3600.0
# What is being written, and what is only there for a while: files and folders.
_SCRATCH: set[Path] = set()


def check_output(path: str | os.PathLike[str]) -> None:
    """Fail now, not after minutes of work, if a file can't be written at `path`; leave nothing there.

    Raises `OutputError`.
    """
    path = Path(path)
    try:
        path = target(path)
        mode = path.stat().st_mode if path.exists() else None
        if mode is not None and stat.S_ISDIR(mode):
            raise OutputError(f"{path}: is a directory; give the path of the file to write")
        if mode is not None and not stat.S_ISREG(mode):
            raise OutputError(f"{path}: is not a regular file; give another path")
        if path.parent.exists() and not path.parent.is_dir():
            raise OutputError(f"{path}: {path.parent} is a file, not a directory; choose another path")
        if not path.parent.is_dir():
            raise OutputError(f"{path}: there is no folder {path.parent}; create it first")
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(descriptor)
        os.unlink(name)
    except OSError as error:
        raise unwritable(path, error) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path that takes `path`'s place when the block ends, and disappears if the block fails.

    Where `path` is a symbolic link, the file that it leads to is replaced and the link stays.

    Raises `OutputError` for what the file system refuses.
    """
    path = target(path)
    _sweep(path)
    # Not mkstemp: its files are readable by the owner only, whatever the umask.
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.tmp")
    try:
        with scratch(temporary):
            yield temporary
            if path.exists():
                os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[None]:
    """The file `path`, which the block may write, is gone after it, and after `abandon`."""
    _SCRATCH.add(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _SCRATCH.discard(path)


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder, which `abandon` removes too."""
    folder = tempfile.TemporaryDirectory(prefix="bnfold-", ignore_cleanup_errors=True)
    _SCRATCH.add(Path(folder.name))
    return folder


def abandon() -> None:
    """Remove what is half-written or temporary, for a process that ends without its orderly way out."""
    for path in tuple(_SCRATCH):
        with contextlib.suppress(OSError):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def target(path: str | os.PathLike[str]) -> Path:
    """The path itself, or the file that a symbolic link leads to, whether it is there yet or not."""
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def unwritable(path: Path, error: OSError) -> OutputError:
    """The error for a file that the operating system does not let us write."""
    return OutputError(f"{path}: can't be written: {reason(error)}; make room or choose another path")


def reason(error: OSError) -> str:
    """What the operating system says, without the path that the caller names anyway."""
    return (error.strerror or str(error)).lower()


def _sweep(path: Path) -> None:
    """Remove what killed processes left beside `path`: our names, untouched for an hour."""
    ours = re.compile(re.escape(f".{path.name}.") + r"([0-9a-f]{16}\.data\.)?[0-9a-f]{12}\.(tmp|data)")
    with contextlib.suppress(OSError):  # a folder that can't be read, or a file that another has just removed
        for entry in os.scandir(path.parent):
            if ours.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > STALE_S:
                os.unlink(entry.path)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
