"""`farebox balance` and `farebox withdraw`: what is there, and the operator's part of it."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from farebox.cli.book import ask
from farebox.cli.options import DataOption, SettingsOption, amount_msat, read_settings
from farebox.cli.output import JsonOption, columns, page_text, progress, sat, show
from farebox.cli.requests import Balance, Facts, ListWithdrawals, Withdraw, new_withdrawal
from farebox.errors import InvalidInput

_PAGE_MAX = 1_000


def balance(
    settings: SettingsOption = None, data: DataOption = None, as_json: JsonOption = False
) -> None:
    """Show what is held at each mint, what is owed, and what was earned."""
    facts = ask(read_settings(settings, data), Balance())
    show(facts, _balance_text(facts), as_json=as_json)


def _balance_text(facts: Facts) -> str:
    rows = [
        (f"held at {_place(place['account'])}", sat(place["held_msat"]), _ceiling(place))
        for place in facts["custody"]
    ]
    accounts = facts["customer_accounts"]
    on_accounts = f"on {accounts} account{'' if accounts == 1 else 's'}"
    rows += [
        ("held in all", sat(facts["custody_msat"]), ""),
        ("owed to customers", sat(facts["customers_msat"]), on_accounts),
        ("  reserved by requests", sat(facts["held_msat"]), ""),
        ("earned", sat(facts["revenue_msat"]), "`farebox withdraw` takes it out"),
    ]
    if facts["capital_msat"]:
        rows.append(("your capital", sat(facts["capital_msat"]), "bears losses: `farebox capital`"))
    if facts["exchanged_msat"]:
        rows.append(("owed for other assets", sat(facts["exchanged_msat"]), "at the rates then"))
    for asset, counts in facts["other_assets"].items():
        of_it = f"{counts['owed']} of it owed, {counts['earned']} earned, in its smallest unit"
        rows.append((f"  {asset}", counts["custody"], of_it))
    if facts["arriving_msat"]:
        rows.append(("on its way in", sat(facts["arriving_msat"]), "unfinished payments"))
    verdict = "custody covers every liability" if facts["covered"] else "NOT COVERED: run verify"
    return f"{columns(rows)}\n{verdict}"


def _place(account: str) -> str:
    """`custody:cashu:https://mint.example.com:sat` → `https://mint.example.com, in sat`; another
    rail's `custody:lightning:main` → `lightning, main`."""
    rail, _, rest = account.removeprefix("custody:").partition(":")
    if not rail.startswith("cashu"):
        return f"{rail}, {rest}" if rest else rail
    place, _, unit = rest.rpartition(":")
    return f"{place}, in {unit}{', not swapped yet' if rail.endswith('-unswapped') else ''}"


def _ceiling(place: Facts) -> str:
    return "no ceiling" if place["ceiling_msat"] is None else f"of {sat(place['ceiling_msat'])}"


def withdraw(
    amount: Annotated[
        str | None, typer.Argument(help='How much, such as "100 sat"; else all that was earned.')
    ] = None,
    to: Annotated[
        str, typer.Option(help="A Lightning address or invoice; else you get a token.")
    ] = "",
    mint: Annotated[str, typer.Option(help="Out of what is held at this mint.")] = "",
    method: Annotated[
        str, typer.Option(help="Out of what is held this way, as /v1/methods names it.")
    ] = "cashu",
    asset: Annotated[
        str, typer.Option(help="What to take, of a way to pay with several assets.")
    ] = "",
    again: Annotated[
        str | None, typer.Option(help="The id of a withdrawal that broke off: finish or show it.")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Take nothing: list what was withdrawn, oldest first.")
    ] = False,
    limit: Annotated[
        int, typer.Option(min=1, max=_PAGE_MAX, help="With --list: how many at once.")
    ] = 100,
    after: Annotated[str, typer.Option(help="With --list: go on behind this cursor.")] = "",
    settings: SettingsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take your earnings out, as a token or to Lightning. Customers' money stays."""
    if listed:
        if any((amount, to, mint, asset, again)):
            raise InvalidInput("--list takes nothing out: leave the amount and its options away")
        page = ask(read_settings(settings, data), ListWithdrawals(after=after, limit=limit))
        show(page, _listed_text(page, after), as_json=as_json)
        return
    withdrawal_id = new_withdrawal() if again is None else again
    wanted_msat = None if amount is None else amount_msat(amount)
    if again is None:
        command = f"farebox withdraw --again {shlex.quote(withdrawal_id)}"
        progress(f"withdrawing; should this break off, `{command}` goes on with it")
    request = Withdraw(withdrawal_id, wanted_msat, to, mint, method, asset, again=again is not None)
    facts = ask(read_settings(settings, data), request)
    show(facts, _withdrawn_text(facts), as_json=as_json)


def _withdrawn_text(facts: Facts) -> str:
    if facts.get("state") == "pending":
        return (
            "nobody knows yet whether it left, and it cannot leave twice; ask again with "
            f"`farebox withdraw --again {facts['id']}`"
        )
    if facts.get("token"):
        return f"{facts['token']}\nworth {sat(facts['amount_msat'])}: whoever has it can spend it"
    told = f"{facts['amount']} of {facts['asset']}" if "asset" in facts else ""
    return f"{told or sat(facts['amount_msat'])} went to {facts.get('recipient', 'its receiver')}"


def _listed_text(page: Facts, after: str) -> str:
    rows = [_listed_row(one) for one in page["withdrawals"]]
    titles = ("ID", "BEGUN", "METHOD", "STATE", "AMOUNT", "TO")
    text = page_text(titles, rows, "withdrawals", after=after, more=page["next"])
    return f"{text}\na token is told again by `farebox withdraw --again ID`" if rows else text


def _listed_row(one: Facts) -> tuple[str, ...]:
    if "amount_msat" in one:
        amount = "" if one["amount_msat"] is None else sat(one["amount_msat"])
    else:
        amount = "" if one["amount"] is None else f"{one['amount']} of {one['asset']}"
    told = one["to"] or one["reason"]
    return (one["id"], one["at"], one["method"], one["state"], amount, told)
