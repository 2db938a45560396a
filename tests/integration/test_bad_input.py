"""Whatever a caller sends, the answer is a clear problem document and nobody loses a unit.

Every test runs through the real gateway over HTTP; leaving the house audits books and mint.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import httpx
import pytest

from farebox.testing.asgi import serving
from farebox.testing.mint import PlayMint
from farebox.wire.cashu.model import Dleq, Token
from farebox.wire.cashu.token import encode_token, encode_token_v3
from tests.integration.whole_house import FUNDED_SAT, Door, WholeHouse, whole_house
from tests.slowness import answers_wait
from tests.waiting import WAIT_S, eventually

DOORS = pytest.mark.parametrize("door", list(Door))
IN_HEADERS = (Door.EMBEDDED, Door.BEARER)
IN_BODIES = (Door.CREATE, Door.TOPUP)
FUNDED_MSAT = FUNDED_SAT * 1_000


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[WholeHouse]:
    async with whole_house(tmp_path) as made:
        yield made


async def refused(
    house: WholeHouse,
    token: str | bytes,
    code: str,
    status: int = 400,
    doors: Iterable[Door] = Door,
) -> dict[str, Any]:
    """The doors refuse the token with a problem, ask no mint to swap and credit nobody."""
    swaps = house.mint.calls["swap"]
    document = {}
    for door in doors:
        document = house.problem(await house.present(door, token), status, code)
    assert house.mint.calls["swap"] == swaps
    assert await house.balance() == FUNDED_MSAT
    return document


def v3(token: Token, **changes: object) -> str:
    """A V3 token with the first proof's fields changed."""
    document = json.loads(_unpacked(encode_token_v3(token)))
    document["token"][0]["proofs"][0] |= changes
    return "cashuA" + _packed(json.dumps(document).encode())


def v4(token: Token, **changes: object) -> str:
    """A V4 token with the first proof's fields changed."""
    document = cbor2.loads(_unpacked(encode_token(token)))
    document["t"][0]["p"][0] |= changes
    return "cashuB" + _packed(cbor2.dumps(document))


def _unpacked(token: str) -> bytes:
    body = token[6:]
    return base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))


def _packed(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


# ── tokens that cannot be read ───────────────────────────────────────────────────────────────────


async def test_a_truncated_token_is_400_and_the_whole_one_still_pays(house: WholeHouse) -> None:
    token = house.token()
    for length in (7, 20, len(token) // 2, len(token) - 1):
        await refused(house, token[:length], "credential_malformed")
    await house.still_pays(token)


async def test_a_prefix_with_nothing_behind_it_is_400(house: WholeHouse) -> None:
    for prefix in ("cashuA", "cashuB"):
        await refused(house, prefix, "credential_malformed")
    await refused(house, "cashu", "credential_not_understood")


async def test_a_huge_token_is_refused_before_anything_reads_it(house: WholeHouse) -> None:
    huge = "cashuB" + "A" * 70_000
    await refused(house, huge, "headers_too_large", 431, IN_HEADERS)
    await refused(house, huge, "credential_not_understood", 400, IN_BODIES)
    await refused(house, huge * 30, "body_too_large", 413, IN_BODIES)


async def test_a_token_of_too_many_proofs_is_400(house: WholeHouse) -> None:
    proof = {"a": 1, "s": "s", "c": b"\2"}
    document = {"m": house.mint.url, "u": "sat", "t": [{"i": b"\0" * 8, "p": [proof] * 1_500}]}
    token = "cashuB" + _packed(cbor2.dumps(document))
    await refused(house, token, "credential_malformed")


async def test_a_token_that_is_not_utf_8_is_400(house: WholeHouse) -> None:
    outside = b"cashuA\xff\xfe\x80"
    await refused(house, outside, "credential_not_understood", 400, IN_HEADERS)
    await refused(house, outside, "body_malformed", 400, IN_BODIES)
    inside = "cashuA" + _packed(b'{"token": [{"mint": "\xff\xfe"}]}')
    await refused(house, inside, "credential_malformed")


async def test_wrong_base64_is_400_and_the_token_itself_still_pays(house: WholeHouse) -> None:
    token = house.token()
    for wrong in (token[:50] + "!" + token[51:], token[:50] + "=" + token[51:], "cashuBA"):
        await refused(house, wrong, "credential_malformed")
    await house.still_pays(token)


async def test_a_v3_token_of_several_mints_is_400_and_each_part_still_pays(
    house: WholeHouse,
) -> None:
    token = house.money()
    document = json.loads(_unpacked(encode_token_v3(token)))
    (entry,) = document["token"]
    document["token"] = [entry, {**entry, "mint": "https://other.mint.example"}]
    both = "cashuA" + _packed(json.dumps(document).encode())
    told = await refused(house, both, "credential_malformed")
    assert "several mints" in told["detail"]
    await house.still_pays(encode_token_v3(token))


async def test_a_proof_that_stands_there_twice_is_400_and_once_it_pays(house: WholeHouse) -> None:
    token = house.money()
    twice = replace(token, proofs=token.proofs * 2)
    for written in (encode_token(twice), encode_token_v3(twice)):
        await refused(house, written, "credential_malformed")
    await house.still_pays(token)


async def test_an_amount_that_is_none_is_400_and_the_token_still_pays(house: WholeHouse) -> None:
    token = house.money()
    for amount in (0, -1, -(2**63), 2**63, 2**200, 1.5, True, "64", None):
        for written in (v3(token, amount=amount), v4(token, a=amount)):
            await refused(house, written, "credential_malformed")
    await house.still_pays(token)


async def test_what_only_looks_like_a_token_is_400(house: WholeHouse) -> None:
    for raw in (b"\xa0", b"\xff", b"[" * 5_000, b"\x9f" * 5_000, b"\xd8\x1c\x80", b"{}", b"null"):
        for version in ("cashuA", "cashuB"):
            await refused(house, version + _packed(raw), "credential_malformed")


# ── tokens that are read and not taken ───────────────────────────────────────────────────────────


@DOORS
async def test_an_altered_amount_is_400_and_the_token_itself_still_pays(
    house: WholeHouse, door: Door
) -> None:
    token = house.money(64)
    told = house.problem(await house.present(door, v4(token, a=128, d=None)), 400, "token_invalid")
    assert told["money"] == "No money moved."
    await house.still_pays(token)


async def test_an_unknown_keyset_is_400_and_the_token_itself_still_pays(house: WholeHouse) -> None:
    token = house.money()
    for unknown in ("00" + "ab" * 7, "01" + "ab" * 32):
        proofs = tuple(replace(proof, keyset_id=unknown) for proof in token.proofs)
        await refused(house, encode_token(replace(token, proofs=proofs)), "unknown_keyset")
    await house.still_pays(token)


async def test_a_mint_we_do_not_trust_is_400_and_the_trusted_ones_are_told(
    house: WholeHouse,
) -> None:
    foreign = PlayMint()
    async with serving(foreign) as url:
        foreign.url = url
        token = foreign.issue(64)
        told = await refused(house, encode_token(token), "mint_not_accepted")
    assert told["mints"] == [house.mint.url]
    assert not foreign.calls, "a caller must not make us call an address of its choice"


async def test_a_wrong_unit_is_400_and_the_units_are_told(house: WholeHouse) -> None:
    token = house.token(64, "msat")
    told = await refused(house, token, "unit_not_accepted")
    assert told["units"] == ["sat"]


async def test_a_unit_that_is_not_the_keysets_is_400_and_nothing_is_taken(
    house: WholeHouse,
) -> None:
    other = replace(house.money(64, "msat"), unit="sat")
    await refused(house, encode_token(other), "unit_not_accepted")


@DOORS
async def test_a_spent_token_is_400_and_credits_nobody(house: WholeHouse, door: Door) -> None:
    token = house.money()
    await house.spend(token)
    for _ in range(2):
        told = house.problem(await house.present(door, encode_token(token)), 400, "token_spent")
        assert told["money"] == "No money moved."
    assert await house.balance() == FUNDED_MSAT


@DOORS
async def test_a_pending_token_is_credited_once_it_is_free_again(
    house: WholeHouse, door: Door
) -> None:
    token = house.money()
    quote = await house.make_pending(token)
    text = encode_token(token)
    held = await house.present(door, text)
    assert await house.balance() == FUNDED_MSAT
    if door in IN_HEADERS:
        told = house.problem(held, 503, "payment_pending")
        assert held.headers["retry-after"]
        assert told["operation"]
    else:
        assert (held.status_code, held.json()["state"]) == (202, "pending")
    house.mint.settle(quote, paid=False)
    await house.recover()
    if door is Door.CREATE:
        assert await house.balance(held.json()["api_key"]) == 64_000
        return
    if door is Door.TOPUP:
        assert await house.balance() == FUNDED_MSAT + 64_000
    else:
        assert await house.balance(text) == 64_000
    assert (await house.present(door, text)).status_code == 200


@DOORS
async def test_a_pending_token_that_its_owner_spent_after_all_is_400(
    house: WholeHouse, door: Door
) -> None:
    token = house.money()
    quote = await house.make_pending(token)
    await house.present(door, encode_token(token))
    house.mint.settle(quote, paid=True)
    await house.recover()  # the mint says "spent", which our own call may have done
    await house.recover()  # and says so still when no call can be on its way any more
    again = await house.present(door, encode_token(token))
    if door is Door.CREATE:
        # The key was promised with the first answer; nothing has come onto it.
        assert await house.balance(again.json()["api_key"]) == 0
    else:
        house.problem(again, 400, "token_spent")
    assert await house.balance() == FUNDED_MSAT


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[WholeHouse]:
    async with whole_house(tmp_path, mint_terms={"require_dleq": True}) as made:
        yield made


async def test_a_missing_dleq_is_400_where_it_is_required_and_with_it_the_token_pays(
    strict: WholeHouse,
) -> None:
    token = strict.money()
    without = replace(token, proofs=tuple(replace(proof, dleq=None) for proof in token.proofs))
    await refused(strict, encode_token(without), "dleq_missing")
    await strict.still_pays(token)


async def test_a_wrong_dleq_is_400_and_with_the_right_one_the_token_pays(
    strict: WholeHouse,
) -> None:
    token = strict.money()
    for field in ("e", "s", "r"):
        proofs = tuple(replace(proof, dleq=_bent(proof.dleq, field)) for proof in token.proofs)
        await refused(strict, encode_token(replace(token, proofs=proofs)), "dleq_invalid")
    await strict.still_pays(token)


def _bent(dleq: Dleq | None, field: str) -> Dleq:
    assert dleq is not None
    right: bytes = getattr(dleq, field)
    return replace(dleq, **{field: right[:-1] + bytes([right[-1] ^ 1])})


async def test_too_little_is_402_with_terms_and_the_token_is_not_taken(house: WholeHouse) -> None:
    token = house.token(4)
    told = await refused(house, token, "insufficient_payment", 402, IN_HEADERS)
    assert told["amount"] == 10
    assert (await house.present(Door.CREATE, token)).json()["balance"] == 4_000


@DOORS
async def test_worthless_tokens_are_counted_and_known_keys_never_shut_out(
    house: WholeHouse, door: Door
) -> None:
    forged = house.money(1)
    told = []
    for number in range(25):
        proof = replace(forged.proofs[0], secret=f"{number:064}", dleq=None)
        token = encode_token(replace(forged, proofs=(proof, *house.money(16).proofs)))
        told.append((await house.present(door, token)).status_code)
    assert set(told) == {400, 429}
    swaps = house.mint.calls["swap"]
    slowed = await house.present(door, house.token())
    house.problem(slowed, 429, "too_many_failures")
    assert int(slowed.headers["retry-after"]) > 0
    assert house.mint.calls["swap"] == swaps, "a mint must not be asked any more"
    assert (await house.http.get("/echo", headers=house.auth())).status_code == 200
    house.clock.advance(60)
    await house.still_pays(house.token())


# ── credentials, keys, headers, bodies ───────────────────────────────────────────────────────────


async def test_two_payments_at_once_are_400_and_neither_is_touched(house: WholeHouse) -> None:
    first, second = house.token(), house.token()
    twice: list[list[tuple[str, str]]] = [
        [("X-Cashu", first), ("Authorization", f"Bearer {house.key}")],
        [("X-Cashu", first), ("Authorization", f"Bearer {second}")],
        [("X-Cashu", first), ("X-Cashu", second)],
        [("Authorization", f"Bearer {first}"), ("Authorization", f"Bearer {house.key}")],
    ]
    for path in ("/echo", "/v1/chat/completions", "/info", "/free"):
        for headers in twice:
            answer = await house.http.get(path, headers=headers)
            house.problem(answer, 400, "two_payments")
    assert not house.mint.calls["swap"]
    assert await house.balance() == FUNDED_MSAT
    await house.still_pays(first)
    await house.still_pays(second)


@pytest.mark.parametrize("value", [b"Bearer nonsense", b"Bearer \xff\xfe", b"Bearer lnbc1", b"X"])
async def test_a_credential_that_nothing_handles_is_400_and_the_accepted_kinds_are_told(
    house: WholeHouse, value: bytes
) -> None:
    header = b"X-Cashu" if value == b"X" else b"Authorization"
    for path in ("/echo", "/v1/change/req_1"):
        answer = await house.http.get(path, headers=[(header, value)])
        told = house.problem(answer, 400, "credential_not_understood")
        assert any("sk-" in kind for kind in told["accepted"])
        assert any("cashuB" in kind for kind in told["accepted"])


@pytest.mark.parametrize(
    "value", [b"Bearer", b"Basic dXNlcjpwYXNz", b"\xff\xfe", b"", b",", b"Digest a=b"]
)
async def test_an_authorization_that_is_no_payment_is_asked_for_one(
    house: WholeHouse, value: bytes
) -> None:
    headers = [(b"Authorization", value)]
    answer = await house.http.get("/echo", headers=headers)
    told = house.problem(answer, 402, "payment_required")
    assert told["accepted_mints"] == [house.mint.url]
    assert answer.headers["x-cashu"].startswith("creqA")
    house.problem(await house.http.get("/info", headers=headers), 401, "credential_required")


@pytest.mark.parametrize("secret", ["sk-", "sk-" + "a" * 43, "sk-" + "a" * 4_000])
async def test_an_unknown_key_is_401(house: WholeHouse, secret: str) -> None:
    for path in ("/echo", "/info"):
        answer = await house.http.get(path, headers=house.auth(secret))
        house.problem(answer, 401, "key_unknown")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert not house.upstream.seen


async def test_guessed_keys_are_counted_and_the_right_one_is_not_shut_out(
    house: WholeHouse,
) -> None:
    told = {
        (await house.http.get("/echo", headers=house.auth(f"sk-{number}"))).status_code
        for number in range(25)
    }
    assert told == {401, 429}
    slowed = await house.http.get("/echo", headers=house.auth("sk-again"))
    house.problem(slowed, 429, "too_many_failures")
    assert (await house.http.get("/echo", headers=house.auth())).status_code == 200


async def test_a_revoked_key_is_401_and_its_money_stays_on_its_account(house: WholeHouse) -> None:
    ((_, key),) = await house.farebox.keys.page()
    await house.farebox.keys.revoke(key.id)
    for path in ("/echo", "/info"):
        answer = await house.http.get(path, headers=house.auth())
        house.problem(answer, 401, "key_revoked")
    house.problem(await house.present(Door.TOPUP, house.token()), 401, "key_revoked")
    account = await house.farebox.store.account(key.account)
    assert account is not None
    assert account.available == FUNDED_MSAT


async def test_an_expired_key_is_401_and_its_money_can_still_be_taken_out(
    house: WholeHouse,
) -> None:
    ends = house.clock.now_ns() // 10**9 + 60
    body = {"initial_balance_token": house.token(64), "key_expiry_time": ends}
    secret = (await house.http.post("/create", json=body)).json()["api_key"]
    assert (await house.http.get("/echo", headers=house.auth(secret))).status_code == 200
    house.clock.advance(61)
    answer = await house.http.get("/echo", headers=house.auth(secret))
    house.problem(answer, 401, "key_expired")
    refund = await house.http.post("/refund", headers=house.auth(secret))
    assert refund.status_code == 200, refund.text
    await house.still_pays(refund.json()["token"])


async def test_a_body_over_the_limit_is_413_and_nothing_is_taken(tmp_path: Path) -> None:
    async with whole_house(tmp_path, limits={"gateway.body_bytes_max": 10_000}) as house:
        token = house.token()

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(11):
                yield b"x" * 1_000

        for path in ("/echo", "/create", "/topup"):
            for headers in ({"X-Cashu": token}, house.auth()):
                for content in (b"x" * 10_001, chunks()):
                    answer = await house.http.post(path, content=content, headers=headers)
                    house.problem(answer, 413, "body_too_large")
        assert not house.upstream.seen
        assert await house.balance() == FUNDED_MSAT
        await house.still_pays(token)


async def test_a_body_that_does_not_come_is_408_at_every_door(tmp_path: Path) -> None:
    async with whole_house(tmp_path, limits={"gateway.body_timeout_s": 0.5}) as house:
        for path in ("/echo", "/create"):
            head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf"
            assert b"408" in await _said_to(house, head.encode())


async def test_headers_over_the_limit_are_431_and_nothing_is_taken(tmp_path: Path) -> None:
    async with whole_house(tmp_path, limits={"gateway.header_bytes_max": 8_192}) as house:
        token = house.token()
        for path in ("/echo", "/info", "/create"):
            for much in ({"X-Much": "x" * 8_192}, {f"X-{n}": "x" for n in range(2_000)}):
                answer = await house.http.get(path, headers={"X-Cashu": token, **much})
                house.problem(answer, 431, "headers_too_large")
        await house.still_pays(token)


async def test_more_requests_than_may_wait_are_503_before_money_moves(tmp_path: Path) -> None:
    limits = {"gateway.requests_max": 1, "gateway.queue_max": 0}
    async with whole_house(tmp_path, limits=limits) as house:
        token = house.token()
        with answers_wait(house.upstream):
            running = asyncio.create_task(house.chat())
            await eventually(lambda: house.upstream.seen)
            for answer in (
                await house.present(Door.EMBEDDED, token),
                await house.present(Door.CREATE, token),
            ):
                house.problem(answer, 503, "busy")
                assert answer.headers["retry-after"]
        assert (await running).status_code == 200
        await house.still_pays(token)


async def test_a_websocket_is_refused_and_nothing_is_taken(house: WholeHouse) -> None:
    token = house.token()
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "X-Cashu": token,
    }
    for path in ("/echo", "/info"):
        answer = await house.http.get(path, headers=upgrade)
        house.problem(answer, 400, "upgrade_not_supported")
    assert not house.upstream.seen
    await house.still_pays(token)


async def test_what_is_not_http_is_400_and_the_house_stands(house: WholeHouse) -> None:
    for raw in (b"\x16\x03\x01\x02\x00" * 20, b"GET\r\n\r\n", b"\x00" * 1_000 + b"\r\n\r\n"):
        said = await _said_to(house, raw)
        assert not said or said.startswith(b"HTTP/1.1 400")
    await house.still_pays(house.token())


async def _said_to(house: WholeHouse, raw: bytes) -> bytes:
    """What the server says to raw bytes until it hangs up or has said it."""
    url = httpx.URL(house.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(raw)
    try:
        return await asyncio.wait_for(reader.read(4_096), WAIT_S)
    finally:
        writer.close()
        await writer.wait_closed()
