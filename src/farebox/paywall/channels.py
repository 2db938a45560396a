"""Requests paid through a channel: priced like every other, paid by the voucher that comes next.

| boundary                 | in one commit                         | should we stop after it      |
|--------------------------|---------------------------------------|------------------------------|
| voucher → forwarding     | the voucher; a hold of the maximum    | settled as CRASHED: the last |
|                          | on the collateral; the request's row  | checkpoint, or nothing       |
| forwarding → the         | the charge, and what is to be signed  | the payer is asked for it    |
| answer's end             | for it; the request's row, settled    | with its next request (402)  |

A sub-channel serves one request at a time, and the next only with the voucher for it: one turn in
this process, one row for all of them. Postings are those of `channels.postings`.

The first commit waits for no disk unless an authorization came: what a loss of power takes back,
nobody was told, and its payer is asked to sign again. The second does; nothing leaves before it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from farebox.channels.book import Cover, Standing, Turn
from farebox.channels.claims import ClaimScheduler
from farebox.channels.ledger_chain import account_of
from farebox.channels.model import SubChannel, proposed
from farebox.channels.postings import Draft, receivable_account
from farebox.channels.weighing import Accepted, Clear, Owing, Rejected, Replayed
from farebox.identity import FailureLimit
from farebox.ids import new_id
from farebox.ledger.model import ABSENT, Event, Put
from farebox.money import BTC, Rounding, divide
from farebox.payments.exchange import ONLY_BITCOIN, Exchange
from farebox.paywall import answers, channel_dialect
from farebox.paywall.channel_service import Caller, ChannelService, HttpAsked
from farebox.paywall.model import REQUEST, Answer, ChannelPresented, Request
from farebox.pricing.book import Quote
from farebox.wire.subrav.model import ErrorCode, SubRAV

_BUSY = Rejected(
    ErrorCode.RAV_CONFLICT, "Another request of this sub-channel is being served; try later."
)
#: Refusals that cost us a question to the chain or a signature to verify.
_WORTHLESS = frozenset(
    {
        ErrorCode.AUTH_INVALID,
        ErrorCode.CHANNEL_NOT_FOUND,
        ErrorCode.INVALID_SIGNATURE,
        ErrorCode.SUBCHANNEL_NOT_AUTHORIZED,
        ErrorCode.TAMPERED_SUBRAV,
    }
)


class Told(msgspec.Struct, frozen=True, gc=False):
    """What became of a request that a channel paid for: its row, and what to sign next."""

    request: Request
    sub_rav: SubRAV | None = None
    cost: int = 0
    cost_pico_usd: int = 0


class ChannelTill:
    """Takes vouchers and covers requests; `settle` charges them. One for each process."""

    def __init__(
        self,
        service: ChannelService,
        failures: FailureLimit,
        claims: ClaimScheduler,
        exchange: Exchange = ONLY_BITCOIN,
        *,
        terms: dict[str, object],
    ) -> None:
        """`terms` is what a challenge says of channels."""
        self.terms = terms
        self.payee = service.payee
        self._service = service
        self._failures = failures
        self._claims = claims
        self._exchange = exchange
        self._turns: dict[str, Turn] = {}

    # ── before ───────────────────────────────────────────────────────────────────────────────────

    async def take(self, payment: ChannelPresented, address: str) -> Answer | None:
        """Take the voucher of a request that costs nothing; the answer says why it is no good."""
        if payment.payload is None or payment.payload.signed_sub_rav is None:
            return None
        turn = await self._turn(payment, address)
        if isinstance(turn, Answer):
            return turn
        return await self._taken(payment, turn)

    async def admit(
        self,
        request_id: str,
        payment: ChannelPresented,
        quote: Quote,
        address: str,
        keep: Callable[[Request], None],
        request: Request,
    ) -> Request | Answer:
        """Take the voucher and cover the most that the request can cost, in one commit.

        `keep` hears of the request's row before the commit that writes it. What is admitted holds
        its sub-channel's turn until `leave`. Raises StoreError.
        """
        turn = await self._turn(payment, address)
        if isinstance(turn, Answer):
            return turn
        covered = await self.payee.covered(turn)
        if isinstance(covered, Rejected):
            return await self._unserved(payment, turn, covered)
        asset = turn.channel.asset_id
        cap = self._exchange.worth(quote.maximum_msat, BTC.code, asset, Rounding.UP)
        why = _NO_RATE if cap is None else self._too_dear(payment, cap)
        if cap is None or why is not None:
            return await self._unserved(payment, turn, why or _NO_RATE)
        if not await self.payee.sub_channels.take_turn(turn.key):
            return _refusal(_BUSY, payment)
        self._turns[request_id] = covered
        admitted = None
        try:
            answer = await self._cover(request_id, payment, covered, cap, request, keep)
            admitted = answer if isinstance(answer, Request) else None
            return answer
        finally:
            if admitted is None:
                self.leave(request_id)

    async def _cover(
        self,
        request_id: str,
        payment: ChannelPresented,
        turn: Turn,
        cap: int,
        request: Request,
        keep: Callable[[Request], None],
    ) -> Request | Answer:
        rows: list[Request] = []
        account = _account(turn)

        def join(draft: Draft) -> None:
            assert draft.row.serving is not None
            row = msgspec.structs.replace(
                request,
                account=account,
                hold=draft.row.serving.cover,
                channel_id=turn.channel.channel_id,
                fragment=turn.sub_channel.vm_id_fragment,
            )
            rows[:] = [row]
            keep(row)
            draft.join(Put(REQUEST, request_id, row, ABSENT))

        cover = Cover(cap, 0, 0, request_id, join)
        # A loss of power may take it: nothing was told yet, and who signed is asked to again. But
        # the name of an authorization is never to be free again.
        serve = self.payee.sub_channels.serve
        standing = await serve(turn, cover, request_id, synced=bool(turn.once))
        if isinstance(standing.verdict, Accepted | Clear):
            return rows[-1]
        return self._refused(payment, standing)

    def leave(self, request_id: str) -> None:
        """Let the next request of its sub-channel in. Without effect for all others."""
        turn = self._turns.pop(request_id, None)
        if turn is not None:
            self.payee.sub_channels.give_turn(turn.key)

    async def _turn(self, payment: ChannelPresented, address: str) -> Turn | Answer:
        """The sub-channel that is paid on, everything proven but how the voucher weighs."""
        signed = None if payment.payload is None else payment.payload.signed_sub_rav
        named = None if signed is None else signed.sub_rav
        if named is None or not self.payee.knows(named.channel_id):
            wait_s = self._failures.wait_s(address)
            if wait_s:
                return answers.too_many_failures(wait_s)
        caller = None
        if payment.auth is not None:
            asked = await self._service.identify(
                payment.auth, HttpAsked(payment.method, payment.target)
            )
            if not isinstance(asked, Caller):
                return self._failed(Rejected(asked.code, asked.message), payment, address)
            caller = asked
        if named is not None:
            channel_id, fragment = named.channel_id, named.vm_id_fragment
        elif caller is not None and not caller.is_admin:
            channel_id, fragment = caller.channel_id, caller.fragment
        else:
            return _refusal(_NO_CHANNEL, payment)
        once = "" if caller is None else caller.once
        turn = await self.payee.turn(channel_id, fragment, signed, once)
        if isinstance(turn, Rejected):
            return self._failed(turn, payment, address)
        if caller is not None and not caller.is_admin and caller.did != turn.channel.payer_did:
            return self._failed(_NOT_THE_PAYER, payment, address)
        return turn

    def _failed(self, why: Rejected, payment: ChannelPresented, address: str) -> Answer:
        if why.code in _WORTHLESS:
            self._failures.failed(address)
        return _refusal(why, payment)

    def _too_dear(self, payment: ChannelPresented, cap: int) -> Rejected | None:
        limit = None if payment.payload is None else payment.payload.max_amount
        if limit and cap > limit:
            return Rejected(
                ErrorCode.BILLING_MAX_AMOUNT_EXCEEDED,
                f"The request costs at most {cap}, its maxAmount is {limit}; allow more, or lower "
                "its output limit.",
            )
        if cap > self.payee.policy.request_max:
            return Rejected(
                ErrorCode.BILLING_MAX_AMOUNT_EXCEEDED,
                f"The request costs at most {cap}; through a channel one may cost "
                f"{self.payee.policy.request_max}.",
            )
        return None

    async def _unserved(self, payment: ChannelPresented, turn: Turn, why: Rejected) -> Answer:
        """Refuse a request; its voucher, which is for the one before it, is taken all the same."""
        return await self._taken(payment, turn) or _refusal(why, payment)

    async def _taken(self, payment: ChannelPresented, turn: Turn) -> Answer | None:
        """Take a voucher with no request to serve; the answer says why it is no good."""
        if turn.voucher is None:
            return None
        standing = await self.payee.sub_channels.serve(turn, None)
        self._notice(turn, standing.row)
        if isinstance(standing.verdict, Rejected):
            return self._refused(payment, standing)
        return None

    def _notice(self, turn: Turn | None, row: SubChannel | None) -> None:
        """Have a voucher claimed that was taken, and is on the disk."""
        if row is not None and turn is not None and turn.voucher is not None:
            self._claims.notice(row, turn.ceiling)

    def _refused(self, payment: ChannelPresented, standing: Standing) -> Answer:
        """A request that is not served. A replay is one over HTTP: its answer is gone, and to serve
        the request again would be a second one unpaid. What the first one cost is asked for."""
        verdict = standing.verdict
        if isinstance(verdict, Owing | Replayed):
            taken = "This voucher was taken; sign" if isinstance(verdict, Replayed) else "Sign"
            verdict = Rejected(
                ErrorCode.PAYMENT_REQUIRED, f"{taken} what the request before it cost, and retry."
            )
        assert isinstance(verdict, Rejected)
        asks = verdict.code in (ErrorCode.PAYMENT_REQUIRED, ErrorCode.RAV_CONFLICT)
        pending = self._proposed(standing.row) if asks and standing.row is not None else None
        return _refusal(verdict, payment, pending)

    def _proposed(self, row: SubChannel) -> SubRAV | None:
        return proposed(row, self.payee.contract.chain_id)

    # ── after ────────────────────────────────────────────────────────────────────────────────────

    async def settle(
        self, request_id: str, version: int, done: Request, event: Event
    ) -> Told | None:
        """Charge a request and propose what to sign for it, with its row: one commit.

        `version` is that of the row before; None: somebody else has settled it. Raises StoreError.
        """

        told: list[Request] = []

        def decide(row: SubChannel, draft: Draft) -> None:
            row_done, fact = done, event
            if row.serving is not None and row.serving.request == request_id:
                cost = _cost(done, row.serving.cap)
                draft.end()
                if cost:
                    draft.propose(cost, 0, request_id)
            else:  # the channel was opened anew meanwhile: nothing of before can be charged
                row_done = msgspec.structs.replace(done, charged_msat=0)
                fact = msgspec.structs.replace(event, data={**event.data, "charged_msat": 0})
            told[:] = [row_done]
            draft.join(Put(REQUEST, request_id, row_done, version), fact)

        row = await self.payee.sub_channels.try_change(done.channel_id, done.fragment, decide)
        if not isinstance(row, SubChannel):
            return None
        self._notice(self._turns.get(request_id), row)
        pending = row.pending
        if pending is None or pending.service_tx_ref != request_id:
            return Told(told[-1])
        return Told(told[-1], self._proposed(row), pending.cost, pending.cost_pico_usd)


def _cost(done: Request, cap: int) -> int:
    """A charge in the channel's asset, at the rate at which its maximum was covered."""
    most_msat = done.quote.maximum_msat
    return divide(done.charged_msat * cap, most_msat, Rounding.UP)


def _account(turn: Turn) -> str:
    """Whose history a request is in: the payer's own account here, where it has one."""
    return account_of(turn.channel.payer_did) or receivable_account(turn.key)


def _refusal(why: Rejected, payment: ChannelPresented, sub_rav: SubRAV | None = None) -> Answer:
    reference = payment.client_tx_ref or new_id("tx")
    return channel_dialect.refusal(why.code, why.message, reference, sub_rav, why.details)


_NO_RATE = Rejected(
    ErrorCode.BILLING_RATE_NOT_AVAILABLE,
    "There is no trustworthy exchange rate for the channel's asset right now.",
)
_NO_CHANNEL = Rejected(
    ErrorCode.CHANNEL_CONTEXT_MISSING,
    "The request names no channel: send a voucher, or say who pays.",
)
_NOT_THE_PAYER = Rejected(
    ErrorCode.AUTH_INVALID, "Who asks is not who pays on this channel; use your own."
)
