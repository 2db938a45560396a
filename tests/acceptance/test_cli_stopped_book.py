"""The commands on a book whose server has stopped."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from farebox.bootstrap import Farebox
from farebox.cli.door import ask_server
from farebox.ledger.model import Hold, Kind, Open, Put, Unit, hold_id
from farebox.payments.carrying import SendPlan
from farebox.payments.model import OPERATION, Operation, OperationState
from farebox.paywall.model import Admission, Answer, EmbeddedMoney, Ended
from farebox.pricing.request import read_request
from farebox.pricing.usage import Usage
from farebox.settings import create_root_key, load_settings, read_root_key
from farebox.wire.cashu.token import decode_token
from tests.acceptance.world import Mint, Ran, call, run_here

PAID = read_request("POST", "/v1/echo", None)
SOLD = 3
PRICE_SAT = 10


class Book:
    """A book with some earnings in it, and nobody who serves it."""

    def __init__(self, folder: Path, mint: Mint, screen: pytest.CaptureFixture[str]) -> None:
        self.mint = mint
        self.data = folder / "data"
        self._screen = screen
        create_root_key(self.data)

    def house(self) -> Farebox:
        overrides: dict[str, Any] = {
            "data_dir": str(self.data),
            "mint": [{"url": self.mint.url}],
            "price": [{"price": f"{PRICE_SAT} sat"}],
        }
        settings = load_settings(None, {}, overrides)
        return Farebox(settings, read_root_key(self.data, {}))

    async def sell(self, count: int) -> None:
        async with self.house() as house:
            for _ in range(count):
                token = EmbeddedMoney(self.mint.token(16))
                admitted = await house.paywall.authorise(token, PAID)
                assert isinstance(admitted, Admission), admitted
                await house.paywall.settle(admitted, Usage(), Ended.COMPLETE)

    async def leave_open(self) -> None:
        """A token that the mint has taken, and then said nothing."""
        async with self.house() as house:
            await house.worker.stop()  # it would find out by itself
            self.mint.fail("swap", "DropAfter")
            self.mint.fail("checkstate", "DropBefore")
            token = EmbeddedMoney(self.mint.token(16))
            assert isinstance(await house.paywall.authorise(token, PAID), Answer)
        with contextlib.suppress(OSError):  # nobody else shall meet it, if nobody has asked yet
            call(f"{self.mint.url}/v1/checkstate", body={"Ys": []})

    async def leave_manual(self, amount_msat: int) -> str:
        """A withdrawal whose end nobody knows."""
        operation_id = "wd_lost"
        async with self.house() as house:
            custody = f"custody:cashu:{self.mint.url}:sat"
            plan = msgspec.json.encode(SendPlan("cashu", b""))
            row = Operation(
                id=operation_id,
                kind="refund",
                account="revenue",
                method="cashu",
                hold=hold_id(operation_id, 1),
                plan=house.signer.seal(plan, operation_id),
                state=OperationState.MANUAL,
                created_at=1,
                error="the mint contradicts itself",
            )
            steps = (
                Open(custody, "BTC", Kind.CUSTODY),
                Hold("revenue", custody, amount_msat, "refund"),
            )
            await house.store.commit(
                Unit(operation_id, steps, (Put(OPERATION, operation_id, row, 0),))
            )
        return operation_id

    def run(self, *arguments: str) -> Ran:
        return run_here(self._screen, *arguments, "--data", str(self.data))


@pytest.fixture
def book(
    tmp_path: Path,
    mint: Mint,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Book:
    monkeypatch.chdir(tmp_path)
    made = Book(tmp_path, mint, capfd)
    asyncio.run(made.sell(SOLD))
    return made


def test_balance_tells_custody_and_earnings(book: Book) -> None:
    facts = book.run("balance", "--json").json()
    earned_msat = SOLD * PRICE_SAT * 1_000
    assert facts["revenue_msat"] == facts["withdrawable_msat"] == earned_msat
    assert facts["custody_msat"] == earned_msat
    assert facts["customers_msat"] == facts["held_msat"] == facts["arriving_msat"] == 0
    assert facts["covered"] is True
    assert [place["held_msat"] for place in facts["custody"]] == [earned_msat]
    shown = book.run("balance").out
    assert "30 sat" in shown
    assert book.mint.url in shown


def test_a_withdrawal_is_a_token_that_the_mint_takes_and_tells_again(book: Book) -> None:
    done = book.run("withdraw", "20 sat", "--json")
    facts = done.json()
    assert facts["amount_msat"] == 20_000
    assert decode_token(facts["token"]).amount == 20
    assert facts["id"] in done.error  # told before anything moved
    again = book.run("withdraw", "--again", facts["id"], "--json").json()
    assert again == facts
    unknown = book.run("withdraw", "--again", "wd_nobody")
    assert (unknown.code, unknown.out) == (2, "")
    assert "no withdrawal 'wd_nobody' was begun" in unknown.error
    assert "no withdrawal '' was begun" in book.run("withdraw", "--again", "").error
    assert book.run("balance", "--json").json()["withdrawable_msat"] == 10_000


def test_a_withdrawal_pays_a_lightning_invoice_through_the_mint(book: Book) -> None:
    invoice = book.mint.invoice(12)
    facts = book.run("withdraw", "20 sat", "--to", invoice, "--json").json()
    assert 12_000 <= facts["amount_msat"] <= 20_000
    assert "token" not in facts
    left = book.run("balance", "--json").json()
    assert left["withdrawable_msat"] == 30_000 - facts["amount_msat"]
    assert left["custody_msat"] == left["withdrawable_msat"]


def test_who_lost_a_token_and_its_id_finds_both_again(book: Book) -> None:
    assert book.run("withdraw", "--list").out == "no withdrawals yet\n"
    lost = book.run("withdraw", "6 sat", "--json").json()
    invoice = book.run("withdraw", "20 sat", "--to", book.mint.invoice(12), "--json").json()
    unknown = asyncio.run(book.leave_manual(2_000))
    listed = book.run("withdraw", "--list", "--json")
    assert lost["token"] not in listed.out
    told = [
        (one["id"], one["method"], one["state"], one["amount_msat"])
        for one in listed.json()["withdrawals"]
    ]
    assert told == [
        (lost["id"], "cashu", "succeeded", 6_000),
        (invoice["id"], "cashu", "succeeded", invoice["amount_msat"]),
        (unknown, "cashu", "manual", None),
    ]
    first = book.run("withdraw", "--list", "--limit", "1", "--json").json()
    rest = book.run("withdraw", "--list", "--after", first["next"], "--json").json()
    assert [one["id"] for one in first["withdrawals"]] == [lost["id"]]
    assert [one["id"] for one in rest["withdrawals"]] == [invoice["id"], unknown]
    assert rest["next"] is None
    assert book.run("withdraw", "--list", "--after", unknown).out == (
        f"no withdrawals behind {unknown}\n"
    )
    shown = book.run("withdraw", "--list").out
    assert "6 sat" in shown
    assert "the mint contradicts itself" in shown
    again = book.run("withdraw", "--again", first["next"], "--json").json()
    assert again["token"] == lost["token"]


def test_a_list_of_withdrawals_is_asked_for_alone(book: Book) -> None:
    refused = book.run("withdraw", "5 sat", "--list")
    assert (refused.code, refused.out) == (2, "")
    assert "--list takes nothing out" in refused.error
    assert book.run("balance", "--json").json()["withdrawable_msat"] == 30_000


def test_of_two_commands_at_once_the_second_waits_for_the_first(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    async def first_is_done_at_the_third_look(*asked: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks == 3:
            lock.close()
        return await ask_server(*asked)

    with (book.data / "farebox.db.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr("farebox.cli.book.ask_server", first_is_done_at_the_third_look)
        done = book.run("withdraw", "5 sat", "--json")
    assert done.json()["amount_msat"] == 5_000
    assert done.error.count("waiting for it") == 1
    assert looks == 3


def test_a_book_that_another_keeps_is_not_waited_for_without_end(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farebox.cli.book._WAIT_S", 0)
    with (book.data / "farebox.db.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = book.run("withdraw", "5 sat")
    assert (refused.code, refused.out) == (2, "")
    assert "in use by process" in refused.error


def test_more_than_was_earned_cannot_be_withdrawn(book: Book) -> None:
    refused = book.run("withdraw", "31 sat")
    assert (refused.code, refused.out) == (2, "")
    assert "error: nothing was withdrawn" in refused.error
    assert book.run("balance", "--json").json()["withdrawable_msat"] == 30_000


def test_keys_are_made_listed_shown_and_revoked(book: Book) -> None:
    made = book.run("keys", "create", "--label", "a friend", "--expires-in", "30d", "--json").json()
    secret = made["api_key"]
    assert secret.startswith("sk-")
    listed = book.run("keys", "list", "--json")
    assert [key["id"] for key in listed.json()["keys"]] == [made["id"]]
    assert secret not in listed.out
    shown = book.run("keys", "show", made["id"]).out
    assert "a friend" in shown
    assert secret not in shown
    assert book.run("keys", "revoke", made["id"], "--json").json()["state"] == "revoked"


def test_a_key_is_not_made_with_an_address_that_nothing_can_pay_to(book: Book) -> None:
    refused = book.run("keys", "create", "--refund-address", "me-at-example.com")
    assert (refused.code, refused.out) == (2, "")
    assert "nothing here can pay to 'me-at-example.com'" in refused.error
    assert book.run("keys", "list", "--json").json()["keys"] == []
    made = book.run("keys", "create", "--refund-address", "me@example.com", "--json").json()
    assert made["refund_address"] == "me@example.com"


def test_a_key_that_is_not_there_is_one_sentence_with_a_way_out(book: Book) -> None:
    refused = book.run("keys", "show", "key_nobody")
    assert (refused.code, refused.out) == (2, "")
    assert refused.error == "error: there is no key 'key_nobody': `farebox keys list` shows all\n"


def test_verify_proves_a_whole_book_and_goes_on_from_there(book: Book) -> None:
    whole = book.run("verify", "--json").json()
    assert whole["ok"] is True
    assert whole["cover"]["BTC"] == {"custody": "30000", "owed": "0", "exchanged": "0"}
    asyncio.run(book.sell(1))
    later = book.run("verify", "--since-last", "--json")
    assert later.json()["units"] > whole["units"]


def test_verify_names_what_is_broken(book: Book) -> None:
    db = apsw.Connection(str(book.data / "farebox.db"))
    db.execute("UPDATE accounts SET credits_posted = '99000' WHERE id = 'revenue'")
    db.close()
    broken = book.run("verify", "--json")
    assert broken.code == 1
    facts = json.loads(broken.out)
    assert facts["ok"] is False
    assert "revenue" in facts["where"]
    assert "Traceback" not in broken.error


def test_recover_finds_out_at_once_what_became_of_a_token(book: Book) -> None:
    asyncio.run(book.leave_open())
    facts = book.run("recover", "--json").json()
    assert (facts["looked_at"], facts["unfinished"]) == (1, [])
    assert book.run("balance", "--json").json()["customers_msat"] == 16_000


def test_recover_names_the_ways_out_of_manual(book: Book) -> None:
    operation_id = asyncio.run(book.leave_manual(7_000))
    (listed,) = book.run("recover", "--json").json()["unfinished"]
    assert (listed["id"], listed["state"]) == (operation_id, "manual")
    assert f"--failed {operation_id}" in listed["way_out"]
    assert book.run("balance", "--json").json()["withdrawable_msat"] == 23_000
    assert book.run("recover", "--failed", operation_id, "--json").json()["unfinished"] == []
    assert book.run("balance", "--json").json()["withdrawable_msat"] == 30_000


def test_money_that_left_by_hand_can_be_noted(book: Book) -> None:
    operation_id = asyncio.run(book.leave_manual(7_000))
    noted = book.run("recover", "--succeeded", operation_id, "--amount", "6 sat", "--json")
    assert noted.json()["unfinished"] == []
    facts = book.run("balance", "--json").json()
    assert (facts["revenue_msat"], facts["custody_msat"]) == (24_000, 24_000)
    assert book.run("withdraw", "--again", operation_id, "--json").json()["amount_msat"] == 6_000


def test_a_command_on_no_book_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    capital = ["capital", "1 sat", "--at", "lightning"]
    commands = [["balance"], ["keys", "list"], ["recover"], ["withdraw"], capital]
    commands += [["verify"], ["backup", "copy.db"], ["export", "copy.book"]]
    for command in commands:
        refused = run_here(capfd, *command, "--data", "nowhere")
        assert (refused.code, refused.out) == (2, "")
        assert "`farebox serve`" in refused.error
    assert not (tmp_path / "nowhere").exists()
