"""The command line: a thin skin over the Python functions, one file a verb. Beside the verbs stand

    options, sources, sizes           what several verbs take, and what it means
    console, streams, interrupts      what a verb shows, where it shows it, and how it is stopped
    reporting                         a verdict held against a baseline
    reference                         docs/cli.md, from all of it

Exit codes: 0 passed · 1 not equivalent, or findings · 2 usage · 3 inconclusive · 4 the input can't be processed ·
70 a bug in bnfold · 130 and 143 interrupted · 141 the reader of standard output has gone.
"""

from __future__ import annotations

import gc
import importlib
import logging
import signal
import sys
from typing import NoReturn

import click

from bnfold import __version__
from bnfold.cli.interrupts import Terminated, terminate
from bnfold.cli.streams import ReaderGone, guarded
from bnfold.errors import BnfoldError, printable

VERBS = (
    "train", "export", "inspect", "optimize", "verify", "bisect", "audit", "report", "bench",
    "serve", "package", "doctor",
)  # fmt: skip

BUG = 70  # EX_SOFTWARE of sysexits.h


class Verbs(click.Group):
    """A group that imports a verb when it is named: the others' imports are not paid for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"bnfold.cli.{cmd_name}").command
        return command


@click.command(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExample:\n  bnfold optimize model.onnx -o folded.onnx",
)
@click.version_option(__version__, prog_name="bnfold", message="%(prog)s %(version)s")
def bnfold() -> None:
    """Fold BatchNorm into the neighbouring linear layers of an ONNX model, and prove that it is the same model."""


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code; a user's error is one line on stderr."""
    signal.signal(signal.SIGTERM, terminate)
    # A model is very many small objects that all stay; searching them for cycles again and again finds nothing.
    gc.set_threshold(100_000, 20, 20)
    # What onnx_ir logs about an invalid model is in our message already.
    logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)
    with guarded():
        code = _run(args)
    gc.freeze()  # nor does the process have to take them apart when it ends
    sys.exit(code)


def _run(args: list[str] | None) -> int:
    try:
        code = bnfold.main(args, prog_name="bnfold", standalone_mode=False) or 0
        sys.stdout.flush()
        return code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "bnfold"
        _complain(f"{error.format_message().rstrip('.')}; see {path} --help")
        return error.exit_code
    except BnfoldError as error:
        _complain(str(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        return 128 + signal.SIGINT
    except Terminated:
        _complain("terminated")
        return 128 + signal.SIGTERM
    except MemoryError:
        _complain("out of memory; use a machine with more of it")
        return BnfoldError.exit_code
    except ReaderGone:
        return 128 + 13  # SIGPIPE, which Windows has not
    except SystemExit:
        raise
    except Exception:
        import traceback

        traceback.print_exc()
        _complain("this is a bug in bnfold; please report it with the lines above")
        return BUG


def _complain(message: str) -> None:
    click.echo(f"bnfold: {printable(' '.join(message.split()))}", err=True)
