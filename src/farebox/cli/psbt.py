"""`farebox psbt`: payments on the Bitcoin chain that the operator signs elsewhere (BIP-174)."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Annotated

import typer

from farebox.cli.book import ask
from farebox.cli.options import DataOption, SettingsOption, read_settings
from farebox.cli.output import JsonOption, columns, show
from farebox.cli.requests import Facts, Sign, Unsigned
from farebox.errors import InvalidInput

_MAGIC = b"psbt\xff"
_FILE_MAX_BYTES = 500_000

IdArgument = Annotated[str, typer.Argument(help="The id of what waits: batch_…")]
FileArgument = Annotated[Path, typer.Argument(help="A file: base64 text, or binary as *.psbt.")]

app = typer.Typer(
    help="List, export and import payments that you sign elsewhere.", no_args_is_help=True
)


@app.command("list")
def list_all(
    settings: SettingsOption = None, data: DataOption = None, as_json: JsonOption = False
) -> None:
    """List what waits for your signature."""
    facts = ask(read_settings(settings, data), Unsigned())
    rows = [
        (one["id"], str(one["payments"]), f"{one['pays_sat']} sat", f"{one['fee_sat']} sat")
        for one in facts["unsigned"]
    ]
    text = columns([("ID", "PAYMENTS", "AMOUNT", "FEE"), *rows]) if rows else "nothing waits"
    show(facts, text, as_json=as_json)


@app.command("export")
def export(
    batch: IdArgument,
    to: Annotated[
        Path | None, typer.Option(help="Write it there, in binary; else as text to the screen.")
    ] = None,
    settings: SettingsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one as a PSBT, for the wallet that has the key."""
    found: list[Facts] = ask(read_settings(settings, data), Unsigned())["unsigned"]
    chosen = next((one for one in found if one["id"] == batch), None)
    if chosen is None:
        raise InvalidInput(f"nothing named {batch!r} waits: `farebox psbt list` shows what does")
    text: str = chosen["psbt"]
    if to is not None:
        to.write_bytes(base64.b64decode(text))
        text = f"written to {to}; sign it, then: farebox psbt import {batch} FILE"
    show(chosen, text, as_json=as_json)


@app.command("import")
def import_(
    batch: IdArgument,
    file: FileArgument,
    settings: SettingsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take one back, signed, and send what it pays."""
    facts = ask(read_settings(settings, data), Sign(batch, _read(file)))
    show(facts, f"{batch} is sent: {facts['reason'] or facts['state']}", as_json=as_json)


def _read(file: Path) -> str:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}") from None
    if len(raw) > _FILE_MAX_BYTES:
        raise InvalidInput(f"{file} is too long to be a payment of ours")
    if raw.startswith(_MAGIC):
        return base64.b64encode(raw).decode()
    try:
        base64.b64decode(raw.strip(), validate=True)
    except binascii.Error:
        raise InvalidInput(f"{file} is no PSBT: neither binary nor base64") from None
    return raw.strip().decode()
