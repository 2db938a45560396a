"""Tokens locked to our key: credited without a call to their mint, swapped later, never twice."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from farebox.ecash.codes import NutError
from farebox.ledger.model import Applied, Kind, Open, Unit
from farebox.money import BTC
from farebox.payments import Refusal
from farebox.payments.model import Operation
from farebox.payments.service import Received
from farebox.rails.cashu.config import unswapped_account
from farebox.rails.cashu.records import ProofUse
from farebox.rails.cashu.sweep import LOSS
from farebox.testing.mint import DropAfter, DropBefore, Fail, PlayMint, Refuse
from farebox.wire.cashu import crypto
from farebox.wire.cashu.locks import p2pk_secret
from farebox.wire.cashu.model import Token
from farebox.wire.cashu.request import decode_request
from farebox.wire.cashu.token import encode_token
from farebox.wire.cashu.wallet_keys import WalletKeys
from tests.integration.cashu_house import CUSTOMER, House, PowerCut, house_of, issue
from tests.integration.whole_house import PRICE_SAT, Door, whole_house

LIMIT_SAT = 1_000
PAYER = crypto.public_key(b"p" * 32)


def locked(
    house: House, mint: PlayMint, amount: int, tags: Sequence[tuple[str, ...]] = ()
) -> Token:
    """What a payer's wallet makes of the lock in our challenge."""
    key = house.method.locked.public_key
    return mint.issue_with(lambda: p2pk_secret(secrets.token_hex(16), key, tuple(tags)), amount)


async def ready(house: House, mint: PlayMint) -> None:
    """All is known of the mint that a first payment asks for, and the accounts are open."""
    opened = Unit("revenue", (Open("revenue", BTC.code, Kind.REVENUE),))
    assert isinstance(await house.store.commit(opened), Applied)
    await house.receive(issue(mint, 1), "customer:first")
    await house.method.mints.trusted()[0].enforces_locks()
    mint.calls.clear()


async def unswapped_sat(house: House, mint: PlayMint) -> int:
    found = await house.store.account(unswapped_account(mint.url, "sat"))
    return 0 if found is None else found.held // 1_000


def everything_under(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


@pytest.mark.parametrize("fee_ppk", [0, 100, 1_000])
async def test_a_locked_token_is_credited_without_a_call_and_swapped_later(
    tmp_path: Path, fee_ppk: int
) -> None:
    mint = PlayMint(fee_ppk=fee_ppk)
    async with house_of(tmp_path, mint, offline_max_sat=LIMIT_SAT) as house:
        await house.receive(issue(mint, 8), "customer:other")
        await ready(house, mint)
        received = await house.receive(encode_token(locked(house, mint, 100)))
        fee = -(-fee_ppk * 3 // 1_000)  # 100 = 64 + 32 + 4
        assert isinstance(received, Received)
        assert received.amount_msat == (100 - fee) * 1_000
        assert mint.calls.total() == 0
        assert await unswapped_sat(house, mint) == 100 - fee
        await house.assert_whole(mint)
        assert await house.sweep.run() == 3
        assert dict(mint.calls) == {"swap": 1}
        assert await unswapped_sat(house, mint) == 0
        assert await house.sweep.run() == 0
        await house.assert_whole(mint)


async def test_many_tokens_are_swapped_in_one_batch_and_what_that_saves_is_earned(
    tmp_path: Path,
) -> None:
    mint = PlayMint(fee_ppk=100)
    async with house_of(tmp_path, mint, offline_max_sat=LIMIT_SAT) as house:
        await ready(house, mint)
        for _ in range(5):
            await house.receive(encode_token(locked(house, mint, 16)))
        assert await house.balance_sat() == 5 * 15
        assert await house.sweep.run() == 5
        assert mint.calls["swap"] == 1
        assert await house.balance_sat("revenue") == 4, "each paid a whole unit, together one"
        await house.assert_whole(mint)


async def test_no_proof_is_credited_twice_in_whatever_token(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint, offline_max_sat=64) as house:
        await ready(house, mint)
        first = locked(house, mint, 48)  # 32 + 16
        large = locked(house, mint, 96)  # beyond the limit: swapped at once
        again = await house.receive(encode_token(first)), await house.receive(encode_token(first))
        assert [isinstance(one, Received) for one in again] == [True, True]
        await house.receive(encode_token(large))
        assert mint.calls["swap"] == 1
        for token in (first, large):
            for proof in token.proofs:
                part = replace(token, proofs=(proof,))
                refused = await house.receive(encode_token(part), "customer:thief")
                assert isinstance(refused, Refusal)
                assert refused.code == "token_spent"
        assert await house.balance_sat() == 48 + 96
        await house.sweep.run()
        await house.assert_whole(mint)


async def test_no_more_waits_than_the_limit(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint, offline_max_sat=100) as house:
        await ready(house, mint)
        for count in range(1, 5):
            assert isinstance(await house.receive(encode_token(locked(house, mint, 32))), Received)
            assert await unswapped_sat(house, mint) == min(32 * count, 96)
        assert mint.calls["swap"] == 1
        await house.sweep.run()
        await house.receive(encode_token(locked(house, mint, 32)))
        assert await unswapped_sat(house, mint) == 32, "what was swapped makes room"
        await house.sweep.run()
        await house.assert_whole(mint)


async def test_without_a_limit_a_locked_token_is_swapped_at_once(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await ready(house, mint)
        assert isinstance(await house.receive(encode_token(locked(house, mint, 32))), Received)
        assert dict(mint.calls) == {"swap": 1}
        await house.assert_whole(mint)


NOT_OURS_ALONE = {
    "another key too": [("pubkeys", PAYER.hex())],
    "a lock that ends soon": [("locktime", "SOON"), ("refund", PAYER.hex())],
    "a tag that we do not know": [("new", "rule")],
    "a time that is none": [("locktime", "-1")],
}


@pytest.mark.parametrize("name", NOT_OURS_ALONE)
async def test_what_the_payer_could_spend_elsewhere_is_swapped_at_once(
    tmp_path: Path, name: str
) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint, offline_max_sat=LIMIT_SAT) as house:
        await ready(house, mint)
        soon = str(house.clock.now_ns() // 10**9 + 3_600)
        tags = [
            tuple(soon if part == "SOON" else part for part in tag) for tag in NOT_OURS_ALONE[name]
        ]
        assert isinstance(
            await house.receive(encode_token(locked(house, mint, 32, tags))), Received
        )
        assert mint.calls["swap"] == 1
        assert await unswapped_sat(house, mint) == 0


async def test_a_lock_that_lasts_for_long_is_as_good_as_one_for_ever(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint, offline_max_sat=LIMIT_SAT) as house:
        await ready(house, mint)
        late = str(house.clock.now_ns() // 10**9 + 90 * 86_400)
        tags = [("locktime", late), ("refund", PAYER.hex())]
        await house.receive(encode_token(locked(house, mint, 32, tags)))
        assert mint.calls.total() == 0


@pytest.mark.parametrize("flaw", ["no dleq", "no r"])
async def test_what_the_mint_may_not_have_signed_is_swapped_at_once(
    tmp_path: Path, flaw: str
) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint, offline_max_sat=LIMIT_SAT) as house:
        await ready(house, mint)
        token = locked(house, mint, 32)
        bare = [
            replace(
                one, dleq=None if flaw == "no dleq" or not one.dleq else replace(one.dleq, r=None)
            )
            for one in token.proofs
        ]
        await house.receive(encode_token(replace(token, proofs=tuple(bare))))
        assert dict(mint.calls) == {"swap": 1}


async def test_a_forged_signature_is_refused_unseen_by_the_mint(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint, offline_max_sat=LIMIT_SAT) as house:
        await ready(house, mint)
        good, other = locked(house, mint, 32), locked(house, mint, 32)
        forged = replace(good, proofs=(replace(good.proofs[0], secret=other.proofs[0].secret),))
        refused = await house.receive(encode_token(forged))
        assert isinstance(refused, Refusal)
        assert refused.code == "dleq_invalid"
        assert mint.calls.total() == 0


async def test_a_mint_that_knows_no_locks_is_asked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farebox.rails.cashu.mints._LOCK_NUTS", frozenset({10, 11, 12, 99}))
    mint = PlayMint()
    async with house_of(tmp_path, mint, offline_max_sat=LIMIT_SAT) as house:
        await ready(house, mint)
        await house.receive(encode_token(locked(house, mint, 32)))
        assert mint.calls["swap"] == 1


async def test_a_mint_that_is_away_for_a_while_stops_no_locked_payment(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint, offline_max_sat=LIMIT_SAT) as house:
        await ready(house, mint)
        for call in ("swap", "keysets", "keys", "info", "checkstate"):
            mint.faults.always(call, Fail(503))
        for _ in range(3):
            assert isinstance(await house.receive(encode_token(locked(house, mint, 32))), Received)
        assert await house.sweep.run() == 0
        mint.faults.clear()
        house.clock.advance(400)
        await house.operations.recover()
        await house.sweep.run()
        assert await unswapped_sat(house, mint) == 0
        await house.assert_whole(mint)


@pytest.mark.parametrize("fault", [DropAfter(), DropBefore()])
async def test_a_batch_whose_answer_is_lost_is_swapped_once(
    tmp_path: Path, fault: DropAfter | DropBefore
) -> None:
    mint = PlayMint(fee_ppk=100)
    async with house_of(tmp_path, mint, offline_max_sat=LIMIT_SAT) as house:
        await ready(house, mint)
        for _ in range(3):
            await house.receive(encode_token(locked(house, mint, 32)))
        mint.faults.next("swap", fault)
        assert await house.sweep.run() == 0
        await house.recover()
        assert await unswapped_sat(house, mint) == 0
        await house.assert_whole(mint)


async def test_a_stop_at_any_commit_loses_and_doubles_nothing(tmp_path: Path) -> None:
    for cut in range(12):
        mint, path = PlayMint(fee_ppk=100), tmp_path / str(cut)
        path.mkdir()
        async with house_of(path, mint, offline_max_sat=LIMIT_SAT) as house:
            await ready(house, mint)
            texts = [encode_token(locked(house, mint, 32)) for _ in range(2)]
            house.store.cut_after = cut
            with suppress(PowerCut):
                for text in texts:
                    await house.receive(text)
                await house.sweep.run()
            await house.recover()
            for text in texts:
                await house.receive(text)
            await house.sweep.run()
            assert await house.balance_sat() == 2 * 31
            assert await unswapped_sat(house, mint) == 0
            await house.assert_whole(mint)


async def test_a_mint_that_broke_a_lock_is_a_loss_that_is_booked_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint, offline_max_sat=LIMIT_SAT) as house:
        await ready(house, mint)
        good, stolen = locked(house, mint, 32), locked(house, mint, 64)
        await house.receive(encode_token(good))
        await house.receive(encode_token(stolen))
        monkeypatch.setattr("farebox.testing.mint.bank.is_unlocked", lambda proof, now_s: True)
        keyset = stolen.proofs[0].keyset_id
        swap_away(mint, stolen, keyset)
        assert await house.sweep.run() == 0, "the batch is refused"
        loss = await house.store.account(LOSS)
        assert loss is not None
        assert loss.held == 64_000
        assert await unswapped_sat(house, mint) == 32
        events = [event.name for event in await house.store.events()]
        assert "cashu.lock_broken" in events
        assert await house.sweep.run() == 1, "the rest is as good as before"
        await house.assert_whole(mint)


def swap_away(mint: PlayMint, token: Token, keyset_id: str) -> None:
    """What the payer does with a mint that does not look at locks."""
    keys = WalletKeys(b"thief" * 8)
    outputs = [keys.output(keyset_id, n, proof.amount) for n, proof in enumerate(token.proofs)]
    mint._bank.swap(token.proofs, outputs)


async def test_one_bad_proof_keeps_no_other_waiting_for_long(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint, offline_max_sat=LIMIT_SAT) as house:
        await ready(house, mint)
        for _ in range(3):
            await house.receive(encode_token(locked(house, mint, 32)))
        mint.faults.next("swap", Refuse(NutError.PROOFS_INVALID))
        assert await house.sweep.run() == 0
        house.clock.advance(1)
        mint.faults.next("swap", Refuse(NutError.PROOFS_INVALID))  # alone again, the bad one
        assert await house.sweep.run() == 2
        assert await house.sweep.run() == 0, "not again at once"
        assert "cashu.swap_refused" in [event.name for event in await house.store.events()]
        assert await unswapped_sat(house, mint) == 32
        house.clock.advance(3_600)
        assert await house.sweep.run() == 1
        await house.assert_whole(mint)


async def test_a_locked_token_that_was_refused_may_come_again(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await ready(house, mint)
        token = locked(house, mint, 32)
        mint.faults.next("swap", Refuse(NutError.INPUTS_TOO_MANY))
        assert isinstance(await house.receive(encode_token(token)), Refusal)
        assert isinstance(await house.receive(encode_token(token)), Received)
        assert await house.balance_sat(CUSTOMER) == 32
        await house.assert_whole(mint)


async def test_no_secret_of_a_waiting_proof_is_readable_at_rest(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint, offline_max_sat=LIMIT_SAT) as house:
        await ready(house, mint)
        token = locked(house, mint, 32)
        await house.receive(encode_token(token))
        raw = everything_under(tmp_path)
        for proof in token.proofs:
            assert json.loads(proof.secret)[1]["nonce"].encode() not in raw
        assert (await house.proofs_sat(mint))[ProofUse.AVAILABLE] == 1


# ── through the door ─────────────────────────────────────────────────────────────────────────────


async def test_a_request_is_paid_without_its_mint_and_the_rest_is_credit(tmp_path: Path) -> None:
    terms = {"offline_max": "500 sat"}
    async with whole_house(tmp_path, mint_terms=terms) as house:
        await house.farebox.worker.stop()
        asked = await house.http.get("/echo")
        request = decode_request(asked.headers["x-cashu"])
        assert request.lock is not None
        assert asked.json()["nut10"] == {"kind": "P2PK", "data": request.lock.data}
        key = bytes.fromhex(request.lock.data)
        await house.farebox.cashu.mints.trusted()[0].enforces_locks()
        house.mint.calls.clear()

        token = house.mint.issue_with(lambda: p2pk_secret(secrets.token_hex(16), key), 64)
        house.issued.append(token)
        text = encode_token(token)
        paid = await house.present(Door.EMBEDDED, text)

        assert paid.status_code == 200, paid.text
        assert house.mint.calls.total() == 0
        assert "x-cashu" not in paid.headers
        again = await house.present(Door.EMBEDDED, text)
        assert again.json()["credited_msat"] == (64 - PRICE_SAT) * 1_000
        assert await house.balance(text) == (64 - PRICE_SAT) * 1_000
        await house.farebox.sweep.run()
        refund = await house.http.post("/refund", json={}, headers=house.auth(text))
        assert refund.json()["sats"] == str(64 - PRICE_SAT)


async def test_a_locked_token_that_is_being_taken_is_not_called_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two calls at once: the second finds no operation yet, then the first one's claims."""
    mint = PlayMint()
    async with house_of(tmp_path, mint, offline_max_sat=LIMIT_SAT) as house:
        await ready(house, mint)
        token = encode_token(locked(house, mint, 50))
        assert isinstance(await house.receive(token), Received)
        get = house.operations.get
        asked: list[str] = []

        async def a_moment_before(operation_id: str) -> Operation | None:
            asked.append(operation_id)
            return None if len(asked) == 1 else await get(operation_id)

        monkeypatch.setattr(house.operations, "get", a_moment_before)
        assert isinstance(await house.receive(token), Received)
        assert await house.balance_sat() == 50
        await house.assert_whole(mint)


async def test_a_question_that_a_mint_refuses_strands_no_batch(tmp_path: Path) -> None:
    """Its swap was refused, and so is the question which of its proofs are spent."""
    mint = PlayMint()
    async with house_of(tmp_path, mint, offline_max_sat=LIMIT_SAT) as house:
        await ready(house, mint)
        assert isinstance(await house.receive(encode_token(locked(house, mint, 50))), Received)
        mint.faults.next("swap", Refuse(NutError.UNBALANCED))
        mint.faults.next("checkstate", Refuse(0))
        await house.sweep.run()
        await house.recover()
        await house.sweep.run()
        assert await unswapped_sat(house, mint) == 0
        assert await house.custody_sat(mint) == 51
        await house.assert_whole(mint)
