"""docs/cli.md from the commands themselves: `python -m bnfold.cli.reference`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from bnfold.cli import VERBS, bnfold

HEAD = """# The command line

Written by `make docs` from `bnfold --help`; a test fails when it is stale.

| exit code | meaning |
|---|---|
| 0 | passed |
| 1 | not equivalent, or worse than the baseline (`verify`, `optimize`); findings (`doctor`) |
| 2 | wrong usage |
| 3 | inconclusive: neither proven the same nor different |
| 4 | the input can't be processed: unreadable or invalid, provider not there, output not writable |
| 70 | a bug in bnfold |
| 130, 143 | interrupted by Ctrl-C, by SIGTERM: within seconds, with nothing half-written |
| 141 | the reader of standard output has gone, as in `bnfold … \\| head` |

`--json` prints one document whose `schema` names the verb and a version, such as `bnfold.verify/1`; the JSON Schemas
are in `bnfold/report/schemas/`.
"""


def markdown() -> str:
    """The whole page."""
    root = click.Context(bnfold, info_name="bnfold", terminal_width=100, **bnfold.context_settings)
    pages = [HEAD, _section("bnfold", bnfold.get_help(root))]
    for verb in VERBS:
        command = bnfold.get_command(root, verb)
        assert command is not None
        pages += _pages(command, root, verb)
    return "\n".join(pages)


def _pages(command: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    """The page of a command, and of each one in it."""
    context = click.Context(command, parent=parent, info_name=name, terminal_width=100)
    yield _section(context.command_path, command.get_help(context))
    if isinstance(command, click.Group):
        for leaf in command.list_commands(context):
            below = command.get_command(context, leaf)
            assert below is not None
            yield from _pages(below, context, leaf)


def _section(title: str, text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return f"## {title}\n\n```text\n{lines}\n```\n"


if __name__ == "__main__":
    print(markdown(), end="")
