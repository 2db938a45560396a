"""Requests through the gateway, paid on a channel of the payer's own account."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import httpx
import pytest
from msgspec.structs import replace

from farebox.bootstrap.channels import claiming_of, credit_of
from farebox.channels.postings import custody_account
from farebox.cli import checks
from farebox.cli.desk import carry_out
from farebox.cli.requests import Balance
from farebox.clock import ManualClock
from farebox.errors import InvalidSettings, StoreBusy
from farebox.ledger.model import Applied, Outcome, Unit
from farebox.paywall.model import REQUEST
from farebox.paywall.settler import Settler
from farebox.settings import load_settings
from farebox.testing.asgi import serving
from farebox.wire.subrav.keys import KeyType, SigningKey, sign_sub_rav
from farebox.wire.subrav.model import SignedSubRAV, SubRAV
from tests.integration.channel_house import (
    CHAT,
    LINES,
    PRICE_MSAT,
    TOKEN_MSAT,
    House,
    house,
    sign,
)
from tests.waiting import eventually

COLLATERAL = 1_000_000
OTHER = SigningKey(KeyType.SECP256K1, b"\x02" * 32)


async def test_each_request_is_paid_by_the_voucher_that_comes_with_the_next(tmp_path: Path) -> None:
    async with house(tmp_path) as shop:
        assert (await shop.open(COLLATERAL)).status_code == 201
        first = await shop.asks()
        assert (first.status, first.proposal.nonce) == (200, 1)
        assert first.proposal.accumulated_amount == PRICE_MSAT
        second = await shop.asks("/echo", sign(first.proposal))
        assert second.proposal.accumulated_amount == 2 * PRICE_MSAT
        chat = await shop.chats(sign(second.proposal))
        cost = chat.proposal.accumulated_amount - 2 * PRICE_MSAT
        assert 0 < cost <= CHAT["max_tokens"] * TOKEN_MSAT  # type: ignore[operator]
        streamed = await shop.chats(sign(chat.proposal), stream=True)
        assert streamed.body.rstrip().endswith(b"data: [DONE]")
        assert streamed.proposal.accumulated_amount == 2 * PRICE_MSAT + 2 * cost
        lines = await shop.asks("/ndjson", sign(streamed.proposal))
        assert lines.body.strip() == b"".join(LINES).strip()
        assert lines.proposal.nonce == 5
        free = await shop.asks("/free", sign(lines.proposal))
        assert (free.status, free.payment) == (200, None)
        row = await shop.row()
        assert row is not None
        assert (row.paid_nonce, row.pending) == (5, None), "a free request takes its voucher, too"
        assert await shop.held(custody_account(shop.channel_id)) == row.paid_amount


async def test_a_voucher_says_by_itself_who_pays(tmp_path: Path) -> None:
    async with house(tmp_path) as shop:
        await shop.open()
        first = await shop.asks()
        second = await shop.asks("/echo", sign(first.proposal), is_named=False)
        assert second.status == 200


async def test_receipts_and_history_are_those_of_every_other_payment(tmp_path: Path) -> None:
    async with house(tmp_path) as shop:
        await shop.open(COLLATERAL)
        first = await shop.asks()
        assert first.headers["x-farebox-receipt"]
        history = await shop.http.get("/v1/wallet/history", headers=shop.auth)
        opened, paid = history.json()["history"][-2:]
        assert (opened["event"], opened["reference"]) == ("channel.opened", shop.channel_id)
        assert (paid["event"], paid["charged_msat"]) == ("payment.completed", PRICE_MSAT)
        assert paid["reference"] == first.headers["x-farebox-request-id"]
        request = await shop.farebox.store.get(REQUEST, paid["reference"])
        assert request is not None
        assert request.value.channel_id == shop.channel_id


def _other_key(good: SubRAV) -> SignedSubRAV:
    return sign_sub_rav(good, OTHER)


def _less(good: SubRAV) -> SignedSubRAV:
    return sign(replace(good, accumulated_amount=1))


def _more(good: SubRAV) -> SignedSubRAV:
    return sign(replace(good, accumulated_amount=good.accumulated_amount + 1))


def _jump(good: SubRAV) -> SignedSubRAV:
    return sign(replace(good, nonce=1_000))


def _epoch(good: SubRAV) -> SignedSubRAV:
    return sign(replace(good, channel_epoch=1))


def _chain(good: SubRAV) -> SignedSubRAV:
    return sign(replace(good, chain_id=4))


def _channel(good: SubRAV) -> SignedSubRAV:
    return sign(replace(good, channel_id="0x" + "ab" * 32))


def _fragment(good: SubRAV) -> SignedSubRAV:
    return sign(replace(good, vm_id_fragment="phone"))


@pytest.mark.parametrize(
    ("spoil", "status", "code"),
    [
        (_other_key, 400, "INVALID_SIGNATURE"),
        (_less, 400, "TAMPERED_SUBRAV"),
        (_more, 400, "TAMPERED_SUBRAV"),
        (_jump, 409, "RAV_CONFLICT"),
        (_epoch, 400, "EPOCH_MISMATCH"),
        (_chain, 400, "TAMPERED_SUBRAV"),
        (_channel, 404, "CHANNEL_NOT_FOUND"),
        (_fragment, 404, "SUBCHANNEL_NOT_AUTHORIZED"),
    ],
)
async def test_a_voucher_that_is_not_what_was_proposed_serves_nobody(
    tmp_path: Path, spoil: Callable[[SubRAV], SignedSubRAV], status: int, code: str
) -> None:
    async with house(tmp_path) as shop:
        await shop.open()
        first = await shop.asks()
        refused = await shop.asks("/echo", spoil(first.proposal))
        assert (refused.status, refused.code) == (status, code)
        assert shop.shop.served == {"/echo": 1}
        assert (await shop.asks("/echo", sign(first.proposal))).status == 200


async def test_who_is_not_the_payer_is_not_served(tmp_path: Path) -> None:
    async with house(tmp_path) as shop:
        await shop.open()
        path = "/echo"
        header = shop.payment(path)["X-Payment-Channel-Data"]
        auths = {
            "another key": shop.authorization("GET", path, key=OTHER),
            "another path": shop.authorization("GET", "/dear"),
            "another method": shop.authorization("POST", path),
            "no sub-channel": shop.authorization("GET", path, fragment="phone"),
            "no sense": "DIDAuthV1 uAAAA",
        }
        for why, auth in auths.items():
            headers = {"X-Payment-Channel-Data": header, "Authorization": auth}
            answer = await shop.http.get(path, headers=headers)
            assert answer.status_code in (400, 404), why
        twice = shop.authorization("GET", path)
        for status in (200, 402):  # served to whoever copied it no more than to its payer
            headers = shop.payment(path, is_named=False) | {"Authorization": twice}
            assert (await shop.http.get(path, headers=headers)).status_code == status
        assert shop.shop.served == {path: 1}


async def test_the_same_voucher_again_is_charged_and_served_once(tmp_path: Path) -> None:
    async with house(tmp_path) as shop:
        await shop.open()
        voucher = sign((await shop.asks()).proposal)
        answers = await asyncio.gather(*(shop.asks("/slow", voucher) for _ in range(6)))
        assert sorted(answer.status for answer in answers) == [200, *[402] * 5]
        owed = next(answer.proposal for answer in answers if answer.status == 200)
        assert all(answer.proposal == owed for answer in answers)
        assert shop.shop.served["/slow"] == 1


async def test_of_parallel_first_calls_one_is_served(tmp_path: Path) -> None:
    async with house(tmp_path) as shop:
        await shop.open()
        answers = await asyncio.gather(*(shop.asks("/slow") for _ in range(6)))
        assert sorted(answer.status for answer in answers) == [200, *[402] * 5]
        assert shop.shop.served == {"/slow": 1}


async def test_all_sub_channels_together_get_what_the_collateral_covers(tmp_path: Path) -> None:
    async with house(tmp_path, settings={"channels.claim_at": "1000 sat"}) as shop:
        keys = [SigningKey(KeyType.ED25519, bytes([at]) * 32) for at in range(1, 5)]
        await shop.open(3 * PRICE_MSAT, "k0", keys[0])
        for at in range(1, 4):
            await shop.open(0, f"k{at}", keys[at])
        asked = [shop.asks("/slow", fragment=f"k{at}", key=key) for at, key in enumerate(keys)]
        answers = await asyncio.gather(*asked)
        assert sorted(answer.status for answer in answers) == [200, 200, 200, 402]
        assert {answer.code for answer in answers} == {None, "HUB_INSUFFICIENT_FUNDS"}
        assert shop.shop.served["/slow"] == 3


async def test_one_hold_covers_requests_of_one_price_and_another_price_takes_its_own(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as shop:
        await shop.open(COLLATERAL)
        told, holds = await shop.asks(), []
        for is_chat in (False, False, True, False):
            row = await shop.row()
            assert row is not None
            assert row.pending is not None
            holds.append(row.pending.hold)
            account = await shop.farebox.store.account(custody_account(shop.channel_id))
            assert account is not None
            assert (account.held, account.debits_pending) == (row.paid_amount, row.pending.cost)
            voucher = sign(told.proposal)
            told = await (shop.chats(voucher) if is_chat else shop.asks("/echo", voucher))
            assert told.status == 200
    assert holds[0] == holds[1] == holds[2] != holds[3]


async def test_a_price_above_the_payers_limit_or_ours_is_refused(tmp_path: Path) -> None:
    async with house(tmp_path, settings={"channels.request_max": "4999 sat"}) as shop:
        await shop.open(9_000_000)
        first = await shop.asks("/echo", max_amount=PRICE_MSAT)
        assert first.status == 200
        over = await shop.asks("/slow", sign(first.proposal), max_amount=PRICE_MSAT - 1)
        assert (over.status, over.code) == (400, "BILLING_MAX_AMOUNT_EXCEEDED")
        dear = await shop.asks("/dear")
        assert (dear.status, dear.code) == (400, "BILLING_MAX_AMOUNT_EXCEEDED")
        row = await shop.row()
        assert row is not None
        assert (row.paid_amount, row.pending) == (PRICE_MSAT, None), "the voucher was taken"
        assert shop.shop.served == {"/echo": 1}


async def test_an_upstream_that_fails_costs_nothing(tmp_path: Path) -> None:
    async with house(tmp_path) as shop:
        await shop.open()
        broken = await shop.asks("/broken")
        assert (broken.status, broken.payment) == (503, None)
        row = await shop.row()
        assert row is not None
        assert (row.pending, row.serving) == (None, None)


async def test_who_leaves_a_stream_is_asked_for_what_was_delivered(tmp_path: Path) -> None:
    async with house(tmp_path) as shop:
        await shop.open()
        path = "/v1/chat/completions"
        headers = shop.payment(path, method="POST") | {"x-play": "slow=0.5"}
        body = CHAT | {"stream": True}
        async with shop.http.stream("POST", path, headers=headers, json=body) as answer:
            pieces = answer.aiter_bytes()
            await anext(pieces)  # the first event has no words in it
            await anext(pieces)
        asked = await shop.asks()  # it waits for its turn, until the other is settled
        assert (asked.status, asked.code) == (402, "PAYMENT_REQUIRED")
        owed = asked.proposal.accumulated_amount
        assert 0 < owed < CHAT["max_tokens"] * TOKEN_MSAT  # type: ignore[operator]
        assert (await shop.asks("/echo", sign(asked.proposal))).status == 200


async def test_a_charge_that_the_book_did_not_take_is_taken_before_the_next_request(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as shop:
        await shop.open()

        async def fails(*_: object) -> None:
            raise StoreBusy("on purpose")

        with patch.object(Settler, "_commit", fails):
            first = await shop.asks()
        assert (first.status, first.payment) == (200, None)
        assert shop.farebox.paywall.unsettled == 1
        asked = await shop.asks()
        assert (asked.status, asked.code) == (402, "PAYMENT_REQUIRED")
        assert asked.proposal.accumulated_amount == PRICE_MSAT
        assert shop.farebox.paywall.unsettled == 0
        assert shop.shop.served == {"/echo": 1}


async def test_a_voucher_that_a_database_forgot_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(tmp_path) as shop:
        await shop.open(COLLATERAL)
        voucher = sign((await shop.asks()).proposal)
        store = shop.farebox.store
        commit = store.commit

        async def forgetful(unit: Unit, *, synced: bool = True) -> Outcome:
            return await commit(unit) if synced else Applied(1, 1, ())

        monkeypatch.setattr(store, "commit", forgetful)
        forgotten = await shop.asks("/echo", voucher, is_named=False)
        assert (forgotten.status, forgotten.payment) == (200, None)
        monkeypatch.undo()
        row = await shop.row()
        assert row is not None
        assert (row.paid_amount, row.serving) == (0, None)
        again = await shop.asks("/echo", voucher)
        assert (again.status, again.proposal.nonce) == (200, 2)
        assert shop.farebox.paywall.unsettled == 0


async def test_strangers_are_shut_out_and_payers_are_not(tmp_path: Path) -> None:
    limits = {"accounts.failures_max": 3}
    async with house(tmp_path, settings=limits) as shop:
        await shop.open()
        first = await shop.asks()
        unknown = sign(replace(first.proposal, channel_id="0x" + "cd" * 32))
        answers = [await shop.asks("/echo", unknown, is_named=False) for _ in range(5)]
        assert [answer.status for answer in answers] == [404, 404, 404, 429, 429]
        paid = await shop.asks("/echo", sign(first.proposal), is_named=False)
        assert paid.status == 200


# ── the channel itself ───────────────────────────────────────────────────────────────────────────


async def test_closing_claims_what_is_signed_and_gives_back_the_rest(tmp_path: Path) -> None:
    clock = ManualClock()
    async with house(tmp_path, clock=clock) as shop:
        before = await shop.balance()
        await shop.open(COLLATERAL)
        assert await shop.balance() == before - COLLATERAL
        second = await shop.asks("/echo", sign((await shop.asks()).proposal))
        closing = await shop.http.post("/v1/channels/close", headers=shop.auth)
        assert closing.status_code == 202
        assert closing.json()["keys"][0]["claimed_msat"] == PRICE_MSAT
        late = await shop.asks("/echo", sign(second.proposal))
        assert (late.status, late.code) == (400, "CHANNEL_CLOSED")
        assert await shop.desk.close_due() == 0
        clock.advance(601)
        assert await shop.desk.close_due() == 1
        assert await shop.balance() == before - PRICE_MSAT
        shown = (await shop.http.get("/v1/channels", headers=shop.auth)).json()
        assert (shown["status"], shown["collateral_msat"]) == ("closed", 0)
        await shop.open(COLLATERAL)
        anew = await shop.asks()
        assert (anew.status, anew.proposal.channel_epoch, anew.proposal.nonce) == (200, 1, 1)


async def test_a_named_top_up_locks_once(tmp_path: Path) -> None:
    async with house(tmp_path) as shop:
        before = await shop.balance()
        answers = [await shop.open(COLLATERAL, name="first") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [201] * 3
        assert await shop.balance() == before - COLLATERAL
        more = await shop.open(COLLATERAL)
        assert more.json()["collateral_msat"] == 2 * COLLATERAL


async def test_more_than_the_account_holds_is_not_locked(tmp_path: Path) -> None:
    async with house(tmp_path) as shop:
        before = await shop.balance()
        refused = await shop.open(before + 1)
        assert (refused.status_code, refused.json()["code"]) == (400, "channel_refused")
        assert await shop.balance() == before
        missing = await shop.http.get("/v1/channels", headers=shop.auth)
        assert (missing.status_code, missing.json()["code"]) == (404, "channel_unknown")


async def test_vouchers_are_claimed_when_they_are_worth_it(tmp_path: Path) -> None:
    async with house(tmp_path, settings={"channels.claim_at": "30 sat"}) as shop:
        await shop.open(COLLATERAL)
        last = await shop.asks()
        for _ in range(3):
            last = await shop.asks("/echo", sign(last.proposal))
        await _booked(shop)
        shown = (await shop.http.get("/v1/channels", headers=shop.auth)).json()
        assert shown["keys"][0]["claimed_msat"] == 3 * PRICE_MSAT


async def _booked(shop: House) -> None:
    """Wait until everything that was signed has been claimed, and the books know it."""
    await eventually(
        lambda: shop.held(custody_account(shop.channel_id)), lambda unclaimed: unclaimed == 0
    )


async def test_an_operator_sees_what_channels_owe(tmp_path: Path) -> None:
    async with house(tmp_path) as shop:
        await shop.open(COLLATERAL)
        first = await shop.asks()
        await shop.asks("/echo", sign(first.proposal))
        async with serving(shop.farebox.operator) as url, httpx.AsyncClient(timeout=60) as client:
            told = (await client.get(f"{url}/metrics")).text
        assert f'farebox_custody{{asset="BTC",place="channels"}} {float(PRICE_MSAT)}' in told
        assert f'farebox_receivable{{asset="BTC"}} {float(PRICE_MSAT)}' in told
        finding = checks.channels(shop.farebox.settings)
        assert "to did:farebox:house" in finding.found
        facts = await carry_out(shop.farebox, Balance())
        assert facts["custody"][-1] == {
            "account": "custody:channels",
            "held_msat": PRICE_MSAT,
            "ceiling_msat": None,
        }
        assert facts["covered"]


def test_what_lets_a_payer_begin_is_worth_a_claim() -> None:
    asked = {"channels.claim_least": "7 sat", "channels.claim_at": "5 sat"}
    found = load_settings(None, {}, asked).channels
    assert credit_of(found).backing_min == claiming_of(found).min_claim_amount == 7_000
    assert claiming_of(found).threshold == 7_000
    with pytest.raises(InvalidSettings, match=r"channels\.claim_least"):
        credit_of(load_settings(None, {}, {"channels.exposure_max": "999 msat"}).channels)


async def test_without_channels_the_header_means_nothing(tmp_path: Path) -> None:
    async with house(tmp_path, settings={"channels.chain": "none"}) as shop:
        answer = await shop.http.get("/echo", headers=shop.payment("/echo"))
        assert (answer.status_code, answer.json()["code"]) == (402, "payment_required")
        assert "channels" not in answer.json()
        opened = await shop.open()
        assert (opened.status_code, opened.json()["code"]) == (404, "channels_unavailable")
