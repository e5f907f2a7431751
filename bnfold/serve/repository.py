"""The files behind the names: a model file, or a folder NAME/VERSION/model.onnx as Triton lays it out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bnfold.errors import ModelError, UsageError
from bnfold.serve.errors import Refused, unknown

MODEL_FILE = "model.onnx"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}")
_LIBRARIES = (".so", ".dll", ".dylib")


@dataclass(frozen=True)
class Repository:
    """Where models come from. With `only`, one file under one name; else every folder of `root` is a name."""

    root: Path
    only: tuple[str, Path] | None = None

    def names(self) -> list[str]:
        """The models that are there now."""
        if self.only is not None:
            return [self.only[0]]
        return sorted(folder.name for folder in self.root.iterdir() if folder.is_dir() and NAME.fullmatch(folder.name))

    def versions(self, name: str) -> dict[str, Path]:
        """The versions of a model, oldest first, with the path of each; raises `Refused` for an unknown name."""
        if self.only is not None and name == self.only[0]:
            return {"1": self.only[1]}
        folder = self.root / name
        # The name is a plain one, so that nothing a client says leads out of the repository; nor may a link.
        if self.only is not None or not NAME.fullmatch(name) or not folder.is_dir() or not self._inside(folder):
            raise unknown(f"there is no model {name!r:.130} in the repository")
        numbers = sorted(int(f.name) for f in folder.iterdir() if f.is_dir() and re.fullmatch(r"[1-9]\d{0,17}", f.name))
        found = {str(number): folder / str(number) / MODEL_FILE for number in numbers}
        if not found:
            raise Refused(f"model {name!r} has no version; put it at {name}/1/{MODEL_FILE}")
        return found

    def check(self, path: Path, allowed: tuple[str, ...] = ()) -> None:
        """Raise `ModelError` for a file outside the repository, or one that brings code along."""
        if self.only is None and not self._inside(path):
            raise ModelError(f"{path}: leads out of the repository; put the file itself there")
        if path.exists() and not path.is_file():
            raise ModelError(f"{path}: is not a file that can be read; put the model there")
        if self.only is not None:
            return  # a file that was named alone brings nothing along
        for file in (*path.parent.iterdir(), *path.parent.parent.iterdir()):
            code = file.suffix in _LIBRARIES or ".so." in file.name
            if code and str(file.resolve()) not in allowed:
                raise ModelError(f"{file}: is a library of operators, that is, code; allow it by --custom-ops {file}")
            if file.name == "config.pbtxt" and b"op_library_filename" in file.read_bytes() and not allowed:
                raise ModelError(f"{file}: asks for a library of operators, that is, code; allow it by --custom-ops F")

    def _inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.root.resolve())


def repository(source: Path, name: str | None = None) -> Repository:
    """Look at what is to be served. Raises `ModelError` if it is not there and `UsageError` for a bad name."""
    if name is not None and not NAME.fullmatch(name):
        raise UsageError(f"--name {name}: use letters, digits, '_', '-' and '.', at most 128")
    if source.is_dir():
        if name is not None:
            raise UsageError(f"--name {name}: {source} is a repository, whose folders are the names")
        found = Repository(source)
        if not found.names():
            raise ModelError(f"{source}: holds no model; put one at {source}/NAME/1/{MODEL_FILE}")
        return found
    if not source.exists():
        raise ModelError(f"{source}: no such file or folder; give a model or a repository NAME/VERSION/{MODEL_FILE}")
    return Repository(source.parent, (name or default_name(source), source))


def default_name(file: Path) -> str:
    """The name of a model that was given none: its file's, in the characters that a name may have."""
    return (re.sub(r"[^A-Za-z0-9_.\-]", "_", file.stem).lstrip(".-") or "model")[:128]
