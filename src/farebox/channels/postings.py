"""What each change of a sub-channel posts, as one unit. Pure; `docs/ledger.md` has the scenarios.

| what happens          | steps                                                                   |
|-----------------------|-------------------------------------------------------------------------|
| a request begins      | hold custody → clearing, the most it may cost: its cover                |
| it is settled         | transfer receivable → revenue, its cost; the cover is the proposal's    |
|                       | now, or is voided for a hold of what the request did cost               |
| its voucher comes     | transfer custody → receivable, its cost; the hold is the next request's |
|                       | cover, where that takes as much                                         |
| … or else             | post the hold, transfer clearing → receivable: no limit refuses a       |
|                       | voucher for what was within it when it was served                       |
| it never comes        | void the hold; transfer expense → receivable                            |
| it comes after all    | transfer custody → expense                                              |
| a claim is paid       | transfer where it was paid to → custody                                 |
| the channel is closed | what was not claimed: transfer expense → custody                        |
| the epoch ended       | as if no voucher came, and as if it was closed                          |

`custody:channel:<backing>` holds what was signed and not yet claimed of one collateral; its ceiling
is what the collateral still holds, or the payer's limit: the ledger itself refuses credit that
nothing covers, summed over all sub-channels. The receivable's ceiling is its one proposal. Where
all requests cost the same, one hold covers them all, one after the other, and is written once.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from farebox.channels.chain import ChannelInfo, PaidTo
from farebox.channels.model import (
    NAMED_MAX,
    SUB_CHANNEL,
    Proposal,
    Serving,
    SubChannel,
    Voucher,
    opened,
)
from farebox.ledger.model import (
    Event,
    Hold,
    Kind,
    Open,
    Post,
    Put,
    SetCeiling,
    Step,
    Transfer,
    Unit,
    Void,
    hold_id,
)
from farebox.wire.subrav.model import SignedSubRAV

_VOUCHER = "channel_voucher"
#: The house's own asset has the plain names; every other has accounts of its own.
_HOME_ASSET = "BTC"


@lru_cache(maxsize=NAMED_MAX)
def custody_account(backing: str) -> str:
    """What was signed against one collateral and not yet claimed."""
    return f"custody:channel:{backing}"


@lru_cache(maxsize=NAMED_MAX)
def receivable_account(key: str) -> str:
    """The cost of the one request of a sub-channel (its row's key) that is not signed for."""
    return f"receivable:channel:{key}"


@lru_cache(maxsize=NAMED_MAX)
def clearing_account(backing: str) -> str:
    """What is reserved under one collateral passes through here, and nothing stays."""
    return f"clearing:channel:{backing}"


def revenue_account(asset_id: str) -> str:
    """Where charges are earned: what is withdrawn from there is what claims have brought."""
    return "revenue" if asset_id == _HOME_ASSET else f"revenue/{asset_id}"


def loss_account(asset_id: str) -> str:
    """What payers never signed for, or was never claimed."""
    return f"expense:channel-loss:{asset_id}"


class _Left(msgspec.Struct, frozen=True, gc=False):
    """A hold that what ended in this unit has left; what comes next may take it over. `is_paid`:
    its voucher is here, and is still to be posted."""

    hold: str
    amount: int
    is_paid: bool


class Draft:
    """A unit in the making: the row as it will be, and what is posted with it."""

    __slots__ = (
        "_custody",
        "_events",
        "_id",
        "_key",
        "_left",
        "_now",
        "_puts",
        "_receivable",
        "_steps",
        "_version",
        "row",
    )

    def __init__(self, unit_id: str, key: str, row: SubChannel, version: int, now: int) -> None:
        """`unit_id` is fresh: two processes that decide on one version must not be one unit."""
        self.row = row
        self._version = version
        self._now = now
        self._key = key
        self._receivable = receivable_account(key)
        self._custody = custody_account(row.backing)
        self._id = unit_id
        self._steps: list[Step] = []
        self._left: _Left | None = None
        self._events: list[Event] = []
        self._puts: tuple[Put, ...] = ()
        if not version:
            self._open()

    def unit(self, fingerprint: bytes = b"") -> Unit:
        """All of it."""
        self._let_go()
        row = self.row
        if row.last_at != self._now:
            row = msgspec.structs.replace(row, last_at=self._now)
        put = Put(SUB_CHANNEL, self._key, row, self._version)
        puts = (put, *self._puts)
        steps, events = tuple(self._steps), tuple(self._events)
        return Unit(self._id, steps, puts=puts, events=events, fingerprint=fingerprint)

    def join(self, put: Put, event: Event | None = None) -> None:
        """Write a row of somebody else's with it."""
        self._puts += (put,)
        if event is not None:
            self._events.append(event)

    @property
    def is_joined(self) -> bool:
        """Whether somebody else's row is written with it."""
        return bool(self._puts)

    def limit(self, ceiling: int) -> None:
        """Let the ledger know what the collateral covers."""
        self._steps.append(SetCeiling(self._custody, ceiling))

    def accept(self, signed: SignedSubRAV) -> None:
        """Its proposal is paid."""
        pending = self.row.pending
        assert pending is not None
        if pending.is_written_off:
            loss = loss_account(self.row.asset_id)
            self._steps.append(Transfer(self._custody, loss, pending.cost, "channel_late"))
        else:
            self._left = _Left(pending.hold, pending.cost, is_paid=True)
        sub_rav = signed.sub_rav
        since = self.row.unclaimed_since or self._now
        self._change(
            accepted=Voucher(sub_rav.accumulated_amount, sub_rav.nonce, signed.signature),
            pending=None,
            pending_at=None,
            unclaimed_since=since if sub_rav.accumulated_amount > self.row.claimed_amount else None,
        )

    def begin(
        self, process: str, cap: int, floor: int, floor_pico_usd: int, request: str = ""
    ) -> None:
        """Serve a request that costs `cap` at most, `floor` if nobody ever says what."""
        self._change(
            serving=Serving(
                process=process,
                cover=self._reserve(cap),
                floor=floor,
                floor_pico_usd=floor_pico_usd,
                cap=cap,
                request=request,
            )
        )

    def end(self) -> None:
        """The request is over; what it cost, if anything, is proposed next."""
        serving = self.row.serving
        assert serving is not None
        self._left = _Left(serving.cover, serving.cap, is_paid=False)
        self._change(serving=None)

    def propose(self, cost: int, cost_pico_usd: int, service_tx_ref: str = "") -> None:
        """Charge a request and ask for the voucher that pays it."""
        assert self.row.pending is None
        hold = self._reserve(cost)  # first: it posts the voucher, which makes room for the charge
        if self.row.owed_max != cost:
            self._steps.append(SetCeiling(self._receivable, cost))
        revenue = revenue_account(self.row.asset_id)
        self._steps.append(Transfer(self._receivable, revenue, cost, "channel_charge"))
        proposal = Proposal(
            amount=self.row.paid_amount + cost,
            nonce=self.row.paid_nonce + 1,
            cost=cost,
            cost_pico_usd=cost_pico_usd,
            hold=hold,
            service_tx_ref=service_tx_ref or self._id,
        )
        self._change(pending=proposal, pending_at=self._now, owed_max=cost)

    def write_off(self) -> None:
        """Stop counting the proposal as owed; it is asked for all the same."""
        pending = self.row.pending
        assert pending is not None
        if not pending.is_written_off:
            loss, owed = loss_account(self.row.asset_id), self._receivable
            self._steps += [
                Void(pending.hold),
                Transfer(loss, owed, pending.cost, "channel_unpaid"),
            ]
        self._change(pending=msgspec.structs.replace(pending, is_written_off=True), pending_at=None)

    def claimed(self, amount: int, paid_to: PaidTo) -> None:
        """A claim was paid, up to `amount` in all."""
        delta = min(amount, self.row.paid_amount) - self.row.claimed_amount
        if delta > 0:
            self._steps += [
                Open(paid_to.account, self.row.asset_id, paid_to.kind),
                Transfer(paid_to.account, self._custody, delta, "channel_claim"),
            ]
            self._change(claimed_amount=self.row.claimed_amount + delta)
            self._events.append(Event("channel.claimed", self._key, {"amount": delta}))
        self._change(unclaimed_since=self._now if self.row.unclaimed_amount else None)

    def lost(self) -> None:
        """The channel is closed: what was not claimed never will be."""
        lost = self.row.unclaimed_amount
        if lost:
            loss = loss_account(self.row.asset_id)
            self._steps.append(Transfer(loss, self._custody, lost, "channel_closed"))
            self._change(claimed_amount=self.row.paid_amount, unclaimed_since=None)

    def reopen(self, channel: ChannelInfo, amount: int, nonce: int) -> None:
        """The channel has a new epoch: nothing signed in the old one is worth anything more."""
        if self.row.serving is not None:
            self.end()
            self._let_go()
        if self.row.pending is not None:
            self.write_off()
        lost = self.row.unclaimed_amount
        if lost:
            loss = loss_account(self.row.asset_id)
            self._steps.append(Transfer(loss, self._custody, lost, "channel_epoch_ended"))
        self.row = opened(channel, self.row.fragment, amount, nonce)
        self._custody = custody_account(self.row.backing)
        self._open()

    @property
    def _clearing(self) -> str:
        return clearing_account(self.row.backing)

    def _open(self) -> None:
        asset = self.row.asset_id
        self._steps += [
            Open(self._custody, asset, Kind.CUSTODY),
            Open(self._clearing, asset, Kind.CLEARING),
            Open(self._receivable, asset, Kind.RECEIVABLE),
            Open(revenue_account(asset), asset, Kind.REVENUE),
            Open(loss_account(asset), asset, Kind.EXPENSE),
        ]

    def _reserve(self, amount: int) -> str:
        """A hold of this much on the collateral: what ended has left one, or it is a new one."""
        left = self._left
        if left is None or left.amount != amount:
            self._let_go()
            held = hold_id(self._id, len(self._steps))
            self._steps.append(Hold(self._custody, self._clearing, amount, "channel_cover"))
            return held
        if left.is_paid:
            self._steps.append(Transfer(self._custody, self._receivable, amount, _VOUCHER))
        self._left = None
        return left.hold

    def _let_go(self) -> None:
        """End the hold that is left, if one is, and post the voucher it was for."""
        left, self._left = self._left, None
        if left is None:
            return
        if left.is_paid:
            voucher = Transfer(self._clearing, self._receivable, left.amount, _VOUCHER)
            self._steps += [Post(left.hold), voucher]
        else:
            self._steps.append(Void(left.hold))

    def _change(self, **fields: object) -> None:
        self.row = msgspec.structs.replace(self.row, last_at=self._now, **fields)
