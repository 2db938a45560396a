"""After a restore: hold the book against mints and rails, take over what was found, give it out."""

from __future__ import annotations

from typing import Any

import msgspec

from farebox.bootstrap import Farebox
from farebox.errors import InvalidInput
from farebox.ledger.model import Applied, Event, Kind, Open, Replayed, Transfer, Unit
from farebox.ledger.service import Ledger
from farebox.money import BTC
from farebox.operating.comparing import compare
from farebox.rails.cashu.reconcile import SUSPENSE, Reconciled

Facts = dict[str, Any]


async def reconcile(house: Farebox, *, claim: bool) -> Facts:
    """Open a closed book once all have answered; of an open one only say what is unlike.

    `claim` takes over what was found at the mints. Raises InvalidInput where there is nothing to
    do.
    """
    house.doors.require_here()
    was_closed = house.doors.is_closed
    found = await house.reconcile() if was_closed else Reconciled()
    facts: Facts = msgspec.json.decode(msgspec.json.encode(found))
    if claim and found.is_whole:
        claimed = await house.reconciling.claim()
        facts |= {"claimed_msat": claimed.renewed_msat, "away": list(claimed.away)}
    compared, away = await compare(house.deposits.rails().values(), house.ledger)
    if not was_closed and not claim and not compared and not away:
        raise InvalidInput("the book is open: there is nothing to reconcile")
    balance_msat = await _suspense_msat(house.ledger)
    return facts | {
        "open": not house.doors.is_closed,
        "was_closed": was_closed,
        "suspense_msat": balance_msat,
        "covered": balance_msat >= 0,
        "rails": [
            msgspec.json.decode(msgspec.json.encode(one)) | {"lacks": one.lacks} for one in compared
        ],
        "rails_away": away,
    }


async def give(house: Farebox, give_id: str, account: str, amount_msat: int) -> Facts:
    """Credit an account out of what was found after a restore; once for one id.

    Raises InvalidInput where so much was not found, or payers may still have it.
    """
    done = {"id": give_id, "account": account, "amount_msat": amount_msat}
    unit_id = f"restored:{give_id}"
    if await house.store.outcome(unit_id) is None:
        if await house.reconciling.has_found():
            raise InvalidInput(
                "payers may hold a part of what was found: `farebox reconcile --claim` takes it "
                "over, and leaves them what they have spent"
            )
        left_msat = await _suspense_msat(house.ledger)
        if not 0 < amount_msat <= left_msat:
            raise InvalidInput(f"{left_msat} msat were found and are nobody's: not so much")
    unit = Unit(
        unit_id,
        (
            Open(account, BTC.code, Kind.CUSTOMER),
            Transfer(SUSPENSE, account, amount_msat, "restored"),
        ),
        events=(Event("restored.given", account, {"amount_msat": amount_msat}),),
        fingerprint=f"{account} {amount_msat}".encode(),
    )
    outcome = await house.store.commit(unit)
    if not isinstance(outcome, Applied | Replayed):
        raise InvalidInput(f"nothing moved: {give_id!r} has given something else already")
    return done | {"suspense_msat": await _suspense_msat(house.ledger)}


async def _suspense_msat(ledger: Ledger) -> int:
    suspense = await ledger.store.account(SUSPENSE)
    return suspense.credits_posted - suspense.debits_posted if suspense else 0
