"""`farebox reconcile`: hold a restored book against what its mints remember, and open it."""

from __future__ import annotations

from typing import Annotated

import typer

from farebox.books import take_back
from farebox.cli.book import ask
from farebox.cli.desk import Facts, Reconcile
from farebox.cli.options import DataOption, SettingsOption, read_settings
from farebox.cli.output import JsonOption, columns, progress, sat, show

_EXIT_CLOSED = 1


def reconcile(
    claim: Annotated[
        bool,
        typer.Option(
            "--claim", help="Take over what was found at the mints: payers who hold it lose it."
        ),
    ] = False,
    moved_back: Annotated[
        bool,
        typer.Option("--take-back", help="A book that was moved, to where it never was served."),
    ] = False,
    settings: SettingsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the mints about everything that a restored book may be wrong about; then open it."""
    found = read_settings(settings, data)
    if moved_back:
        take_back(found)
    progress("asking the mints about every proof and every counter …")
    facts = ask(found, Reconcile(claim=claim))
    show(facts, _text(facts), as_json=as_json)
    if not facts["open"]:
        raise typer.Exit(_EXIT_CLOSED)


def _text(facts: Facts) -> str:
    rows = [
        ("found at the mints", sat(facts["found_msat"]), "received or cut after the copy"),
        ("missing", sat(facts["missing_msat"]), "counted as ours, spent after the copy"),
        ("swept", sat(facts["swept_msat"]), "locked tokens, swapped after the copy"),
        ("renewed", sat(facts["renewed_msat"]), "swapped for fresh secrets"),
    ]
    if facts["not_renewed_msat"]:
        rows.append(("not renewed", sat(facts["not_renewed_msat"]), "revenue covers no fee of it"))
    if "claimed_msat" in facts:
        rows.append(("claimed", sat(facts["claimed_msat"]), "of what was found"))
    rows.append(("suspense:restored", sat(facts["suspense_msat"]), "whose it is nobody knows yet"))
    lines = [columns(rows)]
    lines += [f"{url} does not answer: run this again" for url in facts["away"]]
    lines += [f"operation {one} has no end yet: run this again" for one in facts["unfinished"]]
    if not facts["covered"]:
        lines.append("NOT COVERED: after the copy more was paid out than came in; see the accounts")
    lines.append("the book is open" if facts["open"] else "the book stays closed")
    return "\n".join(lines)
