"""A store and the plain model must agree on every answer and every balance, crashes included."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from farebox.clock import NS_PER_S
from farebox.ledger.invariants import verify
from farebox.ledger.model import (
    Applied,
    Balancing,
    Event,
    Guard,
    Hold,
    Kind,
    Mismatch,
    Open,
    Outcome,
    Post,
    Put,
    Refused,
    Replayed,
    SetCeiling,
    Stale,
    Step,
    Taken,
    Transfer,
    Unit,
    Void,
)
from farebox.ledger.replay import Broken, Invariant
from farebox.ledger.store import Store
from tests.contract.store.books import JOB, Backend, Job, PostgresBook, SqliteBook
from tests.contract.store.plain_model import Books
from tests.peers.postgres import Postgres

T = TypeVar("T")

CHART = {
    "custody": ("BTC", Kind.CUSTODY),
    "owed": ("BTC", Kind.RECEIVABLE),
    "a": ("BTC", Kind.CUSTOMER),
    "b": ("BTC", Kind.CUSTOMER),
    "revenue": ("BTC", Kind.REVENUE),
    "clearing": ("BTC", Kind.CLEARING),
    "gold": ("XAU", Kind.CUSTODY),
}
KEYS = ("x", "y", "z")

HUGE = (-1, 10**20, 2**126, 2**127 - 1, 2**127)


class Imagination:
    """Makes up units from a seed: mostly sensible, always of every sort."""

    def __init__(self, seed: int, books: Books) -> None:
        self.draw = random.Random(seed)
        self.holds = list(books.holds)[-12:]
        self.known = list(books.told)[-20:]
        self.versions = {key: version for (_, key), (version, _) in books.rows.items()}

    def account(self) -> str:
        return self.draw.choice(["custody", "a", "a", "b", "revenue", *CHART, "nobody"])

    def amount(self) -> int:
        return self.draw.choice(HUGE) if self.draw.random() < 0.05 else self.draw.randint(0, 60)

    def hold(self) -> str:
        return self.draw.choice([*self.holds, *self.holds, "none/0"])

    def version(self, key: str) -> int:
        return self.versions.get(key, 0) + (self.draw.random() < 0.1)

    def step(self) -> Step:
        draw = self.draw
        debit, credit, amount = self.account(), self.account(), self.amount()
        timeout_ns = draw.choice([0, 3, 30]) * NS_PER_S
        timeout_ns += NS_PER_S // 4 if timeout_ns else 0  # the clock moves by half seconds
        name = draw.choice(list(CHART))
        common: list[Step] = [
            Transfer("custody", draw.choice("ab"), amount, "deposit"),
            Hold(draw.choice("ab"), draw.choice(["revenue", "custody"]), amount, "h", timeout_ns),
            Post(self.hold(), draw.choice([None, 0, 5, amount])),
            Void(self.hold()),
        ]
        rare: list[Step] = [
            Transfer(debit, credit, amount, "t"),
            Transfer(debit, credit, amount, "t", draw.choice([*Balancing])),
            Hold(debit, credit, amount, "h", timeout_ns),
            SetCeiling(draw.choice(["custody", debit]), draw.choice([None, None, 900, amount])),
            Open(name, *CHART[draw.choice([name, name, "a"])]),
        ]
        return draw.choice(common if draw.random() < 0.6 else rare)

    def unit(self) -> Unit:
        draw = self.draw
        fresh = f"u{draw.getrandbits(40)}"
        unit_id = fresh if draw.random() < 0.9 else draw.choice(self.known)
        made = tuple(self.step() for _ in range(draw.choice([0, 1, 1, 1, 2, 3])))
        keys = draw.sample(KEYS, draw.choice([0, 0, 0, 1, 2]))
        puts = (Put(JOB, key, Job(count=draw.randint(0, 9)), self.version(key)) for key in keys)
        guard = Guard(JOB, key := draw.choice(KEYS), self.version(key))
        event = Event("e", "s", {"k": draw.randint(0, 9)}, {"amount": 0} if made else {})
        return Unit(
            unit_id,
            made,
            tuple(puts),
            (guard,) if draw.random() < 0.05 else (),
            (event,) * draw.choice([0, 0, 1, 2]),
            draw.choice([b"", b"", b"", b"other"]),
            draw.random() < 0.3,
        )


seeds = st.integers(0, 2**32)


class OneBook(RuleBasedStateMachine):
    """One book, driven from outside. Run by `drive`, which says on which backend."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.backend = backend
        self.clock = backend.clock()
        self.model = Books()
        self.opened = AsyncExitStack()
        self.store = self.run(self.open())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    async def open(self) -> Store:
        return await self.opened.enter_async_context(self.backend.open(self.clock))

    @initialize()
    def chart(self) -> None:
        self.commit([Unit("chart", tuple(Open(name, *chart) for name, chart in CHART.items()))])

    @rule(seed=seeds, size=st.integers(1, 40))
    def batch(self, seed: int, size: int) -> None:
        imagine = Imagination(seed, self.model)
        self.commit([imagine.unit() for _ in range(size)])

    @rule(seed=seeds, seconds=st.integers(1, 20))
    def one_unit_later(self, seed: int, seconds: int) -> None:
        """Before it is decided, holds that are due are released on the accounts that it names."""
        unit = Imagination(seed, self.model).unit()
        # Never exactly when a hold is due, as the store's time may lead by some nanoseconds.
        self.clock.advance(seconds + 0.5)
        self.model.expire(self.clock.now_ns(), self.model.touched(unit))
        self.commit([unit])
        self.run(self.store.expire_due())
        self.model.expire(self.clock.now_ns())

    def commit(self, made: list[Unit]) -> None:
        async def commit() -> list[Outcome]:
            return list(await asyncio.gather(*(self.store.commit(unit) for unit in made)))

        for unit, outcome in zip(made, self.run(commit()), strict=True):
            at = outcome.at if isinstance(outcome, Applied) else self.clock.now_ns()
            assert plain(outcome) == self.model.commit(unit, at), unit

    @rule()
    def close_and_open(self) -> None:
        self.run(self.opened.aclose())
        self.store = self.run(self.open())

    @rule()
    def crash_and_open(self) -> None:
        """Nothing is closed before: what was answered must be there all the same."""
        killed, self.opened = self.opened, AsyncExitStack()
        self.backend.crash()
        self.run(killed.aclose())
        self.store = self.run(self.open())

    @invariant()
    def agree(self) -> None:
        self.run(self.compare())

    async def compare(self) -> None:
        stored = {account.id: account for account in await self.store.accounts()}
        assert stored.keys() == self.model.accounts.keys()
        for name, expected in self.model.accounts.items():
            found = stored[name]
            assert (
                found.debits_pending,
                found.debits_posted,
                found.credits_pending,
                found.credits_posted,
                found.ceiling,
            ) == tuple(expected[key] for key in ("dp", "d", "cp", "c", "top")), name
        rows = {
            ("test.job", key): (row.version, row.value)
            for key, row in await self.store.find(JOB, {})
        }
        assert rows == self.model.rows
        events = await self.store.events(max(0, len(self.model.events) - 500))
        assert [(e.name, e.subject, e.data) for e in events] == self.model.events[-500:]

    def teardown(self) -> None:
        self.run(self.opened.aclose())
        self.loop.close()
        with self.backend.reader() as reader:
            result = verify(reader)
        self.backend.remove()
        # Any transfer is allowed here, so custody need not cover what is owed; all else must hold.
        if isinstance(result, Broken):
            assert result.invariant is Invariant.COVER, str(result)
        else:
            assert result[0].seq == self.model.units


def plain(outcome: Outcome) -> tuple[Any, ...]:
    match outcome:
        case Applied():
            return ("applied", outcome.amounts)
        case Refused():
            return ("refused", outcome.step, outcome.code)
        case Replayed():
            return ("replayed", plain(outcome.first))
        case Mismatch():
            return ("mismatch",)
        case Stale():
            return ("stale", outcome.kind, outcome.key)
        case Taken():
            return ("taken", outcome.kind, outcome.key)


def drive(new_book: Callable[[], Backend], lives: int) -> None:
    """So many lives of up to 30 steps of up to 40 units."""

    class Life(OneBook):
        def __init__(self) -> None:
            super().__init__(new_book())

    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=lives,
            # Phase.shrink would make a failure smaller, and takes minutes for it: add it when
            # there is one.
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )


def test_a_book_in_sqlite_agrees_with_the_plain_model(tmp_path: Path) -> None:
    drive(lambda: SqliteBook(Path(tempfile.mkdtemp(dir=tmp_path))), lives=40)


def test_a_book_in_postgres_agrees_with_the_plain_model(postgres: Postgres) -> None:
    drive(lambda: PostgresBook(postgres), lives=12)
