"""What each change of a sub-channel posts, as one unit. Pure; `docs/ledger.md` has the scenarios.

| what happens          | steps                                                                   |
|-----------------------|-------------------------------------------------------------------------|
| a request begins      | hold custody → revenue, the most it may cost: its cover                 |
| it is settled         | void the cover; transfer receivable → revenue, its cost;                |
|                       | hold custody → receivable, its cost                                     |
| its voucher comes     | post that hold                                                          |
| it never comes        | void that hold; transfer expense → receivable                           |
| it comes after all    | transfer custody → expense                                              |
| a claim is paid       | transfer where it was paid to → custody                                 |
| the channel is closed | what was not claimed: transfer expense → custody                        |
| the epoch ended       | as if no voucher came, and as if it was closed                          |

`custody:channel:<backing>` holds what was signed and not yet claimed of one collateral; its ceiling
is what the collateral still holds, or the payer's limit: the ledger itself refuses credit that
nothing covers, summed over all sub-channels. The receivable's ceiling is its one proposal.
"""

from __future__ import annotations

import msgspec

from farebox.channels.chain import ChannelInfo, PaidTo
from farebox.channels.model import (
    SUB_CHANNEL,
    Proposal,
    Serving,
    SubChannel,
    Voucher,
    opened,
    sub_channel_key,
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

#: The house's own asset has the plain names; every other has accounts of its own.
_HOME_ASSET = "BTC"


def custody_account(backing: str) -> str:
    """What was signed against one collateral and not yet claimed."""
    return f"custody:channel:{backing}"


def receivable_account(channel_id: str, fragment: str) -> str:
    """The cost of the one request of a sub-channel that is not signed for."""
    return f"receivable:channel:{sub_channel_key(channel_id, fragment)}"


def revenue_account(asset_id: str) -> str:
    """Where charges are earned: what is withdrawn from there is what claims have brought."""
    return "revenue" if asset_id == _HOME_ASSET else f"revenue/{asset_id}"


def loss_account(asset_id: str) -> str:
    """What payers never signed for, or was never claimed."""
    return f"expense:channel-loss:{asset_id}"


class Draft:
    """A unit in the making: the row as it will be, and what is posted with it."""

    def __init__(self, unit_id: str, row: SubChannel, version: int, now: int) -> None:
        """`unit_id` is fresh: two processes that decide on one version must not be one unit."""
        self.row = row
        self._version = version
        self._now = now
        self._key = sub_channel_key(row.channel_id, row.fragment)
        self._receivable = receivable_account(row.channel_id, row.fragment)
        self._id = unit_id
        self._steps: list[Step] = []
        #: What one event tells of the whole.
        self._told: dict[str, int] = {}
        self._events: list[Event] = []
        self._puts: tuple[Put, ...] = ()
        if not version:
            self._open()

    def unit(self, fingerprint: bytes = b"") -> Unit:
        """All of it."""
        row = msgspec.structs.replace(self.row, last_at=self._now)
        put = Put(SUB_CHANNEL, self._key, row, self._version)
        puts = (put, *self._puts)
        if self._told:
            self._events.append(Event("channel.changed", self._key, self._told))
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
        self._steps.append(SetCeiling(custody_account(self.row.backing), ceiling))

    def accept(self, signed: SignedSubRAV) -> None:
        """Its proposal is paid."""
        pending = self.row.pending
        assert pending is not None
        if pending.is_written_off:
            custody, loss = custody_account(self.row.backing), loss_account(self.row.asset_id)
            self._steps.append(Transfer(custody, loss, pending.cost, "channel_late"))
        else:
            self._steps.append(Post(pending.hold))
        sub_rav = signed.sub_rav
        since = self.row.unclaimed_since or self._now
        self._change(
            accepted=Voucher(sub_rav.accumulated_amount, sub_rav.nonce, signed.signature),
            pending=None,
            pending_at=None,
            unclaimed_since=since if sub_rav.accumulated_amount > self.row.claimed_amount else None,
        )
        self._told["paid"] = pending.cost

    def begin(
        self, process: str, cap: int, floor: int, floor_pico_usd: int, request: str = ""
    ) -> None:
        """Serve a request that costs `cap` at most, `floor` if nobody ever says what."""
        revenue = revenue_account(self.row.asset_id)
        cover = self._hold(custody_account(self.row.backing), revenue, cap, "channel_cover")
        self._change(
            serving=Serving(
                process=process,
                cover=cover,
                floor=floor,
                floor_pico_usd=floor_pico_usd,
                cap=cap,
                request=request,
            )
        )

    def end(self) -> None:
        """The request is over; what it cost, if anything, is proposed next."""
        assert self.row.serving is not None
        self._steps.append(Void(self.row.serving.cover))
        self._change(serving=None)

    def propose(self, cost: int, cost_pico_usd: int, service_tx_ref: str = "") -> None:
        """Charge a request and ask for the voucher that pays it."""
        assert self.row.pending is None
        receivable = self._receivable
        if self.row.owed_max != cost:
            self._steps.append(SetCeiling(receivable, cost))
        revenue = revenue_account(self.row.asset_id)
        self._steps.append(Transfer(receivable, revenue, cost, "channel_charge"))
        custody = custody_account(self.row.backing)
        proposal = Proposal(
            amount=self.row.paid_amount + cost,
            nonce=self.row.paid_nonce + 1,
            cost=cost,
            cost_pico_usd=cost_pico_usd,
            hold=self._hold(custody, receivable, cost, "channel_proposal"),
            service_tx_ref=service_tx_ref or self._id,
        )
        self._change(pending=proposal, pending_at=self._now, owed_max=cost)
        self._told["charged"] = cost

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
                Transfer(
                    paid_to.account, custody_account(self.row.backing), delta, "channel_claim"
                ),
            ]
            self._change(claimed_amount=self.row.claimed_amount + delta)
            self._told["claimed"] = delta
        self._change(unclaimed_since=self._now if self.row.unclaimed_amount else None)

    def lost(self) -> None:
        """The channel is closed: what was not claimed never will be."""
        lost = self.row.unclaimed_amount
        if lost:
            custody, loss = custody_account(self.row.backing), loss_account(self.row.asset_id)
            self._steps.append(Transfer(loss, custody, lost, "channel_closed"))
            self._change(claimed_amount=self.row.paid_amount, unclaimed_since=None)

    def reopen(self, channel: ChannelInfo, amount: int, nonce: int) -> None:
        """The channel has a new epoch: nothing signed in the old one is worth anything more."""
        if self.row.serving is not None:
            self.end()
        if self.row.pending is not None:
            self.write_off()
        lost = self.row.unclaimed_amount
        if lost:
            custody, loss = custody_account(self.row.backing), loss_account(self.row.asset_id)
            self._steps.append(Transfer(loss, custody, lost, "channel_epoch_ended"))
        self.row = opened(channel, self.row.fragment, amount, nonce)
        self._open()

    def _open(self) -> None:
        asset = self.row.asset_id
        self._steps += [
            Open(custody_account(self.row.backing), asset, Kind.CUSTODY),
            Open(self._receivable, asset, Kind.RECEIVABLE),
            Open(revenue_account(asset), asset, Kind.REVENUE),
            Open(loss_account(asset), asset, Kind.EXPENSE),
        ]

    def _hold(self, debit: str, credit: str, amount: int, code: str) -> str:
        held = hold_id(self._id, len(self._steps))
        self._steps.append(Hold(debit, credit, amount, code))
        return held

    def _change(self, **fields: object) -> None:
        self.row = msgspec.structs.replace(self.row, **fields)
