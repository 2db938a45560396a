"""Callers who pay with a token or with coin on the model of an EVM chain."""

from __future__ import annotations

from typing import Any, Final

from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from tests.simulation.callers import bearer, post
from tests.simulation.depositors import Asked
from tests.simulation.evm import TOKEN, ModelEvm, Tx
from tests.simulation.payers import ChainPayer

#: A smallest unit of the token is an msat, by the settings' rates, and so much coin is one.
WEI_PER_MSAT: Final = 500_000_000
_LEAST_MSAT: Final = 2_000_000
_TOKENS: Final = 10**18


class EvmPayer(ChainPayer):
    """One of them. `sent_to` are the addresses of this one that the house was told to pay."""

    way = "evm"
    amounts_msat = (None, 5_000_000, 20_000_000, 60_000_000)
    filling_msat = 60_000_000
    small_msat = 2_000_000
    pause_s = 15
    chain: ModelEvm

    def meet(self, market: dict[str, str], fills: float) -> None:
        """Say who else is there, and how often to pay in before one is paid out."""
        super().meet(market, fills)
        self.sent_to: list[str] = []
        self._payments: list[Tx] = []
        self._wallet = _address(self.name)
        self.chain.endow(self._wallet, token=_TOKENS)

    def _order(self, amount_msat: int | None) -> dict[str, Any]:
        asset = self._chance.choice(("USDC", "USDC", "ETH"))
        amount = None if amount_msat is None else str(amount_msat * units_per_msat(asset))
        return {"method": self.way, "asset": asset, "amount": amount}

    def _own(self) -> str:
        self.sent_to.append(_address(f"{self.name}:{len(self.sent_to)}"))
        return self.sent_to[-1]

    def _outs(self) -> list[dict[str, Any]]:
        coin, token = (
            {"method": self.way, "destination": self._own(), "asset": one}
            for one in ("ETH", "USDC")
        )
        return [{"method": "cashu"}, coin, token]

    # ── in ───────────────────────────────────────────────────────────────────────────────────────

    async def _pay(self, asked: Asked) -> None:
        chance = self._chance
        amount_msat = asked.amount_msat or chance.randint(5, 70) * 1_000_000
        parts = chance.choice(((1, 1), (1, 1), (2, 3), (1, 2)))
        amount = amount_msat * parts[0] // parts[1] * units_per_msat(asked.asset)
        if asked.asset == "ETH":
            self._sent(self.chain.pay(self._wallet, asked.text, amount, ()))
        elif chance.random() < 0.3:  # twice in one transaction, and somebody else
            moves = (asked.text, amount), (self._wallet, 5), (asked.text, _LEAST_MSAT)
            self._sent(self.chain.pay(self._wallet, TOKEN, 0, moves))
        else:
            self._sent(self.chain.pay(self._wallet, TOKEN, 0, ((asked.text, amount),)))
        asked.paid_msat += amount_msat

    def _sent(self, tx: Tx) -> None:
        self._trace(f"{self.name} sends {tx.hash[:10]}: {tx.value} wei, {tx.moves}")
        self._payments.append(tx)

    async def _take_back(self) -> None:
        """Spend the nonce of a payment that waits on nothing."""
        pool = self.chain.pool
        waiting = [tx for tx in self._payments if pool.get((tx.sender, tx.nonce)) == tx]
        if waiting:
            tx = self._chance.choice(waiting)
            self._trace(f"{self.name} takes {tx.hash[:10]} back: {self.chain.take_back(tx)}")

    def _arrived_msat(self, asked: Asked) -> int:
        found = self.chain.received(asked.text)
        return found["token"] + found["coin"] // WEI_PER_MSAT

    def _is_waiting(self, asked: Asked) -> bool:
        """Or has not been swept yet: until then it cannot be paid out."""
        is_there = self.chain.tip.state.token[asked.text] > 0
        return is_there or self.chain.waits_for(asked.text)

    # ── out ──────────────────────────────────────────────────────────────────────────────────────

    async def _send(self) -> None:
        if not self.keys:
            return await self._create()
        key = self._chance.choice(self.keys)
        if self._chance.random() < self._fills:
            await self._fill(key)
        target = self._chance.choice(("/v1/refunds", "/v1/payouts"))
        body = self._chance.choice(self._outs()[1:])
        body["amount_msat"] = self._chance.randint(2_000, 20_000) * 1_000
        if self._chance.random() < 0.1 and self.market:  # the house asked to pay itself
            body["destination"] = self._chance.choice(list(self.market)).removeprefix("evm:")
        if self._chance.random() < 0.1:
            body["dry_run"] = True
        await self._named(post(target, body, bearer(key), self._name()))
        return None


def units_per_msat(asset: str) -> int:
    """How much of an asset an msat is."""
    return WEI_PER_MSAT if asset == "ETH" else 1


def _address(name: str) -> str:
    return to_checksum_address(keccak(text=name)[12:])
