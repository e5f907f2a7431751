"""The files of a verification: which formats there are, and writing them all, each complete or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from bnfold.errors import UsageError
from bnfold.files import check_output, replacing
from bnfold.report import html
from bnfold.report.findings import Document
from bnfold.report.junit import junit
from bnfold.report.markdown import markdown
from bnfold.report.sarif import sarif


def _json(document: object) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


# By the name of the command line's option.
FORMATS: dict[str, Callable[[Document], str]] = {
    "json_file": _json,
    "junit": junit,
    "sarif": lambda document: _json(sarif(document)),
    "markdown": markdown,
    "html": html.html,
}


def check(files: Mapping[str, str], taken: Sequence[str] = ()) -> None:
    """Fail now, not after minutes of work, if a report can't be made or written.

    `files` are paths by format, `taken` what must not be overwritten. Raises `OutputError`, or `UsageError` where a
    package is missing or two files would have one path.
    """
    if "html" in files:
        html.require()
    for path in files.values():
        check_output(path)
    distinct(files.values(), taken)


def distinct(paths: Iterable[str], taken: Iterable[str]) -> None:
    """Raise `UsageError` if two of the paths are one file, or one of those taken, whatever it is called."""
    places = {os.path.realpath(path) for path in taken}
    for path in paths:
        if os.path.realpath(path) in places:
            raise UsageError(f"{path}: is asked for twice, or is the model itself; give every file a path of its own")
        places.add(os.path.realpath(path))


def write(document: Document, files: Mapping[str, str]) -> None:
    """Write the document of a verification in every format of `files`. Raises `OutputError`."""
    for kind, path in files.items():
        text = FORMATS[kind](document)
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
