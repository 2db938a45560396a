"""Ends requests: each is charged once, by the process that carries it or by any that finds it.

A request is its process's own while that runs, then anyone's to settle: see docs/processes.md.
"""

from __future__ import annotations

import structlog

from farebox.errors import StoreBusy, StoreError
from farebox.ledger.model import Applied, Stale, Unit
from farebox.ledger.processes import Processes
from farebox.ledger.service import Ledger
from farebox.payments import PlannedChange
from farebox.payments.service import Payments
from farebox.paywall import channel_dialect
from farebox.paywall.channels import ChannelTill, Told
from farebox.paywall.model import REQUEST, Admission, Ended, Request, RequestState, Settlement
from farebox.paywall.receipts import Receipts
from farebox.paywall.settling import (
    NO_USAGE,
    Bill,
    Live,
    admitting_unit,
    bill_of,
    checkpointing,
    completed,
    forgotten,
    free,
    receipt_facts,
    settled,
    settlement,
    settling_unit,
)
from farebox.pricing.usage import Usage

_log = structlog.get_logger("farebox.paywall")

_SETTLE_TRIES_MAX = 8


class Settler:
    """Settles the requests of a process, and those that processes before it left."""

    def __init__(
        self,
        ledger: Ledger,
        payments: Payments,
        receipts: Receipts,
        processes: Processes,
        till: ChannelTill | None,
    ) -> None:
        self._ledger = ledger
        self._payments = payments
        self._receipts = receipts
        self._processes = processes
        self._till = till
        self._unsettled: dict[str, Bill] = {}
        #: The requests of this process between their authorising and their settling commit.
        self.live: dict[str, Live] = {}
        if till is not None:
            till.payee.sub_channels.settle_left = self.settle_left

    @property
    def unsettled(self) -> int:
        """How many requests ended whose bills the books have not taken yet."""
        return len(self._unsettled)

    async def checkpoint(self, admission: Admission, usage: Usage) -> bool:
        """Make durable what was metered so far: a crash charges this much, not less.

        False: somebody took us for dead and has settled the request; nothing is held any more.
        """
        if (live := self.live.get(admission.request_id)) is None:
            return True
        request, unit = checkpointing(admission.request_id, live, usage)
        outcome = await self._ledger.store.commit(unit)
        if isinstance(outcome, Applied):
            self.live[admission.request_id] = Live(request, live.version + 1)
        return not isinstance(outcome, Stale)

    async def settle(self, admission: Admission, usage: Usage, ended: Ended) -> Settlement:
        """Charge what it cost, release the rest, make the change: one commit, once.

        Raises StoreError when the books cannot be written; `recover` settles it then.
        """
        request_id = admission.request_id
        if admission.is_free:
            return await self._settlement(request_id, Told(free(admission)), usage, "")
        bill = bill_of(admission.quote, usage, ended)
        try:
            told = await self._settle(request_id, self.live.get(request_id), bill)
        except BaseException:  # whatever it was: the bill stands, and recovery writes it
            self._unsettled[request_id] = bill
            raise
        finally:
            if self._till is not None:
                self._till.leave(request_id)
        self.live.pop(request_id, None)
        return await self._settlement(request_id, told, usage, admission.client_tx_ref)

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
                if request_id in self.live or row.value.owner in others:
                    continue
                # It is nobody's now; but it may have been somebody's, and open, when it was found.
                bill = Bill(row.value.checkpoint_msat, Ended.CRASHED, NO_USAGE)
                count += await self._settle_late(request_id, bill)
            after = rows[-1][0]
        return count

    async def settle_left(self, request_id: str) -> bool:
        """Settle one request that nobody carries any more; False: somebody does. Of a sub-channel
        whose next request is here already. Raises StoreError."""
        bill = self._unsettled.get(request_id)
        if bill is None and request_id in self.live:
            return False
        row = await self._ledger.store.get(REQUEST, request_id)
        if row is None or row.value.state is RequestState.SETTLED:
            return True
        if bill is None and row.value.owner in await self._processes.others():
            return False
        bill = bill or Bill(row.value.checkpoint_msat, Ended.CRASHED, NO_USAGE)
        return await self._settle_late(request_id, bill)

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
        self.live.pop(request_id, None)
        return True

    async def _settle(self, request_id: str, live: Live | None, bill: Bill) -> Told:
        for _ in range(_SETTLE_TRIES_MAX):
            if live is None:
                row = await self._ledger.store.get(REQUEST, request_id)
                if row is None:  # a database that crashed forgets what was not synced
                    request = self.live[request_id].request
                    # What a channel was to pay for, its payer is asked to sign for again.
                    again = None if request.channel_id else admitting_unit(request_id, request)
                    if again is None or not await self._is_applied(again):
                        return Told(forgotten(request, bill, self._ledger.clock.now_ns()))
                    live = Live(request, 1)
                elif row.value.state is RequestState.SETTLED:
                    return Told(row.value)
                else:
                    live = Live(row.value, row.version)
            told = await self._commit(request_id, live, bill)
            if told is not None:
                return told
            _log.warning("request.settle_raced", request=request_id)
            live = None
        raise StoreBusy(f"request {request_id} lost too many races; it is settled by recovery")

    async def _is_applied(self, unit: Unit) -> bool:
        return isinstance(await self._ledger.store.commit(unit), Applied)

    async def _commit(self, request_id: str, live: Live, bill: Bill) -> Told | None:
        """The settling commit; None where somebody else's came before it."""
        request, now_ns = live.request, self._ledger.clock.now_ns()
        if request.channel_id:
            if self._till is None:
                raise StoreBusy("a channel paid for it, and there is no [channels] now")
            done = settled(request, bill, 0, None, now_ns)
            return await self._till.settle(
                request_id, live.version, done, completed(request_id, done)
            )
        left, change = 0, None
        if request.credential:
            left = await self._left(request, bill)
            change = await self._plan_change(request_id, request, left)
        done = settled(request, bill, left, change, now_ns)
        unit = settling_unit(request_id, live.version, done, change)
        return Told(done) if await self._is_applied(unit) else None

    async def _left(self, request: Request, bill: Bill) -> int:
        """The change of a request: what is left of the money embedded in it, hold and all."""
        found = await self._ledger.store.account(request.account)
        available = 0 if found is None else found.available
        return request.quote.maximum_msat - bill.charged_msat + available

    async def _plan_change(
        self, request_id: str, request: Request, left: int
    ) -> PlannedChange | None:
        method = self._payments.methods[request.method]
        return await method.plan_change(request_id, 0 if request.change_as_credit else left)

    async def _settlement(
        self, request_id: str, told: Told, usage: Usage, client_tx_ref: str
    ) -> Settlement:
        request = told.request
        change = await self.change(request) if request.change else ""
        receipt = await self._receipts.sign(receipt_facts(request_id, request, usage))
        proposal = ""
        if told.sub_rav is not None and client_tx_ref:
            proposal = channel_dialect.proposal(
                client_tx_ref, request_id, told.sub_rav, told.cost, told.cost_pico_usd
            )
        return settlement(request, receipt, change, proposal)

    async def change(self, request: Request) -> str:
        """The change of a settled request as it is told, "" where there is none."""
        if not request.change:
            return ""
        method = self._payments.methods[request.method]
        return await method.render_change(request.change) or ""
