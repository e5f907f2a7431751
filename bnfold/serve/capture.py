"""Inputs that made an observer speak up, as `.npz` files that `bnfold verify --inputs` takes: few, and on demand."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bnfold.errors import OutputError
from bnfold.files import reason
from bnfold.serve import log

MOST_FILES = 64
MOST_BYTES = 256 << 20


class Capture:
    """A folder that takes at most `MOST_FILES` files of `MOST_BYTES` together; what comes later is dropped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".bnfold").touch()
            (folder / ".bnfold").unlink()
        except OSError as error:
            raise OutputError(f"{folder}: captured inputs can't be kept there: {reason(error)}") from error

    def keep(self, model: str, version: str, inputs: Mapping[str, npt.NDArray[np.generic]]) -> Path | None:
        """Write the inputs of one batch; None if the folder is full."""
        held = [file.stat().st_size for file in self.folder.glob("*.npz")]
        if len(held) >= MOST_FILES or sum(held) + sum(array.nbytes for array in inputs.values()) > MOST_BYTES:
            return None
        plain = re.sub(r"[^A-Za-z0-9_.\-]", "_", model)
        path = self.folder / f"{plain}-{version}-{time.time_ns()}.npz"
        scratch = path.with_suffix(".tmp")
        try:
            with open(scratch, "wb") as stream:
                np.savez(stream, **inputs)  # type: ignore[arg-type]
            scratch.replace(path)
        except OSError as error:
            scratch.unlink(missing_ok=True)
            log.error("not captured", file=path, why=reason(error))
            return None
        return path
