"""A whole house sells through channels on a real chain, and its books say what the chain says."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from farebox.channels.chain import ChannelStatus
from farebox.cli.checks import channel_contract
from farebox.clock import NS_PER_S
from farebox.ids import new_id
from farebox.operating import Verdict
from farebox.rails.evm.channels import ChannelReader, ChannelTerms, EvmPayer
from farebox.wire.subrav.didauth import CLOSE_OPERATION, HTTP_OPERATION, sign_did_auth
from farebox.wire.subrav.documents import signed_document
from farebox.wire.subrav.keys import KeyType, SigningKey
from farebox.wire.subrav.model import SignedSubRAV, SubRAV
from farebox.wire.subrav.payload import HEADER_NAME, RequestPayload, parse_response_header
from tests.integration.evm_channels import DAY_S, FRAGMENT, deployed
from tests.integration.evm_desk import Desk, desk_of
from tests.integration.evm_house import CONFIRMATIONS, PRICE_MSAT, EvmHouse, evm_house
from tests.peers.anvil import CHAIN_ID, Anvil
from tests.waiting import eventually

pytestmark = pytest.mark.peer
T = TypeVar("T")
COLLATERAL = 1_000_000
DEEP = 6
#: Gas is cheap here: a dollar is an ether. The collateral's smallest unit is 1 msat.
SETTINGS: dict[str, object] = {
    "channels": {
        "chain": "evm",
        "evm": "anvil",
        "asset": "USDC",
        "claim_at": "30 sat",
        "claim_gas_percent": 100,
    },
    "rate": [{"asset": "USDC", "price": "1"}, {"asset": "ETH", "price": "1"}],
}


@pytest.fixture
def anvil(anvil_ahead: Anvil) -> Anvil:
    return anvil_ahead


@dataclass
class Customer:
    """Who pays a house by vouchers, with a wallet and a book of its own."""

    house: EvmHouse
    desk: Desk
    contract: EvmPayer
    key: SigningKey
    channel_id: str = ""
    payee_did: str = ""

    async def done(self, call: Awaitable[T]) -> T:
        task = asyncio.ensure_future(call)
        while not task.done():
            await asyncio.wait({task}, timeout=0.05)
            await self.desk.mine()
        await self.desk.mine(DEEP)  # the house waits for more blocks than the customer
        return await task

    async def open(self, amount: int = COLLATERAL) -> None:
        """Learn from the house whom to pay, and lock collateral."""
        info = (await self.house.http.get("/.well-known/nuwa-payment/info")).json()
        assert info["network"] == f"eip155:{CHAIN_ID}"
        self.payee_did = info["serviceDid"]
        channel = await self.done(
            self.contract.open_channel_with_sub_channel(
                payer_did=self.contract.did,
                payee_did=self.payee_did,
                asset_id=info["defaultAssetId"],
                collateral=amount,
                fragment=FRAGMENT,
                key=self.key.public,
            )
        )
        self.channel_id = channel.channel_id

    async def post(
        self, path: str, body: object = None, *, key: SigningKey | None = None, **said: Any
    ) -> httpx.Response:
        """One of the house's own endpoints, asked as `PaymentChannelPayerClient.authorize` does."""
        is_close = path.endswith("/close")
        told = {
            "operation": CLOSE_OPERATION if is_close else HTTP_OPERATION,
            "audience": self.payee_did,
            **said,
        }
        auth = sign_did_auth(
            self.contract.did,
            FRAGMENT,
            key or self.key,
            params={"uri": f"{self.house.http.base_url}{path}", "method": "POST"},
            nonce=new_id("nonce"),
            timestamp_s=self.house.clock.now_ns() // NS_PER_S,
            **told,
        )
        headers = {"Authorization": auth.header()}
        return await self.house.http.post(path, headers=headers, json=body or {})

    async def asks(self, voucher: SignedSubRAV | None = None) -> tuple[int, Any]:
        """A request, with what was signed for the one before it."""
        payload = RequestPayload(
            client_tx_ref=new_id("tx"), max_amount=None, signed_sub_rav=voucher
        )
        url, clock = f"{self.house.http.base_url}/echo", self.house.clock
        auth = sign_did_auth(
            self.contract.did,
            FRAGMENT,
            self.key,
            operation="http_request",
            params={"uri": url, "method": "GET"},
            nonce=new_id("nonce"),
            timestamp_s=clock.now_ns() // NS_PER_S,
        )
        headers = {HEADER_NAME: payload.header(), "Authorization": auth.header()}
        answer = await self.house.http.get("/echo", headers=headers)
        told = answer.headers.get(HEADER_NAME)
        return answer.status_code, None if told is None else parse_response_header(told)

    async def pays(self, times: int) -> SubRAV:
        """Ask so often, each time signing for the time before; what is asked for the last."""
        voucher: SignedSubRAV | None = None
        for _ in range(times):
            status, told = await self.asks(voucher)
            assert status == 200, told
            assert told.cost == PRICE_MSAT
            voucher = self.key.sign_sub_rav(told.sub_rav)
        assert voucher is not None
        return voucher.sub_rav


async def work(house: EvmHouse) -> None:
    """What the house's processes do every few seconds, with a block made meanwhile."""
    channels = house.farebox.channels
    assert channels is not None
    house.clock.ahead_s += 20
    for job in channels.jobs:
        await job.run()
    await house.rail.sending.tick()
    await house.mine(1)


async def until_held(house: EvmHouse, amount: int) -> None:
    """Work until claims have brought so much."""

    async def held() -> int:
        await work(house)
        return await house.held("custody:evm:anvil:USDC")

    await eventually(held, lambda found: found >= amount)
    assert await held() == amount


@asynccontextmanager
async def customer_of(house: EvmHouse, folder: Path) -> AsyncIterator[Customer]:
    await asyncio.to_thread(folder.mkdir)
    async with AsyncExitStack() as opened:
        desk = await opened.enter_async_context(desk_of(house.anvil, folder))
        mint = await asyncio.to_thread(house.usdc.send, "mint", desk.sender, 10 * COLLATERAL)
        await asyncio.to_thread(house.anvil.mined, mint)
        terms = ChannelTerms(
            chain_id=CHAIN_ID,
            assets={"USDC": house.usdc.address.lower()},
            confirmations=desk.sending.terms.confirmations,
        )
        contract = EvmPayer(
            ChannelReader(house.rail.rpc, terms), desk.sending, wait_s=60, poll_s=0.05
        )
        key = SigningKey(KeyType.EIP712, secrets.token_bytes(32), terms.contract_bytes)
        yield Customer(house, desk, contract, key)


@pytest.fixture
async def house(anvil: Anvil, tmp_path: Path) -> AsyncIterator[EvmHouse]:
    await asyncio.to_thread(deployed, anvil)
    async with evm_house(tmp_path / "house", anvil, SETTINGS) as found:
        await work(found)
        yield found


@pytest.fixture
async def customer(house: EvmHouse, tmp_path: Path) -> AsyncIterator[Customer]:
    async with customer_of(house, tmp_path / "customer") as found:
        yield found


async def test_requests_are_paid_by_vouchers_claimed_on_the_chain_and_the_rest_goes_back(
    house: EvmHouse, customer: Customer
) -> None:
    await customer.open()
    owed = await customer.pays(6)
    assert owed.accumulated_amount == 6 * PRICE_MSAT
    await until_held(house, 5 * PRICE_MSAT)
    # Its voucher comes with a seventh request, which is served on credit and never paid.
    assert (await customer.asks(customer.key.sign_sub_rav(owed)))[0] == 200
    await customer.done(customer.contract.request_close(customer.channel_id))
    house.clock.ahead_s += 3_600
    await until_held(house, 6 * PRICE_MSAT)
    await asyncio.to_thread(house.anvil.rpc, "evm_increaseTime", DAY_S)
    await house.mine(CONFIRMATIONS)
    closed = await customer.done(customer.contract.close(customer.channel_id))
    assert closed.status is ChannelStatus.CLOSED
    have = house.usdc.call("balanceOf", customer.desk.sender)
    assert have == 10 * COLLATERAL - 6 * PRICE_MSAT
    assert (await customer.asks())[0] == 400


async def test_doctor_knows_the_contract(house: EvmHouse) -> None:
    finding = await channel_contract(house.farebox.settings)
    assert finding.verdict is Verdict.FINE


async def test_without_a_rate_nobody_is_served(anvil: Anvil, tmp_path: Path) -> None:
    more = {**SETTINGS, "rate": []}
    async with evm_house(tmp_path / "house", anvil, more) as house:
        await work(house)
        async with customer_of(house, tmp_path / "customer") as customer:
            await customer.open()
            status, told = await customer.asks()
            assert status in (402, 500)
            assert told.error is not None


async def test_a_payer_asks_at_the_door_to_close_at_once_and_has_its_rest_back(
    house: EvmHouse, customer: Customer
) -> None:
    await customer.open()
    owed = await customer.pays(4)
    path = "/payment-channel/close"
    for unfit in (
        {"operation": "http_request"},
        {"audience": None},
        {"audience": "did:farebox:another"},
        {"key": SigningKey(KeyType.EIP712, b"\x05" * 32, customer.key.contract)},
    ):
        assert (await customer.post(path, **unfit)).status_code == 400
    assert (await customer.post(path)).status_code == 402, "the last request is not signed for"
    voucher = signed_document(customer.key.sign_sub_rav(owed))
    committed = await customer.post("/payment-channel/commit", {"subRav": voucher})
    assert committed.status_code == 200, committed.text
    agreed = await customer.post(path)
    assert agreed.json()["data"] == {"channelId": customer.channel_id, "status": "closing"}
    assert (await customer.asks())[0] == 400, "from now on nothing is sold"
    await until_held(house, 4 * PRICE_MSAT)
    await house.mine(DEEP)
    channel = await customer.contract.channel(customer.channel_id)
    assert channel is not None
    assert channel.status is ChannelStatus.CLOSED
    have = house.usdc.call("balanceOf", customer.desk.sender)
    assert have == 10 * COLLATERAL - 4 * PRICE_MSAT
    # What the chain said is believed for seconds; of an open channel, that nothing is left there.
    assert (await customer.asks())[0] in (400, 402)
