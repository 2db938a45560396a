"""The command line: `farebox COMMAND`.

Promises: what a command found is on standard output, as text or with `--json` as one JSON object;
an error is one sentence with a way out on standard error, and exit code 2.
Never: a traceback for a mistake of the operator's, a secret on the screen that was not asked for.

A command is a function in a module of its own, named in `_COMMANDS`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from farebox import __version__
from farebox.cli import (
    capital,
    doctor,
    init,
    keys,
    logs,
    migrate,
    money,
    moving,
    psbt,
    reconcile,
    recover,
    serve,
    verify,
)
from farebox.cli.bench import command as bench_command
from farebox.cli.demo import command as demo_command
from farebox.errors import FareboxError
from farebox.settings import LogFormat, LogLevel

__all__ = ["app", "main"]

EXIT_ERROR = 2

_COMMANDS: dict[str, Callable[..., None]] = {
    "init": init.init,
    "serve": serve.serve,
    "demo": demo_command.demo,
    "balance": money.balance,
    "withdraw": money.withdraw,
    "capital": capital.capital,
    "verify": verify.verify,
    "recover": recover.recover,
    "reconcile": reconcile.reconcile,
    "migrate": migrate.migrate,
    "backup": moving.backup,
    "export": moving.export,
    "import": moving.import_,
    "doctor": doctor.doctor,
    "bench": bench_command.bench,
}

app = typer.Typer(
    name="farebox",
    help="Any HTTP service, paid per request, with exact change.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(keys.app, name="keys")
app.add_typer(psbt.app, name="psbt")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"farebox {__version__}")
        raise typer.Exit


@app.callback()
def _farebox(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and leave."
        ),
    ] = False,
) -> None:
    """Any HTTP service, paid per request, with exact change."""
    logs.write_logs(LogLevel.WARNING, LogFormat.TEXT)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    try:
        app(arguments)
    except FareboxError as error:
        sentence = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
