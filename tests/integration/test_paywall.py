"""The paywall on a real book, with a payment method that needs no network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from farebox.clock import ManualClock
from farebox.errors import InvalidCredential, OutcomeUnknown, StoreError
from farebox.identity import FailureLimit, Keys
from farebox.identity.keys import API_KEY, KEY_COUNT, KeyTerms, NewKey
from farebox.ids import new_id
from farebox.ledger.model import Applied, Kind, Open, Outcome, Transfer, Unit
from farebox.ledger.processes import PROCESS, Processes
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger
from farebox.payments import (
    AbstractPaymentMethod,
    PaymentCredentials,
    PaymentMethods,
    PaymentPlan,
    PaymentResult,
    PlannedChange,
    Refusal,
    Rejected,
    Reserve,
    Unresolved,
)
from farebox.payments.deposits import DEPOSIT
from farebox.payments.maturity import MATURING
from farebox.payments.model import OPERATION
from farebox.payments.operations import Operations
from farebox.payments.service import Payments
from farebox.paywall.dialects import CashuOffer
from farebox.paywall.model import (
    REQUEST,
    Admission,
    Answer,
    BearerMoney,
    EmbeddedMoney,
    Ended,
    KeyPresented,
    NothingPresented,
    Presented,
)
from farebox.paywall.named import NAMED
from farebox.paywall.prices import Prices
from farebox.paywall.receipts import Receipts
from farebox.paywall.service import Paywall
from farebox.pricing.book import PriceBook
from farebox.pricing.parse import parse_price
from farebox.pricing.request import RequestFacts, read_request
from farebox.pricing.usage import Usage
from farebox.signer import Signer
from farebox.stores.sqlite import SqliteStore

FACTS = read_request("POST", "/v1/echo", None)


class Coins(AbstractPaymentMethod):
    """`coin:<name>:<msat>`: worth what it says, once; change is a text."""

    payment_type = "coins"
    credential_hint = "coin:…"

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.silent = False

    def can_handle(self, credential: str) -> bool:
        return credential.startswith("coin:")

    async def parse_credential(self, credential: str) -> PaymentCredentials:
        if credential.count(":") != 2:
            raise InvalidCredential("a coin has a name and an amount")
        return PaymentCredentials(credential, self.payment_type, identity=credential)

    async def plan_payment(
        self, credentials: PaymentCredentials, reserve: Reserve | None
    ) -> PaymentPlan | Refusal:
        del reserve
        amount = int(credentials.identity.rsplit(":", 1)[1])
        return PaymentPlan(credentials.raw_credential.encode(), "custody:coins", amount)

    async def receive_payment(
        self, payload: bytes, *, asked_before: bool
    ) -> PaymentResult | Rejected | Unresolved:
        coin = payload.decode()
        if coin not in self.taken:
            self.taken.append(coin)
        if self.silent and not asked_before:
            return Unresolved("no answer")
        amount = int(coin.rsplit(":", 1)[1])
        return PaymentResult(amount, "msat", self.payment_type, coin, amount)

    async def plan_change(self, owner: str, amount_msat: int) -> PlannedChange | None:
        del owner
        return PlannedChange(amount_msat, "custody:coins", str(amount_msat).encode())

    async def render_change(self, reference: bytes) -> str | None:
        return f"coin:change:{reference.decode()}"


class Terms:
    """Accepts one mint."""

    async def offer(self, amount_msat: int) -> CashuOffer | None:
        return CashuOffer(-(-amount_msat // 1000), "sat", ("https://mint.example",))


class House:
    """Everything behind one paywall, on one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.coins = Coins()
        self.clock = ManualClock()

    async def start(self, price: str = "10 sat") -> None:
        records: list[RecordType[Any]] = [PROCESS, API_KEY, KEY_COUNT, OPERATION, DEPOSIT]
        records += [REQUEST, NAMED, MATURING]
        self.store = SqliteStore(self.path, records, clock=self.clock)
        ledger = Ledger(self.store, self.clock)
        processes = Processes(ledger, alone=True)
        await processes.start()
        methods = PaymentMethods()
        methods.register(self.coins)
        signer = Signer(b"r" * 32)
        self.operations = Operations(ledger, processes)
        payments = Payments(ledger, self.operations, methods, signer)
        self.prices = Prices(PriceBook([parse_price(price)]))
        self.keys = Keys(ledger)
        self.paywall = Paywall(
            ledger,
            payments,
            self.keys,
            FailureLimit(self.clock, 20, 60),
            self.prices,
            Terms(),
            Receipts(signer),
            processes=processes,
            public_url="http://here",
        )
        opened = Unit(new_id("start"), (Open("revenue", "BTC", Kind.REVENUE),))
        assert isinstance(await self.store.commit(opened), Applied)

    async def crash(self, price: str = "10 sat") -> None:
        """Everything in memory is gone; the file stays."""
        await self.store.close()
        await self.start(price)

    async def balance(self, account: str) -> int:
        found = await self.store.account(account)
        return 0 if found is None else found.available

    async def admit(self, presented: Presented, facts: RequestFacts = FACTS) -> Admission:
        admitted = await self.paywall.authorise(presented, facts)
        assert isinstance(admitted, Admission), admitted
        return admitted

    async def refused(self, presented: Presented) -> dict[str, Any]:
        answer = await self.paywall.authorise(presented, FACTS)
        assert isinstance(answer, Answer)
        return document(answer)


def document(answer: Answer) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(answer.body)
    return decoded | {"status": answer.status}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path / "book.db")
    await made.start()
    yield made
    await made.store.close()


async def test_nothing_presented_is_told_what_would_be_enough(house: House) -> None:
    answer = await house.paywall.authorise(NothingPresented(), FACTS)
    assert isinstance(answer, Answer)
    headers = dict(answer.headers)
    assert answer.status == 402
    assert headers[b"x-cashu"].startswith(b"creqA")
    assert headers[b"cache-control"] == b"no-store"
    told = document(answer)
    assert (told["amount_msat"], told["unit"]) == (10_000, "sat")
    assert told["accepted_mints"] == ["https://mint.example"]


def test_two_payments_at_once_are_refused_untouched(house: House) -> None:
    both = [(b"x-cashu", b"coin:a:1"), (b"authorization", b"Bearer coin:b:1")]
    answer = house.paywall.read(both)
    assert isinstance(answer, Answer)
    assert document(answer)["code"] == "two_payments"
    assert house.coins.taken == []


async def test_embedded_money_pays_exactly_and_the_rest_comes_back(house: House) -> None:
    admitted = await house.admit(EmbeddedMoney("coin:a:25000"))
    settled = await house.paywall.settle(admitted, Usage(), Ended.COMPLETE)
    assert (settled.charged_msat, settled.returned_msat) == (10_000, 15_000)
    assert (b"x-cashu", b"coin:change:15000") in settled.headers
    assert await house.balance("revenue") == 10_000
    custody = await house.store.account("custody:coins")
    assert custody is not None
    assert custody.held == 10_000


async def test_the_same_money_again_finds_the_same_request(house: House) -> None:
    admitted = await house.admit(EmbeddedMoney("coin:a:25000"))
    running = await house.refused(EmbeddedMoney("coin:a:25000"))
    assert running["code"] == "request_in_progress"
    await house.paywall.settle(admitted, Usage(), Ended.COMPLETE)
    again = await house.refused(EmbeddedMoney("coin:a:25000"))
    assert (again["code"], again["token"]) == ("payment_used", "coin:change:15000")
    fetched = await house.paywall.change(admitted.request_id, BearerMoney("coin:a:25000"))
    assert (fetched.status, document(fetched)["token"]) == (200, "coin:change:15000")


async def test_change_is_told_only_to_who_has_the_money(house: House) -> None:
    admitted = await house.admit(EmbeddedMoney("coin:a:25000"))
    await house.paywall.settle(admitted, Usage(), Ended.COMPLETE)
    other = await house.paywall.change(admitted.request_id, BearerMoney("coin:b:25000"))
    nobody = await house.paywall.change(admitted.request_id, NothingPresented())
    assert (other.status, nobody.status) == (404, 401)


async def test_too_little_is_refused_before_anything_is_taken(house: House) -> None:
    told = await house.refused(EmbeddedMoney("coin:a:9999"))
    assert (told["status"], told["code"]) == (402, "insufficient_payment")
    assert house.coins.taken == []


async def test_an_unknown_outcome_forwards_nothing_and_loses_nothing(house: House) -> None:
    house.coins.silent = True
    told = await house.refused(EmbeddedMoney("coin:a:25000"))
    assert (told["status"], told["code"]) == (503, "payment_pending")
    admitted = await house.admit(EmbeddedMoney("coin:a:25000"))
    settled = await house.paywall.settle(admitted, Usage(), Ended.COMPLETE)
    assert (settled.charged_msat, settled.returned_msat) == (10_000, 15_000)


async def test_money_as_bearer_is_redeemed_once_and_is_then_a_key(house: House) -> None:
    for _ in range(2):
        admitted = await house.admit(BearerMoney("coin:a:25000"))
        await house.paywall.settle(admitted, Usage(), Ended.COMPLETE)
    assert house.coins.taken == ["coin:a:25000"]
    told = await house.refused(BearerMoney("coin:a:25000"))
    assert (told["code"], told["balance_msat"]) == ("insufficient_balance", 5_000)


async def test_a_refused_request_costs_nothing(house: House) -> None:
    admitted = await house.admit(EmbeddedMoney("coin:a:25000"))
    settled = await house.paywall.settle(admitted, Usage(), Ended.REFUSED)
    assert (settled.charged_msat, settled.returned_msat) == (0, 25_000)


async def test_a_crash_before_forwarding_gives_everything_back(house: House) -> None:
    admitted = await house.admit(EmbeddedMoney("coin:a:25000"))
    await house.crash()
    assert await house.paywall.recover() == 1
    told = await house.paywall.change(admitted.request_id, BearerMoney("coin:a:25000"))
    assert document(told)["returned_msat"] == 25_000


async def test_a_crash_in_mid_stream_charges_the_last_checkpoint(tmp_path: Path) -> None:
    house = House(tmp_path / "metered.db")
    await house.start("1 sat / output token")
    body = b'{"model":"m","max_tokens":20,"messages":[]}'
    facts = read_request("POST", "/v1/chat/completions", body)
    admitted = await house.admit(EmbeddedMoney("coin:a:25000"), facts)
    await house.paywall.checkpoint(admitted, Usage(output_tokens=3))
    await house.paywall.checkpoint(admitted, Usage(output_tokens=7))
    await house.crash("1 sat / output token")
    await house.paywall.recover()
    told = document(await house.paywall.change(admitted.request_id, BearerMoney("coin:a:25000")))
    assert (told["charged_msat"], told["returned_msat"]) == (7_000, 18_000)
    await house.store.close()


async def test_recovery_keeps_its_hands_off_what_runs(house: House) -> None:
    admitted = await house.admit(EmbeddedMoney("coin:a:25000"))
    assert await house.paywall.recover() == 0
    await house.paywall.settle(admitted, Usage(), Ended.COMPLETE)


async def test_settling_twice_charges_once(house: House) -> None:
    admitted = await house.admit(EmbeddedMoney("coin:a:25000"))
    first, second = await asyncio.gather(
        house.paywall.settle(admitted, Usage(), Ended.COMPLETE),
        house.paywall.settle(admitted, Usage(), Ended.CLIENT_LEFT),
    )
    assert first.charged_msat == second.charged_msat == 10_000
    assert await house.balance("revenue") == 10_000


async def test_a_key_pays_from_its_balance_and_stops_at_zero(house: House) -> None:
    account = "customer:k"
    made = await house.keys.create(account, KeyTerms())
    assert isinstance(made, NewKey)
    secret = made.secret
    fund = Unit(
        "fund",
        (
            Open("custody:x", "BTC", Kind.CUSTODY),
            Open(account, "BTC", Kind.CUSTOMER),
            Transfer("custody:x", account, 25_000, "fund"),
        ),
    )
    assert isinstance(await house.store.commit(fund), Applied)
    holds = [await house.admit(KeyPresented(secret)) for _ in range(2)]
    told = await house.refused(KeyPresented(secret))
    assert (told["status"], told["code"]) == (402, "insufficient_balance")
    for admitted in holds:
        await house.paywall.settle(admitted, Usage(), Ended.COMPLETE)
    assert await house.balance(account) == 5_000
    assert (await house.refused(KeyPresented("sk-nobody")))["code"] == "key_unknown"


async def test_a_quote_once_given_is_honoured_when_the_price_rises(house: House) -> None:
    await house.paywall.authorise(NothingPresented(), FACTS)
    house.prices.book = PriceBook([parse_price("20 sat")])
    admitted = await house.admit(EmbeddedMoney("coin:a:10000"))
    assert admitted.quote.maximum_msat == 10_000
    house.clock.advance(120)
    told = await house.refused(EmbeddedMoney("coin:b:10000"))
    assert told["amount_msat"] == 20_000


async def test_what_has_no_price_is_refused(house: House) -> None:
    house.prices.book = PriceBook([])
    told = await house.refused(EmbeddedMoney("coin:a:10000"))
    assert (told["status"], told["code"]) == (403, "no_price")
    assert house.coins.taken == []


async def test_a_credential_nothing_can_handle_is_told_what_is_accepted(house: House) -> None:
    told = await house.refused(BearerMoney("dollars"))
    assert told["status"] == 400
    assert "coin:…" in told["accepted"]


async def test_a_payer_collects_small_change_on_a_key(house: House) -> None:
    made = await house.keys.create("customer:k", KeyTerms())
    assert isinstance(made, NewKey)
    for coin in ("coin:a:25000", "coin:b:12000"):
        headers = [
            (b"x-cashu", coin.encode()),
            (b"x-farebox-change", f"credit; key={made.key.id}".encode()),
        ]
        presented = house.paywall.read(headers)
        assert isinstance(presented, EmbeddedMoney)
        settled = await house.paywall.settle(await house.admit(presented), Usage(), Ended.COMPLETE)
        assert settled.returned_msat == 0
    assert await house.balance("customer:k") == 17_000


@pytest.mark.parametrize("wish", [b"cash", b"credit; to=me", b"credit; key="])
async def test_a_wish_for_change_that_nobody_understands_is_refused(
    house: House, wish: bytes
) -> None:
    answer = house.paywall.read([(b"x-cashu", b"coin:a:25000"), (b"x-farebox-change", wish)])
    assert isinstance(answer, Answer)
    assert document(answer)["code"] == "change_not_understood"
    unknown = house.paywall.read(
        [(b"x-cashu", b"coin:a:25000"), (b"x-farebox-change", b"token; key=key_nobody")]
    )
    assert not isinstance(unknown, Answer)
    assert (await house.refused(unknown))["code"] == "change_not_understood"
    assert house.coins.taken == []


async def test_a_bill_that_could_not_be_written_is_written_by_recovery(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted = await house.admit(EmbeddedMoney("coin:a:25000"))

    async def full(_: Unit) -> Outcome:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(house.store, "commit", full)
        with pytest.raises(StoreError):
            await house.paywall.settle(admitted, Usage(), Ended.COMPLETE)
    assert await house.paywall.recover() == 1
    assert await house.paywall.recover() == 0
    assert await house.balance("revenue") == 10_000


async def test_a_bill_whose_commit_was_lost_on_the_way_back_is_not_written_twice(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted = await house.admit(EmbeddedMoney("coin:a:25000"))
    commit = house.store.commit

    async def answer_lost(unit: Unit) -> Outcome:
        await commit(unit)
        raise OutcomeUnknown(unit.id)

    with monkeypatch.context() as patched:
        patched.setattr(house.store, "commit", answer_lost)
        with pytest.raises(OutcomeUnknown):
            await house.paywall.settle(admitted, Usage(), Ended.COMPLETE)
    await house.paywall.recover()
    assert await house.balance("revenue") == 10_000
