"""`bnfold doctor`."""

from __future__ import annotations

from typing import Any

import click

from bnfold.cli.options import example, shown


@click.command("doctor", short_help="Say what runs here, and what mends the rest.", epilog=example("bnfold doctor"))
@shown
def command(screen: Any) -> int:
    """Say what runs here: versions, providers that really compute, and what mends the rest.

    Exit code 1 if something has to be mended.
    """
    with screen.working("running a small model on every provider"):
        from bnfold.doctor import examine
        from bnfold.report import tables

        health = examine()
    screen.result("doctor", health.to_dict(), *tables.health(health))
    return health.exit_code
