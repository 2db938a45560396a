"""LNURL-withdraw (LUD-01, LUD-03): a wallet that scans a QR code takes a refund out.

The words are the specification's, errors too: `{"status": "ERROR", "reason": …}` with status 200,
because wallets read nothing else.
"""

from __future__ import annotations

from farebox.api.context import ApiContext
from farebox.api.http import Incoming, document
from farebox.money import BTC, MSAT_PER_SAT
from farebox.payments import Refusal
from farebox.paywall.dialects import sentence
from farebox.paywall.model import Answer
from farebox.wire import bech32

PATH = "/v1/lnurl/withdraw"
_ADDRESS_MAX_CHARS = 8_192


def withdraw_url(public_url: str, secret: str) -> str:
    """The LNURL of a withdraw link."""
    url = f"{public_url}{PATH}?k1={secret}"
    return bech32.encode("lnurl", url.encode(), bech32.Checksum.BECH32).upper()


async def withdraw(context: ApiContext, incoming: Incoming) -> Answer:
    """`?k1=`: what may be withdrawn. `?k1=&pr=`: pay this invoice, which may take a while."""
    link = await context.links.find(incoming.query.get("k1", ""))
    if isinstance(link, Refusal):
        return _error(link)
    rail = context.deposits.rails().get(link.method)
    if rail is None:
        return _error(Refusal("method_unknown", "nothing here pays this link now; try it later"))
    invoice = incoming.query.get("pr", "")
    if invoice:
        if len(invoice) > _ADDRESS_MAX_CHARS or invoice[:2].lower() != "ln":
            return _error(Refusal("destination_invalid", "pr is a Lightning invoice"))
        told = await context.links.draw(link, invoice)
        return _error(told) if isinstance(told, Refusal) else document({"status": "OK"})
    drawable_msat = await context.links.drawable_msat(link)
    fee_msat = rail.fee_max(drawable_msat, BTC.code)
    most_msat = (drawable_msat - fee_msat) // MSAT_PER_SAT * MSAT_PER_SAT
    if most_msat <= 0:
        return _error(Refusal("link_used_up", "there is nothing left to withdraw by this link"))
    return document(
        {
            "tag": "withdrawRequest",
            "callback": f"{context.public_url}{PATH}",
            "k1": incoming.query["k1"],
            "defaultDescription": "Refund",
            "minWithdrawable": MSAT_PER_SAT,
            "maxWithdrawable": most_msat,
        }
    )


def _error(why: Refusal) -> Answer:
    return document({"status": "ERROR", "reason": sentence(why.message)})
