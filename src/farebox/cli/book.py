"""How a command reaches the book: through the running server, or by opening it itself.

Only the latter needs the house, which takes a second to import: hence the imports where it is.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import replace

from farebox.cli.door import ask_server
from farebox.cli.output import progress
from farebox.cli.requests import Facts, Request
from farebox.clock import running_s
from farebox.errors import InvalidInput, StoreLocked
from farebox.ledger.model import Account, Kind
from farebox.settings import MintSettings, Settings, load_settings, read_root_key

_CUSTODY = "custody:cashu:"
#: How long another who has the book is waited for, and between two looks.
_WAIT_S = 30
_AGAIN_S = 0.1


def ask(settings: Settings, request: Request) -> Facts:
    """What came of a request. Raises FareboxError with a sentence for the operator."""
    return asyncio.run(_ask(settings, request))


def require_book(settings: Settings) -> None:
    """Say first that there is no book where none is: what else is missing there tells nobody that
    he is in the wrong place. Raises InvalidInput."""
    path = settings.database_path
    if path is not None and not path.exists():
        raise InvalidInput(
            f"there is no book at {path}: name its directory with --data, or "
            "start one with `farebox serve`"
        )


async def _ask(settings: Settings, request: Request) -> Facts:
    """Whoever has the book may be another command, which is soon done, or a server that has not
    opened its door yet: it is waited for."""
    until_s, is_told = running_s() + _WAIT_S, False
    while True:
        answer = await ask_server(settings.data_dir, request)
        if answer is not None:
            return answer
        require_book(settings)
        try:
            return await _ask_alone(settings, request)
        except StoreLocked:
            if running_s() > until_s:
                raise
            if not is_told:
                progress("another command has the book, or a server that starts: waiting for it …")
                is_told = True
        await asyncio.sleep(_AGAIN_S)


async def _ask_alone(settings: Settings, request: Request) -> Facts:
    """Open the book, do what is asked and close it."""
    from farebox.bootstrap import Farebox
    from farebox.cli.desk import carry_out

    root_key = read_root_key(settings.data_dir, os.environ)
    if not settings.mints:
        settings = replace(settings, mints=_mints_of_book(settings))
    async with Farebox(settings, root_key) as house:
        return await carry_out(house, request)


def _mints_of_book(settings: Settings) -> tuple[MintSettings, ...]:
    """The mints that the book holds money at: a server that was started by flags left no file."""
    from farebox.books import open_audit

    with open_audit(settings) as reader:
        tables = _mint_tables(reader.accounts())
    return load_settings(None, {}, {"mint": tables}).mints


def _mint_tables(accounts: Iterable[Account]) -> list[dict[str, object]]:
    tables: dict[str, dict[str, object]] = {}
    for account in accounts:
        if account.kind is Kind.CUSTODY and account.id.startswith(_CUSTODY):
            url, _, unit = account.id.removeprefix(_CUSTODY).rpartition(":")
            table = tables.setdefault(url, {"url": url, "units": []})
            units = table["units"]
            assert isinstance(units, list)
            units.append(unit)
            if account.ceiling is not None:
                table["ceiling"] = f"{account.ceiling} msat"
    return list(tables.values())
