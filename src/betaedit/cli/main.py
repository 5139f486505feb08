"""The ``betaedit`` program."""

from __future__ import annotations

import errno
import logging
import os
import sys
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from betaedit import __version__
from betaedit.cli.align import align
from betaedit.cli.ask import ask
from betaedit.cli.bench import bench
from betaedit.cli.calibrate import calibrate
from betaedit.cli.compare import compare
from betaedit.cli.data import data
from betaedit.cli.demo import demo
from betaedit.cli.edit import edit
from betaedit.cli.evaluate import evaluate
from betaedit.cli.exit_codes import exit_code
from betaedit.cli.export import export
from betaedit.cli.import_facts import import_facts
from betaedit.cli.info import doctor, env, methods, models
from betaedit.cli.keys import keys
from betaedit.cli.ledger import check, forget, gc, init, locate, replace, restore, verify
from betaedit.cli.log import diff, log, show, status
from betaedit.cli.report import report
from betaedit.cli.statistics import statistics
from betaedit.cli.train import train_editor
from betaedit.errors import BetaEditError, OutputError

_UNWRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}

app = typer.Typer(
    name="betaedit",
    help="Write facts into open-weight language models, one after another, without damaging the model.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
_MEASURED = (
    edit,
    ask,
    demo,
    evaluate,
    compare,
    align,
    keys,
    calibrate,
    train_editor,
    report,
    export,
    statistics,
    bench,
    methods,
    models,
    doctor,
    env,
)
_KEPT = (init, log, show, status, diff, forget, replace, restore, import_facts, check, verify, gc, locate)
_RENAMED = {evaluate: "eval", import_facts: "import", train_editor: "train-editor"}  # reserved words, and a hyphen
for measured in _MEASURED:
    app.command(name=_RENAMED.get(measured))(measured)
for kept in _KEPT:
    app.command(name=_RENAMED.get(kept), rich_help_panel="Workspaces")(kept)
app.add_typer(data)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"betaedit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and the library's log.")] = False,
) -> None:
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, stream=sys.stderr, format="%(message)s")
    if debug:
        os.environ["BETAEDIT_DEBUG"] = "1"
    _check_current_folder()


def _check_current_folder() -> None:
    """Refuse to work in a deleted folder: libraries that torch loads there end the process without a message."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise BetaEditError("the current folder no longer exists.", hint="Change to another one (cd).") from error


def main() -> None:
    """Run the program; errors of this package become one message on stderr and a stable exit code."""
    # Read when torch is loaded. Threads that spin while they wait take the cores from other programs, and from the
    # thread they wait for: two of them took six times as long as one on a busy machine (docs/benchmarks.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the terminal may lack characters of a fact
    try:
        app()
    except BetaEditError as error:
        if os.environ.get("BETAEDIT_DEBUG"):
            raise
        _report(error)
        sys.exit(exit_code(error))
    except OSError as error:
        if os.environ.get("BETAEDIT_DEBUG") or (system_error := _of_the_system(error)) is None:
            raise
        _report(system_error)
        sys.exit(1)


def _open_closed_streams() -> None:
    """Open closed streams on the null device; otherwise the next opened files would get their descriptors."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - open until the end


def _of_the_system(error: OSError) -> BetaEditError | None:
    """The error of the system about a file or the output; ``None`` for any other."""
    if error.filename is not None:
        hint = "Check the path, its permissions and the free space on the disk."
        return BetaEditError(f"{error.filename}: {error.strerror}.", hint=hint)
    if error.errno not in _UNWRITTEN:
        return None
    with suppress(OSError, ValueError):  # what is still to be written would fail again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OutputError(
        f"the output cannot be written: {error.strerror}.", hint="Free some disk space, then repeat the command."
    )


def _report(error: BetaEditError) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    text = str(error).removesuffix(error.hint).strip()
    console.print(f"[bold red]error:[/] {escape(text)}")
    if error.hint:
        console.print(f"[bold]hint:[/] {escape(error.hint)}")
