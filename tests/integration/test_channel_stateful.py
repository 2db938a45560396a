"""Whatever the order of requests, losses, replays and restarts: nothing unpaid but the last
request, nothing signed beyond the limit but what was answered, and the sums agree."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from farebox.channels import (
    RECORDS,
    ClaimPolicy,
    HttpPaymentCodec,
    PaymentChannelPayerClient,
    RequestMetadata,
    SpendingLimits,
)
from farebox.channels.model import SubChannel
from farebox.channels.processor import Admission
from farebox.clock import ManualClock
from farebox.errors import SigningRefused
from farebox.ids import new_id
from farebox.ledger.service import Ledger
from farebox.stores.sqlite import SqliteStore
from farebox.testing.channels import PlayContract
from farebox.wire.subrav.payload import PaymentError, ResponsePayload
from tests.integration.channel_world import (
    ASSET,
    CHANNEL_ID,
    KEY,
    PAYER_DID,
    World,
    check_books,
    world,
)

R = TypeVar("R")

CODEC = HttpPaymentCodec()
LIMITS = SpendingLimits(request_max=10**9, unserved_max=15_000_000, total_max=10**12)
FRAGMENTS = ("first", "second")
#: Echo has a fixed price; the price of a chat is known after it was served.
ROUTES = {"/echo": 0, "/chat/completions": 120, "/broken": 0}

fragments = st.sampled_from(FRAGMENTS)
routes = st.sampled_from(sorted(ROUTES))
#: How far a request gets before something breaks.
FATES = ("answered", "request lost", "payee killed", "answer lost", "payer killed")
fates = st.sampled_from(FATES)
MISHAPS = (
    "restart_payee",
    "restart_payer",
    "payer_loses_everything",
    "half_an_hour_passes",
    "claims_lose_their_answers",
)


class Trade(RuleBasedStateMachine):
    """One payee, one payer with two keys, and everything that may go wrong between them."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        self.contract = PlayContract()
        self.served = dict.fromkeys(FRAGMENTS, 0)
        self.answered_cost = dict.fromkeys(FRAGMENTS, 0)
        self.forgotten = dict.fromkeys(FRAGMENTS, 0)
        #: What was sent last, and the name of its authorization.
        self.sent: dict[str, tuple[str, str]] = {}
        #: How often each authorization was served.
        self.authorized: Counter[str] = Counter()
        self.life = 0

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        return self.loop.run_until_complete(work)

    @initialize()
    def open(self) -> None:
        self.run(self.start_payee())
        self.run(self.start_payer())
        for fragment in FRAGMENTS:
            self.run(self.town.open(fragment=fragment))

    async def start_payee(self) -> None:
        self.payee = AsyncExitStack()
        self.town: World = await self.payee.enter_async_context(
            world(
                Path(self.directory.name),
                clock=self.clock,
                contract=self.contract,
                claim_policy=ClaimPolicy(min_claim_amount=1, threshold=30_000_000),
            )
        )

    async def start_payer(self) -> None:
        book = Path(self.directory.name) / f"payer{self.life}.db"
        self.payer_store = SqliteStore(book, RECORDS, clock=self.clock)
        ledger = Ledger(self.payer_store, self.clock)
        self.payers = {
            fragment: PaymentChannelPayerClient(
                ledger, self.contract, KEY, CHANNEL_ID, fragment, LIMITS
            )
            for fragment in FRAGMENTS
        }

    # ── what happens ─────────────────────────────────────────────────────────────────────────────

    @rule(fragment=fragments, path=routes, fate=fates)
    def request(self, fragment: str, path: str, fate: str) -> None:
        self.run(self.asks(fragment, path, fate))

    @rule(fragment=fragments, paths=st.lists(routes, min_size=1, max_size=3))
    def requests_go_well(self, fragment: str, paths: list[str]) -> None:
        for path in paths:
            self.run(self.asks(fragment, path, "answered"))

    @rule(fragment=fragments, path=routes)
    def replay(self, fragment: str, path: str) -> None:
        """Somebody sends again what was sent before, with a request of his own."""
        if fragment in self.sent:
            self.run(self.serve(fragment, path, *self.sent[fragment], is_killed=False))

    @rule(fragment=fragments, path=routes, count=st.integers(2, 4))
    def requests_come_at_once(self, fragment: str, path: str, count: int) -> None:
        """A client that keeps no queue sends one voucher with several requests; and all answers
        are lost."""
        self.run(self.asks_at_once(fragment, path, count))

    @rule(mishap=st.sampled_from(MISHAPS))
    def mishap(self, mishap: str) -> None:
        self.run(getattr(self, mishap)())

    async def restart_payee(self) -> None:
        await self.payee.aclose()
        await self.start_payee()

    async def restart_payer(self) -> None:
        await self.payer_store.close()
        await self.start_payer()

    async def payer_loses_everything(self) -> None:
        await self.payer_store.close()
        self.life += 1
        await self.start_payer()
        for fragment in FRAGMENTS:
            await self.recover(fragment)

    async def half_an_hour_passes(self) -> None:
        self.clock.advance(1_801)
        await self.town.processor.clear_expired_proposals()
        await self.town.claims.run_once()

    async def claims_lose_their_answers(self) -> None:
        self.contract.loses_answers = True
        await self.town.claims.trigger(CHANNEL_ID)
        self.contract.loses_answers = False

    # ── how ──────────────────────────────────────────────────────────────────────────────────────

    async def asks_at_once(self, fragment: str, path: str, count: int) -> None:
        sent, before = (
            await self.payers[fragment].sign_and_encode(None, CODEC),
            self.served[fragment],
        )
        calls = [
            self.serve(fragment, path, sent, new_id("auth"), is_killed=False) for _ in range(count)
        ]
        await asyncio.gather(*calls)
        assert self.served[fragment] - before <= 1

    async def asks(self, fragment: str, path: str, fate: str) -> None:
        payer = self.payers[fragment]
        for _ in range(2):  # payment-kit retries once, and so does whoever follows it
            sent = await payer.sign_and_encode(None, CODEC)
            if fate == "payer killed":
                await self.payer_store.close()
                await self.start_payer()
                return
            if fate == "request lost":
                return
            self.sent[fragment] = sent, new_id("auth")
            is_killed = fate == "payee killed"
            told = await self.serve(fragment, path, *self.sent[fragment], is_killed=is_killed)
            if told is None or fate != "answered":
                return
            if told.sub_rav is None and told.error is None:
                await payer.answered_free()
                return
            try:
                heard = await payer.decode_and_validate(told.header(), CODEC)
            except SigningRefused:
                return  # it has lost more answers than it may pay for: this channel is over
            self.answered_cost[fragment] += heard.cost
            if not heard.is_retry_wanted:
                return

    async def serve(
        self, fragment: str, path: str, sent: str, once: str, *, is_killed: bool
    ) -> ResponsePayload | None:
        payment = CODEC.decode(sent)
        request = RequestMetadata(
            operation=path,
            channel_id=CHANNEL_ID,
            vm_id_fragment=fragment,
            payer_did=PAYER_DID,
            once=once,
            max_amount=payment.metadata.max_amount,
            facts={"path": path, "method": "POST"},
        )
        processor = self.town.processor
        admitted = await processor.admit(request, payment.signed_sub_rav)
        reference = payment.metadata.client_tx_ref
        if not isinstance(admitted, Admission):
            code = admitted.error_code or "PAYMENT_REQUIRED"
            return ResponsePayload(
                client_tx_ref=reference,
                sub_rav=admitted.unsigned_sub_rav,
                error=PaymentError(code, "refused"),
            )
        self.authorized[once] += 1
        if path == "/broken":
            result = await processor.release(admitted)
        else:
            self.served[fragment] += 1
            if is_killed:
                await self.payee.aclose()
                await self.start_payee()
                return None
            result = await processor.settle(admitted, ROUTES[path])
        if result.unsigned_sub_rav is None:
            return ResponsePayload(client_tx_ref=reference)
        return ResponsePayload(
            client_tx_ref=reference, sub_rav=result.unsigned_sub_rav, cost=result.cost
        )

    async def recover(self, fragment: str) -> None:
        before = await self.row(fragment)
        await self.payers[fragment].recover(await self.town.latest(fragment))
        # What it had signed and lost, and what it had been answered, it no longer knows of.
        self.forgotten[fragment] += LIMITS.unserved_max
        assert before == await self.row(fragment)

    async def row(self, fragment: str) -> SubChannel | None:
        return await self.town.payee.sub_channels.read(CHANNEL_ID, fragment)

    # ── what always holds ────────────────────────────────────────────────────────────────────────

    @invariant()
    def at_most_one_request_is_unpaid(self) -> None:
        for fragment in FRAGMENTS:
            row = self.run(self.row(fragment))
            paid = 0 if row is None else row.paid_nonce
            assert 0 <= self.served[fragment] - paid <= 1

    @invariant()
    def an_authorization_is_served_once(self) -> None:
        assert max(self.authorized.values(), default=0) <= 1

    @invariant()
    def a_payer_signs_no_more_than_was_answered_and_its_limit(self) -> None:
        for fragment in FRAGMENTS:
            state = self.run(self.payers[fragment].state())
            signed = 0 if state is None else state.amount
            limit = LIMITS.unserved_max + self.forgotten[fragment]
            assert signed <= self.answered_cost[fragment] + limit
            row = self.run(self.row(fragment))
            assert (0 if row is None else row.paid_amount) <= signed

    @invariant()
    def the_sums_agree(self) -> None:
        self.run(self.sums())

    async def sums(self) -> None:
        rows = [row for fragment in FRAGMENTS if (row := await self.row(fragment)) is not None]
        claimed = sum(row.claimed_amount for row in rows)
        unclaimed = sum(row.unclaimed_amount for row in rows)
        pending = sum(
            row.pending.cost for row in rows if row.pending and not row.pending.is_written_off
        )
        held = {
            account.id: account.held
            for account in await self.town.ledger.store.accounts()
            if account.asset == ASSET
        }
        kinds = {
            kind: sum(amount for name, amount in held.items() if name.startswith(kind))
            for kind in ("custody:rooch", "custody:channel", "receivable", "revenue", "expense")
        }
        assert kinds["custody:rooch"] == claimed
        assert kinds["custody:channel"] == unclaimed
        assert kinds["receivable"] == pending
        assert sum(held.values()) == 0
        assert sum(delta for _, delta in self.contract.claims) >= claimed

    def teardown(self) -> None:
        self.run(self.payee.aclose())
        self.run(self.payer_store.close())
        self.loop.close()
        check_books(Path(self.directory.name))
        self.directory.cleanup()


Trade.TestCase.settings = settings(max_examples=15, stateful_step_count=30, deadline=None)
TestTrade = Trade.TestCase
