"""Money in and out over Lightning, through a real LND and a channel to another."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from farebox.errors import RailUnavailable
from farebox.ids import new_id
from farebox.ledger.model import Put, Unit
from farebox.ledger.service import State
from farebox.rails.lightning import LightningMethod, Line
from farebox.testing.asgi import serving
from farebox.testing.mint.lightning import encode_invoice
from farebox.wire import bech32
from farebox.wire.bolt11 import decode_invoice
from farebox.worker import WATCH_CURSOR, KeyExpiry, RailWatch
from farebox.worker.watch import WatchCursor
from tests.integration.lightning_house import (
    CUSTODY,
    PRICE_MSAT,
    LightningHouse,
    Payee,
    lightning_house,
    now_s,
    pay,
)
from tests.peers.lnd import LightningNetwork, Refused

pytestmark = pytest.mark.peer


@pytest.fixture
async def house(
    tmp_path: Path, lightning: LightningNetwork, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LightningHouse]:
    async with lightning_house(tmp_path, lightning, monkeypatch) as opened:
        yield opened


async def test_a_deposit_is_credited_spent_refunded_and_paid_out(
    house: LightningHouse, lightning: LightningNetwork
) -> None:
    asked = await house.asked(100_000)
    assert asked["state"] == "awaiting"
    assert asked["uri"] == f"lightning:{asked['pay']}"
    assert asked["qr_svg"].startswith("<svg")
    assert await pay(lightning, asked["pay"]) == "SUCCEEDED"
    told = await house.until_credited(asked)
    assert (told["state"], told["marks"], told["credited_msat"]) == ("credited", [], 100_000)
    claim = {"initial_balance_token": asked["pay"], "claim_secret": asked["claim_secret"]}
    key = str((await house.post("/create", claim)).json()["api_key"])

    spent = await house.http.get("/echo", headers={"Authorization": f"Bearer {key}"})
    assert spent.status_code == 200
    assert await house.balance_msat(key) == 100_000 - PRICE_MSAT

    back = await asyncio.to_thread(lightning.payer.invoice, 30_000)
    quote = (await house.post("/v1/refunds", {"destination": back, "dry_run": True}, key)).json()
    assert (quote["amount"], quote["fee_estimate"]) == (30_000, 0)
    refunded = await house.post("/v1/refunds", {"destination": back}, key, "refund")
    assert refunded.json()["amount_msat"] == 30_000, refunded.text
    again = await house.post("/v1/refunds", {"destination": back}, key, "refund")
    assert again.json() == refunded.json()
    assert await asyncio.to_thread(lightning.payer.received_msat, back) == 30_000

    bill = await asyncio.to_thread(lightning.payer.invoice, 20_000)
    paid = await house.post("/v1/payouts", {"destination": bill, "max_fee_msat": 0}, key)
    assert paid.json()["msats"] == "20000", paid.text
    assert await house.balance_msat(key) == 100_000 - PRICE_MSAT - 50_000
    assert await house.held_msat() == 50_000
    kinds = {one["event"] for one in (await house.get("/v1/wallet/history", key))["history"]}
    assert {"deposit.credited", "refund.completed", "payout.completed"} <= kinds


# ── in ───────────────────────────────────────────────────────────────────────────────────────────


async def test_one_payment_reported_by_everybody_credits_once(
    house: LightningHouse, lightning: LightningNetwork
) -> None:
    asked = await house.asked(40_000)
    request = await house.farebox.deposits.by_id(asked["deposit"])
    assert request is not None
    assert await pay(lightning, asked["pay"]) == "SUCCEEDED"
    rescan = RailWatch(lightning_of(house), house.farebox.deposits, house.farebox.ledger)
    await keep_cursor(house, "1")  # as if nothing after the first payment had been heard
    reports = [house.farebox.deposits.look(request) for _ in range(8)]
    listening = asyncio.create_task(rescan.listen_once())
    await asyncio.gather(*reports, house.farebox.deposits.poll("lightning"))
    await house.until_credited(asked)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    assert await house.held_msat() == 40_000
    names = [event.name for event in await house.farebox.store.events(subject=request.account)]
    assert names.count("deposit.credited") == 1


async def test_more_than_was_asked_for_is_credited_and_said(
    house: LightningHouse, lightning: LightningNetwork
) -> None:
    asked = await house.asked(20_000)
    paid = await asyncio.to_thread(lightning.payer.pay_more, asked["pay"], 30_000)
    assert paid == "SUCCEEDED"
    told = await house.until_credited(asked)
    assert (told["credited_msat"], told["marks"]) == (30_000, ["over"])


async def test_the_payer_may_choose_the_amount(
    house: LightningHouse, lightning: LightningNetwork
) -> None:
    asked = await house.asked(None)
    paid = await asyncio.to_thread(lightning.payer.pay, asked["pay"], 12_345)
    assert paid == "SUCCEEDED"
    assert (await house.until_credited(asked))["credited_msat"] == 12_345


async def test_an_expired_invoice_takes_nothing(
    house: LightningHouse, lightning: LightningNetwork
) -> None:
    method = lightning_of(house)
    method.config = replace(method.config, invoice_expiry_s=1)
    asked = await house.asked(20_000)
    await asyncio.sleep(1.5)
    with pytest.raises(Refused, match="expired"):
        await pay(lightning, asked["pay"])
    told = await house.get(f"/v1/deposits/{asked['deposit']}", asked["claim_secret"])
    assert (told["state"], told["credited_msat"]) == ("expired", 0)


async def test_an_invoice_credits_whom_it_was_issued_for_and_nobody_who_has_seen_it(
    house: LightningHouse, lightning: LightningNetwork
) -> None:
    owner = await house.funded(lightning, 5_000)
    thief = await house.funded(lightning, 5_000)
    asked = await house.asked(20_000, owner)
    assert await pay(lightning, asked["pay"]) == "SUCCEEDED"
    body = {"cashu_token": asked["pay"]}

    stolen = await house.post("/topup", body, thief)
    as_bearer = await house.http.get("/echo", headers={"Authorization": f"Bearer {asked['pay']}"})
    embedded = await house.http.get("/echo", headers={"X-Cashu": asked["pay"]})
    created = await house.post("/create", {"initial_balance_token": asked["pay"]})
    looked = await house.get(f"/v1/deposits/{asked['deposit']}", thief)
    assert (stolen.status_code, stolen.json()["code"]) == (403, "not_addressed_to_you")
    assert as_bearer.json()["code"] == embedded.json()["code"] == "credential_public"
    assert created.json()["code"] == "claim_secret_required"
    assert looked["code"] == "deposit_unknown"

    for _ in range(2):  # told again, added once
        assert (await house.post("/topup", body, owner)).json() == {"msats": 20_000}
    assert await house.balance_msat(owner) == 25_000
    assert await house.balance_msat(thief) == 5_000


async def test_who_holds_the_claim_secret_may_have_it_put_on_an_account(
    house: LightningHouse, lightning: LightningNetwork
) -> None:
    key = await house.funded(lightning, 5_000)
    asked = await house.asked(20_000)
    claim = {"cashu_token": asked["pay"], "claim_secret": asked["claim_secret"]}
    wrong = await house.post("/topup", claim | {"claim_secret": "claim-" + "x" * 43}, key)
    unpaid = await house.post("/topup", claim, key)
    assert (wrong.json()["code"], unpaid.json()["code"]) == ("claim_refused", "deposit_unpaid")
    assert await pay(lightning, asked["pay"]) == "SUCCEEDED"
    assert (await house.post("/topup", claim, key)).json() == {"msats": 20_000}
    assert await house.balance_msat(key) == 25_000
    made = await house.post("/create", {"initial_balance_token": asked["pay"], **claim})
    assert made.json()["code"] == "not_addressed_to_you"


async def test_what_was_paid_while_the_node_could_not_be_heard_is_found(
    house: LightningHouse, lightning: LightningNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = await house.asked(20_000)
    method = lightning_of(house)
    with monkeypatch.context() as patch:
        patch.setattr(Line, "_open", broken_line)
        assert await pay(lightning, asked["pay"]) == "SUCCEEDED"
        refused = await house.post("/v1/deposits", {"method": "lightning", "amount": 1_000})
        assert (refused.status_code, refused.json()["code"]) == (503, "rail_unavailable")
        with pytest.raises(RailUnavailable):
            await method.probe()
        shown = (await house.get("/v1/methods"))["methods"]
        assert {one["method"]: one["works"] for one in shown} == {
            "cashu": False,
            "lightning": False,
        }
        # The rail alone is down: who has money here goes on.
        assert (await house.http.get("/v1/methods")).status_code == 200
    house.clock.ahead_s += 30  # the breaker's pause
    await method.probe()
    assert (await house.until_credited(asked))["credited_msat"] == 20_000
    shown = (await house.get("/v1/methods"))["methods"]
    assert {one["method"]: one["works"] for one in shown} == {"cashu": False, "lightning": True}


# ── out ──────────────────────────────────────────────────────────────────────────────────────────


async def test_a_payment_whose_answer_was_lost_is_asked_for_and_taken_once(
    house: LightningHouse, lightning: LightningNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await house.funded(lightning, 50_000)
    bill = await asyncio.to_thread(lightning.payer.invoice, 20_000)
    body = {"destination": bill}
    with monkeypatch.context() as patch:
        patch.setattr(Line, "_open", executed_and_lost)
        waiting = await house.post("/v1/payouts", body, key, "bill")
        assert waiting.status_code == 202, waiting.text
    assert await asyncio.to_thread(lightning.payer.received_msat, bill) == 20_000
    await house.settled()
    paid = await house.post("/v1/payouts", body, key, "bill")
    assert (paid.status_code, paid.json()["msats"]) == (200, "20000")
    assert await house.balance_msat(key) == 30_000


async def test_a_payment_that_fails_for_good_gives_the_money_back(
    house: LightningHouse, lightning: LightningNetwork
) -> None:
    key = await house.funded(lightning, 50_000)
    bill = await asyncio.to_thread(lightning.payer.invoice, 20_000)
    payment_hash = decode_invoice(bill).payment_hash
    raw = base64.b64encode(payment_hash).decode()
    cancel = {"payment_hash": raw}
    await asyncio.to_thread(lightning.payer.post, "/v2/invoices/cancel", cancel)
    failed = await house.post("/v1/payouts", {"destination": bill}, key)
    assert failed.json()["code"] == "payment_failed", failed.text
    assert await house.balance_msat(key) == 50_000


async def test_one_invoice_is_paid_for_one_account(
    house: LightningHouse, lightning: LightningNetwork
) -> None:
    keys = [await house.funded(lightning, 50_000) for _ in range(3)]
    bill = await asyncio.to_thread(lightning.payer.invoice, 20_000)
    body = {"destination": bill}
    answers = await asyncio.gather(*(house.post("/v1/payouts", body, key) for key in keys))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409]
    balances = [await house.balance_msat(key) for key in keys]
    assert sorted(balances) == [30_000, 50_000, 50_000]


async def test_what_should_not_be_paid_is_refused_before_anything_leaves(
    house: LightningHouse, lightning: LightningNetwork
) -> None:
    key = await house.funded(lightning, 50_000)
    bill = await asyncio.to_thread(lightning.payer.invoice, 20_000)
    old = await asyncio.to_thread(lightning.payer.invoice, 20_000, "", 1)
    own = (await house.asked(10_000))["pay"]
    real = encode_invoice(20_000, b"h" * 32, now_s())  # of another network
    refusals: list[tuple[str, dict[str, object]]] = [
        ("destination_invalid", {"destination": real}),
        ("destination_invalid", {"destination": own}),
        ("invoice_expired", {"destination": old}),
        ("amount_differs", {"destination": bill, "amount_msat": 21_000}),
        ("destination_required", {}),
        ("destination_unavailable", {"destination": "nobody@localhost:1", "amount_msat": 5_000}),
    ]
    for code, body in refusals:
        answer = await house.post("/v1/payouts", body, key)
        assert answer.json()["code"] == code, (code, answer.text)
    huge = await asyncio.to_thread(lightning.payer.invoice, 200_000_000)
    over = await house.post("/v1/payouts", {"destination": huge}, key)
    assert over.json()["code"] == "amount_out_of_bounds"
    dear = await house.post("/v1/payouts", {"destination": bill, "max_fee_msat": -1}, key)
    assert dear.json()["code"] == "amount_invalid"
    much = await asyncio.to_thread(lightning.payer.invoice, 60_000)
    broke = await house.post("/v1/payouts", {"destination": much}, key)
    assert broke.json()["code"] == "insufficient_balance"
    assert await house.balance_msat(key) == 50_000


async def test_a_lightning_address_gets_what_is_left_after_the_fee_limit(
    house: LightningHouse, lightning: LightningNetwork
) -> None:
    key = await house.funded(lightning, 50_000)
    payee = Payee(lightning)
    async with serving(payee) as payee.url:
        body = {"destination": payee.address, "amount_msat": 30_000}
        quote = (await house.post("/v1/refunds", body | {"dry_run": True}, key)).json()
        assert quote["most_msat"] <= 30_000
        payee.lies = True
        lied = await house.post("/v1/refunds", body, key)
        payee.lies = False
        refunded = await house.post("/v1/refunds", body, key)
    assert lied.json()["code"] == "destination_unavailable"
    assert refunded.status_code == 200, refunded.text
    assert int(refunded.json()["msats"]) == quote["amount"] == 24_000
    assert await house.balance_msat(key) == 26_000  # the direct channel takes no fee


async def test_what_is_left_on_a_key_that_expires_goes_to_its_refund_address(
    house: LightningHouse, lightning: LightningNetwork
) -> None:
    farebox, payee = house.farebox, Payee(lightning)
    async with serving(payee) as payee.url:
        asked = await house.asked(50_000)
        assert await pay(lightning, asked["pay"]) == "SUCCEEDED"
        terms = {
            "initial_balance_token": asked["pay"],
            "claim_secret": asked["claim_secret"],
            "refund_address": payee.address,
            "key_expiry_time": now_s() + 60,
        }
        key = str((await house.post("/create", terms)).json()["api_key"])
        house.clock.ahead_s += 100
        expiry = KeyExpiry(farebox.ledger, farebox.operations, farebox.payments, farebox.keys)
        for _ in range(2):
            await expiry.run()
    left_msat = (await house.get("/info", key))["balance"]
    assert left_msat == 50_000 - 44_000  # the fee limit, of which the direct channel took none
    refunds = (await house.get("/v1/wallet/refunds", key))["refunds"]
    assert [one["recipient"] for one in refunds] == [payee.address]


async def test_a_wallet_withdraws_a_refund_by_qr_code(
    house: LightningHouse, lightning: LightningNetwork
) -> None:
    key = await house.funded(lightning, 50_000)
    made = await house.post("/v1/refunds", {"lnurl": True, "amount_msat": 30_000}, key)
    assert made.status_code == 201, made.text
    assert made.json()["qr_svg"].startswith("<svg")
    words = bech32.decode(made.json()["lnurl"], bech32.Checksum.BECH32, 1_000).words
    path = bech32.to_bytes(words).decode().removeprefix("http://127.0.0.1:8080")
    offer = await house.get(path)
    assert offer["tag"] == "withdrawRequest"
    most_msat = offer["maxWithdrawable"]
    assert most_msat == 24_000
    over = await asyncio.to_thread(lightning.payer.invoice, 40_000)
    assert (await house.get(f"{path}&pr={over}"))["status"] == "ERROR"
    bill = await asyncio.to_thread(lightning.payer.invoice, most_msat)
    for _ in range(2):
        assert (await house.get(f"{path}&pr={bill}")) == {"status": "OK"}
    another = await asyncio.to_thread(lightning.payer.invoice, 5_000)
    assert (await house.get(f"{path}&pr={another}"))["status"] == "ERROR"
    assert await asyncio.to_thread(lightning.payer.received_msat, bill) == most_msat
    assert await asyncio.to_thread(lightning.payer.received_msat, another) == 0
    assert (await house.get(path))["status"] == "ERROR"
    assert await house.balance_msat(key) == 50_000 - most_msat


# ── the tests' own means ─────────────────────────────────────────────────────────────────────────


def lightning_of(house: LightningHouse) -> LightningMethod:
    method = house.farebox.payments.methods["lightning"]
    assert isinstance(method, LightningMethod)
    return method


async def keep_cursor(house: LightningHouse, position: str) -> None:
    def decide(state: State, _: int) -> Unit:
        version = state.version(WATCH_CURSOR, CUSTODY)
        return Unit(new_id("t"), puts=(Put(WATCH_CURSOR, CUSTODY, WatchCursor(position), version),))

    await house.farebox.ledger.transact([(WATCH_CURSOR, CUSTODY)], decide)


_open = Line._open


def broken_line(self: Line, *_: Any) -> Any:
    raise RailUnavailable("the line is cut")


@asynccontextmanager
async def executed_and_lost(
    self: Line, method: str, path: str, *rest: Any
) -> AsyncIterator[aiohttp.ClientResponse]:
    async with _open(self, method, path, *rest) as response:
        if path.startswith("/v2/router/send"):
            await response.read()
            raise RailUnavailable("the answer was lost")
        yield response
