"""Deposits that somebody asked for: made, looked after, claimed.

    asked for ──► awaiting ──► detected ──► confirmed ──► credited
                     └──► expired      (what arrives even later is credited all the same)

The rail's subscription, its poller and a caller who asks all end in `seen`: the one function that
credits. Where a request stands is read off its deposits (`standing`), never stored twice.

| boundary                        | what can fail    | recovery                                  |
|---------------------------------|------------------|-------------------------------------------|
| the rail made it → our commit   | we stop          | nobody was shown it: nobody can pay it    |
| our commit → our answer         | the answer lost  | the same Idempotency-Key tells it again   |
| paid there → credited here      | anything         | see `deposits.py`                         |
| credited → claimed              | we stop          | the claim secret opens the account, again |
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from farebox.clock import NS_PER_S
from farebox.errors import StoreBusy
from farebox.ids import new_id, new_secret, secret_hash
from farebox.ledger.model import ABSENT, Applied, Event, Kind, Open, Put, Unit
from farebox.ledger.service import Ledger, State
from farebox.money import BTC
from farebox.payments.deposits import (
    DEPOSIT,
    DEPOSIT_REQUEST,
    Deposit,
    DepositRequest,
    Deposits,
    DepositState,
    Watch,
    marks_of,
    request_key,
)
from farebox.payments.exchange import ONLY_BITCOIN, Exchange, Quoted, bought, mixed
from farebox.payments.method import Refusal, no_rate
from farebox.payments.rail import DepositMethod, DepositOrder, Sighting
from farebox.payments.registry import PaymentMethods

CLAIM_PREFIX = "claim-"
#: What became of a request, the most advanced last: what was reversed may be back elsewhere.
_ADVANCED = (
    DepositState.REVERSED,
    DepositState.DETECTED,
    DepositState.CONFIRMED,
    DepositState.CREDITED,
)
_ON_ITS_WAY = (DepositState.DETECTED, DepositState.CONFIRMED)
_READ_TRIES_MAX = 16
_POLLED_AT_ONCE = 8
_POLLED_PAGE = 100
#: A request is asked about after a tenth of its age, but never more often or seldom than this.
_POLL_LEAST_S = 2
_POLL_MOST_S = 300


@dataclass(frozen=True, slots=True)
class Asked:
    """A new deposit request. The claim secret exists here and nowhere else."""

    request: DepositRequest
    claim_secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RequestStanding:
    """Where a request stands, at one moment, with what has arrived for it.

    `state` is awaiting, expired, or its most advanced deposit's; reversed where nothing else came.
    """

    request: DepositRequest
    state: str
    marks: tuple[str, ...]
    deposits: tuple[Deposit, ...]


@dataclass(frozen=True, slots=True)
class Claimed:
    """A deposit whose money is on `account`, and the asset that was asked for.

    `opens_account`: nobody else has a key to it.
    """

    account: str
    amount_msat: int
    opens_account: bool
    asset: str


class DepositRequests:
    """Asks to be paid, credits what arrives, hands it to who may have it."""

    def __init__(
        self,
        ledger: Ledger,
        deposits: Deposits,
        methods: PaymentMethods,
        exchange: Exchange = ONLY_BITCOIN,
    ) -> None:
        self._ledger = ledger
        self._deposits = deposits
        self._methods = methods
        self._exchange = exchange
        #: When each open request was last asked about, by method.
        self._asked_at_ns: dict[str, dict[str, int]] = {}

    def rails(self) -> dict[str, DepositMethod]:
        """The methods that can be paid by deposit."""
        return {one.payment_type: one for one in self._methods if isinstance(one, DepositMethod)}

    async def ask(
        self, method: str, asset: str, amount: int | None, account: str, *, opens_account: bool
    ) -> Asked | Refusal:
        """Make something to be paid, for an account. Raises RailUnavailable, RailRejected."""
        rail = self.rails().get(method)
        if rail is None:
            known = ", ".join(self.rails()) or "none here"
            return Refusal("method_unknown", f"deposits are possible by: {known}")
        terms = rail.terms()
        of = terms.of(asset)
        if of is None or of.deposits is None:
            taken = [one.asset.code for one in terms.assets if one.deposits is not None]
            return Refusal("asset_unknown", f"{method} takes {', '.join(taken) or 'nothing now'}")
        if amount is not None and (no := of.deposits.why_not(amount, "deposit", of.unit)):
            return no
        quoted = self._exchange.quote(asset) if self._exchange.converts(asset) else None
        if quoted is None and self._exchange.converts(asset):
            return no_rate(asset)
        order = DepositOrder(new_id("dep"), amount, asset)
        payable = await rail.ask(order)
        if isinstance(payable, Refusal):
            return payable
        if no := await self._no_room(payable.custody, payable.amount or 0):
            return no
        secret = new_secret(CLAIM_PREFIX)
        request = DepositRequest(
            id=order.request_id,
            method=method,
            reference=payable.reference,
            account=account,
            opens_account=opens_account,
            custody=payable.custody,
            asset=asset,
            amount=payable.amount,
            text=payable.text,
            uri=payable.uri,
            claim_hash=secret_hash(secret),
            created_at=self._ledger.clock.now_ns(),
            expires_at=payable.expires_at,
            quoted=None if payable.amount is None else quoted,
        )
        facts = {"deposit": request.id, "method": method}
        facts |= {"asset": asset, "asked": str(request.amount or 0)}
        unit = Unit(
            f"{request.id}:ask",
            steps=(Open(request.custody, asset, Kind.CUSTODY),),
            puts=(Put(DEPOSIT_REQUEST, request.key, request, ABSENT),),
            events=(Event("deposit.requested", account, facts),),
        )
        outcome = await self._ledger.store.commit(unit)
        if not isinstance(outcome, Applied):
            return Refusal("busy", "the books refuse this deposit now; try again")
        return Asked(request, secret)

    async def by_id(self, request_id: str) -> DepositRequest | None:
        """One request by the id that its owner sees."""
        found = await self._ledger.store.find(DEPOSIT_REQUEST, {"id": request_id}, limit=1)
        return found[0][1].value if found else None

    async def by_reference(self, method: str, reference: str) -> DepositRequest | None:
        """The request that a reference of the rail belongs to."""
        row = await self._ledger.store.get(DEPOSIT_REQUEST, request_key(method, reference))
        return None if row is None else row.value

    async def standing(self, request: DepositRequest) -> RequestStanding:
        """Where it stands, by what has arrived. Raises StoreBusy where that changes all the while.

        Each step of a deposit writes its request too: while that stays, what was read is of one
        moment, and nobody is told "credited" of nothing.
        """
        before = -1
        found: tuple[Deposit, ...] = ()
        for _ in range(_READ_TRIES_MAX):
            row = await self._ledger.store.get(DEPOSIT_REQUEST, request.key)
            assert row is not None, "requests are never removed"
            if row.version == before:
                return _standing(row.value, found, self._ledger.clock.now_ns())
            before = row.version
            rows = [await self._ledger.store.get(DEPOSIT, key) for key in row.value.deposits]
            found = tuple(one.value for one in rows if one is not None)
        raise StoreBusy(f"deposit {request.id} moves too fast; ask again")

    # ── crediting ────────────────────────────────────────────────────────────────────────────────

    async def seen(self, method: str, sighting: Sighting) -> Deposit | None:
        """Take note of what a rail saw and credit what is confirmed; None: nobody asked for it.

        Safe to be told the same at the same time by everybody who looks, and ever again.
        """
        request = await self.by_reference(method, sighting.reference)
        if request is None:
            return None
        asset = sighting.asset
        quoted = self._rate(request, sighting) if self._exchange.converts(asset) else None
        amount_msat = sighting.amount if asset == BTC.code else 0
        if quoted is not None:
            amount_msat = bought(quoted, sighting.amount).account
        is_rated = quoted is not None or not self._exchange.converts(asset)
        is_sure = sighting.state is DepositState.CONFIRMED and is_rated
        deposit = Deposit(
            source=method,
            reference=sighting.external,
            index=sighting.index,
            account=request.account,
            custody=sighting.custody or request.custody,
            asset=asset,
            amount_msat=amount_msat,
            currency=asset,
            amount=sighting.amount,
            state=DepositState.CREDITED if is_sure else sighting.state,
            at=sighting.at,
            quoted=quoted,
            seen_in=sighting.seen_in,
            matures_at=sighting.matures_at,
        )
        return await self._deposits.report(deposit, request=request.key)

    def _rate(self, request: DepositRequest, sighting: Sighting) -> Quoted | None:
        """The rate that was promised, for as much as was asked for and in its time; else that of
        now. A promise for any amount would be an option that its holder has not paid."""
        at = sighting.at or self._ledger.clock.now_ns()
        promised = request.quoted
        if promised is None or promised.asset != sighting.asset or at >= request.expires_at:
            return self._exchange.quote(sighting.asset)
        covered = min(sighting.amount, max(0, (request.amount or 0) - request.credited))
        if covered == sighting.amount:
            return promised
        now = self._exchange.quote(sighting.asset)
        return None if now is None else mixed(promised, covered, now, sighting.amount - covered)

    async def look(self, request: DepositRequest) -> DepositRequest:
        """Ask the rail about one request now. Raises RailUnavailable, RailRejected."""
        for sighting in await self.rails()[request.method].look(request.reference):
            await self.seen(request.method, sighting)
        return await self.by_id(request.id) or request

    async def poll(self, method: str) -> int:
        """Ask a rail about every open request that is due; returns how many were asked about.

        Those past their grace are closed. A rail that does not answer ends the round.
        """
        asked, after = 0, ""
        before, still_open = self._asked_at_ns.get(method, {}), dict[str, int]()
        limit = asyncio.Semaphore(_POLLED_AT_ONCE)

        async def one(request: DepositRequest) -> None:
            async with limit:
                await self.look(request)

        while page := await self._ledger.store.find(
            DEPOSIT_REQUEST,
            {"method": method, "watch": Watch.OPEN},
            after=after,
            limit=_POLLED_PAGE,
        ):
            after = page[-1][0]
            now = self._ledger.clock.now_ns()
            due = [row.value for _, row in page if _is_due(row.value, before, now)]
            still_open |= {row.value.id: before.get(row.value.id, 0) for _, row in page}
            still_open |= dict.fromkeys((request.id for request in due), now)
            ends = await asyncio.gather(*map(one, due), return_exceptions=True)
            for request, end in zip(due, ends, strict=True):
                if isinstance(end, BaseException):
                    raise end
                await self._close_if_over(request)
            asked += len(due)
        self._asked_at_ns[method] = still_open
        return asked

    async def _close_if_over(self, request: DepositRequest) -> None:
        grace_ns = self.rails()[request.method].grace_s * NS_PER_S
        if self._ledger.clock.now_ns() < request.expires_at + grace_ns:
            return
        standing = await self.standing(request)
        if any(one.state in _ON_ITS_WAY for one in standing.deposits):
            return  # it is here and waits for a rate, or for room: nobody else may ever tell of it

        def decide(state: State, _: int) -> Unit | None:
            now = state.value(DEPOSIT_REQUEST, request.key)
            if now is None or now.watch is Watch.CLOSED or now != standing.request:
                return None
            closed = msgspec.structs.replace(now, watch=Watch.CLOSED)
            version = state.version(DEPOSIT_REQUEST, request.key)
            put = Put(DEPOSIT_REQUEST, request.key, closed, version)
            events = (Event("deposit.expired", now.account, {"deposit": now.id}),)
            return Unit(f"{now.id}:expire", puts=(put,), events=() if now.deposits else events)

        await self._ledger.transact([(DEPOSIT_REQUEST, request.key)], decide)

    # ── claiming ─────────────────────────────────────────────────────────────────────────────────

    def holds_claim(self, request: DepositRequest, secret: str) -> bool:
        """Whether this is the request's claim secret."""
        return secret.startswith(CLAIM_PREFIX) and hmac.compare_digest(
            secret_hash(secret), request.claim_hash
        )

    async def claim(
        self, method: str, reference: str, *, account: str = "", secret: str = ""
    ) -> Claimed | Refusal:
        """The money of a public credential, for `account`'s owner or who holds the claim secret.

        It is on the account that the deposit was asked for. Before anything has arrived, who
        holds the secret of an account that is nobody's yet may have it put on `account` instead.
        Raises RailUnavailable, RailRejected.
        """
        request = await self.by_reference(method, reference)
        if request is None:
            return Refusal(
                "deposit_unknown", "this was not asked for here, so it pays nothing here"
            )
        has_secret = bool(secret) and self.holds_claim(request, secret)
        if secret and not has_secret:
            return Refusal("claim_refused", "this is not the claim secret of this deposit")
        if account != request.account and not has_secret:
            return _NOT_YOURS
        if account and account != request.account:
            if not request.opens_account:
                return _NOT_YOURS
            request = await self._redirect(request, account)
        if not request.is_credited:
            request = await self.look(request)
        if account and account != request.account:
            return _IN_AN_ACCOUNT
        if not request.is_credited:
            return Refusal("deposit_unpaid", "nothing has arrived for this deposit yet")
        return Claimed(request.account, request.credited_msat, request.opens_account, request.asset)

    async def _redirect(self, request: DepositRequest, account: str) -> DepositRequest:
        """The request with another account, unless something has arrived on the first already."""

        def decide(state: State, _: int) -> Unit | DepositRequest:
            now = state.value(DEPOSIT_REQUEST, request.key)
            assert now is not None, "requests are never removed"
            if now.deposits or not now.opens_account:
                return now
            moved = msgspec.structs.replace(now, account=account, opens_account=False)
            version = state.version(DEPOSIT_REQUEST, request.key)
            put = Put(DEPOSIT_REQUEST, request.key, moved, version)
            return Unit(f"{now.id}:redirect:{version}:{account}", puts=(put,))

        outcome = await self._ledger.transact([(DEPOSIT_REQUEST, request.key)], decide)
        if isinstance(outcome, DepositRequest):
            return outcome
        return await self.by_id(request.id) or request

    async def _no_room(self, custody: str, amount_msat: int) -> Refusal | None:
        held = await self._ledger.store.account(custody)
        if held is None or held.ceiling is None or held.held + amount_msat <= held.ceiling:
            return None
        return Refusal("custody_full", "we hold as much at this place as we are ready to")


def _standing(request: DepositRequest, found: tuple[Deposit, ...], now_ns: int) -> RequestStanding:
    if not found:
        is_over = now_ns >= request.expires_at
        return RequestStanding(request, "expired" if is_over else "awaiting", (), ())
    latest = max(found, key=lambda one: _ADVANCED.index(one.state))
    is_credited = latest.state is DepositState.CREDITED
    marks = marks_of(request, latest.at) if is_credited else ()
    return RequestStanding(request, latest.state.value, marks, found)


def _is_due(request: DepositRequest, asked_at_ns: Mapping[str, int], now: int) -> bool:
    age_s = (now - request.created_at) // NS_PER_S
    every_s = min(max(age_s // 10, _POLL_LEAST_S), _POLL_MOST_S)
    waited_ns = now - asked_at_ns.get(request.id, 0)
    return not 0 <= waited_ns < every_s * NS_PER_S  # a clock that stepped back puts nothing off


_NOT_YOURS = Refusal(
    "not_addressed_to_you",
    "anybody can know this; it credits the account that asked for the deposit, or who sends its "
    "claim_secret",
)
_IN_AN_ACCOUNT = Refusal(
    "already_credited",
    "this deposit has arrived on an account of its own; POST /create with the claim_secret opens "
    "it",
)
