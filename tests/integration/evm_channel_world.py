"""A house that is paid through channels on a real chain, and a payer with a book of its own."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from farebox.channels import (
    ClaimPolicy,
    ClaimScheduler,
    CooperativeClose,
    CreditPolicy,
    PaymentChannelPayeeClient,
    VerificationResult,
)
from farebox.channels.chain import ChannelInfo
from farebox.channels.model import SubChannel
from farebox.ledger.processes import Processes
from farebox.payments.exchange import ONLY_BITCOIN, Exchange
from farebox.rails.evm.channels import (
    ETHER,
    BatchPolicy,
    ChannelReader,
    ChannelTerms,
    EvmPayee,
    EvmPayer,
)
from farebox.rails.evm.outbox import custody_of
from farebox.rails.evm.rpc import Rpc, open_rpc_session
from farebox.rails.web import Breaker
from farebox.wire.subrav.keys import KeyType, SigningKey
from farebox.wire.subrav.model import SignedSubRAV
from tests.integration.evm_channels import FRAGMENT, deployed
from tests.integration.evm_desk import CONFIRMATIONS, Desk, desk_of
from tests.peers.anvil import CHAIN_ID, CONTRACTS, Anvil, Contract

T = TypeVar("T")
ASSET, TOKEN = "ETH", "TOK"
POLICY = CreditPolicy(exposure_max=10**18, request_max=10**9, backing_min=10)
#: Everything is sent, whatever its gas costs.
GENEROUS = BatchPolicy(gas_percent=10**20)
#: Everything is due at once.
EAGER = ClaimPolicy(min_claim_amount=1, threshold=1)


@dataclass
class House:
    """One process of a house, and who pays it."""

    desk: Desk
    payee: EvmPayee
    client: PaymentChannelPayeeClient
    claims: ClaimScheduler
    closing: CooperativeClose
    token: Contract
    rpc: Rpc
    reader: ChannelReader
    exchange: Exchange
    batches: BatchPolicy

    @property
    def anvil(self) -> Anvil:
        return self.desk.anvil

    def again(self) -> None:
        """As after a restart: all that was only in memory is gone."""
        desk = self.desk
        self.payee = EvmPayee(self.reader, desk.another(), self.exchange, self.batches)
        self.client = PaymentChannelPayeeClient(
            desk.ledger,
            Processes(desk.ledger, alone=True),
            self.payee,
            self.payee.did,
            policy=POLICY,
        )
        self.claims = ClaimScheduler(self.client, EAGER)
        self.closing = CooperativeClose(self.client, self.payee)

    async def send(self) -> int:
        """What a process does every few seconds; how many vouchers it has sent."""
        await self.desk.sending.tick()
        return await self.payee.run()

    async def row(self, channel: str, fragment: str = FRAGMENT) -> SubChannel:
        row = await self.client.sub_channels.read(channel, fragment)
        assert row is not None
        return row

    async def settle(self, channel: str) -> tuple[dict[str, int], dict[str, str]]:
        """Claim all of a channel, and have blocks made until it is booked."""
        for _ in range(20):
            done, skipped = await self.claims.trigger(channel)
            if "underway" not in skipped.values():
                return done, skipped
            await self.send()
            await self.desk.mine()
        raise AssertionError(skipped)

    async def close(self) -> None:
        """Go on with the close that was agreed, and have blocks made until it is booked."""
        for _ in range(20):
            if await self.closing.run():
                return
            await self.send()
            await self.desk.mine()
        raise AssertionError("it was never closed")

    async def custody(self, asset: str = ASSET) -> int:
        """What the books say that claims have brought."""
        account = await self.desk.ledger.store.account(custody_of("anvil", asset))
        return account.held if account else 0


@dataclass
class Payer:
    """Who has a channel with a house."""

    desk: Desk
    contract: EvmPayer
    house: House
    key: SigningKey
    asset: str = ASSET

    @property
    def channel(self) -> str:
        terms = self.contract.terms
        return terms.channel_id(self.contract.did, self.house.payee.did, self.asset)

    async def done(self, call: Awaitable[T]) -> T:
        """A call of the payer's, with blocks made until it is final."""
        task = asyncio.ensure_future(call)
        while not task.done():
            await asyncio.wait({task}, timeout=0.05)
            await self.desk.mine()
        return await task

    async def open(self, collateral: int = 1_000_000, fragment: str = FRAGMENT) -> ChannelInfo:
        return await self.done(self.opening(collateral, fragment))

    async def opening(self, collateral: int, fragment: str = FRAGMENT) -> ChannelInfo:
        """The call alone: it waits until others make blocks."""
        return await self.contract.open_channel_with_sub_channel(
            payer_did=self.contract.did,
            payee_did=self.house.payee.did,
            asset_id=self.asset,
            collateral=collateral,
            fragment=fragment,
            key=self.key.public,
        )

    async def pays(self, amount: int, fragment: str = FRAGMENT) -> SignedSubRAV:
        """Sign what something costs, and have the house take it."""
        proposal = await self.house.client.generate_proposal(self.channel, fragment, amount)
        signed = self.key.sign_sub_rav(proposal)
        taken = await self.house.client.confirm_signed_proposal(signed)
        assert taken == VerificationResult(is_valid=True, payer_key_id=taken.payer_key_id)
        return signed


@asynccontextmanager
async def house_of(
    anvil: Anvil,
    folder: Path,
    *,
    exchange: Exchange = ONLY_BITCOIN,
    batches: BatchPolicy = GENEROUS,
    key: str = "",
    is_deployed: bool = True,
) -> AsyncIterator[House]:
    """A house with a hundred ether for gas; ether and a token back its channels."""
    token = await asyncio.to_thread(anvil.deploy, CONTRACTS / "TetherLike.sol")
    async with AsyncExitStack() as opened:
        (folder / "house").mkdir(exist_ok=True)
        desk = await opened.enter_async_context(desk_of(anvil, folder / "house", key))
        session = await opened.enter_async_context(open_rpc_session())
        terms = ChannelTerms(
            chain_id=CHAIN_ID,
            assets={ASSET: ETHER, TOKEN: token.address.lower()},
            confirmations=CONFIRMATIONS,
        )
        rpc = Rpc(anvil.url, session, Breaker(desk.ledger.clock, who="the node"))
        reader = ChannelReader(rpc, terms)
        payee = EvmPayee(reader, desk.sending, exchange, batches)
        processes = Processes(desk.ledger, alone=True)
        await processes.start()
        client = PaymentChannelPayeeClient(desk.ledger, processes, payee, payee.did, policy=POLICY)
        claims = ClaimScheduler(client, EAGER)
        if is_deployed:
            await asyncio.to_thread(deployed, anvil)
        closing = CooperativeClose(client, payee)
        yield House(desk, payee, client, claims, closing, token, rpc, reader, exchange, batches)
        await processes.stop()
        await desk.audited()


@asynccontextmanager
async def payer_of(house: House, folder: Path, asset: str = ASSET) -> AsyncIterator[Payer]:
    """Somebody with a hundred ether and some tokens."""
    home = folder / f"payer-{secrets.token_hex(4)}"
    home.mkdir()
    async with desk_of(house.anvil, home) as desk:
        mint = await asyncio.to_thread(house.token.send, "mint", desk.sender, 10**9)
        await asyncio.to_thread(house.anvil.mined, mint)
        contract = EvmPayer(house.reader, desk.sending, wait_s=60, poll_s=0.05)
        key = SigningKey(KeyType.EIP712, secrets.token_bytes(32), contract.terms.contract_bytes)
        yield Payer(desk, contract, house, key, asset)
        await desk.audited()
