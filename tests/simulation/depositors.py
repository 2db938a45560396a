"""Callers who also pay over a rail: they ask for deposits, pay them, and are paid out.

`Depositor` does so by Lightning, `payers.BitcoinPayer` with bitcoin, `evm_payers.EvmPayer` with a
token.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from farebox.wire import bech32
from tests.simulation.callers import Act, Caller, bearer, post, read_json
from tests.simulation.lightning import PAYEES, ModelLnd
from tests.simulation.network import Ask, Reply

_SENDS_MOST = 30


@dataclass
class Asked:
    """A deposit that was asked for. `key` is empty where it opens an account of its own."""

    text: str
    claim_secret: str
    amount_msat: int | None
    key: str
    asset: str = "BTC"
    paid_msat: int = 0
    is_paying: bool = False


class RailCaller(Caller):
    """One of them. `market` is all that anybody was shown to pay, with whose it is."""

    #: The rail, what is asked for over it, what fills an account, and what its fees may leave.
    way: str
    asset = "BTC"
    amounts_msat: tuple[int | None, ...]
    filling_msat: int
    small_msat: int
    #: Until what is held may have come to where it can be paid out from.
    pause_s: float = 3
    #: How often one tries to take out all that there is.
    emptyings_max = 60
    market: dict[str, str]

    def meet(self, market: dict[str, str], fills: float) -> None:
        """Say who else is there, and how often to pay in before one is paid out."""
        self.market, self._fills = market, fills
        self.asked: dict[str, Asked] = {}

    def _acts(self) -> tuple[Act, ...]:
        acts = (self._ask_to_pay, self._ask_to_pay, self._claim, self._send, self._send)
        # In some worlds hardly anything else is done than to pay out.
        often = (self._send,) * round(_SENDS_MOST * self._fills)
        return (*super()._acts(), *acts, *often, self._claim_anothers)

    async def _pay(self, asked: Asked) -> None:
        """Pay what was asked for, or something else."""
        raise NotImplementedError

    async def _send(self) -> None:
        """Have something paid out."""
        raise NotImplementedError

    def _own(self) -> str:
        """Where one is paid."""
        raise NotImplementedError

    def _outs(self) -> list[dict[str, Any]]:
        """The ways to take money out, in the words of the API."""
        return [{"method": "cashu"}, {"method": self.way, "destination": self._own()}]

    def _order(self, amount_msat: int | None) -> dict[str, Any]:
        """What is asked for."""
        return {"method": self.way, "asset": self.asset, "amount": amount_msat}

    def _credential(self, pay: str) -> str:
        """How what was to be paid is handed in."""
        return pay

    def _addressed(self, body: dict[str, Any]) -> None:
        """Say at once where the account is to be paid out to, perhaps."""

    # ── in ───────────────────────────────────────────────────────────────────────────────────────

    async def _ask_to_pay(self) -> None:
        chance = self._chance
        amount_msat = chance.choice(self.amounts_msat)
        body = self._order(amount_msat)
        key = chance.choice(self.keys) if self.keys and chance.random() < 0.5 else ""
        headers = (bearer(key), self._name()) if key else (self._name(),)
        await self._named(post("/v1/deposits", body, *headers))
        await self._pay_one()

    async def _hear(self, ask: Ask) -> Reply:
        reply = await super()._hear(ask)
        if ask.target == "/v1/deposits" and reply.status == 201:
            told = read_json(reply)
            key = dict(ask.headers).get(b"authorization", b"").decode().removeprefix("Bearer ")
            asked = Asked(
                told["pay"], told["claim_secret"], told["amount_msat"], key, told["asset"]
            )
            self.asked.setdefault(told["deposit"], asked)
            self.market[self._credential(told["pay"])] = self.name
        if ask.target in ("/v1/refunds", "/v1/payouts") and reply.status == 200:
            told = read_json(reply)
            if "dry_run" not in told:
                self.told.operations[told["operation"]] = told["amount_msat"]
                self._keep(told.get("token", ""))
        return reply

    def _is_passing(self, reply: Reply) -> bool:
        """That one place does not hold so much is final here: there is another to ask."""
        if reply.status == 503 and reply.is_whole:
            return bool(read_json(reply).get("code") != "insufficient_funds")
        return super()._is_passing(reply)

    async def _pay_one(self) -> None:
        unpaid = [one for one in self.asked.values() if not one.paid_msat and not one.is_paying]
        if not unpaid or self._chance.random() < 0.2:
            return
        await self._pay(self._chance.choice(unpaid))

    async def _claim(self) -> None:
        """Open the account of a deposit, or ask for it on a key's."""
        if not self.asked:
            return await self._ask_to_pay()
        asked = self._chance.choice(list(self.asked.values()))
        if asked.key:
            body = {"cashu_token": self._credential(asked.text)}
            await self._named(post("/topup", body, bearer(asked.key)))
        elif self.keys and self._chance.random() < 0.4:
            body = {"cashu_token": self._credential(asked.text)}
            body["claim_secret"] = asked.claim_secret
            await self._patiently(post("/topup", body, bearer(self._chance.choice(self.keys))))
        else:
            await self._open(asked)
        return None

    async def _open(self, asked: Asked) -> Reply:
        body: dict[str, Any] = {"initial_balance_token": self._credential(asked.text)}
        body["claim_secret"] = asked.claim_secret
        self._addressed(body)
        reply = await self._patiently(post("/create", body))
        if reply.status == 200:
            key = read_json(reply)["api_key"]
            if key not in self.keys:
                self.keys.append(key)
        return reply

    async def _claim_anothers(self) -> None:
        """An invoice is no secret: whoever hands in another's gets nothing."""
        others = [text for text, name in self.market.items() if name != self.name]
        if not others or not self.keys:
            return
        text, key = self._chance.choice(others), self._chance.choice(self.keys)
        for ask in (
            post("/topup", {"cashu_token": text}, bearer(key)),
            post("/create", {"initial_balance_token": text}),
            Ask("POST", "/echo", ((b"x-cashu", text.encode()),)),
        ):
            reply = await self._ask(ask)
            if reply.status < 300:
                raise AssertionError(f"{self.name} was paid by another's invoice: {ask.target}")

    async def _fill(self, key: str) -> None:
        """Have something on a key's account."""
        body = self._order(self.filling_msat)
        made = await self._named(post("/v1/deposits", body, bearer(key), self._name()))
        if made.status == 201:
            await self._pay(self.asked[read_json(made)["deposit"]])

    # ── in the calm ──────────────────────────────────────────────────────────────────────────────

    async def collect(self) -> None:
        """Ask for everything that is one's own."""
        while any(one.is_paying for one in self.asked.values()):  # noqa: ASYNC110 - in simulated time
            await asyncio.sleep(5)
        self._is_calm = True
        for ask in list(self._unanswered):
            await self._named(ask)
        for asked in self.asked.values():
            if asked.paid_msat and not asked.key:
                await self._open(asked)
        await super().collect()

    async def _empty(self, opens: str) -> None:
        """By whichever way the house has money: all of it, else half, and again."""
        part = 1
        for _ in range(self.emptyings_max):
            told = await self._patiently(Ask("GET", "/info", (bearer(opens),)))
            if told.status != 200 and opens not in self.keys:
                return
            balance_msat = read_json(told)["balance"] if told.status == 200 else 0
            if told.status == 200 and balance_msat < self.small_msat:
                return
            amount_msat = balance_msat // part // 1_000 * 1_000
            took = [await self._take_out(opens, out, amount_msat) for out in self._outs()]
            if any(reply.status == 200 for reply in took):
                part = 1
            elif amount_msat < self.small_msat:
                return
            else:
                part *= 2
                await asyncio.sleep(
                    self.pause_s
                )  # what is held may be about to be swapped, or swept
        # What is left is judged by the checker.

    async def _take_out(self, opens: str, out: dict[str, Any], amount_msat: int) -> Reply:
        body = out | ({"amount_msat": amount_msat} if amount_msat else {})
        return await self._named(post("/v1/refunds", body, bearer(opens), self._name()))


class Depositor(RailCaller):
    """One who pays by Lightning."""

    way = "lightning"
    amounts_msat = (None, 1_000, 21_000, 64_001, 300_000)
    filling_msat = 300_000
    small_msat = 2_000
    node: ModelLnd
    #: What arrived of what the house paid out.
    got_msat = 0

    def _acts(self) -> tuple[Act, ...]:
        return (*super()._acts(), self._draw)

    async def _pay(self, asked: Asked) -> None:
        if asked.paid_msat or asked.is_paying:
            return
        amount_msat = asked.amount_msat or self._chance.randint(1, 90) * 1_000
        asked.is_paying = True
        self._trace(f"{self.name} pays {amount_msat} msat into {asked.text[-12:]}")
        if await self.node.pay_in_slowly(asked.text, amount_msat):
            asked.paid_msat = amount_msat
        asked.is_paying = False

    def _own(self) -> str:
        return f"{self.name}@{PAYEES}"

    def _addressed(self, body: dict[str, Any]) -> None:
        if self._chance.random() < 0.3:
            body["refund_address"] = self._own()

    # ── out ──────────────────────────────────────────────────────────────────────────────────────

    def _destination(self, amount_msat: int) -> str:
        match self._chance.randrange(10):
            case 0:
                return self.node.dead_invoice(amount_msat)
            case 1 if self.market:
                return self._chance.choice(list(self.market))  # the house asked to pay itself
            case 2 | 3 | 4:
                return f"{self.name}@{PAYEES}"
            case _:
                return self.node.payee_invoice(amount_msat, self._gets)

    def _gets(self, amount_msat: int) -> None:
        self.got_msat += amount_msat

    async def _send(self) -> None:
        if not self.keys:
            return await self._create()
        key = self._chance.choice(self.keys)
        if self._chance.random() < self._fills:
            await self._fill(key)
        amount_msat = self._chance.randint(1, 60) * 1_000
        target = self._chance.choice(("/v1/refunds", "/v1/payouts"))
        body: dict[str, object] = {
            "method": self.way,
            "destination": self._destination(amount_msat),
            "amount_msat": amount_msat + (1_000 if target == "/v1/refunds" else 0),
        }
        if self._chance.random() < 0.1:
            body["dry_run"] = True
        await self._named(post(target, body, bearer(key), self._name()))
        return None

    async def _draw(self) -> None:
        """Take money out by a withdraw link, as a wallet does that scans it; or twice."""
        if not self.keys:
            return await self._create()
        body = {"method": self.way, "lnurl": True, "amount_msat": 30_000}
        key = self._chance.choice(self.keys)
        made = await self._named(post("/v1/refunds", body, bearer(key), self._name()))
        if made.status != 201:
            return None
        decoded = bech32.decode(read_json(made)["lnurl"], bech32.Checksum.BECH32, 2_048)
        link = bech32.to_bytes(decoded.words).decode().partition("/v1/")[2]
        told = read_json(await self._patiently(Ask("GET", f"/v1/{link}")))
        if told.get("tag") != "withdrawRequest":
            return None
        for _ in range(self._chance.choice((1, 1, 2))):
            text = self.node.payee_invoice(told["maxWithdrawable"], self._gets)
            await self._patiently(Ask("GET", f"/v1/{link}&pr={text}"))
        return None
