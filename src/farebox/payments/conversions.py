"""Turning what an account holds in another asset into its bitcoin balance, at the rate of now.

One commit, nothing outside: what is sold goes account/USDC → exchange:USDC, what it is worth less
the spread exchange:BTC → account, as when it is converted on arrival. The other way is not offered:
what is held there belongs to those who brought it.
"""

from __future__ import annotations

import msgspec

from farebox.ledger.model import (
    ABSENT,
    Applied,
    Code,
    Event,
    Kind,
    Open,
    Put,
    Refused,
    Replayed,
    Unit,
)
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger, State
from farebox.money import BTC
from farebox.payments.exchange import Exchange, Quoted, balance_of, bought, buying
from farebox.payments.method import Refusal, no_rate


class Conversion(msgspec.Struct, frozen=True, kw_only=True):
    """What was converted: `amount` of an asset for `credited_msat`, at a rate, at a time."""

    id: str
    account: str
    amount: int
    credited_msat: int
    quoted: Quoted
    at: int


CONVERSION = RecordType("conversion", Conversion)


class Conversions:
    """Quotes and makes conversions."""

    def __init__(self, ledger: Ledger, exchange: Exchange) -> None:
        self._ledger = ledger
        self._exchange = exchange

    async def quote(self, account: str, asset: str, amount: int | None) -> Conversion | Refusal:
        """What it would come to now; nothing moves. No amount is all that is held."""
        if asset not in self._exchange.held:
            held = ", ".join(sorted(self._exchange.held)) or "nothing here"
            return Refusal("asset_not_held", f"kept as it comes, and so to be converted: {held}")
        quoted = self._exchange.quote(asset)
        if quoted is None:
            return no_rate(asset)
        if amount is None:
            balance = await self._ledger.store.account(balance_of(account, asset))
            amount = balance.available if balance else 0
        worth = bought(quoted, amount).account
        if worth == 0:
            return Refusal("amount_too_small", f"{amount} of {asset} are worth less than 1 msat")
        now = self._ledger.clock.now_ns()
        return Conversion(
            id="", account=account, amount=amount, credited_msat=worth, quoted=quoted, at=now
        )

    async def convert(
        self, account: str, asset: str, amount: int | None, conversion_id: str
    ) -> Conversion | Refusal:
        """Convert, once for one id: asked again it tells what it told first."""
        known = await self._ledger.store.get(CONVERSION, conversion_id)
        if known is not None:
            return known.value
        quote = await self.quote(account, asset, amount)
        if isinstance(quote, Refusal):
            return quote
        made = msgspec.structs.replace(quote, id=conversion_id)

        def decide(state: State, _: int) -> Unit | Conversion:
            return state.value(CONVERSION, conversion_id) or _unit(made)

        outcome = await self._ledger.transact([(CONVERSION, conversion_id)], decide)
        match outcome:
            case Conversion():
                return outcome
            case Applied() | Replayed():
                return made
            case Refused(code=Code.EXCEEDS_CREDITS):
                return Refusal("insufficient_balance", f"the balance in {asset} does not cover it")
            case _:
                return Refusal("busy", "the books refuse this conversion now; try again")


def _unit(made: Conversion) -> Unit:
    asset = made.quoted.asset
    held = balance_of(made.account, asset)
    facts = {
        "operation": made.id,
        "asset": asset,
        "amount": str(made.amount),
        "amount_msat": str(made.credited_msat),
        "rate": made.quoted.msat,
    }
    return Unit(
        f"{made.id}:convert",
        steps=(
            Open(held, asset, Kind.CUSTOMER),
            Open(made.account, BTC.code, Kind.CUSTOMER),
            *buying(made.quoted, held, made.amount, made.account, "conversion"),
        ),
        puts=(Put(CONVERSION, made.id, made, ABSENT),),
        events=(Event("conversion.completed", made.account, facts),),
    )
