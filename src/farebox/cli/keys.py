"""`farebox keys`: account keys, made, listed, shown and revoked by the operator."""

from __future__ import annotations

from typing import Annotated

import typer

from farebox.cli.book import ask
from farebox.cli.options import DataOption, SettingsOption, duration_ns, read_settings
from farebox.cli.output import JsonOption, columns, page_text, sat, show
from farebox.cli.requests import CreateKey, Facts, ListKeys, RevokeKey, ShowKey

_PAGE_MAX = 1_000

KeyArgument = Annotated[str, typer.Argument(help="The id of a key: key_…")]

app = typer.Typer(help="Make, list, show and revoke account keys.", no_args_is_help=True)


@app.command("create")
def create(
    label: Annotated[str, typer.Option(help="A name to know it by.")] = "",
    expires_in: Annotated[
        str | None, typer.Option(help="How long it lives, such as 30d; else for ever.")
    ] = None,
    refund_address: Annotated[
        str, typer.Option(help="Where its balance goes when it expires (a Lightning address).")
    ] = "",
    settings: SettingsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key to a new, empty account; its owner tops it up with POST /topup."""
    lives_ns = duration_ns(expires_in) if expires_in else 0
    request = CreateKey(label=label, lives_ns=lives_ns, refund_address=refund_address)
    key = ask(read_settings(settings, data), request)
    text = f"{key['api_key']}\nit is shown this once; its id is {key['id']}"
    show(key, text, as_json=as_json)


@app.command("list")
def list_all(
    limit: Annotated[int, typer.Option(min=1, max=_PAGE_MAX, help="How many at once.")] = 100,
    after: Annotated[str, typer.Option(help="Go on behind this cursor.")] = "",
    settings: SettingsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """List keys, a page at a time."""
    page = ask(read_settings(settings, data), ListKeys(after=after, limit=limit))
    rows = [_row(key) for key in page["keys"]]
    titles = ("ID", "KEY", "STATE", "BALANCE", "LABEL")
    text = page_text(titles, rows, "keys", after=after, more=page["next"])
    show(page, text, as_json=as_json)


@app.command("show")
def show_one(
    key_id: KeyArgument,
    settings: SettingsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a key, masked, and its account."""
    key = ask(read_settings(settings, data), ShowKey(key_id))
    show(key, _text(key), as_json=as_json)


@app.command("revoke")
def revoke(
    key_id: KeyArgument,
    settings: SettingsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a key for good. What is on its account stays there."""
    key = ask(read_settings(settings, data), RevokeKey(key_id))
    show(key, _text(key), as_json=as_json)


def _row(key: Facts) -> tuple[str, ...]:
    return (key["id"], key["key"], key["state"], sat(key["balance_msat"]), key["label"])


def _text(key: Facts) -> str:
    return columns(
        [
            ("id", key["id"]),
            ("key", key["key"]),
            ("label", key["label"]),
            ("state", key["state"]),
            ("account", key["account"]),
            ("balance", sat(key["balance_msat"])),
            ("reserved", sat(key["reserved_msat"])),
            ("created", key["created_at"]),
            ("expires", key["expires_at"] or "never"),
            ("refunds to", key["refund_address"] or "a new token"),
        ]
    )
