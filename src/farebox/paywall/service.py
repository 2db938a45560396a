"""The paywall: authorise a request before it is forwarded, settle it after.

States of a paid request (row `request`, hold in the ledger):

| boundary                        | what can fail      | recovery                                 |
|---------------------------------|--------------------|------------------------------------------|
| receive operation → its close   | we stop            | the operation is resolved; the money is  |
|                                 |                    | on the payer's account; try again        |
| authorising commit → forwarding | we stop            | settled as CRASHED: nothing was metered, |
|                                 |                    | nothing is charged, all goes back        |
| forwarding → settling commit    | we stop            | settled as CRASHED, last checkpoint      |
| settling commit → last byte     | the answer is lost | `change` tells it again, for ever        |

Postings: Hold customer → revenue the maximum; Post what it cost; Transfer customer → custody the
change that leaves as money.

A request is its process's own while that runs, then anyone's to settle: see docs/processes.md.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import assert_never

import msgspec
import structlog

from farebox.clock import Clock
from farebox.errors import InvalidCredential, StoreBusy, StoreError
from farebox.identity import (
    FailureLimit,
    KeyRefused,
    KeyRefusedReason,
    Keys,
    token_account,
)
from farebox.ids import derived_id, new_id
from farebox.ledger.model import Applied, Outcome, Stale, Taken, hold_id
from farebox.ledger.processes import Processes
from farebox.ledger.service import Ledger
from farebox.payments import PaymentCredentials, PlannedChange, Refusal, Reserve
from farebox.payments.model import Changes
from farebox.payments.service import Payments, Pending, Received
from farebox.paywall import answers, dialects
from farebox.paywall.dialects import CashuTerms
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
    Request,
    RequestState,
    Settlement,
)
from farebox.paywall.named import Name, Puts, naming
from farebox.paywall.prices import Prices
from farebox.paywall.receipts import Receipts
from farebox.paywall.settling import (
    NO_USAGE,
    Bill,
    Live,
    admission_of,
    admitting,
    admitting_unit,
    bill_of,
    checkpointing,
    forgotten,
    free,
    receipt_facts,
    request_headers,
    settled,
    settlement,
    settling_unit,
)
from farebox.paywall.wishes import change_account
from farebox.pricing.book import PriceBook, Quote
from farebox.pricing.request import RequestFacts
from farebox.pricing.usage import Usage

_log = structlog.get_logger("farebox.paywall")

_SETTLE_TRIES_MAX = 8


class Paywall:
    """Decides about requests; one instance serves every door of a process."""

    def __init__(
        self,
        ledger: Ledger,
        payments: Payments,
        keys: Keys,
        failures: FailureLimit,
        prices: Prices,
        cashu: CashuTerms,
        receipts: Receipts,
        *,
        processes: Processes,
        public_url: str,
        change_as_credit: bool = False,
    ) -> None:
        """`change_as_credit` holds where the payer says nothing."""
        self._ledger = ledger
        self._payments = payments
        self._keys = keys
        self._failures = failures
        self._cashu = cashu
        self._receipts = receipts
        self._processes = processes
        self._public_url = public_url.rstrip("/")
        self._change_as_credit = change_as_credit
        self._live: dict[str, Live] = {}
        self._unsettled: dict[str, Bill] = {}
        self.prices = prices

    @property
    def clock(self) -> Clock:
        """The clock that decisions are made by."""
        return self._ledger.clock

    @property
    def unsettled(self) -> int:
        """How many requests ended whose bills the books have not taken yet."""
        return len(self._unsettled)

    # ── before ───────────────────────────────────────────────────────────────────────────────────

    def read(self, headers: Iterable[tuple[bytes, bytes]]) -> Presented | Answer:
        """The payment in a request's headers, or the 400 that says why there is none to read."""
        return dialects.read(headers, self._accepted)

    async def authorise(
        self,
        presented: Presented,
        facts: RequestFacts,
        address: str = "",
        book: PriceBook | None = None,
    ) -> Admission | Answer:
        """Hold what the request can cost at most, in one commit, or answer why not.

        `book` has prices of its own, instead of the operator's. Worthless credentials are counted
        by the caller's `address`, for each costs us a look-up or a call to a mint. An Admission
        must be settled. Raises StoreError when the books cannot be written: nothing was held then.
        """
        request_id = new_id("req")
        structlog.contextvars.bind_contextvars(request=request_id)
        quote = self.prices.quote(facts, self.clock.now_ns(), request_id, book)
        if not isinstance(quote, Quote):
            return answers.unpriced(quote, facts)
        if quote.free or quote.maximum_msat == 0:
            return Admission(request_id, "", quote, request_headers(request_id))
        await self._processes.ensure_name()
        match presented:
            case NothingPresented():
                return await self._challenge(facts, quote, "payment_required", answers.asks(quote))
            case KeyPresented(secret, name):
                key = await self._keys.authenticate(secret)
                if isinstance(key, KeyRefused):
                    return self._key_refused(key, address)
                return await self._authorise_account(request_id, key.account, facts, quote, name)
            case BearerMoney():
                return await self._authorise_bearer(request_id, presented, facts, quote, address)
            case EmbeddedMoney():
                return await self._authorise_embedded(presented, facts, quote, address)
            case _:
                assert_never(presented)

    async def _authorise_account(
        self, request_id: str, account: str, facts: RequestFacts, quote: Quote, name: Name
    ) -> Admission | Answer:
        named = await naming(self._ledger, self._receipts, account, name, request_id)
        if isinstance(named, Answer):
            return named
        request = self._request(account, hold_id(request_id, 0), quote)
        outcome = await self._hold(request_id, request, named)
        if isinstance(outcome, Applied):
            return admission_of(request_id, request, self._public_url)
        if named and isinstance(outcome, Stale | Taken):  # the same name came a moment before
            return await self._authorise_account(request_id, account, facts, quote, name)
        balance = await self._available(account)
        why = answers.balance_short(balance, quote)
        return await self._challenge(facts, quote, answers.BALANCE_SHORT, why, balance_msat=balance)

    async def _authorise_bearer(
        self, request_id: str, money: BearerMoney, facts: RequestFacts, quote: Quote, address: str
    ) -> Admission | Answer:
        """A token as key: redeemed the first time, an account from then on."""
        credentials = await self._parse(money.credential)
        if isinstance(credentials, Answer):
            return credentials
        account = token_account(credentials.identity_or_hash)
        if await self._available(account) < quote.maximum_msat:
            wait_s = self._failures.wait_s(address)
            if wait_s and not await self._was_credited(account):
                return answers.too_many_failures(wait_s)
            received = await self._payments.receive(
                credentials, account, minimum_msat=quote.maximum_msat
            )
            if isinstance(received, Pending):
                return answers.pending(received)
            if isinstance(received, Refusal) and not await self._was_credited(account):
                return await self._refused(received, facts, quote, address)
        return await self._authorise_account(request_id, account, facts, quote, money.name)

    async def _authorise_embedded(
        self, presented: EmbeddedMoney, facts: RequestFacts, quote: Quote, address: str
    ) -> Admission | Answer:
        credentials = await self._parse(presented.credential)
        if isinstance(credentials, Answer):
            return credentials
        change_to = await change_account(self._keys, presented.wish)
        if isinstance(change_to, Answer):
            return change_to
        # One credential pays for one request: its id follows from the money, so that the same
        # money again finds the same request.
        request_id = derived_id("req", credentials.identity_or_hash)
        structlog.contextvars.bind_contextvars(request=request_id)
        if await self._ledger.store.get(REQUEST, request_id) is not None:
            return await self._told_again(request_id)
        # Nothing is waited for from here until it is live: of two that come at once, one goes on.
        if request_id in self._live:
            return answers.in_progress(request_id)
        wait_s = self._failures.wait_s(address)
        if wait_s:
            return answers.too_many_failures(wait_s)
        account = token_account(credentials.identity_or_hash)
        as_credit = presented.wish.as_credit
        request = msgspec.structs.replace(
            self._request(account, "", quote),
            method=credentials.payment_type,
            credential=credentials.identity_or_hash,
            change_as_credit=self._change_as_credit if as_credit is None else as_credit,
            change_account=change_to,
        )
        self._live[request_id] = Live(request, 1)
        answer: Admission | Answer | None = None
        try:
            received = await self._receive(request_id, request, credentials)
            if isinstance(received, Pending):
                answer = answers.pending(received)
            elif isinstance(received, Refusal):
                answer = await self._refused(received, facts, quote, address)
            else:
                answer = await self._admit_received(request_id, request)
            return answer
        finally:
            if not isinstance(answer, Admission):
                self._live.pop(request_id, None)

    async def _receive(
        self, request_id: str, request: Request, credentials: PaymentCredentials
    ) -> Received | Pending | Refusal:
        """Redeem what pays for a request; its hold and its row join the crediting commit."""

        def admit(hold: str) -> Changes:
            placed = msgspec.structs.replace(request, hold=hold)
            self._live[request_id] = Live(placed, 1)
            return admitting(request_id, placed)

        return await self._payments.receive(
            credentials,
            request.account,
            reserve=Reserve(request_id, request.quote.maximum_msat, request.quote.terms.is_fixed),
            minimum_msat=request.quote.maximum_msat,
            also=admit,
        )

    async def _admit_received(self, request_id: str, request: Request) -> Admission | Answer:
        row = await self._ledger.store.get(REQUEST, request_id)
        if row is None:
            # Redeemed before, or by somebody who stopped: the money is on the account.
            request = msgspec.structs.replace(request, hold=hold_id(request_id, 0))
            if isinstance(await self._hold(request_id, request), Applied):
                return admission_of(request_id, request, self._public_url)
        elif row.value == self._live[request_id].request:  # written by this very call
            return admission_of(request_id, row.value, self._public_url)
        return await self._told_again(request_id)

    def _request(self, account: str, hold: str, quote: Quote) -> Request:
        return Request(
            account=account,
            hold=hold,
            owner=self._processes.name,
            quote=quote,
            created_at=self.clock.now_ns(),
        )

    async def _hold(self, request_id: str, request: Request, named: Puts = ()) -> Outcome:
        """The commit that admits a request. Live from before it, so that recovery, which may see
        the row before we hear of it, does not take the request for one that crashed."""
        self._live[request_id] = Live(request, 1)
        unit = admitting_unit(request_id, request, named)
        outcome: Outcome | None = None
        try:
            # On an account a loss of power may take it: nothing was metered. Money pays only once.
            outcome = await self._ledger.store.commit(unit, synced=bool(request.credential))
            return outcome
        finally:
            if not isinstance(outcome, Applied):
                self._live.pop(request_id, None)

    # ── after ────────────────────────────────────────────────────────────────────────────────────

    async def checkpoint(self, admission: Admission, usage: Usage) -> bool:
        """Make durable what was metered so far: a crash charges this much, not less.

        False: somebody took us for dead and has settled the request; nothing is held any more.
        """
        if (live := self._live.get(admission.request_id)) is None:
            return True
        request, unit = checkpointing(admission.request_id, live, usage)
        outcome = await self._ledger.store.commit(unit)
        if isinstance(outcome, Applied):
            self._live[admission.request_id] = Live(request, live.version + 1)
        return not isinstance(outcome, Stale)

    async def settle(self, admission: Admission, usage: Usage, ended: Ended) -> Settlement:
        """Charge what it cost, release the rest, make the change: one commit, once.

        Raises StoreError when the books cannot be written; `recover` settles it then.
        """
        if admission.is_free:
            return await self._told(admission.request_id, free(admission), usage)
        bill = bill_of(admission.quote, usage, ended)
        try:
            live = self._live.get(admission.request_id)
            request = await self._settle(admission.request_id, live, bill)
        except BaseException:  # whatever it was: the bill stands, and recovery writes it
            self._unsettled[admission.request_id] = bill
            raise
        self._live.pop(admission.request_id, None)
        return await self._told(admission.request_id, request, usage)

    async def recover(self) -> int:
        """Settle what this process could not, and what processes that stopped left behind."""
        count = 0
        for request_id, bill in list(self._unsettled.items()):
            # Its row is read anew: a commit whose answer was lost may have settled it.
            count += await self._settle_late(request_id, bill)
        after = ""
        while rows := await self._ledger.store.find(
            REQUEST, {"state": RequestState.AUTHORISED}, after=after, limit=100
        ):
            others = await self._processes.others()
            for request_id, row in rows:
                if request_id in self._live or row.value.owner in others:
                    continue
                # It is nobody's now; but it may have been somebody's, and open, when it was found.
                bill = Bill(row.value.checkpoint_msat, Ended.CRASHED, NO_USAGE)
                count += await self._settle_late(request_id, bill)
            after = rows[-1][0]
        return count

    async def _settle_late(self, request_id: str, bill: Bill) -> bool:
        """Whether it is settled now. Raises StoreError where none can be, and else nothing: what
        is wrong with one request must not keep the others open."""
        try:
            await self._settle(request_id, None, bill)
        except Exception as error:
            if isinstance(error, StoreError) and not isinstance(error, StoreBusy):
                raise
            _log.exception("request.unsettled", request=request_id)
            return False
        self._unsettled.pop(request_id, None)
        self._live.pop(request_id, None)
        return True

    async def _settle(self, request_id: str, live: Live | None, bill: Bill) -> Request:
        for _ in range(_SETTLE_TRIES_MAX):
            if live is None:
                row = await self._ledger.store.get(REQUEST, request_id)
                if row is None:  # a database that crashed forgets what was not synced
                    request = self._live[request_id].request
                    again = admitting_unit(request_id, request)
                    if not isinstance(await self._ledger.store.commit(again), Applied):
                        return forgotten(request, bill, self.clock.now_ns())
                    live = Live(request, 1)
                elif row.value.state is RequestState.SETTLED:
                    return row.value
                else:
                    live = Live(row.value, row.version)
            request = live.request
            left = await self._left(request, bill)
            change = await self._plan_change(request_id, request, left)
            done = settled(request, bill, left, change, self.clock.now_ns())
            unit = settling_unit(request_id, live.version, done, change)
            outcome = await self._ledger.store.commit(unit)
            if isinstance(outcome, Applied):
                return done
            _log.warning("request.settle_raced", request=request_id, outcome=str(outcome))
            live = None
        raise StoreBusy(f"request {request_id} lost too many races; it is settled by recovery")

    async def _left(self, request: Request, bill: Bill) -> int:
        """The change of a request: what is left of the money embedded in it, hold and all."""
        unused = request.quote.maximum_msat - bill.charged_msat
        return unused + await self._available(request.account) if request.credential else 0

    async def _plan_change(
        self, request_id: str, request: Request, left: int
    ) -> PlannedChange | None:
        if not request.credential:
            return None
        method = self._payments.methods[request.method]
        return await method.plan_change(request_id, 0 if request.change_as_credit else left)

    async def _told(self, request_id: str, request: Request, usage: Usage) -> Settlement:
        change = await self._change(request)
        receipt = await self._receipts.sign(receipt_facts(request_id, request, usage))
        return settlement(request, receipt, change)

    async def _change(self, request: Request) -> str:
        if not request.change:
            return ""
        method = self._payments.methods[request.method]
        return await method.render_change(request.change) or ""

    # ── asked again ──────────────────────────────────────────────────────────────────────────────

    async def change(self, request_id: str, presented: Presented) -> Answer:
        """The status and change of a request, for whoever presents the money that paid for it."""
        if not isinstance(presented, BearerMoney | EmbeddedMoney):
            return answers.token_required()
        credentials = await self._parse(presented.credential)
        if isinstance(credentials, Answer):
            return credentials
        row = await self._ledger.store.get(REQUEST, request_id)
        identity = credentials.identity_or_hash
        if row is None or not hmac.compare_digest(row.value.credential, identity):
            return answers.request_unknown()
        return await self._told_again(request_id, asked=True)

    async def _told_again(self, request_id: str, *, asked: bool = False) -> Answer:
        """A payment that was used before gets the answer it had, never "already spent"."""
        row = await self._ledger.store.get(REQUEST, request_id)
        if row is None:
            return answers.redeemed_before()
        if row.value.state is RequestState.AUTHORISED:
            return answers.in_progress(request_id)
        token = await self._change(row.value)
        return answers.told_again(request_id, row.value, token, asked=asked)

    # ── words ────────────────────────────────────────────────────────────────────────────────────

    async def _parse(self, credential: str) -> PaymentCredentials | Answer:
        method = self._payments.methods.detect(credential)
        if method is None:
            return dialects.unreadable(self._accepted())
        try:
            return await method.parse_credential(credential)
        except InvalidCredential as error:
            return dialects.refusal("credential_malformed", dialects.sentence(str(error)), {})

    def _accepted(self) -> list[str]:
        return ["sk-… (an account key)", *self._payments.methods.accepted()]

    async def _available(self, account: str) -> int:
        found = await self._ledger.store.account(account)
        return 0 if found is None else found.available

    async def _was_credited(self, account: str) -> bool:
        """Whether money ever arrived; a refused token leaves an empty account behind."""
        found = await self._ledger.store.account(account)
        return found is not None and found.credits_posted > 0

    async def _challenge(
        self, facts: RequestFacts, quote: Quote, code: str, detail: str, **extra: object
    ) -> Answer:
        self.prices.given(facts, quote)
        wanted = answers.wanted(quote, code, detail, f"{self._public_url}/create", extra)
        return dialects.challenge(wanted, await self._cashu.offer(quote.maximum_msat))

    def _key_refused(self, key: KeyRefused, address: str) -> Answer:
        if key.reason is KeyRefusedReason.UNKNOWN:
            # Known keys are never shut out: behind a shared proxy all callers have one address.
            wait_s = self._failures.wait_s(address)
            if wait_s:
                return answers.too_many_failures(wait_s)
            self._failures.failed(address)
        return dialects.refusal(f"key_{key.reason.value}", key.message, {})

    async def _refused(
        self, refused: Refusal, facts: RequestFacts, quote: Quote, address: str
    ) -> Answer:
        if refused.code == "insufficient_payment":
            return await self._challenge(
                facts, quote, refused.code, f"Too little: {refused.message}.", **refused.details
            )
        answer = answers.refused(refused)
        if answer.status == 400:  # what is our fault or the mint's is not held against the caller
            self._failures.failed(address)
        return answer
