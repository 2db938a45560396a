"""A whole house on a real chain, behind its real door; and somebody who pays it.

Leaving it proves that books and chain agree to the unit, nothing is open, and no key stands in any
log.
"""

from __future__ import annotations

import asyncio
import io
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
from eth_account.hdaccount.mnemonic import Mnemonic
from eth_account.signers.local import LocalAccount

from farebox.bootstrap import Farebox
from farebox.rails.evm.keys import keys_from
from farebox.rails.evm.method import EvmMethod
from farebox.rails.evm.records import ADDRESS, Purse
from farebox.settings import load_settings
from farebox.testing.asgi import serving
from farebox.testing.upstream import PlayUpstream
from tests.crash.victim import AheadClock
from tests.integration.rail_house import RailHouse
from tests.integration.whole_house import listening
from tests.peers.anvil import CHAIN_ID, CONTRACTS, Anvil, Contract
from tests.signed_transfers import credential_of, domain_of
from tests.waiting import eventually

T = TypeVar("T")

ROOT_KEY = b"k" * 32
PRICE_MSAT = 10_000
ETHER = 10**18
#: Of the operator's own, for gas.
FLOAT_WEI = 10 * ETHER
CONFIRMATIONS = 2
_BLOCK_S = 0.2
#: A dollar is 1,000 sat, so one smallest unit of USDC is 1 msat.
RATES: Mapping[str, object] = {
    "rates": {"btc_usd": "100000", "spread_ppm": 10_000},
    "rate": [{"asset": "USDC", "price": "1"}, {"asset": "ETH", "price": "2000"}],
}


def evm_settings(anvil: Anvil, usdc: Contract, mnemonic: str, **terms: object) -> dict[str, object]:
    """How the house is told of its chain."""
    return {
        "name": "anvil",
        "chain_id": CHAIN_ID,
        "block_s": 0.25,
        "url": anvil.url,
        "key": mnemonic,
        "send_confirmations": CONFIRMATIONS,
        "asset": [
            {"asset": "ETH", "confirmations": [f"{CONFIRMATIONS} from 0"]},
            {
                "asset": "USDC",
                "contract": usdc.address,
                "scale": 6,
                "deposit_min": "0.01",
                "payout_min": "0.01",
                "confirmations": [f"{CONFIRMATIONS} from 0", "6 from 1000"],
                "domain": "USD Coin",
            },
        ],
        **terms,
    }


def authorization_of(usdc: str, payer: LocalAccount, message: Mapping[str, Any]) -> str:
    """What an x402 client sends: a transfer of USDC that its payer has signed (EIP-3009)."""
    return credential_of(payer, domain_of(usdc, CHAIN_ID), message)


@dataclass
class EvmHouse(RailHouse):
    """A running house."""

    farebox: Farebox
    anvil: Anvil
    usdc: Contract
    http: httpx.AsyncClient
    sender: str
    clock: AheadClock
    secrets: tuple[str, ...]
    #: What it had at its senders before anybody paid it: the operator's own.
    float_wei: int = FLOAT_WEI
    addresses: list[str] = field(default_factory=list)

    @property
    def rail(self) -> EvmMethod:
        """The chain's method."""
        found = self.farebox.deposits.rails()["anvil"]
        assert isinstance(found, EvmMethod)
        return found

    async def asked(self, asset: str, amount: int | None, bearer: str = "") -> dict[str, Any]:
        """A deposit that was asked for."""
        body = {"method": "anvil", "asset": asset}
        body |= {} if amount is None else {"amount": str(amount)}
        answer = await self.post("/v1/deposits", body, bearer)
        assert answer.status_code == 201, answer.text
        asked: dict[str, Any] = answer.json()
        self.addresses.append(asked["pay"])
        return asked

    async def pay(self, asked: Mapping[str, Any], amount: int) -> str:
        """Somebody pays what was asked for; the transaction, in a block."""
        anvil, to = self.anvil, str(asked["pay"])
        if asked["asset"] == "ETH":
            sent = await asyncio.to_thread(anvil.send, to, amount)
        else:
            await asyncio.to_thread(self.usdc.send, "mint", anvil.accounts[0], amount)
            sent = await asyncio.to_thread(self.usdc.send, "transfer", to, amount)
        await asyncio.to_thread(anvil.mined, sent)
        return sent

    async def mine(self, blocks: int = CONFIRMATIONS) -> None:
        """The chain goes on."""
        await asyncio.to_thread(self.anvil.mine, blocks)

    async def funded(self, amount: int, asset: str = "USDC") -> str:
        """The key of a new account, paid in over the chain."""
        asked = await self.asked(asset, amount)
        await self.pay(asked, amount)
        await self.mine()
        await self.until_credited(asked)
        body = {"initial_balance_token": asked["uri"], "claim_secret": asked["claim_secret"]}
        made = await self.post("/create", body)
        assert made.status_code == 200, made.text
        return str(made.json()["api_key"])

    async def until(
        self, ask: Callable[[], Awaitable[T]], holds: Callable[[T], object] = bool
    ) -> T:
        """Ask until the answer is so; blocks are made meanwhile."""

        async def asked() -> T:
            found = await ask()
            if not holds(found):
                await self.mine(1)
                await asyncio.sleep(_BLOCK_S)
            return found

        return await eventually(asked, holds)

    async def until_swept(self, address: str) -> None:
        """Wait until the treasury has what lay at an address; blocks are made meanwhile."""
        await self.until(
            lambda: asyncio.to_thread(self.usdc.call, "balanceOf", address), lambda left: left == 0
        )

    async def until_forgotten(self) -> None:
        """Wait until nothing is to be swept, nor on its way; blocks are made meanwhile."""
        where = {"chain": "anvil", "purse": Purse.HOLDS}
        await self.until(
            lambda: self.farebox.store.find(ADDRESS, where, limit=1), lambda found: not found
        )
        await self.farebox.worker.stop()
        await self.settled()

    async def paid_out(self, path: str, body: object, bearer: str, name: str) -> dict[str, Any]:
        """Ask for money until it has left; blocks are made meanwhile."""

        async def ask() -> httpx.Response:
            answer = await self.post(path, body, bearer, name)
            assert answer.status_code in (200, 202), answer.text
            return answer

        answer = await self.until(ask, lambda answer: answer.status_code == 200)
        told: dict[str, Any] = answer.json()
        return told

    async def settled(self) -> None:
        """Recover until nothing is open, as time passes."""
        for _ in range(60):
            open_slots = await self.rail.sending.open_slots()
            if not await self.farebox.operations.unfinished() and not open_slots:
                return
            self.clock.ahead_s += 10
            await self.mine(1)
            await self.farebox.recover()
            await self.rail.sending.tick()
        found = await self.farebox.operations.unfinished()
        raise AssertionError([(one.id, one.error) for one in found])

    async def held(self, account: str) -> int:
        """What the books say of an account."""
        found = await self.farebox.store.account(account)
        return found.held if found else 0

    async def assert_whole(self) -> None:
        """The books verify; what our addresses have is custody and the operator's float."""
        await super().assert_whole()
        ours = {self.sender, *self.addresses}
        usdc = sum(self.usdc.call("balanceOf", one) for one in ours)
        assert usdc == await self.held("custody:evm:anvil:USDC")
        wei = sum(self.anvil.balance(one) for one in ours)
        gas = await self.held("expense:evm:anvil:gas")
        assert wei == await self.held("custody:evm:anvil:ETH") + self.float_wei - gas


@asynccontextmanager
async def house_on(
    data_dir: Path,
    anvil: Anvil,
    usdc: Contract,
    mnemonic: str,
    more: Mapping[str, object] | None = None,
    **terms: object,
) -> AsyncIterator[EvmHouse]:
    """A house whose book is in a folder; it may be opened again. `more`: settings beside these."""
    sender = keys_from(mnemonic).addresses[0]
    clock = AheadClock()
    async with AsyncExitStack() as open_things:
        heard: io.StringIO = open_things.enter_context(listening())
        upstream_url = await open_things.enter_async_context(serving(PlayUpstream()))
        settings = {
            "data_dir": str(data_dir),
            "upstream": [{"urls": [upstream_url]}],
            "price": [{"path": "/*", "per_request": f"{PRICE_MSAT} msat"}],
            "evm": [evm_settings(anvil, usdc, mnemonic, **terms)],
            **RATES,
            **(more or {}),
        }
        farebox = await open_things.enter_async_context(
            Farebox(load_settings(None, {}, settings), ROOT_KEY, clock=clock)
        )
        url = await open_things.enter_async_context(serving(farebox.app))
        http = await open_things.enter_async_context(httpx.AsyncClient(base_url=url, timeout=60))
        words = tuple(mnemonic.split())
        private = keys_from(mnemonic)._accounts[sender].key.hex()
        house = EvmHouse(farebox, anvil, usdc, http, sender, clock, (private, mnemonic))
        yield house
        await farebox.worker.stop()  # nothing is begun any more
        await house.settled()
        await house.assert_whole()
        for secret in (*house.secrets, " ".join(words[:2])):
            assert secret not in heard.getvalue()


@asynccontextmanager
async def evm_house(
    data_dir: Path, anvil: Anvil, more: Mapping[str, object] | None = None, **terms: object
) -> AsyncIterator[EvmHouse]:
    """A new house on the chain, with a USDC of its own and coin for gas."""
    usdc = await asyncio.to_thread(anvil.deploy, CONTRACTS / "AuthorizedToken.sol")
    await asyncio.to_thread(data_dir.mkdir)
    mnemonic = Mnemonic().generate(12)
    sender = keys_from(mnemonic).addresses[0]
    await asyncio.to_thread(anvil.rpc, "anvil_setBalance", sender, hex(FLOAT_WEI))
    async with house_on(data_dir, anvil, usdc, mnemonic, more, **terms) as house:
        yield house


def somebody() -> str:
    """An address that nobody has a key of."""
    return keys_from(secrets.token_hex(32)).addresses[0]
