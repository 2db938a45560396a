"""A house on a real chain is killed at every commit and every broadcast.

After each death a fresh process goes on: what was paid in is credited once, what is to leave leaves
once, what is swept is swept, and books and chain agree to the unit.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.hdaccount.mnemonic import Mnemonic

from farebox.rails.evm.keys import keys_from
from tests.crash.books import Books
from tests.crash.exploring import die_at, left_behind, rehearse
from tests.crash.points import Kind, points
from tests.crash.scenarios import patiently
from tests.crash.world import Nursery, Outside, Run, new_run
from tests.integration.evm_house import RATES, authorization_of, evm_settings
from tests.peers.anvil import CONTRACTS, Anvil, Contract

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(900)]

#: In millionths of a dollar: too little to be swept, and enough.
SMALL, LARGE = 5_000_000, 500_000_000
REFUND_MSAT = 2_000_000
#: The operator's own at the sender.
FLOAT_WEI, FLOAT_USDC = 10**19, 100_000_000
_TRIES_MAX = 600
_PAUSE_S = 0.1
USDC = "custody:evm:anvil:USDC"


@dataclass
class Story:
    """One house on its chain, and the payer's side of it."""

    run: Run
    anvil: Anvil
    usdc: Contract
    sender: str
    back: str
    address: str = ""
    claim: str = ""
    paid: int = 0
    signed: str = ""

    async def ask(self) -> None:
        """Ask for a deposit; again after a crash, it is the same one or another."""
        body = {"method": "anvil", "asset": "USDC"}
        reply = await patiently(lambda: self.run.post("/v1/deposits", body, name="the-deposit"))
        assert reply.status == 201, reply
        self.address, self.claim = reply.json["pay"], reply.json["claim_secret"]

    async def pay_in(self, amount: int = SMALL) -> None:
        """Pay it once, and wait until the house has heard of it."""
        if not self.paid:
            await self.chain(self.usdc.send, "transfer", self.address, amount)
            self.paid = amount
        await self.chain(self.anvil.mine, 2)
        body = {"initial_balance_token": self.address, "claim_secret": self.claim}
        for _ in range(_TRIES_MAX):
            reply = await patiently(lambda: self.run.post("/create", body))
            if reply.status == 200:
                self.run.bearers = [reply.json["api_key"]]
                return
            assert reply.json["code"] == "deposit_unpaid", reply
            await asyncio.sleep(_PAUSE_S)
        raise AssertionError("never credited")

    async def refund(self) -> None:
        """Pay back a part, under one name; blocks are made meanwhile."""
        body = {
            "method": "anvil",
            "asset": "USDC",
            "destination": self.back,
            "amount_msat": REFUND_MSAT,
        }
        for _ in range(_TRIES_MAX):
            reply = await self.run.post(
                "/v1/refunds", body, bearer=self.run.bearers[0], name="the-refund"
            )
            if reply.status == 200:
                return
            assert reply.status in (202, 409, 503), reply
            await self.chain(self.anvil.mine, 1)
            await asyncio.sleep(_PAUSE_S)
        raise AssertionError("never refunded")

    async def be_swept(self) -> None:
        """Wait until nothing lies at the address any more."""
        for _ in range(_TRIES_MAX):
            await self.run.control("passed")  # alive?
            if self.held(self.address) == 0:
                return
            await self.chain(self.anvil.mine, 1)
            await asyncio.sleep(_PAUSE_S)
        raise AssertionError("never swept")

    async def sign(self) -> None:
        """Have somebody with money sign a transfer to the house."""
        payer = Account.create()
        await self.chain(self.usdc.send, "mint", payer.address, LARGE)
        message = {
            "from": payer.address,
            "to": self.sender,
            "value": LARGE,
            "validAfter": 0,
            "validBefore": 2**40,
            "nonce": f"0x{secrets.token_hex(32)}",
        }
        self.signed = authorization_of(self.usdc.address, payer, message)

    async def hand_in(self) -> None:
        """Hand the signed transfer in for a new account, and wait until it is credited."""
        body = {"initial_balance_token": self.signed}
        for _ in range(_TRIES_MAX):
            reply = await self.run.post("/create", body)
            if reply.status in (200, 202):
                self.run.bearers = [reply.json["api_key"]]
                break
            assert reply.status in (409, 503), reply
            await self.chain(self.anvil.mine, 1)
            await asyncio.sleep(_PAUSE_S)
        self.paid = LARGE
        for _ in range(_TRIES_MAX):
            if await self.run.balance_msat():
                return
            await self.chain(self.anvil.mine, 1)
            await self.run.jump(10)
            await self.run.control("recover")
        raise AssertionError("never credited")

    async def prepare_refund(self) -> None:
        await self.ask()
        await self.pay_in()

    async def prepare_sweep(self) -> None:
        await self.ask()

    async def sweep(self) -> None:
        """Pay in so much that it is worth sweeping."""
        await self.pay_in(LARGE)
        await self.be_swept()

    # ── the proof ────────────────────────────────────────────────────────────────────────────────

    async def assert_right(self) -> None:
        """House, books and chain agree to the unit."""
        await self.run.settle()
        for _ in range(_TRIES_MAX):
            books = await self.run.books()
            if self.wei() == FLOAT_WEI - held(books, "expense:evm:anvil:gas"):
                break
            await self.chain(self.anvil.mine, 1)
            await asyncio.sleep(_PAUSE_S)
        assert self.wei() == FLOAT_WEI - held(books, "expense:evm:anvil:gas")
        assert books.broken == ""
        assert books.unfinished == ()
        assert books.pending == []
        ours = self.held(self.address or self.back) if self.address else 0
        ours += self.held(self.sender) - FLOAT_USDC
        assert held(books, USDC) == ours == self.paid - self.held(self.back)
        if self.run.bearers:
            assert await self.run.balance_msat() == books.customers_msat

    def held(self, address: str) -> int:
        return int(self.usdc.call("balanceOf", address))

    def wei(self) -> int:
        of_address = self.anvil.balance(self.address) if self.address else 0
        return self.anvil.balance(self.sender) + of_address

    async def chain(self, call: Callable[..., object], *arguments: object) -> None:
        """Something of the chain's own, in its block."""
        sent = await asyncio.to_thread(call, *arguments)
        if isinstance(sent, str):
            await asyncio.to_thread(self.anvil.mined, sent)


def held(books: Books, account: str) -> int:
    """What one account holds."""
    return sum(
        one.debits_posted - one.credits_posted for one in books.accounts if one.id == account
    )


def story(
    nursery: Nursery, around: Outside, path: Path, anvil: Anvil, usdc: Contract, mnemonic: str
) -> Story:
    sender = keys_from(mnemonic).addresses[0]
    anvil.rpc("anvil_setBalance", sender, hex(FLOAT_WEI))
    anvil.mined(usdc.send("mint", sender, FLOAT_USDC))
    anvil.mined(usdc.send("mint", anvil.accounts[0], LARGE))
    settings = {"evm": [evm_settings(anvil, usdc, mnemonic)], **RATES}
    run = new_run(nursery, around, path, settings=settings)
    back = keys_from(secrets.token_hex(32)).addresses[0]
    return Story(run, anvil, usdc, sender, back)


Act = Callable[[Story], Awaitable[None]]


async def _nothing(_: Story) -> None:
    """There is nothing to be done before."""


ACTS: dict[str, tuple[Act, Act]] = {
    "ask": (_nothing, Story.ask),
    "pay-in": (Story.ask, Story.pay_in),
    "sweep": (Story.prepare_sweep, Story.sweep),
    "refund": (Story.prepare_refund, Story.refund),
    "authorization": (Story.sign, Story.hand_in),
}


def assert_no_keys(folder: Path, mnemonics: Sequence[str]) -> None:
    """No file of any house has a key in it: neither logs nor books."""
    left = left_behind(folder)
    for mnemonic in mnemonics:
        private = keys_from(mnemonic)._accounts[keys_from(mnemonic).addresses[0]].key
        for secret in (mnemonic.encode(), bytes(private), private.hex().encode()):
            assert all(secret not in raw for raw in left)


@pytest.mark.parametrize("name", ACTS)
async def test_no_death_loses_or_doubles_a_unit(
    name: str, nursery: Nursery, around: Outside, tmp_path: Path, anvil: Anvil
) -> None:
    usdc = await asyncio.to_thread(anvil.deploy, CONTRACTS / "AuthorizedToken.sol")
    mnemonics = []
    prepare, act = ACTS[name]

    def fresh() -> Story:
        mnemonics.append(Mnemonic().generate(12))
        return story(nursery, around, tmp_path, anvil, usdc, mnemonics[-1])

    passed = await rehearse(await asyncio.to_thread(fresh), prepare, act)
    passed.pop(Kind.ANSWER, None)  # what an answer's loss does, other crash tests show
    passed.pop(Kind.MINT, None)
    # After one commit the books are as before the next.
    where = [one for one in points(passed) if not (one.kind is Kind.COMMIT and one.after)]
    kinds = {point.kind for point in where}
    assert Kind.COMMIT in kinds
    assert (Kind.NODE in kinds) == (name in ("sweep", "refund", "authorization"))
    deaths = [
        point
        for point in where
        if await die_at(await asyncio.to_thread(fresh), prepare, act, point)
    ]
    # What the background does moves a point or two from run to run; most are met.
    assert len(deaths) >= len(where) // 2, (where, deaths)
    await asyncio.to_thread(assert_no_keys, tmp_path, mnemonics)
