"""The command line: `farebox COMMAND`.

Promises: what a command found is on standard output, as text or with `--json` as one JSON object;
an error is one sentence with a way out on standard error, and exit code 2.
Never: a traceback for a mistake of the operator's, a secret on the screen that was not asked for.

A command is a function in a module of its own, named in `_COMMANDS`, and imported when it is run:
most need a part of the house, some all of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Annotated, Any, NamedTuple, cast

import typer
from typer.core import TyperGroup

from farebox import __version__
from farebox.cli import logs, output
from farebox.errors import FareboxError
from farebox.settings import LogFormat, LogLevel

__all__ = ["app", "main"]

EXIT_ERROR = 2


_LOOKS: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}


class _Where(NamedTuple):
    """Where a command is, and its line in `farebox --help`."""

    module: str
    name: str
    line: str


_COMMANDS = {
    "init": _Where("init", "init", "Write a settings file with everything explained."),
    "serve": _Where("serve", "serve", "Put a paywall in front of a service."),
    "demo": _Where("demo.command", "demo", "Tell the story of paid requests, with play money."),
    "balance": _Where("money", "balance", "Show what is held, what is owed, what was earned."),
    "withdraw": _Where("money", "withdraw", "Take your earnings out, as a token or to Lightning."),
    "capital": _Where("capital", "capital", "Note your own money, put in or taken out again."),
    "verify": _Where("verify", "verify", "Check every invariant and the audit chain."),
    "recover": _Where("recover", "recover", "Carry on what is unfinished; list what stays so."),
    "reconcile": _Where("reconcile", "reconcile", "Hold a book against mints and rails; open it."),
    "migrate": _Where("migrate", "migrate", "Bring the book's schema to this version."),
    "backup": _Where("moving", "backup", "Make a copy of the book, also while it is served."),
    "export": _Where("moving", "export", "Write the whole book as a file."),
    "import": _Where("moving", "import_", "Take such a file into an empty book, proven."),
    "doctor": _Where("doctor", "doctor", "Say what is wrong, and what to do about it."),
    "bench": _Where("bench.command", "bench", "Measure a running gateway, and verify its book."),
    "keys": _Where("keys", "app", "Make, list, show and revoke account keys."),
    "psbt": _Where("psbt", "app", "Bitcoin payments that you sign elsewhere."),
}


class _Commands(Mapping[str, Any]):
    """The commands of `_COMMANDS`, imported as they are asked for."""

    def __getitem__(self, name: str) -> Any:
        where = _COMMANDS[name]
        found = getattr(import_module(f"farebox.cli.{where.module}"), where.name)
        alone = typer.Typer(**_LOOKS)
        if isinstance(found, typer.Typer):
            alone.add_typer(found, name=name)
        else:
            alone.command(name)(found)
        return typer.main.get_group(alone).commands[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_COMMANDS)

    def __len__(self) -> int:
        return len(_COMMANDS)


class _Farebox(TyperGroup):
    """`farebox` itself: its help imports no command."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = cast("MutableMapping[str, Any]", _Commands())

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a line for each."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, where.line) for name, where in _COMMANDS.items()])


app = typer.Typer(
    cls=_Farebox,
    name="farebox",
    help="Any HTTP service, paid per request, with exact change.",
    no_args_is_help=True,
    **_LOOKS,
)


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
    except (FareboxError, OSError) as error:  # the latter where a file or the screen is full
        output.progress(f"error: {' '.join(str(error).split()) or type(error).__name__}")
        sys.exit(EXIT_ERROR)
