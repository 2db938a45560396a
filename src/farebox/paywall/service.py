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
from farebox.errors import InvalidCredential
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
from farebox.payments import PaymentCredentials, Refusal, Reserve
from farebox.payments.model import Changes
from farebox.payments.service import Payments, Pending, Received
from farebox.paywall import answers, channel_dialect, dialects
from farebox.paywall.channels import ChannelTill
from farebox.paywall.dialects import CashuTerms, ChannelFound
from farebox.paywall.model import (
    REQUEST,
    Admission,
    Answer,
    BearerMoney,
    ChannelPresented,
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
from farebox.paywall.settler import Settler
from farebox.paywall.settling import (
    Live,
    admission_of,
    admitting,
    admitting_unit,
    request_headers,
)
from farebox.paywall.wishes import change_account
from farebox.pricing.book import PriceBook, Quote
from farebox.pricing.request import RequestFacts
from farebox.pricing.usage import Usage


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
        till: ChannelTill | None = None,
    ) -> None:
        """`change_as_credit` holds where the payer says nothing. Without a `till` no channel
        pays. Without a `public_url` links are relative to what was asked."""
        self._ledger = ledger
        self._payments = payments
        self._keys = keys
        self._failures = failures
        self._cashu = cashu
        self._receipts = receipts
        self._processes = processes
        self._public_url = public_url.rstrip("/")
        self._change_as_credit = change_as_credit
        self._till = till
        self._settler = Settler(ledger, payments, receipts, processes, till)
        self.prices = prices

    @property
    def clock(self) -> Clock:
        """The clock that decisions are made by."""
        return self._ledger.clock

    @property
    def unsettled(self) -> int:
        """How many requests ended whose bills the books have not taken yet."""
        return self._settler.unsettled

    # ── before ───────────────────────────────────────────────────────────────────────────────────

    def read(
        self, headers: Iterable[tuple[bytes, bytes]], method: str = "", target: str = ""
    ) -> Presented | Answer:
        """The payment in a request's headers, or the 400 that says why there is none to read.

        `target` is what was asked for, path and query as they were sent.
        """
        found = dialects.read(headers, self._accepted)
        if not isinstance(found, ChannelFound):
            return found
        if self._till is None:
            return NothingPresented()
        return channel_dialect.read(found.payments, found.auths, method, target)

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
            if self._till is not None and isinstance(presented, ChannelPresented):
                refused = await self._till.take(presented, address)
                if refused is not None:
                    return refused
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
            case ChannelPresented():
                return await self._authorise_channel(request_id, presented, facts, quote, address)
            case _:
                assert_never(presented)

    async def _authorise_channel(
        self,
        request_id: str,
        payment: ChannelPresented,
        facts: RequestFacts,
        quote: Quote,
        address: str,
    ) -> Admission | Answer:
        assert self._till is not None
        if payment.auth is None and (
            payment.payload is None or payment.payload.signed_sub_rav is None
        ):
            asked = await self._challenge(facts, quote, "payment_required", answers.asks(quote))
            return channel_dialect.stranger(asked, payment.client_tx_ref)

        def keep(request: Request) -> None:
            self._settler.live[request_id] = Live(request, 1)

        admitted: Request | Answer | None = None
        try:
            request = self._request("", "", quote)
            admitted = await self._till.admit(request_id, payment, quote, address, keep, request)
        finally:
            if not isinstance(admitted, Request):
                self._settler.live.pop(request_id, None)
        if isinstance(admitted, Answer):
            return admitted
        reference = payment.client_tx_ref or request_id
        return admission_of(request_id, admitted, self._public_url, reference)

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
        if request_id in self._settler.live:
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
        self._settler.live[request_id] = Live(request, 1)
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
                self._settler.live.pop(request_id, None)

    async def _receive(
        self, request_id: str, request: Request, credentials: PaymentCredentials
    ) -> Received | Pending | Refusal:
        """Redeem what pays for a request; its hold and its row join the crediting commit."""

        def admit(hold: str) -> Changes:
            placed = msgspec.structs.replace(request, hold=hold)
            self._settler.live[request_id] = Live(placed, 1)
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
        elif row.value == self._settler.live[request_id].request:  # written by this very call
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
        self._settler.live[request_id] = Live(request, 1)
        unit = admitting_unit(request_id, request, named)
        outcome: Outcome | None = None
        try:
            # On an account a loss of power may take it: nothing was metered. Money pays only once.
            outcome = await self._ledger.store.commit(unit, synced=bool(request.credential))
            return outcome
        finally:
            if not isinstance(outcome, Applied):
                self._settler.live.pop(request_id, None)

    # ── after ────────────────────────────────────────────────────────────────────────────────────

    async def checkpoint(self, admission: Admission, usage: Usage) -> bool:
        """Make durable what was metered so far; False: the request is settled already."""
        return await self._settler.checkpoint(admission, usage)

    async def settle(self, admission: Admission, usage: Usage, ended: Ended) -> Settlement:
        """Charge what it cost, release the rest, make the change: one commit, once.

        Raises StoreError when the books cannot be written; `recover` settles it then.
        """
        return await self._settler.settle(admission, usage, ended)

    async def recover(self) -> int:
        """Settle what this process could not, and what processes that stopped left behind."""
        return await self._settler.recover()

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
        token = await self._settler.change(row.value)
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
        channel = [] if self._till is None else ["X-Payment-Channel-Data (a payment channel)"]
        return ["sk-… (an account key)", *self._payments.methods.accepted(), *channel]

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
        terms = None if self._till is None else self._till.terms
        wanted = answers.wanted(quote, code, detail, f"{self._public_url}/create", extra, terms)
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
