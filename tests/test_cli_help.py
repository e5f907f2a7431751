"""The help, as somebody reads it who is new here: the same words for the same things in every command."""

from __future__ import annotations

import click
import pytest

from bnfold.cli import bnfold as group
from tests.test_cli import commands

COMMANDS = dict(commands())
OPTIONS = [
    pytest.param(words, option, id=f"{words} {option.opts[-1]}")
    for words, command in COMMANDS.items() for option in command.params if isinstance(option, click.Option)
]  # fmt: skip
# A file, a folder, a file or a folder; whole and other numbers, with their unit where they have one; and words.
METAVARS = {
    "FILE", "DIR", "X.npz", "NAME|PATH", "N", "X", "ROWS", "MIB", "SECONDS", "SIZE", "PORT", "NAME", "CODE", "LEVEL",
    "ADDRESS", "URI", "JSON", "NAME=N", "NAME=VALUE", "INPUT=1x3x8x8", "INPUT:AXIS=NAME", "[NAME:]1x3x8x8[:DTYPE]",
}  # fmt: skip
# What is written is a file or a folder; examples are arrays, or what a training takes.
SEVERAL = {"output": {"FILE", "DIR"}, "data": {"X.npz", "NAME|PATH"}}


@pytest.mark.parametrize(("words", "option"), OPTIONS)
def test_what_an_option_takes_is_named(words: str, option: click.Option) -> None:
    assert option.help
    if option.is_flag or option.count:
        return
    assert option.metavar in METAVARS
    assert not option.multiple or "may be repeated" in option.help


def test_an_option_takes_the_same_in_every_command() -> None:
    found: dict[str, set[str | None]] = {}
    for command in COMMANDS.values():
        for option in command.params:
            if isinstance(option, click.Option) and not option.is_flag:
                found.setdefault(str(option.opts[-1]).lstrip("-"), set()).add(option.metavar)
    assert {name: metavars for name, metavars in found.items() if len(metavars) > 1} == SEVERAL


@pytest.mark.parametrize("words", ["", "report", "package"])
def test_no_line_of_a_list_of_commands_is_cut_or_broken(words: str) -> None:
    context = click.Context(group, info_name="bnfold", terminal_width=80, **group.context_settings)
    command = group.get_command(context, words) if words else group
    assert isinstance(command, click.Group)
    below = click.Context(command, parent=context, terminal_width=80)
    lines = command.get_help(below).split("Commands:\n")[1].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in lines] == command.list_commands(below)
    assert not [line for line in lines if line.endswith("...")]
