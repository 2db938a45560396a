"""A payer is killed at every commit of its own; then everything it knew is lost, and recovered.

The house that it pays goes on meanwhile. The payer signs for what it was served, and once for each
answer that died with it, never more.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryFile

import httpx
import msgspec

from farebox.channels import (
    RECORDS,
    ChannelInfo,
    ChannelStatus,
    HttpPaymentCodec,
    PaymentChannelPayerClient,
    SpendingLimits,
)
from farebox.channels.chain import SubChannelInfo
from farebox.channels.payer import PayerSubChannel
from farebox.clock import NS_PER_S, SystemClock
from farebox.ids import new_id
from farebox.ledger.model import Outcome, Unit
from farebox.ledger.service import Ledger
from farebox.stores.sqlite import SqliteStore
from farebox.testing.channels import PlayContract
from farebox.wire.subrav.didauth import sign_did_auth
from farebox.wire.subrav.documents import read_recovered_proposal, read_stored_voucher
from farebox.wire.subrav.payload import HEADER_NAME
from tests import forked
from tests.crash.points import Kind, Point, read_point
from tests.crash.victim import Switch
from tests.integration.channel_house import FRAGMENT, HOUSE_DID, KEY, PRICE_MSAT, House, house

#: Two for each request: before it is sent, and when its answer has come.
COMMITS, REQUESTS = 4, 2
_ENDS_S = 120
CODEC = HttpPaymentCodec()
POINTS = [
    Point(Kind.COMMIT, number, after=after)
    for number in range(1, COMMITS + 1)
    for after in (False, True)
]


class Order(msgspec.Struct, frozen=True):
    """What a payer's process is to do."""

    book: str
    url: str
    channel_id: str
    payer_did: str
    point: str = ""
    has_lost_all: bool = False


class OpenChannel(PlayContract):
    """The chain as the payer's process sees it: its channel is open, nothing claimed yet."""

    chain_id = 402

    def __init__(self, order: Order) -> None:
        super().__init__()
        self._order = order

    async def channel(self, channel_id: str) -> ChannelInfo | None:
        return ChannelInfo(
            channel_id=channel_id,
            payer_did=self._order.payer_did,
            payee_did=HOUSE_DID,
            asset_id="BTC",
            epoch=0,
            status=ChannelStatus.ACTIVE,
            backing=channel_id,
        )

    async def sub_channel(self, channel_id: str, fragment: str) -> SubChannelInfo | None:
        return SubChannelInfo(
            channel_id=channel_id, vm_id_fragment=fragment, epoch=0, key=KEY.public
        )


class Payer:
    """The payer in its process."""

    def __init__(self, order: Order, store: SqliteStore, http: httpx.AsyncClient) -> None:
        limits = SpendingLimits(
            request_max=PRICE_MSAT,
            unserved_max=(len(POINTS) + 2) * PRICE_MSAT,
            total_max=100 * PRICE_MSAT,
        )
        self._order = order
        self._http = http
        self.client = PaymentChannelPayerClient(
            Ledger(store, SystemClock()),
            OpenChannel(order),
            KEY,
            order.channel_id,
            FRAGMENT,
            limits,
        )

    async def recover(self) -> None:
        """Begin again from what the house has, signed by ourselves."""
        told = await self._get("/payment-channel/recovery")
        pending = read_recovered_proposal(told.content)
        assert pending is not None
        stored = await self._get(f"/payment-channel/subrav?nonce={pending.nonce - 1}")
        await self.client.recover(read_stored_voucher(stored.content))

    async def pay(self) -> int:
        """One request; what its answer said that it cost."""
        for _ in range(3):
            payment = await self.client.sign_and_encode(None, CODEC)
            answer = await self._get("/echo", {HEADER_NAME: payment})
            told = await self.client.decode_and_validate(answer.headers[HEADER_NAME], CODEC)
            if not told.is_retry_wanted:
                assert told.error is None, told.error
                return told.cost
        raise AssertionError("it asks for more than one lost answer")

    async def _get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        auth = sign_did_auth(
            self._order.payer_did,
            FRAGMENT,
            KEY,
            operation="http_request",
            params={"uri": f"{self._order.url}{path}", "method": "GET"},
            nonce=new_id("nonce"),
            timestamp_s=SystemClock().now_ns() // NS_PER_S,
        )
        given = {"Authorization": auth.header(), **(headers or {})}
        return await self._http.get(path, headers=given)


async def live(order: Order) -> None:
    """The payer's process: it dies at its point, or tells what it has paid and where it stands."""
    switch, commit = Switch(), SqliteStore.commit
    switch.arm(read_point(order.point) if order.point else None)

    async def counted(self: SqliteStore, unit: Unit, *, synced: bool = True) -> Outcome:
        return await switch.around(Kind.COMMIT, unit.id, lambda: commit(self, unit, synced=synced))

    SqliteStore.commit = counted  # type: ignore[method-assign]
    store = SqliteStore(Path(order.book), RECORDS)
    async with httpx.AsyncClient(base_url=order.url, timeout=60, verify=False) as http:
        payer = Payer(order, store, http)
        if order.has_lost_all:
            await payer.recover()
        for _ in range(REQUESTS):
            print(await payer.pay(), flush=True)
        print(msgspec.json.encode(await payer.client.state()).decode(), flush=True)
    await store.close()


async def lives(order: Order) -> tuple[int, list[str]]:
    """Run a payer's process; how it ended and what it told."""
    with TemporaryFile("w+") as out:
        process = forked.start(
            "tests.crash.test_channel_payer_kill",
            msgspec.json.encode(order).decode(),
            cwd=Path(__file__).parents[2],
            env=os.environ,
            stdout=out.fileno(),
        )
        ended = await asyncio.to_thread(process.wait, _ENDS_S)
        out.seek(0)
        return ended, out.read().split()


async def lives_whole(order: Order) -> tuple[int, PayerSubChannel]:
    """The same for one that is to come through: what it was answered, and where it stands."""
    ended, lines = await lives(order)
    assert ended == 0
    state = msgspec.json.decode(lines[-1], type=PayerSubChannel)
    return sum(map(int, lines[:-1])), state


async def test_a_killed_payer_goes_on_where_it_was_and_recovers_from_nothing(
    tmp_path: Path,
) -> None:
    async with house(tmp_path, clock=SystemClock()) as shop:
        await shop.open(10_000_000 - PRICE_MSAT)
        book = str(tmp_path / "payer.db")
        order = Order(book, shop.url, shop.channel_id, shop.did)
        answered = 0
        for point in POINTS:
            ended, lines = await lives(msgspec.structs.replace(order, point=str(point)))
            assert ended == -signal.SIGKILL, (point, lines)
            answered += sum(map(int, lines))
        more, state = await lives_whole(order)
        answered += more
        await _agree(shop, state, answered)
        lost = msgspec.structs.replace(order, book=str(tmp_path / "new.db"), has_lost_all=True)
        more, state = await lives_whole(lost)
        # The proposal that it knew of before its loss is now an answer that never came.
        assert state.unserved == PRICE_MSAT
        row = await shop.row()
        assert row is not None
        assert row.pending is not None
        assert state.amount == row.paid_amount
        assert row.paid_amount + row.pending.cost == PRICE_MSAT * shop.shop.served["/echo"]


async def _agree(shop: House, state: PayerSubChannel, answered: int) -> None:
    """The payee has every voucher, and every one is for a request that was served."""
    row = await shop.row()
    assert row is not None
    assert row.pending is not None
    assert row.paid_amount == state.amount
    assert row.paid_amount + row.pending.cost == PRICE_MSAT * shop.shop.served["/echo"]
    # A death between an answer's coming and its being told loses the word, not the money.
    untold = PRICE_MSAT * len(POINTS)
    assert answered <= row.paid_amount + row.pending.cost <= answered + untold
    assert state.unserved <= untold


if __name__ == "__main__":
    asyncio.run(live(msgspec.json.decode(sys.argv[1], type=Order)))
