"""What every Lightning node must do for us, whichever it is."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Collection
from contextlib import aclosing

import pytest

from farebox.errors import RailUnavailable
from farebox.rails.lightning import Cln, LightningNode, Line, Lnbits, Lnd
from farebox.rails.lightning.node import Payment, PaymentState, PayOrder, Settled
from farebox.wire.bolt11 import decode_invoice
from tests.contract.rail.conftest import HEADERS, Side, hash_of, line_to
from tests.waiting import WAIT_S

AMOUNT_MSAT = 7_000


def order(invoice: str, fee_max_msat: int = 5_000) -> PayOrder:
    amount_msat = decode_invoice(invoice).amount_msat
    assert amount_msat is not None
    return PayOrder(invoice, hash_of(invoice), amount_msat, fee_max_msat, 60)


async def paid_in(side: Side) -> str:
    """An invoice of ours that the other has paid; its hash."""
    issued = await side.node.make_invoice(AMOUNT_MSAT, "contract", 600)
    await asyncio.to_thread(side.payer_pay, issued.text)
    return issued.payment_hash


async def hear(node: LightningNode, cursor: str, hashes: Collection[str]) -> Settled:
    """The first of these payments that is told of."""
    async with asyncio.timeout(WAIT_S), aclosing(node.settled_from(cursor)) as told:
        async for settled in told:
            if settled.payment_hash in hashes:
                return settled
    raise AssertionError("the subscription has ended")


async def test_it_says_who_it_is(side: Side) -> None:
    info = await side.node.info()
    assert info.id
    assert (info.network, info.is_synced) == (side.network, True)


async def test_an_invoice_is_what_was_asked_for_and_settled_once_paid(side: Side) -> None:
    issued = await side.node.make_invoice(AMOUNT_MSAT, "contract", 600)
    known = decode_invoice(issued.text)
    assert known.payment_hash.hex() == issued.payment_hash
    assert (known.network, known.amount_msat) == (side.network, AMOUNT_MSAT)
    assert await side.node.settled(issued.payment_hash) is None

    await asyncio.to_thread(side.payer_pay, issued.text)

    settled = await side.node.settled(issued.payment_hash)
    assert settled is not None
    assert (settled.payment_hash, settled.received_msat) == (issued.payment_hash, AMOUNT_MSAT)
    assert settled.at_s > 1_700_000_000


async def test_an_invoice_of_somebody_else_is_not_settled(side: Side) -> None:
    assert await side.node.settled(os.urandom(32).hex()) is None


async def test_the_subscription_tells_of_a_payment(side: Side) -> None:
    paid: list[str] = []
    heard = asyncio.create_task(hear(side.node, "", paid))
    while not heard.done():  # it tells from now on, and nobody knows when that has begun
        issued = await side.node.make_invoice(AMOUNT_MSAT, "contract", 600)
        paid.append(issued.payment_hash)
        await asyncio.to_thread(side.payer_pay, issued.text)
        await asyncio.wait({heard}, timeout=0.5)
    assert (await heard).received_msat == AMOUNT_MSAT


async def test_what_was_missed_is_told_behind_the_cursor_or_when_asked(side: Side) -> None:
    first = await side.node.settled(await paid_in(side))
    assert first is not None
    missed = await paid_in(side)
    asked = await side.node.settled(missed)
    assert asked is not None
    if side.has_cursor:
        assert (await hear(side.node, first.cursor, {missed})).received_msat == AMOUNT_MSAT


async def test_a_payment_is_made_once_and_known_afterwards(side: Side) -> None:
    invoice = await asyncio.to_thread(side.payer_invoice, 3_000)
    payment_hash = hash_of(invoice)
    assert (await side.node.payment(payment_hash)).state is PaymentState.UNKNOWN
    estimate = await side.node.fee_estimate_msat(invoice, 3_000)
    assert estimate is not None

    paid = await side.node.pay(order(invoice))

    assert paid.state is PaymentState.PAID, paid
    assert hashlib.sha256(bytes.fromhex(paid.preimage)).hexdigest() == payment_hash
    assert paid.fee_msat <= max(estimate, 1_000)
    assert await side.node.payment(payment_hash) == paid
    again = await side.node.pay(order(invoice))
    assert again.state is PaymentState.PAID
    assert await side.node.payment(payment_hash) == paid


async def test_a_payment_that_cannot_be_is_failed_for_good(side: Side) -> None:
    invoice = await asyncio.to_thread(side.dead_invoice)
    failed = await side.node.pay(order(invoice))
    assert failed.state is PaymentState.FAILED, failed
    assert failed.reason
    known = await side.node.payment(hash_of(invoice))
    assert known.state in (PaymentState.FAILED, PaymentState.UNKNOWN)


async def test_five_at_once_pay_once(side: Side) -> None:
    invoice = await asyncio.to_thread(side.payer_invoice, 3_000)
    ends = await asyncio.gather(
        *(side.node.pay(order(invoice)) for _ in range(5)), return_exceptions=True
    )
    states = {end.state for end in ends if isinstance(end, Payment)}
    assert states <= {PaymentState.PAID, PaymentState.IN_FLIGHT}, ends
    assert (await side.node.payment(hash_of(invoice))).state is PaymentState.PAID


def same_kind(side: Side, line: Line) -> LightningNode:
    match side.node:
        case Lnd():
            return Lnd(line)
        case Cln():
            return Cln(line)
        case _:
            return Lnbits(line)


async def test_a_wrong_key_lets_nobody_in_and_is_not_told(side: Side) -> None:
    wrong = side.secret[::-1]
    async with line_to(side.url, HEADERS[side.name], wrong, side.tls) as line:
        node = same_kind(side, line)
        with pytest.raises(RailUnavailable, match="let us in") as told:
            await node.make_invoice(AMOUNT_MSAT, "contract", 600)
        invoice = await asyncio.to_thread(side.payer_invoice, 3_000)
        with pytest.raises(RailUnavailable) as paying:
            await node.pay(order(invoice))
        for text in (str(told.value), str(paying.value), repr(line), repr(node)):
            assert wrong not in text


async def test_a_node_that_is_down_says_nothing_definite(side: Side, dead_port: int) -> None:
    url = f"http://127.0.0.1:{dead_port}"
    async with line_to(url, HEADERS[side.name], side.secret) as line:
        node = same_kind(side, line)
        for call in (node.info(), node.settled("00" * 32), node.payment("00" * 32)):
            with pytest.raises(RailUnavailable):
                await call
        invoice = await asyncio.to_thread(side.payer_invoice, 3_000)
        with pytest.raises(RailUnavailable):
            await node.pay(order(invoice))
