"""Sweeping: what lies at deposit addresses goes to the treasury, once it is worth its gas.

The books don't change by it but for the gas: custody is of all our addresses together. An address
that holds a token and no coin is sent coin first, out of the operator's float; what is left of that
stays there for another time.

| boundary                | what can fail | recovery                                               |
|-------------------------|---------------|--------------------------------------------------------|
| before a nonce commit   | anything      | the next round decides anew, by what the chain has     |
| nonce commit → confirmed| `outbox.py`   | followed; the address is left alone meanwhile          |
| coin sent → token swept | we stop       | the coin lies there, and serves the next round         |
| the sweep reverts       | -             | gas is lost, the money stays where it was              |
| what is swept vanishes  | -             | coin: its nonce is freed, for what may come later;     |
|                         |               | a token: the sweep reverts                             |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import structlog

from farebox.clock import NS_PER_S
from farebox.errors import RailRejected, SignerError
from farebox.ledger.model import Put, Unit
from farebox.ledger.records import Row
from farebox.ledger.service import Ledger
from farebox.money import Rounding
from farebox.payments.deposits import DepositState
from farebox.payments.exchange import Exchange
from farebox.rails.evm.arrivals import Arrivals
from farebox.rails.evm.fees import Fees, is_worth
from farebox.rails.evm.gas import PLAIN_GAS, Gas
from farebox.rails.evm.outbox import Call, SlotState
from farebox.rails.evm.reads import held, says_no, transfer_of
from farebox.rails.evm.records import ADDRESS, Address, Purse
from farebox.rails.evm.sending import Held, Parcel, Sending

_log = structlog.get_logger("farebox.evm")

_ADDRESSES_AT_ONCE = 20
#: What was not worth it is looked at again after so long.
_LATER_NS = 600 * NS_PER_S
#: Coin that stays beside a sweep, in what its gas may cost at most: room for better offers.
_ROOM = 2
#: Gas may become so many times cheaper; coin that is worth less than that is left for good.
_CHEAPER = 8
_GAS, _SWEEP = "gas", "sweep"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTerms:
    """What is swept where. `assets` are codes to contracts, empty for the coin; gas is at most
    `gas_percent` of what is moved. Of several `treasuries` each gets its share of addresses."""

    assets: Mapping[str, str]
    treasuries: tuple[str, ...]
    gas_percent: int = 2

    def treasury(self, at: Address) -> str:
        """Where what lies at an address goes."""
        return self.treasuries[at.index % len(self.treasuries)]


class Sweeping:
    """Sweeps one chain's deposit addresses."""

    def __init__(
        self,
        terms: SweepTerms,
        sending: Sending,
        gas: Gas,
        arrivals: Arrivals,
        ledger: Ledger,
        exchange: Exchange,
    ) -> None:
        self.terms = terms
        self.sending = sending
        self._chain = sending.chain
        self._gas = gas
        self._arrivals = arrivals
        self._ledger = ledger
        self._exchange = exchange
        self._not_before: dict[str, int] = {}
        self._after = ""

    async def learn(self) -> None:
        """Be ready to sign again for every sweep that is on its way."""
        for slot in await self.sending.open_slots():
            if slot.purpose.startswith(f"{_SWEEP}:"):
                rows = await self._ledger.store.find(ADDRESS, {"address": slot.sender}, limit=1)
                if rows:
                    self._learns(rows[0][1].value)

    def _learns(self, at: Address) -> bool:
        """Be ready to sign for an address; False: it is of a key that is not here any more."""
        try:
            self.sending.keys.learn(at.address, at.index)
        except SignerError as error:
            _log.error("evm.not_swept", address=at.address, reason=str(error))
            return False
        return True

    async def run(self) -> int:
        """One round over some addresses; how many transactions were sent.

        Raises RailUnavailable, RailRejected.
        """
        offered = await self.sending.offer()
        if not isinstance(offered, Fees) or not self.sending.keys.can_sweep:
            return 0
        where = {"chain": self.sending.terms.chain, "purse": Purse.HOLDS}
        page = await self._ledger.store.find(
            ADDRESS, where, after=self._after, limit=_ADDRESSES_AT_ONCE
        )
        self._after = page[-1][0] if len(page) == _ADDRESSES_AT_ONCE else ""
        await self._free_nonces()
        if page:
            await self._arrivals.look_again()
        busy = await self._busy()
        now, sent = self._ledger.clock.now_ns(), 0
        for key, row in page:
            address = row.value.address
            if address in busy or self._not_before.get(address, 0) > now:
                continue
            if not self._learns(row.value):
                self._not_before[address] = now + _LATER_NS
                continue
            told = await self._arrivals.of_address(address)
            if any(one.state is DepositState.DETECTED for one in told):
                continue
            if await self._sweep(row.value, offered):
                sent += 1
            else:
                await self._leave(key, row, now, offered)
        return sent

    async def _free_nonces(self) -> None:
        """A sweep of coin that has left the chain with its block, or offers more than is left
        beside it, can't be mined: it would stand in the way of all that arrives there later."""
        for slot in await self.sending.open_slots():
            is_sweep = slot.purpose.startswith(f"{_SWEEP}:") and slot.state is SlotState.SENT
            if not is_sweep or slot.token or slot.wants_cancel:
                continue
            needed = slot.call.value + slot.call.gas * slot.newest.max_fee
            if await self._chain.balance(slot.sender) < needed:
                _log.warning("evm.sweep_given_up", address=slot.sender)
                await self.sending.cancel(slot.key)

    async def _busy(self) -> set[str]:
        """The addresses that something of ours is on its way from, or to."""
        parts = [one.purpose.split(":") for one in await self.sending.open_slots()]
        return {one[1] for one in parts if one[0] in (_GAS, _SWEEP)}

    async def _leave(self, key: str, row: Row[Address], now: int, offered: Fees) -> None:
        """Nothing is to be done there now: look later at what may be worth its gas then, and forget
        what is empty, or has what was left beside an earlier sweep."""
        address = row.value.address
        cheaper = PLAIN_GAS * offered.price // _CHEAPER
        for token in self.terms.assets.values():
            amount = await held(self._chain, address, token)
            if amount and (token or is_worth(cheaper, amount, self.terms.gas_percent)):
                self._not_before[address] = now + _LATER_NS
                return
        self._not_before.pop(address, None)
        empty = msgspec.structs.replace(row.value, purse=Purse.EMPTY)
        put = Put(ADDRESS, key, empty, row.version)
        await self._ledger.store.commit(Unit(f"swept:{key}:{row.version}", puts=(put,)))

    async def _sweep(self, at: Address, offered: Fees) -> bool:
        """Move one asset from an address, or send it coin for that; whether anything was sent."""
        coin = await self._chain.balance(at.address)
        for asset, token in self.terms.assets.items():
            if not token:
                continue
            amount = await held(self._chain, at.address, token)
            if amount and await self._sweep_token(at, asset, token, amount, coin, offered):
                return True
        native = self.sending.terms.native
        if native in self.terms.assets and coin:
            return await self._sweep_coin(at, coin, offered)
        return False

    async def _sweep_token(
        self, at: Address, asset: str, token: str, amount: int, coin: int, offered: Fees
    ) -> bool:
        call = transfer_of(token, self.terms.treasury(at), amount)
        try:
            gas = await self._gas.limit(at.address, call)
            told = await self.sending.chain.run(at.address, call)
        except RailRejected as error:
            _log.warning("evm.not_swept", address=at.address, asset=asset, reason=str(error))
            return False
        if says_no(told):
            _log.warning("evm.not_swept", address=at.address, asset=asset, reason="it says no")
            return False
        # The l1 fee goes by size: any key of ours signs as much as the address's own.
        l1_fee = await self._gas.l1_fee(self.sending.keys.addresses[0], call)
        limit = gas + gas // 4
        needs = limit * offered.max_fee + l1_fee
        funding = 0 if coin >= needs else PLAIN_GAS * offered.price
        cost = self._exchange.worth(
            gas * offered.price + l1_fee + funding,
            self.sending.terms.native,
            asset,
            Rounding.UP,
        )
        if cost is None or not is_worth(cost, amount, self.terms.gas_percent):
            return False
        if coin < needs:
            return await self._fund(at.address, needs * _ROOM - coin, offered)
        call = msgspec.structs.replace(call, gas=limit)
        return await self._send(at, call, asset, token, amount)

    async def _sweep_coin(self, at: Address, coin: int, offered: Fees) -> bool:
        treasury, native = self.terms.treasury(at), self.sending.terms.native
        gas = await self._gas.limit(at.address, Call(treasury, 1))
        l1_fee = await self._gas.l1_fee(self.sending.keys.addresses[0], Call(treasury, coin))
        amount = coin - (gas * offered.max_fee + l1_fee) * _ROOM
        cost = gas * offered.price + l1_fee
        if not is_worth(cost, amount, self.terms.gas_percent):
            return False
        return await self._send(at, Call(treasury, amount, gas=gas), native, "", amount)

    async def _fund(self, address: str, amount: int, offered: Fees) -> bool:
        sender = self.sending.keys.addresses[0]
        if await self._chain.balance(sender) < amount + PLAIN_GAS * offered.max_fee:
            _log.error("evm.no_gas", sender=sender, chain=self.sending.terms.chain)
            return False
        sent = await self.sending.send(Parcel(sender, Call(address, amount), f"{_GAS}:{address}"))
        return sent is not None and not isinstance(sent, Held)

    async def _send(self, at: Address, call: Call, asset: str, token: str, amount: int) -> bool:
        purpose = f"{_SWEEP}:{at.address}:{asset}"
        parcel = Parcel(at.address, call, purpose, token=token, spends=amount if token else 0)
        sent = await self.sending.send(parcel)
        return sent is not None and not isinstance(sent, Held)
