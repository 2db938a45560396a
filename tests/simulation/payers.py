"""Callers who pay on a chain, take their payments back while they can, and are paid out there.

`BitcoinPayer` does so with bitcoin, `evm_payers.EvmPayer` with a token and with coin.
"""

from __future__ import annotations

import asyncio

from tests.simulation.callers import Act, bearer, post, read_json
from tests.simulation.chain import ModelChain, Tx
from tests.simulation.depositors import Asked, RailCaller
from tests.simulation.network import Ask

_MSAT = 1_000
_RATES = (1_000, 2_000, 5_000)
_VBYTES_MOST = 200
_LOOKS_MAX = 45
_LOOK_EVERY_S = 20


class ChainPayer(RailCaller):
    """One of them. Each address may be paid as often as somebody likes, and by anybody."""

    def _acts(self) -> tuple[Act, ...]:
        return (*super()._acts(), self._pay_again, self._pay_again, self._take_back)

    def _credential(self, pay: str) -> str:
        return f"{self.way}:{pay}"

    async def _pay_again(self) -> None:
        if self.asked:
            await self._pay(self._chance.choice(list(self.asked.values())))

    async def _take_back(self) -> None:
        """Undo a payment that no block has yet."""
        raise NotImplementedError

    def _arrived_msat(self, asked: Asked) -> int:
        """What stands in the best chain for an address."""
        raise NotImplementedError

    def _is_waiting(self, asked: Asked) -> bool:
        """Whether more is on its way to it."""
        raise NotImplementedError

    # ── in the calm ──────────────────────────────────────────────────────────────────────────────

    async def collect(self) -> None:
        """Wait until what was paid is credited, then ask for all of it."""
        self._is_calm = True
        for key, asked in self.asked.items():
            await self._until_credited(key, asked)
        await super().collect()

    async def empty_accounts(self) -> None:
        """Open what was paid meanwhile as well: the house pays to addresses of its own, too."""
        for key, asked in self.asked.items():
            await self._until_credited(key, asked)
            if asked.paid_msat and not asked.key:
                await self._open(asked)
        await super().empty_accounts()

    async def _until_credited(self, key: str, asked: Asked) -> None:
        ask = Ask("GET", f"/v1/deposits/{key}", (bearer(asked.claim_secret),))
        for _ in range(_LOOKS_MAX):
            arrived_msat = self._arrived_msat(asked)
            told = read_json(await self._patiently(ask))
            asked.paid_msat = arrived_msat
            if told["credited_msat"] == arrived_msat and not self._is_waiting(asked):
                return
            await asyncio.sleep(_LOOK_EVERY_S)
        raise AssertionError(
            f"{self.name} is credited {told['credited_msat']} of {arrived_msat} msat paid to "
            f"{asked.text}: {told}"
        )


class BitcoinPayer(ChainPayer):
    """One who pays with bitcoin. `sent_to` are its own that the house was told to pay."""

    way = "bitcoin"
    amounts_msat = (None, 5_000_000, 20_000_000, 60_000_000)
    filling_msat = 60_000_000
    small_msat = 2_000_000
    chain: ModelChain

    def meet(self, market: dict[str, str], fills: float) -> None:
        """Say who else is there, and how often to pay in before one is paid out."""
        super().meet(market, fills)
        self.sent_to: list[str] = []
        self._payments: list[Tx] = []

    def _own(self) -> str:
        self.sent_to.append(f"bcrt1{self.name.replace('-', '')}x{len(self.sent_to)}")
        return self.sent_to[-1]

    # ── in ───────────────────────────────────────────────────────────────────────────────────────

    async def _pay(self, asked: Asked) -> None:
        chance = self._chance
        amount_sat = (asked.amount_msat or chance.randint(2, 70) * 1_000_000) // _MSAT
        outputs = [(asked.text, amount_sat)]
        match chance.randrange(6):
            case 0:
                outputs = [(asked.text, amount_sat // 2), (asked.text, amount_sat - 1_000)]
            case 1:
                outputs = [(asked.text, amount_sat * 2 // 3)]
            case 2:
                outputs = [(asked.text, amount_sat), (f"bcrt1{self.name}-change", 5_000)]
        self._broadcast(outputs)
        asked.paid_msat += sum(amount for to, amount in outputs if to == asked.text) * _MSAT

    async def _take_back(self) -> None:
        """Spend once more what no block has yet: to oneself, or to pay another amount."""
        waiting = [tx for tx in self._payments if tx.txid not in self.chain.blocks]
        if not waiting:
            return
        tx = self._chance.choice(waiting)
        outputs = [(f"bcrt1{self.name}-mine", 5_000)]
        if self._chance.random() < 0.3:
            outputs = [(to, amount - 500) for to, amount in tx.outputs]
        self._broadcast(outputs, max(tx.fee_sat * 2, tx.fee_sat + 2_000), tx.spends[0])

    def _broadcast(
        self, outputs: list[tuple[str, int]], fee_sat: int = 0, spends: str = ""
    ) -> None:
        fee_sat = fee_sat or self._chance.choice(_RATES) * _VBYTES_MOST // 1_000
        tx = self.chain.pay(outputs, fee_sat, spends)
        no = self.chain.accept(tx)
        told = no or ", ".join(f"{amount} sat to {to}" for to, amount in outputs)
        self._trace(f"{self.name} sends {tx.txid[:8]}: {told}")
        if not no:
            self._payments.append(tx)

    # ── out ──────────────────────────────────────────────────────────────────────────────────────

    async def _send(self) -> None:
        if not self.keys:
            return await self._create()
        key = self._chance.choice(self.keys)
        if self._chance.random() < self._fills:
            await self._fill(key)
        target = self._chance.choice(("/v1/refunds", "/v1/payouts"))
        destination = self._own()
        if self._chance.random() < 0.1 and self.market:  # the house asked to pay itself
            destination = self._chance.choice(list(self.market)).removeprefix("bitcoin:")
        body: dict[str, object] = {
            "method": self.way,
            "destination": destination,
            "amount_msat": self._chance.randint(2_000, 20_000) * _MSAT,
        }
        if self._chance.random() < 0.1:
            body["dry_run"] = True
        await self._named(post(target, body, bearer(key), self._name()))
        return None

    def _arrived_msat(self, asked: Asked) -> int:
        return self.chain.received_sat(asked.text) * _MSAT

    def _is_waiting(self, asked: Asked) -> bool:
        txs = self.chain.txs
        return any(to == asked.text for tx in self.chain.pool for to, _ in txs[tx].outputs)
