"""`farebox backup`, `export` and `import`: copies of a book, and its way to another store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from farebox.books import Exported, export_book, import_book
from farebox.books import backup as backup_book
from farebox.cli.book import require_book
from farebox.cli.options import DataOption, SettingsOption, read_settings
from farebox.cli.output import JsonOption, progress, show
from farebox.errors import InvalidInput
from farebox.settings import read_root_key

TargetArgument = Annotated[Path, typer.Argument(help="The file to make; it must not be there.")]


def backup(
    target: TargetArgument,
    settings: SettingsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a consistent copy of the book, also while it is served. Restored, it opens closed."""
    found = read_settings(settings, data)
    require_book(found)
    made = backup_book(found, read_root_key(found.data_dir, os.environ), target, progress)
    show(_facts(target, made), f"{target}: {_text(made)}", as_json=as_json)


def export(
    target: TargetArgument,
    move: Annotated[
        bool, typer.Option("--move", help="For good: close this book, and say where it went.")
    ] = False,
    to: Annotated[str, typer.Option(help="With --move: where it goes, in words.")] = "",
    settings: SettingsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the whole book as a file that `farebox import` takes into either store."""
    if move != bool(to):
        raise InvalidInput('--move and --to go together: --to "PostgreSQL at db1"')
    found = read_settings(settings, data)
    require_book(found)
    root_key = read_root_key(found.data_dir, os.environ)
    made = export_book(found, root_key, target, progress, move_to=to)
    show(_facts(target, made), f"{target}: {_text(made)}", as_json=as_json)


def import_(
    source: Annotated[Path, typer.Argument(help="What `farebox export` has made.")],
    settings: SettingsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a file into an empty book, and prove that every balance is the same."""
    found = read_settings(settings, data)
    root_key = read_root_key(found.data_dir, os.environ)
    carried = import_book(found, root_key, source, progress)
    verified = carried.verified
    facts = {
        "units": verified.seq,
        "accounts": verified.accounts,
        "digest": verified.digest.hex(),
        "accounts_digest": carried.accounts_digest,
        "open": carried.is_open,
    }
    way = "it may be served" if carried.is_open else "it is a copy: `farebox reconcile` opens it"
    text = (
        f"{verified.seq:,} units are proven, {verified.accounts:,} accounts have the same "
        f"balances\n{way}"
    )
    show(facts, text, as_json=as_json)


def _facts(target: Path, made: Exported) -> dict[str, object]:
    return {"file": str(target), "units": made.units, "digest": made.digest}


def _text(made: Exported) -> str:
    return f"{made.units:,} units, verified whole"
