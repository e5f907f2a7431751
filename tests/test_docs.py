"""The pages: every link leads somewhere, every page and script is found, every command that they show is one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.test_cli import commands
from tests.test_imports import MODULES

PAGES = [
    path for path in sorted(REPOSITORY.rglob("*.md"))
    if not any(part.startswith(".") or part == "build" for part in path.relative_to(REPOSITORY).parts)
]  # fmt: skip
VERBS = dict(commands())


def links(page: Path) -> list[str]:
    """The files that a page links to, relative to it."""
    found = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    return [link for link in found if "://" not in link]


def shown(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The commands in a page's code, as the words of their verb and the long options behind it."""
    for code in re.findall(r"```.*?```|`[^`]+`", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for words in re.findall(r"\bbnfold ([^\n`|]+)", re.sub(r"\\\n", " ", code)):
            verb = next((verb for verb in VERBS if f"{words} ".startswith(f"{verb} ")), None)
            if verb is not None:
                yield verb, re.findall(r"(?<=\s)--[a-z][a-z-]*", words.partition(" # ")[0])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_what_a_page_names_is_there(page: Path) -> None:
    assert [link for link in links(page) if not (page.parent / link).exists()] == []
    unknown = [
        f"{verb} {option}" for verb, options in shown(page) for option in options
        if option != "--help" and not any(option in (*p.opts, *p.secondary_opts) for p in VERBS[verb].params)
    ]  # fmt: skip
    assert unknown == []


def test_every_page_is_linked_from_the_first() -> None:
    linked = {(REPOSITORY / link).resolve() for link in links(REPOSITORY / "README.md")}
    assert set((REPOSITORY / "docs").glob("*.md")) - linked == set()


def test_every_benchmark_is_listed() -> None:
    listed = (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in (REPOSITORY / "benchmarks").glob("*.py") if f"`{path.name}`" not in listed} == set()


def test_every_module_has_a_place() -> None:
    """In the table of CONTRIBUTING.md."""
    table = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Where things are")[2]
    named = {Path(name).stem for name in re.findall(r"`([\w/.]+)`", table.partition("\n## ")[0])}
    assert {module.split(".")[1] for module in MODULES if "." in module} - named == {"__main__"}


def test_commands_are_seen() -> None:
    """The reader of this file must not be blind."""
    found = [each for page in PAGES for each in shown(page)]
    assert len(found) > 100 and {verb for verb, _ in found} >= {"optimize", "verify", "report verify", "package triton"}
