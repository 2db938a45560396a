"""`farebox reconcile`: hold a book against its mints and rails, and open one that was restored."""

from __future__ import annotations

from typing import Annotated

import typer

from farebox.books import take_back
from farebox.cli.book import ask
from farebox.cli.options import DataOption, SettingsOption, amount_msat, read_settings
from farebox.cli.output import JsonOption, columns, progress, sat, show
from farebox.cli.requests import Facts, GiveFound, Reconcile
from farebox.errors import InvalidInput
from farebox.ids import new_id
from farebox.money import BTC

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
    give: Annotated[
        str | None,
        typer.Option("--give", help="The id of a key whose account gets some of what was found."),
    ] = None,
    amount: Annotated[
        str | None, typer.Option("--amount", help='How much of it, such as "100 sat".')
    ] = None,
    name: Annotated[
        str, typer.Option("--id", help="A name for that: the same again gives nothing twice.")
    ] = "",
    settings: SettingsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask mints and rails about everything that a restored book may be wrong about; then open it.

    Of an open book, say where a rail has more or less than the books say.
    """
    found = read_settings(settings, data)
    if (give is None) != (amount is None):
        raise InvalidInput('--give and --amount go together: --amount "100 sat"')
    if moved_back:
        take_back(found)
    if give is not None and amount is not None:
        facts = ask(found, GiveFound(name or new_id("give"), give, amount_msat(amount)))
        left = f"{sat(facts['suspense_msat'])} are left"
        told = f"{sat(facts['amount_msat'])} went to {facts['account']}; {left}"
        return show(facts, told, as_json=as_json)
    progress("asking mints and rails about every proof, every counter and every deposit …")
    facts = ask(found, Reconcile(claim=claim))
    show(facts, _text(facts), as_json=as_json)
    if not facts["open"]:
        raise typer.Exit(_EXIT_CLOSED)
    return None


def _text(facts: Facts) -> str:
    lines = [] if not facts["was_closed"] and "claimed_msat" not in facts else _restored(facts)
    lines += [line for one in facts["rails"] for line in _compared(one)]
    lines += [f"{name} does not answer" for name in facts["rails_away"]]
    lines.append("the book is open" if facts["open"] else "the book stays closed")
    return "\n".join(lines)


def _compared(one: Facts) -> list[str]:
    def told(amount: int) -> str:
        return sat(amount) if one["asset"] == BTC.code else f"{amount} of {one['asset']}"

    more = one["held"] - one["booked"]
    lines = [f"{one['place']}: {told(one['booked'])} by the books, {told(one['held'])} by itself"]
    if one["lacks"]:
        lines.append(f"  IT LACKS {told(one['lacks'])}: see FloatLow in docs/operating.md")
    elif more > 0:
        lines.append(f"  {told(more)} more: your own, or come in after the copy")
    elif more < 0:
        lines.append(f"  {told(-more)} of it is on its way out")
    return lines


def _restored(facts: Facts) -> list[str]:
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
    return lines
