"""`farebox capital`: the operator's own money that stands in the books."""

from __future__ import annotations

from typing import Annotated

import typer

from farebox.cli.book import ask
from farebox.cli.options import DataOption, SettingsOption, read_settings
from farebox.cli.output import JsonOption, sat, show
from farebox.cli.requests import MoveCapital
from farebox.ids import new_id
from farebox.money import BTC
from farebox.payments.capital import Flow


def capital(
    amount: Annotated[str, typer.Argument(help='How much: "100 sat"; of another asset "12.50".')],
    at: Annotated[str, typer.Option(help="The way to pay where it is, as /v1/methods names it.")],
    asset: Annotated[str, typer.Option(help="What it is, such as USD or USDC.")] = BTC.code,
    out: Annotated[
        bool, typer.Option("--out", help="Take it out instead of paying it in.")
    ] = False,
    name: Annotated[
        str, typer.Option("--id", help="A name for that: the same again moves nothing twice.")
    ] = "",
    settings: SettingsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Note that you have put money of your own where customers' money is, or take it out again.

    It covers losses. You move it yourself: `farebox reconcile` says whether it is there.
    """
    flow = Flow.OUT if out else Flow.IN
    order = MoveCapital(name or new_id("cap"), flow, amount, at, asset.upper())
    facts = ask(read_settings(settings, data), order)
    counted, left = (
        sat(facts[one]) if facts["kept_in"] == BTC.code else f"{facts[one]} of {facts['kept_in']}"
        for one in ("counted", "capital")
    )
    told = f"{counted} of capital went {flow}; {left} stand in the books"
    show(facts, told, as_json=as_json)
