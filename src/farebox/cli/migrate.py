"""`farebox migrate`: bring the book's schema to this version, while the previous one serves."""

from __future__ import annotations

from typing import Annotated

import typer

from farebox.books import book_place
from farebox.books import migrate as migrate_book
from farebox.cli.options import DataOption, SettingsOption, read_settings
from farebox.cli.output import JsonOption, progress, show


def migrate(
    look: Annotated[bool, typer.Option("--look", help="Only say what would be applied.")] = False,
    settings: SettingsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring the book's schema to this version. The previous version may serve on meanwhile."""
    found = read_settings(settings, data)
    progress(f"looking at {book_place(found)} …")
    done = migrate_book(found, look=look)
    names = [str(one) for one in done.applied]
    facts = {"pending" if look else "applied": names, "schema": done.number}
    said = "\n".join(f"{'pending' if look else 'applied'}: {name}" for name in names)
    show(facts, said or f"nothing to do: schema {done.number}", as_json=as_json)
