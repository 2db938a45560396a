"""Payments that an operator signs elsewhere: what waits for it, and taking it back signed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from farebox.bootstrap import Farebox
from farebox.errors import InvalidInput

if TYPE_CHECKING:  # its library is there only where the rail is
    from farebox.rails.bitcoin.batches import Batches
    from farebox.rails.bitcoin.method import BitcoinMethod


async def unsigned(house: Farebox) -> list[dict[str, Any]]:
    """What waits, with its PSBT (BIP-174, base64). Amounts are in satoshi."""
    batches, found = _batches(house), list[dict[str, Any]]()
    if batches is None:
        return found
    for batch_id, batch in (await batches.unsigned()).items():
        latest = batch.tries[-1]
        found.append(
            {
                "id": batch_id,
                "txid": latest.txid,
                "pays_sat": await batches.pays_sat(batch),
                "payments": len(batch.payouts),
                "fee_sat": latest.fee_sat,
                "replaces": [one.txid for one in batch.tries[:-1]],
                "psbt": batch.psbt,
            }
        )
    return found


async def sign(house: Farebox, batch_id: str, psbt: str) -> dict[str, Any]:
    """Send what was signed. Raises InvalidInput."""
    batches = _batches(house)
    if batches is None:
        raise InvalidInput("there is no [bitcoin] here whose payments could be signed")
    operation = await batches.sign(batch_id, psbt)
    return {"id": batch_id, "state": operation.state.value, "reason": operation.error}


def _batches(house: Farebox) -> Batches | None:
    rail = house.deposits.rails().get("bitcoin")
    return None if rail is None else cast("BitcoinMethod", rail).batches
