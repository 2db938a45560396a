"""A book that was put back from an old copy: closed, held against the mint, then open again.

Through it all the mint is one and the same, and goes on remembering.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pytest

from farebox.books import backup, open_audit
from farebox.bootstrap import Farebox
from farebox.cli.desk import carry_out
from farebox.cli.requests import GiveFound, Recover, Withdraw
from farebox.cli.requests import Reconcile as ReconcileRequest
from farebox.clock import SystemClock
from farebox.ecash.plan import SwapPlan
from farebox.ecash.saga import Done, advance_swap
from farebox.errors import InvalidInput, StoreError
from farebox.identity import ApiKey
from farebox.ledger.invariants import verify
from farebox.ledger.model import Outcome, Unit
from farebox.ledger.replay import Broken, Invariant
from farebox.ledger.standing import BOOK, KEY, BookState, Standing, change_state
from farebox.rails.cashu import HttpMint, open_session, reconcile
from farebox.rails.cashu.config import custody_account, unswapped_account
from farebox.rails.cashu.reconcile import SUSPENSE
from farebox.rails.cashu.records import PROOF, ProofUse
from farebox.settings import load_settings
from farebox.testing.asgi import serving
from farebox.testing.mint import DropAfter, DropBefore, PlayMint
from farebox.testing.upstream import PlayUpstream
from farebox.wire.cashu import crypto
from farebox.wire.cashu.locks import p2pk_secret
from farebox.wire.cashu.model import Token
from farebox.wire.cashu.token import decode_token, encode_token
from farebox.wire.cashu.wallet_keys import WalletKeys

ROOT_KEY = b"k" * 32
PRICE_SAT = 10


@dataclass
class Life:
    """One start of the house, at the one mint."""

    house: Farebox
    http: httpx.AsyncClient

    async def create(self, token: str) -> str:
        made = await self.http.post("/create", json={"initial_balance_token": token})
        assert made.status_code == 200, made.text
        return str(made.json()["api_key"])

    async def topup(self, key: str, token: str) -> int:
        done = await self.http.post("/topup", json={"cashu_token": token}, headers=_auth(key))
        return done.status_code

    async def pay(self, token: str) -> str:
        """A request paid with a token; gives the change."""
        done = await self.http.get("/echo", headers={"X-Cashu": token})
        assert done.status_code == 200, done.text
        return str(done.headers["x-cashu"])

    async def refund(self, key: str, amount_sat: int) -> str:
        body = {"amount_msat": amount_sat * 1_000}
        done = await self.http.post("/refund", json=body, headers=_auth(key))
        assert done.status_code == 200, done.text
        return str(done.json()["token"])

    async def balance_sat(self, key: str) -> int:
        told = await self.http.get("/info", headers=_auth(key))
        assert told.status_code == 200, told.text
        return int(told.json()["balance"]) // 1_000

    async def balance_sat_closed(self, key: str) -> int:
        """The same, behind a closed door."""
        found = await self.house.keys.authenticate(key)
        assert isinstance(found, ApiKey)
        return -(await self.held_sat(found.account))

    async def held_sat(self, account: str) -> int:
        found = await self.house.store.account(account)
        return 0 if found is None else found.held // 1_000

    async def suspense_sat(self) -> int:
        return -(await self.held_sat(SUSPENSE))

    async def proofs_sat(self, *uses: ProofUse) -> int:
        rows = await self.house.store.find(PROOF, {})
        return sum(row.value.amount for _, row in rows if row.value.use in uses)

    async def ask(self, *, claim: bool = False) -> dict[str, Any]:
        return await carry_out(self.house, ReconcileRequest(claim=claim))


def _auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class Place:
    """A mint and a service that stay, and the directories that houses live in."""

    def __init__(self, mint: PlayMint, upstream_url: str, folder: Path) -> None:
        self.mint = mint
        self._upstream = upstream_url
        self.folder = folder
        self.issued: list[Token] = []

    def token(self, amount: int) -> str:
        token = self.mint.issue(amount, "sat")
        self.issued.append(token)
        return encode_token(token)

    def settings(self, data: str, **more: object) -> Any:
        given: dict[str, object] = {
            "data_dir": str(self.folder / data),
            "mint": [{"url": self.mint.url, **more}],
            "upstream": [{"urls": [self._upstream]}],
            "price": [{"price": f"{PRICE_SAT} sat"}],
            "ecash.mint_timeout_s": 60,
        }
        return load_settings(None, {}, given)

    @asynccontextmanager
    async def life(self, data: str, **more: object) -> AsyncIterator[Life]:
        (self.folder / data).mkdir(exist_ok=True)
        async with AsyncExitStack() as stack:
            settings = self.settings(data, **more)
            house = await stack.enter_async_context(Farebox(settings, ROOT_KEY))
            url = await stack.enter_async_context(serving(house.app))
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=60))
            yield Life(house, http)

    async def back_up(self, data: str, name: str = "copy.db") -> None:
        """What `farebox backup` does, beside a running house."""
        target = self.folder / name
        made = await asyncio.to_thread(
            backup, self.settings(data), ROOT_KEY, target, lambda _: None
        )
        assert made.units > 0
        assert target.stat().st_mode & 0o777 == 0o600

    def put_back(self, data: str, name: str = "copy.db") -> None:
        """The machine is lost; the copy is put where a book belongs, on a new one."""
        (self.folder / data).mkdir()
        shutil.copy(self.folder / name, self.folder / data / "farebox.db")

    def is_spent(self, token: str) -> bool:
        spent = self.mint.audit().spent_ys
        proofs = decode_token(token).proofs
        return any(crypto.hash_to_curve(proof.secret) in spent for proof in proofs)

    def unspent_sat(self, *tokens: str) -> int:
        """What tokens in payers' hands are still worth."""
        return sum(decode_token(one).amount for one in tokens if not self.is_spent(one))

    async def assert_whole(self, life: Life, *purses: str) -> None:
        """What is outstanding at the mint is in our custody or in payers' purses, counted once."""
        with open_audit(life.house.settings) as reader:
            verified = verify(reader)
        assert not isinstance(verified, Broken), str(verified)
        mine = await life.proofs_sat(ProofUse.AVAILABLE, ProofUse.RESERVED, ProofUse.FOUND)
        assert await life.held_sat(custody_account(self.mint.url, "sat")) == mine
        outstanding = self.mint.audit().outstanding["sat"]
        assert outstanding == mine + self.unspent_sat(*purses)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    mint, upstream = PlayMint(units=("sat",)), PlayUpstream()
    async with serving(mint) as url, serving(upstream) as upstream_url:
        mint.url = url
        yield Place(mint, upstream_url, tmp_path)


async def closed(life: Life, why: str) -> None:
    """Nothing is admitted, by any door, and everybody is told."""
    row = await life.house.store.get(BOOK, KEY)
    assert row is not None
    assert row.value.standing is Standing.CLOSED
    assert why in row.value.reason
    for answer in (
        await life.http.get("/echo"),
        await life.http.post("/create", json={}),
        await life.http.get("/info", headers=_auth("sk-nobody")),
    ):
        assert answer.status_code == 503
        assert answer.json()["code"] == "book_closed"
        assert "retry-after" in answer.headers
    ready = await life.http.get("/readyz")
    assert ready.status_code == 503
    (serving_check,) = [one for one in ready.json()["checks"] if one["check"] == "serving"]
    assert why in serving_check["reason"]
    assert (await life.http.get("/healthz")).status_code == 200
    for request in (Withdraw("wd_x"), Recover()):
        with pytest.raises(StoreError, match="the book is closed"):
            await carry_out(life.house, request)


async def test_what_happened_after_the_copy_is_found_again_once(place: Place) -> None:
    async with place.life("first") as life:
        key = await life.create(place.token(100))
        await place.back_up("first")
        # … and the house goes on.
        change_kept = await life.pay(place.token(16))
        change_spent = await life.pay(place.token(32))
        late = place.token(64)
        assert await life.topup(key, late) == 200
        other = await life.create(place.token(40))
        refund_kept = await life.refund(key, 30)
        await life.pay(change_spent)  # 22 sat come back here, 12 of them as change again
        assert await life.balance_sat(key) == 134
    place.put_back("second")
    async with place.life("second") as life:
        await closed(life, "a copy made at")
        told = await life.ask()
        assert told["open"]
        assert told["away"] == told["unfinished"] == []
        assert told["found_msat"] > 0
        # The key has what the copy says; what came later is in suspense, and in nobody's balance.
        assert await life.balance_sat(key) == 100
        assert (await life.http.get("/info", headers=_auth(other))).status_code == 401
        assert await life.topup(key, late) != 200
        assert await life.balance_sat(key) == 100
        # The payer's change is good until somebody claims it.
        assert not place.is_spent(change_kept)
        assert await life.topup(key, change_kept) == 200
        assert await life.balance_sat(key) == 106
        await life.house.reconciling.check_found()
        claimed = await life.ask(claim=True)
        assert claimed["claimed_msat"] > 0
        assert await life.proofs_sat(ProofUse.FOUND) == 0
        mine = await life.held_sat(custody_account(place.mint.url, "sat"))
        await place.assert_whole(life, refund_kept, *map(encode_token, place.issued))
        assert mine == 106 + await life.suspense_sat()
    async with place.life("second") as life:  # it stays open
        assert await life.balance_sat(key) == 106
        await life.pay(place.token(16))


async def test_the_book_goes_on_with_counters_that_were_never_used(place: Place) -> None:
    async with place.life("first") as life:
        key = await life.create(place.token(100))
        await place.back_up("first")
        for _ in range(3):
            await life.pay(place.token(16))
    async with place.life("first") as life:  # a new process takes a new block
        for _ in range(3):
            await life.pay(place.token(16))
    place.put_back("second")
    async with place.life("second") as life:
        assert (await life.ask())["open"]
        await life.house.worker.stop()  # it may swap by itself
        place.mint.calls.clear()
        for _ in range(3):
            await life.pay(place.token(16))
        assert place.mint.calls["swap"] == 3, "an output was refused as signed before"
        assert await life.balance_sat(key) == 100


async def test_a_refund_handed_out_after_the_copy_is_not_owed_twice(place: Place) -> None:
    async with place.life("first") as life:
        key = await life.create(place.token(64))
        await life.create(place.token(7))
        await place.back_up("first")
        token = await life.refund(key, 7)  # exact proofs of the book's own, no call to the mint
    place.put_back("second")
    async with place.life("second") as life:
        told = await life.ask()
        assert told["renewed_msat"] == 71_000
        assert await life.balance_sat(key) == 64
        assert place.is_spent(token), "the token and the balance would both be good"
        assert await life.suspense_sat() == 0
        await place.assert_whole(life, token)


async def test_a_refund_that_was_spent_is_missing_and_said_so(place: Place) -> None:
    async with place.life("first") as life:
        key = await life.create(place.token(64))
        await life.create(place.token(7))
        await place.back_up("first")
        token = await life.refund(key, 7)
        other = await life.create(token)
        assert await life.balance_sat(other) == 7
    place.put_back("second")
    async with place.life("second") as life:
        told = await life.ask()
        assert told["missing_msat"] == 7_000
        assert told["found_msat"] == 7_000
        assert told["suspense_msat"] == 0
        assert told["covered"]
        await place.assert_whole(life)


async def spend_elsewhere(place: Place, token: str) -> None:
    """A payer's own swap at the mint."""
    async with open_session() as session:
        mint = HttpMint(place.mint.url, session, SystemClock())
        money = decode_token(token)
        plan = SwapPlan(
            mint=money.mint,
            unit="sat",
            keyset_id=money.proofs[0].keyset_id,
            first_counter=0,
            inputs=money.proofs,
            amounts=tuple(sorted(proof.amount for proof in money.proofs)),
        )
        done = await advance_swap(plan, mint, WalletKeys(b"payer" * 8), asked_before=False)
        assert isinstance(done, Done), done
        place.issued.append(Token(money.mint, "sat", done.proofs))


async def test_more_paid_out_than_came_in_is_told_until_it_is_earned_again(place: Place) -> None:
    async with place.life("first") as life:
        key = await life.create(place.token(64))
        await life.create(place.token(7))
        await place.back_up("first")
        await spend_elsewhere(place, await life.refund(key, 7))
    place.put_back("second")
    async with place.life("second") as life:
        told = await life.ask()
        assert (told["open"], told["covered"]) == (True, False)
        assert (told["missing_msat"], told["suspense_msat"]) == (7_000, -7_000)
        with open_audit(life.house.settings) as reader:
            verified = verify(reader)
        assert isinstance(verified, Broken)
        assert verified.invariant is Invariant.COVER
        await place.back_up("second", "again.db")  # a copy of it is as good as it is
        await life.pay(place.token(32))  # earned, and not withdrawn: that covers it again
        with open_audit(life.house.settings) as reader:
            assert not isinstance(verify(reader), Broken)


async def test_where_nobody_pays_the_mints_fee_proofs_stay_as_they_are(tmp_path: Path) -> None:
    mint = PlayMint(units=("sat",), fee_ppk=100)
    async with serving(mint) as url, serving(PlayUpstream()) as upstream_url:
        mint.url = url
        place = Place(mint, upstream_url, tmp_path)
        async with place.life("first") as life:
            key = await life.create(place.token(64))
            await place.back_up("first")
            await life.pay(place.token(32))
        place.put_back("second")
        async with place.life("second") as life:
            balance = await life.balance_sat_closed(key)
            told = await life.ask()
            assert told["open"]
            assert told["renewed_msat"] == 0
            assert told["not_renewed_msat"] == balance * 1_000
            assert told["found_msat"] == 31_000
            change = await life.pay(place.token(32))
            claimed = await life.ask(claim=True)
            assert claimed["claimed_msat"] == 31_000  # paid for by what was just earned
            await place.assert_whole(life, change)


async def test_tokens_that_were_swept_after_the_copy_are_no_broken_locks(place: Place) -> None:
    async with place.life("first", offline_max="1000 sat") as life:
        await life.house.worker.stop()  # the sweep is run by hand
        key = await life.create(place.token(8))
        lock = life.house.cashu.locked.public_key
        locked = place.mint.issue_with(lambda: p2pk_secret(secrets.token_hex(16), lock), 32)
        assert await life.topup(key, encode_token(locked)) == 200
        await place.back_up("first")
        await life.house.sweep.run()
        assert place.is_spent(encode_token(locked))
    place.put_back("second")
    async with place.life("second", offline_max="1000 sat") as life:
        told = await life.ask()
        assert told["open"]
        assert (told["swept_msat"], told["found_msat"]) == (32_000, 32_000)
        await life.house.sweep.run()
        loss = await life.house.store.account("expense:cashu-loss")
        assert loss is None
        assert await life.balance_sat(key) == 40
        assert await life.held_sat(unswapped_account(place.mint.url, "sat")) == 0
        assert await life.suspense_sat() == 0
        await place.assert_whole(life)


async def test_a_payment_that_was_open_in_the_copy_ends_as_it_ended_then(place: Place) -> None:
    async with place.life("first") as life:
        await life.house.worker.stop()  # what it takes up again is no longer unfinished
        key = await life.create(place.token(8))
        place.mint.faults.next("swap", DropAfter())
        place.mint.faults.next("checkstate", DropBefore())
        token = place.token(32)
        await life.topup(key, token)
        assert await life.house.operations.unfinished()
        await place.back_up("first")
        for operation in await life.house.operations.unfinished():
            await life.house.operations.advance(operation.id)
        assert await life.topup(key, token) == 200
        assert await life.balance_sat(key) == 40
    place.put_back("second")
    async with place.life("second") as life:
        told = await life.ask()
        assert told["open"]
        assert told["found_msat"] == 0, "an operation's own outputs are no found money"
        assert await life.balance_sat(key) == 40
        await place.assert_whole(life)


async def test_while_the_mint_is_away_the_book_stays_closed(place: Place) -> None:
    async with place.life("first") as life:
        await life.create(place.token(8))
        await place.back_up("first")
    place.put_back("second")
    async with place.life("second") as life:
        place.mint.faults.always("restore", DropBefore())
        told = await life.ask()
        assert not told["open"]
        assert told["away"] == [place.mint.url]
        await closed(life, "a copy made at")
    async with place.life("second") as life:
        place.mint.faults.clear()
        assert (await life.ask())["open"]


# ── several at once ──────────────────────────────────────────────────────────────────────────────


async def restored(place: Place) -> None:
    """A copy in `second` that lacks 64 sat."""
    async with place.life("first") as life:
        key = await life.create(place.token(8))
        await place.back_up("first")
        assert await life.topup(key, place.token(64)) == 200
    place.put_back("second")


async def test_two_who_ask_at_once_are_answered_one_after_the_other(place: Place) -> None:
    await restored(place)
    async with place.life("second") as life:
        told = await asyncio.gather(life.ask(), life.ask())
        assert sorted(one["found_msat"] for one in told) == [0, 64_000]
        assert all(one["open"] for one in told)
        await place.assert_whole(life)


async def test_nothing_is_found_in_a_book_that_another_process_has_opened(place: Place) -> None:
    await restored(place)
    async with place.life("second") as life:
        house = life.house
        end_operations = house.reconciling._end_operations

        async def opened_meanwhile() -> list[str]:
            left = await end_operations()
            await change_state(house.ledger, BookState(life=2))
            return left

        with (
            patch.object(house.reconciling, "_end_operations", opened_meanwhile),
            pytest.raises(StoreError, match="do not take what a mint said"),
        ):
            await life.ask()
        assert await life.proofs_sat(ProofUse.FOUND) == 0


# ── broken off ───────────────────────────────────────────────────────────────────────────────────


class PowerCut(Exception):
    """The process ended here."""


@contextmanager
def cut_at(life: Life, number: int, *, after: bool) -> Iterator[None]:
    """End the process before or after the n-th commit from now."""
    commit = life.house.store.commit
    left = number

    async def cut(unit: Unit, *, synced: bool = True) -> Outcome:
        nonlocal left
        left -= 1
        if left == 0 and not after:
            raise PowerCut
        outcome = await commit(unit, synced=synced)
        if left == 0:
            raise PowerCut
        return outcome

    with patch.object(life.house.store, "commit", cut):
        yield


async def killed_at(place: Place, number: int, *, after: bool) -> bool:
    """A restore that is killed at its n-th commit, then loses answers; returns if it was killed."""
    async with place.life("first") as life:
        key = await life.create(place.token(100))
        await life.create(place.token(7))
        await place.back_up("first")
        assert await life.topup(key, place.token(93)) == 200
        token = await life.refund(key, 7)
        await life.create(await life.refund(key, 30))
    place.put_back("second")
    was_killed = False
    async with place.life("second") as life:
        await life.house.worker.stop()
        try:
            with cut_at(life, number, after=after):
                await life.ask()
        except PowerCut:
            was_killed = True
    async with place.life("second") as life:
        await life.house.worker.stop()
        if life.house.doors.is_closed:
            lost = ("restore", "checkstate", "swap")[number % 3]
            place.mint.faults.next(lost, DropAfter() if after else DropBefore())
            await life.ask()
            place.mint.faults.clear()
        if life.house.doors.is_closed:
            assert (await life.ask())["open"]
        assert not await life.house.operations.unfinished()
        assert await life.balance_sat(key) == 100
        assert (await life.ask(claim=True))["open"]
        assert await life.suspense_sat() == 93
        await place.assert_whole(life, token)
    return was_killed


@pytest.mark.parametrize("after", [False, True])
async def test_it_may_be_killed_at_every_commit_and_lose_any_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    monkeypatch.setattr(reconcile, "_GAP", 200)  # what was signed is near, and each costs time
    number = 1
    async with serving(PlayUpstream()) as upstream_url:
        while True:
            mint, folder = PlayMint(units=("sat",)), tmp_path / str(number)
            folder.mkdir()
            async with serving(mint) as url:
                mint.url = url
                if not await killed_at(Place(mint, upstream_url, folder), number, after=after):
                    break
            number += 1
    assert number > 5


async def test_what_was_found_is_given_once_to_whom_the_operator_believes(place: Place) -> None:
    async with place.life("first") as life:
        key = await life.create(place.token(100))
        await place.back_up("first")
        assert await life.topup(key, place.token(64)) == 200
    place.put_back("second")
    async with place.life("second") as life:
        assert (await life.ask())["open"]
        shown = await life.house.keys.authenticate(key)
        assert isinstance(shown, ApiKey)
        given = GiveFound("g1", shown.id, 50_000)
        with pytest.raises(InvalidInput, match="--claim"):
            await carry_out(life.house, given)
        await life.ask(claim=True)
        left_sat = await life.suspense_sat()
        assert left_sat >= 64
        for _ in range(2):
            told = await carry_out(life.house, given)
            assert told["suspense_msat"] == (left_sat - 50) * 1_000
        assert await life.balance_sat(key) == 150
        too_much = GiveFound("g2", shown.id, left_sat * 1_000)
        with pytest.raises(InvalidInput, match="not so much"):
            await carry_out(life.house, too_much)
        another = GiveFound("g1", shown.id, 7_000)
        with pytest.raises(InvalidInput, match="something else already"):
            await carry_out(life.house, another)
        assert await life.balance_sat(key) == 150


# ── copies that nobody marked ────────────────────────────────────────────────────────────────────


def copy_files(source: Path, target: Path, *names: str) -> None:
    target.mkdir(exist_ok=True)
    for name in names:
        if (source / name).exists():
            shutil.copy(source / name, target / name)


async def test_files_put_back_are_known_by_what_was_seen_of_the_book(place: Place) -> None:
    first = place.folder / "first"
    async with place.life("first") as life:
        key = await life.create(place.token(8))
    copy_files(first, place.folder / "old", "farebox.db", "farebox.db-wal")
    async with place.life("first") as life:
        for _ in range(3):
            assert await life.balance_sat(key) == 8
            await life.house.doors.look()
            await life.house.keys.revoke("nobody")
            await life.create(place.token(4))
        await life.house.doors.look()
        await life.house.doors.look()
    for name in ("farebox.db", "farebox.db-wal"):
        (first / name).unlink(missing_ok=True)
    copy_files(place.folder / "old", first, "farebox.db", "farebox.db-wal")
    async with place.life("first") as life:
        await closed(life, "was seen here: this is an old copy")
        told = await life.ask()
        assert (told["open"], told["found_msat"]) == (True, 12_000)
    async with place.life("first") as life:
        assert await life.balance_sat(key) == 8


async def test_a_whole_directory_put_back_is_known_by_the_mint(place: Place) -> None:
    first = place.folder / "first"
    async with place.life("first") as life:
        await life.create(place.token(8))
    shutil.copytree(first, place.folder / "second")
    async with place.life("first") as life:
        await life.create(place.token(8))
    async with place.life("second") as life:
        await closed(life, "has signed for counters that this book calls free")
        assert (await life.ask())["found_msat"] == 8_000


async def test_an_ordinary_restart_stays_open_also_while_the_mint_is_away(place: Place) -> None:
    async with place.life("first") as life:
        key = await life.create(place.token(8))
        await life.house.doors.look()
        await life.house.doors.look()
    place.mint.faults.always("restore", DropBefore())
    async with place.life("first") as life:
        assert await life.balance_sat(key) == 8
        with pytest.raises(InvalidInput, match="the book is open"):
            await life.ask()
