"""Deposits that were asked for, whatever the rail: credited once, and honestly described."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from farebox.clock import NS_PER_S, ManualClock
from farebox.errors import RailUnavailable
from farebox.ids import derived_id
from farebox.ledger.model import Applied, Kind, Open, SetCeiling, Unit
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger
from farebox.money import BTC
from farebox.payments import PaymentCredentials, PaymentMethods, Refusal
from farebox.payments.deposits import (
    DEPOSIT,
    DEPOSIT_REQUEST,
    DepositRequest,
    Deposits,
    DepositState,
    Watch,
)
from farebox.payments.maturity import MATURING
from farebox.payments.rail import (
    AssetTerms,
    DepositMethod,
    DepositOrder,
    Limits,
    Payable,
    Sighting,
    Terms,
    Watched,
)
from farebox.payments.requests import Asked, Claimed, DepositRequests
from farebox.stores.sqlite import SqliteStore
from farebox.worker import WATCH_CURSOR, RailWatch

ASKED = 10_000
EXPIRY_S = 600
OWNER = "customer:owner"
CUSTODY = "custody:tray"


@dataclass
class Tray(DepositMethod):
    """A rail one can see through: coins are laid beside a name, and may vanish again."""

    clock: ManualClock
    payment_type = "tray"
    laid: dict[str, list[Sighting]] = field(default_factory=dict)
    tape: list[Watched] = field(default_factory=list)
    asked: int = 0
    is_down: bool = False

    @property
    def place(self) -> str:
        return CUSTODY

    def can_handle(self, credential: str) -> bool:
        return credential.startswith("tray:")

    def reference_of(self, credential: str) -> str:
        return credential.removeprefix("tray:")

    async def parse_credential(self, credential: str) -> PaymentCredentials:
        return PaymentCredentials(credential, "tray", {}, derived_id("tray", credential))

    async def ask(self, order: DepositOrder) -> Payable | Refusal:
        name = f"cup{order.request_id}"
        end = self.clock.now_ns() + EXPIRY_S * NS_PER_S
        return Payable(name, name, f"tray:{name}", CUSTODY, order.amount, end)

    async def look(self, reference: str) -> list[Sighting]:
        self.asked += 1
        if self.is_down:
            raise RailUnavailable("the tray is out")
        return self.laid.get(reference, [])

    async def watch(self, cursor: str) -> AsyncGenerator[Watched, None]:
        for watched in self.tape[int(cursor or 0) :]:
            yield watched
        raise RailUnavailable("the tape has ended")

    async def probe(self) -> None:
        return None

    def fee_max(self, amount: int, asset: str) -> int:
        return 0

    def terms(self) -> Terms:
        return Terms((AssetTerms(BTC, Limits(1_000, 50_000), None),), "none", 1)

    def lay(self, request: DepositRequest, amount: int, *, index: int = 0) -> Sighting:
        """Lay coins down, and have the tape tell of it."""
        sighting = Sighting(
            request.reference,
            f"coin-{request.reference}",
            amount,
            DepositState.CONFIRMED,
            index,
            self.clock.now_ns(),
        )
        self.laid.setdefault(request.reference, []).append(sighting)
        self.tape.append(Watched(sighting, str(len(self.tape) + 1)))
        return sighting


@dataclass
class Bench:
    """A book, the rail, and the requests between them."""

    ledger: Ledger
    clock: ManualClock
    tray: Tray
    requests: DepositRequests

    async def ask(self, amount: int | None = ASKED, *, account: str = OWNER) -> Asked:
        made = await self.requests.ask("tray", "BTC", amount, account, opens_account=False)
        assert isinstance(made, Asked), made
        return made

    async def available(self, account: str = OWNER) -> int:
        found = await self.ledger.store.account(account)
        return found.available if found else 0

    async def state(self, asked: Asked) -> tuple[str, tuple[str, ...]]:
        request = await self.requests.by_id(asked.request.id)
        assert request is not None
        standing = await self.requests.standing(request)
        return standing.state, standing.marks

    async def events(self, account: str = OWNER) -> list[str]:
        return [one.name for one in await self.ledger.store.events(subject=account)]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    clock = ManualClock()
    records: list[RecordType[Any]] = [DEPOSIT, DEPOSIT_REQUEST, MATURING, WATCH_CURSOR]
    store = SqliteStore(tmp_path / "book.db", records, clock=clock)
    ledger, tray = Ledger(store, clock), Tray(clock)
    methods = PaymentMethods()
    methods.register(tray)
    yield Bench(ledger, clock, tray, DepositRequests(ledger, Deposits(ledger), methods))
    await store.close()


async def test_a_deposit_goes_from_awaiting_to_credited_and_says_so(bench: Bench) -> None:
    asked = await bench.ask()
    assert await bench.state(asked) == ("awaiting", ())
    seen = bench.tray.lay(asked.request, ASKED)
    await bench.requests.seen("tray", replace(seen, state=DepositState.DETECTED))
    assert await bench.state(asked) == ("detected", ())
    assert await bench.available() == 0
    await bench.requests.seen("tray", seen)
    assert await bench.state(asked) == ("credited", ())
    assert await bench.available() == ASKED
    assert await bench.events() == ["deposit.requested", "deposit.detected", "deposit.credited"]


async def test_subscription_poller_caller_and_rescan_credit_once(bench: Bench) -> None:
    asked = await bench.ask()
    seen = bench.tray.lay(asked.request, ASKED)
    watch = RailWatch(bench.tray, bench.requests, bench.ledger)
    reports = [bench.requests.seen("tray", seen) for _ in range(20)]
    looks = [bench.requests.look(asked.request) for _ in range(20)]
    tapes = [watch.listen_once() for _ in range(5)]
    await asyncio.gather(
        *reports, *looks, bench.requests.poll("tray"), *tapes, return_exceptions=True
    )
    assert await bench.available() == ASKED
    assert (await bench.events()).count("deposit.credited") == 1


@pytest.mark.parametrize(
    ("amount", "late_s", "marks"),
    [
        (ASKED, 0, ()),
        (ASKED - 1, 0, ("short",)),
        (ASKED + 1, 0, ("over",)),
        (ASKED, EXPIRY_S, ("late",)),
        (ASKED - 1, EXPIRY_S + 10**6, ("late", "short")),
    ],
)
async def test_what_is_unlike_what_was_asked_for_is_credited_and_said(
    bench: Bench, amount: int, late_s: int, marks: tuple[str, ...]
) -> None:
    asked = await bench.ask()
    bench.clock.advance(late_s)
    bench.tray.lay(asked.request, amount)
    await bench.requests.poll("tray")
    assert await bench.state(asked) == ("credited", marks)
    assert await bench.available() == amount
    told = [name for name in await bench.events() if name.rpartition(".")[2] in marks]
    assert told == [f"deposit.{mark}" for mark in marks]


async def test_an_address_that_is_paid_in_parts_credits_each_once(bench: Bench) -> None:
    asked = await bench.ask()
    bench.tray.lay(asked.request, 4_000)
    await bench.requests.look(asked.request)
    assert await bench.state(asked) == ("credited", ("short",))
    bench.tray.lay(asked.request, 6_000, index=1)
    bench.clock.advance(10)
    await bench.requests.poll("tray")
    await bench.requests.look(asked.request)
    assert await bench.state(asked) == ("credited", ())
    assert await bench.available() == ASKED


async def test_it_expires_is_closed_after_its_grace_and_credited_even_then(bench: Bench) -> None:
    asked = await bench.ask()
    bench.clock.advance(EXPIRY_S)
    assert await bench.state(asked) == ("expired", ())
    await bench.requests.poll("tray")
    bench.clock.advance(bench.tray.grace_s)
    await bench.requests.poll("tray")
    request = await bench.requests.by_id(asked.request.id)
    assert request is not None
    assert request.watch is Watch.CLOSED
    before = bench.tray.asked
    bench.clock.advance(10**6)
    await bench.requests.poll("tray")
    assert bench.tray.asked == before, "a closed one is asked about no more"
    bench.tray.lay(asked.request, ASKED)
    with pytest.raises(RailUnavailable):
        await RailWatch(bench.tray, bench.requests, bench.ledger).listen_once()
    assert await bench.state(asked) == ("credited", ("late",))


async def test_the_subscription_resumes_behind_what_it_has_credited(bench: Bench) -> None:
    watch = RailWatch(bench.tray, bench.requests, bench.ledger)
    for number in range(1, 4):
        bench.tray.lay((await bench.ask()).request, ASKED)
        with pytest.raises(RailUnavailable):
            await watch.listen_once()
        row = await bench.ledger.store.get(WATCH_CURSOR, CUSTODY)
        assert row is not None
        assert row.value.position == str(number)
    assert await bench.available() == 3 * ASKED


async def test_a_line_that_held_for_a_while_is_taken_up_again_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing was paid meanwhile; one that breaks at once is tried ever less often."""
    lasts_s = iter((0, 0, 0, 0, 900, 0, 0))
    pauses: list[float] = []
    is_over = asyncio.Event()

    async def listen() -> None:
        bench.clock.advance(next(lasts_s))
        raise RailUnavailable("the line is broken")

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 7:
            is_over.set()
            await asyncio.Event().wait()

    listener = RailWatch(bench.tray, bench.requests, bench.ledger)
    monkeypatch.setattr(listener, "listen_once", listen)
    monkeypatch.setattr("farebox.worker.watch.asyncio.sleep", sleep)
    await listener.poll()
    await is_over.wait()
    await listener.stop()
    assert pauses == [1, 2, 4, 8, 1, 2, 4]


async def test_what_nobody_asked_for_is_left_alone(bench: Bench) -> None:
    stranger = Sighting("somebody", "coin", 5, DepositState.CONFIRMED)
    assert await bench.requests.seen("tray", stranger) is None
    assert await bench.ledger.store.account(CUSTODY) is None


async def test_over_the_ceiling_it_waits_confirmed_until_there_is_room(bench: Bench) -> None:
    asked = await bench.ask()
    await ceiling(bench, ASKED - 1)
    refused = await bench.requests.ask("tray", "BTC", ASKED, OWNER, opens_account=False)
    assert isinstance(refused, Refusal)
    assert refused.code == "custody_full"
    bench.tray.lay(asked.request, ASKED)
    await bench.requests.look(asked.request)
    assert await bench.state(asked) == ("confirmed", ())
    assert await bench.available() == 0
    await ceiling(bench, ASKED)
    bench.clock.advance(10)
    await bench.requests.poll("tray")
    assert await bench.state(asked) == ("credited", ())
    assert await bench.available() == ASKED


async def test_what_waits_for_room_is_asked_about_however_long(bench: Bench) -> None:
    """A rail's subscription has told of it and is past it: only the poller credits it yet."""
    asked = await bench.ask()
    await ceiling(bench, ASKED - 1)
    bench.tray.lay(asked.request, ASKED)
    for _ in range(2):
        await bench.requests.poll("tray")
        bench.clock.advance(EXPIRY_S + bench.tray.grace_s)
    await ceiling(bench, ASKED)
    await bench.requests.poll("tray")
    assert await bench.state(asked) == ("credited", ())
    assert await bench.available() == ASKED


async def test_a_reversed_deposit_is_owed_and_shown(bench: Bench) -> None:
    asked = await bench.ask()
    seen = bench.tray.lay(asked.request, ASKED)
    await bench.requests.seen("tray", seen)
    await bench.requests.seen("tray", replace(seen, state=DepositState.REVERSED))
    assert await bench.state(asked) == ("reversed", ())
    assert await bench.available() == 0
    await bench.requests.seen("tray", seen)
    assert await bench.available() == 0, "what was taken back is not credited again"


async def test_what_came_beside_a_reversed_deposit_is_not_hidden_by_it(bench: Bench) -> None:
    asked = await bench.ask()
    gone, anew = (bench.tray.lay(asked.request, ASKED, index=number) for number in (0, 1))
    await bench.requests.seen("tray", gone)
    await bench.requests.seen("tray", replace(gone, state=DepositState.REVERSED))
    await bench.requests.seen("tray", replace(anew, state=DepositState.DETECTED))
    assert await bench.state(asked) == ("detected", ())
    await bench.requests.seen("tray", anew)
    assert await bench.state(asked) == ("credited", ())
    assert await bench.available() == ASKED


async def test_a_standing_is_of_one_moment_whatever_is_credited_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = await bench.ask()
    coins = [bench.tray.lay(asked.request, ASKED, index=number) for number in range(3)]
    honest = bench.ledger.store.get

    async def get(record: RecordType[Any], key: str) -> Any:
        row = await honest(record, key)
        if record is DEPOSIT_REQUEST and coins:  # after the request was read, before the rest is
            with monkeypatch.context() as now:
                now.setattr(bench.ledger.store, "get", honest)
                await bench.requests.seen("tray", coins.pop())
        return row

    monkeypatch.setattr(bench.ledger.store, "get", get)
    standing = await bench.requests.standing(asked.request)
    told = sum(one.amount for one in standing.deposits if one.state is DepositState.CREDITED)
    assert (standing.state, standing.request.credited_msat) == ("credited", told)
    assert told == 3 * ASKED


async def test_the_poller_asks_the_old_less_often_and_a_dead_rail_not_on(bench: Bench) -> None:
    for _ in range(3):
        await bench.ask()
    assert await bench.requests.poll("tray") == 3
    assert await bench.requests.poll("tray") == 0, "they were asked about a moment ago"
    bench.clock.advance(3)
    assert await bench.requests.poll("tray") == 3
    bench.clock.advance(200)
    await bench.requests.poll("tray")
    bench.clock.advance(10)
    assert await bench.requests.poll("tray") == 0, "at 200 s of age a tenth of that is the pause"
    bench.clock.advance(60)
    bench.tray.is_down = True
    with pytest.raises(RailUnavailable):
        await bench.requests.poll("tray")


async def test_a_claim_needs_the_account_or_the_secret(bench: Bench) -> None:
    own = await bench.requests.ask("tray", "BTC", ASKED, "customer:new", opens_account=True)
    assert isinstance(own, Asked)
    reference = own.request.reference
    codes = []
    for account, secret in (("", ""), (OWNER, ""), (OWNER, "claim-wrong"), ("", "claim-wrong")):
        claimed = await bench.requests.claim("tray", reference, account=account, secret=secret)
        assert isinstance(claimed, Refusal)
        codes.append(claimed.code)
    assert codes == ["not_addressed_to_you"] * 2 + ["claim_refused"] * 2
    bench.tray.lay(own.request, ASKED)
    claimed = await bench.requests.claim("tray", reference, secret=own.claim_secret)
    assert claimed == Claimed("customer:new", ASKED, opens_account=True, asset="BTC")
    late = await bench.requests.claim("tray", reference, account=OWNER, secret=own.claim_secret)
    assert isinstance(late, Refusal)
    assert late.code == "already_credited"
    assert await bench.available() == 0


async def test_redirected_and_paid_at_once_it_lands_on_one_account(bench: Bench) -> None:
    for number in range(8):
        fresh = f"customer:fresh{number}"
        own = await bench.requests.ask("tray", "BTC", ASKED, fresh, opens_account=True)
        assert isinstance(own, Asked)
        seen = bench.tray.lay(own.request, ASKED)
        await asyncio.gather(
            bench.requests.seen("tray", seen),
            bench.requests.claim(
                "tray",
                own.request.reference,
                account=f"customer:k{number}",
                secret=own.claim_secret,
            ),
        )
        both = [await bench.available(fresh), await bench.available(f"customer:k{number}")]
        assert sorted(both) == [0, ASKED]


async def test_limits_assets_and_methods_are_refused_with_what_is_allowed(bench: Bench) -> None:
    for method, asset, amount, code in (
        ("card", "BTC", ASKED, "method_unknown"),
        ("tray", "USD", ASKED, "asset_unknown"),
        ("tray", "BTC", 999, "amount_out_of_bounds"),
        ("tray", "BTC", 50_001, "amount_out_of_bounds"),
    ):
        refused = await bench.requests.ask(method, asset, amount, OWNER, opens_account=False)
        assert isinstance(refused, Refusal)
        assert refused.code == code


async def ceiling(bench: Bench, amount: int) -> None:
    steps = (Open(CUSTODY, "BTC", Kind.CUSTODY), SetCeiling(CUSTODY, amount))
    outcome = await bench.ledger.store.commit(Unit(f"ceiling{amount}", steps))
    assert isinstance(outcome, Applied)
