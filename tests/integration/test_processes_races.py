"""The same thing asked of two processes at the same moment happens once."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from farebox.identity import InProgress, Ticket
from farebox.identity.keys import (
    API_KEY,
    KEY_COUNT,
    ApiKey,
    KeyRefused,
    KeyRefusedReason,
    KeyTerms,
    NewKey,
)
from farebox.ledger.records import RecordType, Row
from farebox.payments.service import Refunded
from farebox.rails.cashu import Reconciling
from farebox.rails.cashu.config import unswapped_account
from farebox.rails.cashu.mints import MintPlace
from farebox.rails.cashu.records import PROOF, ProofUse
from farebox.wire.cashu.locks import p2pk_secret
from farebox.wire.cashu.model import Keyset
from farebox.wire.cashu.token import decode_token, encode_token
from tests.integration.processes_world import SHARED, Door, House, Line, World, shared_world
from tests.integration.whole_house import PRICE_SAT
from tests.waiting import eventually


@pytest.fixture(params=sorted(SHARED))
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    shared = SHARED[request.param](request, tmp_path)
    async with shared_world(shared, tmp_path) as made:
        yield made


async def until_told(house: House, call: httpx.Request) -> httpx.Response:
    """Ask again, as a client does, until the answer is not "later"."""
    return await eventually(
        lambda: house.http.send(call), lambda answer: "retry-after" not in answer.headers
    )


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_key_revoked_in_one_process_opens_nothing_in_another_a_second_later(
    world: World,
) -> None:
    a, b = await world.house(), await world.house()
    key = await world.key(a)
    assert isinstance(await b.farebox.keys.authenticate(key.secret), ApiKey)
    await a.farebox.keys.revoke(key.key.id)
    refused = await a.farebox.keys.authenticate(key.secret)
    assert isinstance(refused, KeyRefused), "here at once"
    b.clock.advance(1)
    refused = await b.farebox.keys.authenticate(key.secret)
    assert isinstance(refused, KeyRefused)
    assert refused.reason is KeyRefusedReason.REVOKED


async def test_a_key_is_read_once_a_second_however_often_it_is_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await world.house()
    key = await world.key(a)
    reads: list[str] = []
    get = Line.get

    async def counted(line: Line, record: RecordType[ApiKey], name: str) -> Row[ApiKey] | None:
        reads.append(record.kind)
        return await get(line, record, name)

    monkeypatch.setattr(Line, "get", counted)
    for _ in range(3):
        a.clock.advance(1)
        for _ in range(100):
            await a.farebox.keys.authenticate(key.secret)
    assert reads.count(API_KEY.kind) == 3


async def test_keys_made_in_two_processes_at_once_are_all_counted(world: World) -> None:
    a, b = await world.house(), await world.house()
    made = await asyncio.gather(
        *(house.farebox.keys.create("customer:x", KeyTerms()) for house in (a, b) * 10)
    )
    assert all(isinstance(one, NewKey) for one in made)
    count = await world.store.get(KEY_COUNT, "keys")
    assert count is not None
    assert count.value.keys == 20


# ── the same money, the same name ────────────────────────────────────────────────────────────────


async def test_one_token_at_two_processes_pays_for_one_request(world: World) -> None:
    a, b = await world.house(), await world.house()
    for _ in range(5):
        token = a.token(64)
        answers = await asyncio.gather(*(h.present(Door.EMBEDDED, token) for h in (a, b)))
        paid = [one for one in answers if one.status_code == 200]
        assert len(paid) == 1, [one.text for one in answers]
        for house in (a, b):
            call = house.http.build_request("GET", "/echo", headers={"X-Cashu": token})
            again = await until_told(house, call)
            house.problem(again, 409, "payment_used")
            assert again.headers["x-cashu"] == paid[0].headers["x-cashu"]
        assert decode_token(paid[0].headers["x-cashu"]).amount == 64 - PRICE_SAT


async def test_one_token_tops_up_once_wherever_it_is_handed_in(world: World) -> None:
    a, b = await world.house(), await world.house()
    a.key = b.key = (await world.key(a)).secret
    before = await a.balance()
    token = a.token(64)
    await asyncio.gather(*(h.present(Door.TOPUP, token) for h in (a, b, a, b)))
    for house in (a, b):
        body = {"cashu_token": token}
        call = house.http.build_request("POST", "/topup", json=body, headers=house.auth())
        assert (await until_told(house, call)).json() == {"msats": 64_000}
    assert await b.balance() == before + 64_000


async def test_one_token_makes_one_key(world: World) -> None:
    a, b = await world.house(), await world.house()
    token = a.token(64)
    await asyncio.gather(*(h.present(Door.CREATE, token) for h in (a, b, a, b)))
    told = set()
    for house in (a, b):
        call = house.http.build_request("POST", "/create", json={"initial_balance_token": token})
        told.add((await until_told(house, call)).json()["api_key"])
    assert len(told) == 1
    active = await a.farebox.keys.page()
    assert len(active) == 1, "no second key was made and revoked on the way"


async def test_one_idempotency_key_at_two_processes_refunds_once(world: World) -> None:
    a, b = await world.house(), await world.house()
    a.key = (await a.present(Door.CREATE, a.token(256))).json()["api_key"]
    b.key = a.key
    named = {"Idempotency-Key": "once"}

    def call(house: House) -> httpx.Request:
        headers = house.auth() | named
        return house.http.build_request(
            "POST", "/refund", json={"amount_msat": 50_000}, headers=headers
        )

    await asyncio.gather(*(h.http.send(call(h)) for h in (a, b, a, b)))
    told = {(await until_told(house, call(house))).json()["token"] for house in (a, b)}
    assert len(told) == 1
    assert await a.balance() == 256_000 - 50_000


async def test_a_named_call_of_a_killed_process_resumes_elsewhere_as_the_same(
    world: World,
) -> None:
    a, b = await world.house(), await world.house()
    at_a, at_b = a.farebox._idempotency, b.farebox._idempotency
    first = await at_a.begin("account", "name", b"body")
    assert isinstance(first, Ticket)
    assert await at_b.begin("account", "name", b"body") == InProgress()
    a.kill()
    await world.beats(b)
    resumed = await at_b.begin("account", "name", b"body")
    assert isinstance(resumed, Ticket)
    assert resumed.operation_id == first.operation_id
    await at_b.release(resumed)


async def test_a_named_call_that_was_not_final_resumes_in_any_process(world: World) -> None:
    a, b = await world.house(), await world.house()
    at_a, at_b = a.farebox._idempotency, b.farebox._idempotency
    first = await at_a.begin("account", "name", b"body")
    assert isinstance(first, Ticket)
    await at_a.release(first)
    resumed = await at_b.begin("account", "name", b"body")
    assert isinstance(resumed, Ticket)
    assert resumed.operation_id == first.operation_id
    await at_b.finish(resumed, 200, b"answer")
    await at_a.finish(first, 200, b"another answer")
    again = await at_a.begin("account", "name", b"body")
    assert again == await at_b.begin("account", "name", b"body")


# ── proofs ───────────────────────────────────────────────────────────────────────────────────────


async def test_no_counter_is_taken_by_two_processes(world: World) -> None:
    a, b = await world.house(), await world.house()
    taken = await asyncio.gather(
        *(h.farebox.cashu.inventory.take_counters("00" * 8, 100) for h in (a, b) * 20)
    )
    assert all(after - before >= 100 for before, after in itertools.pairwise(sorted(taken)))


async def test_refunds_from_two_processes_never_give_one_proof_twice(world: World) -> None:
    a, b = await world.house(), await world.house()
    a.key = (await a.present(Door.CREATE, a.token(64))).json()["api_key"]
    for _ in range(11):
        await a.present(Door.TOPUP, a.token(64))
    key = await a.farebox.keys.authenticate(a.key)
    assert isinstance(key, ApiKey)
    refunds = [
        house.farebox.payments.refund(
            key.account, 33_000, method="cashu", operation_id=f"refund-{index}-{house.url}"
        )
        for index in range(8)
        for house in (a, b)
    ]
    given = await asyncio.gather(*refunds)
    tokens = [decode_token(one.reply["token"]) for one in given if isinstance(one, Refunded)]
    secrets = [proof.secret for token in tokens for proof in token.proofs]
    assert len(tokens) > 1, given
    assert len(set(secrets)) == len(secrets)
    assert await b.balance(a.key) == 12 * 64_000 - 33_000 * len(tokens)


async def test_a_refund_and_a_top_up_at_once_lose_nothing(world: World) -> None:
    a, b = await world.house(), await world.house()
    a.key = (await a.present(Door.CREATE, a.token(256))).json()["api_key"]
    b.key = a.key
    refund, topup = await asyncio.gather(
        a.http.post("/refund", json={}, headers=a.auth()), b.present(Door.TOPUP, b.token(64))
    )
    assert topup.status_code == 200, topup.text
    assert refund.status_code == 200, refund.text
    given = decode_token(refund.json()["token"]).amount
    assert await b.balance() == (256 + 64 - given) * 1_000


async def test_two_processes_that_tidy_up_at_once_swap_no_proof_twice(world: World) -> None:
    terms = {"ecash.consolidate_proofs": 8}
    a, b = await world.house(**terms), await world.house(**terms)
    a.key = (await a.present(Door.CREATE, a.token(256))).json()["api_key"]
    for _ in range(12):
        await a.present(Door.TOPUP, encode_token(a.money(1)))
    places = [house.farebox.cashu.mints.listed()[0] for house in (a, b)]
    await asyncio.gather(
        *(
            house.farebox._upkeep.consolidate(place, "sat")
            for house, place in zip((a, b, a, b), places * 2, strict=True)
        )
    )
    rows = await world.store.find(PROOF, {})
    ours = sum(row.value.amount for _, row in rows if row.value.use is ProofUse.AVAILABLE)
    assert ours == 256 + 12
    assert world.mint.calls["swap"] > 13, "something was tidied up"


async def test_a_locked_proof_in_two_tokens_at_two_processes_is_credited_once(
    world: World,
) -> None:
    terms = {"offline_max": "500 sat"}
    a = await world.house(mint_terms=dict(terms))
    b = await world.house(mint_terms=dict(terms))
    key = a.farebox.cashu.locked.public_key
    for _ in range(4):
        token = a.mint.issue_with(lambda: p2pk_secret(secrets.token_hex(16), key), 96)
        a.issued.append(token)
        part = replace(token, proofs=token.proofs[:1])  # another token, for the same money
        answers = await asyncio.gather(
            a.present(Door.CREATE, encode_token(token)), b.present(Door.CREATE, encode_token(part))
        )
        assert [one.status_code for one in answers].count(200) == 1, [one.text for one in answers]
    assert a.mint.calls["swap"] == 0
    await asyncio.gather(*(house.farebox.sweep.run() for house in (a, b)))
    await b.farebox.sweep.run()
    unswapped = await world.store.account(unswapped_account(a.mint.url, "sat"))
    assert unswapped is not None
    assert unswapped.held == 0


async def test_money_that_one_process_receives_while_another_starts_is_no_sign_of_an_old_copy(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await world.house()
    assert (await a.present(Door.CREATE, encode_token(a.money()))).status_code == 200
    ask = Reconciling._signed

    async def ask_late(
        self: Reconciling, place: MintPlace, keyset: Keyset, counters: Sequence[int]
    ) -> list[Any]:
        monkeypatch.undo()
        for _ in range(200):  # until a block of counters is used up
            assert (await a.present(Door.CREATE, encode_token(a.money(127)))).status_code == 200
            found = await ask(self, place, keyset, counters)
            if found:
                return found
        raise AssertionError("the mint never signed for the counters that were looked at")

    monkeypatch.setattr(Reconciling, "_signed", ask_late)
    b = await world.house()
    assert not b.farebox.doors.is_closed
    assert (await b.present(Door.CREATE, encode_token(b.money()))).status_code == 200
