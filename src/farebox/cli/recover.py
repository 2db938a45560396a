"""`farebox recover`: carry on what was left unfinished, and say what still is."""

from __future__ import annotations

from typing import Annotated

import typer

from farebox.cli.book import ask
from farebox.cli.options import DataOption, SettingsOption, amount_msat, read_settings
from farebox.cli.output import JsonOption, progress, show
from farebox.cli.requests import Facts, Recover, Reopen, Request, Resolve
from farebox.errors import InvalidInput


def recover(
    ask_again: Annotated[
        str | None, typer.Option(help="A manual operation to be asked about again.")
    ] = None,
    failed: Annotated[
        str | None, typer.Option(help="A manual operation that never happened: release its hold.")
    ] = None,
    succeeded: Annotated[
        str | None, typer.Option(help="A manual refund or withdrawal whose money did leave.")
    ] = None,
    amount: Annotated[
        str | None, typer.Option(help="With --succeeded: what left, fees included.")
    ] = None,
    settings: SettingsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask about every unfinished payment once, now; list those that stay unfinished."""
    request = _request(ask_again, failed, succeeded, amount)
    progress("asking about everything unfinished …")
    facts = ask(read_settings(settings, data), request)
    show(facts, _text(facts), as_json=as_json)


def _request(
    ask_again: str | None, failed: str | None, succeeded: str | None, amount: str | None
) -> Request:
    if len([one for one in (ask_again, failed, succeeded) if one]) > 1:
        raise InvalidInput("say one thing at a time: --ask-again, --failed or --succeeded")
    if bool(succeeded) != bool(amount):
        raise InvalidInput('--succeeded and --amount go together: --amount "100 sat"')
    if succeeded and amount:
        return Resolve(succeeded, amount_msat(amount))
    if failed:
        return Resolve(failed)
    return Reopen(ask_again) if ask_again else Recover()


def _text(facts: Facts) -> str:
    unfinished: list[Facts] = facts["unfinished"]
    head = f"looked at {facts['looked_at']}; "
    if not unfinished:
        return head + "nothing is unfinished"
    return "\n".join([head + f"{len(unfinished)} unfinished:", *map(_operation_text, unfinished)])


def _operation_text(operation: Facts) -> str:
    return (
        f"{operation['id']}  {operation['kind']}, {operation['state']} since {operation['since']}"
        f"\n  why: {operation['reason'] or 'not told yet'}\n  way out: {operation['way_out']}"
    )
