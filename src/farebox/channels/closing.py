"""The cooperative close: a payer asks, and its payee claims the last vouchers and closes at once.

    asked ──► agreed: nothing is owed or being served,   ──► on the chain ──► final ──► booked
              and no voucher is taken from here on

| boundary             | in one commit                         | should we stop after it         |
|----------------------|---------------------------------------|---------------------------------|
| asked → agreed       | the record; every sub-channel, frozen | whoever has the duty closes     |
| agreed → on chain    | the transaction, as every other       | it is found on its way          |
| final → booked       | what the chain has paid, key by key   | the chain is asked again        |
| booked → done        | the record                            | nothing is left to be booked    |

Both have signed: the payer its last vouchers and what it asks, the payee its transaction. A frozen
sub-channel serves nobody, in whatever process, until the channel is opened anew; nor then while
something of it is not booked.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import structlog

from farebox.channels.chain import (
    ChannelInfo,
    ChannelStatus,
    ClaimUnderway,
    ClosingContract,
)
from farebox.channels.model import (
    CHANNEL_CLOSE,
    SUB_CHANNEL,
    ChannelClose,
    CloseState,
    SubChannel,
    accepted_voucher,
)
from farebox.channels.payee import PaymentChannelPayeeClient
from farebox.channels.weighing import Rejected
from farebox.errors import RailError
from farebox.ids import new_id
from farebox.ledger.model import ABSENT, Applied, Event, Put, Unit
from farebox.ledger.records import Row
from farebox.wire.subrav.model import ErrorCode, SignedSubRAV

_log = structlog.get_logger("farebox.channels")
#: More are not frozen in one commit, nor paid in one transaction.
_SUB_CHANNELS_MAX = 25


@dataclass(frozen=True, slots=True)
class Agreed:
    """The channel is closed as soon as its chain has done it; its payer need do nothing more."""

    channel_id: str


class CooperativeClose:
    """Closes channels at once for payers that ask. Call `run` every few seconds."""

    def __init__(self, payee: PaymentChannelPayeeClient, contract: ClosingContract) -> None:
        self._payee = payee
        self._contract = contract
        self._store = payee.sub_channels.ledger.store

    async def ask(self, channel_id: str) -> Agreed | Rejected:
        """Agree to close a channel whose payer asks for it, or say why not.

        Asked again, it is agreed. Raises RailError, StoreError.
        """
        channel = await self._payee.channel_info(channel_id)
        if channel is None or channel.payee_did != self._payee.payee_did:
            return Rejected(ErrorCode.CHANNEL_NOT_FOUND, "There is no such channel that pays us.")
        if channel.status is ChannelStatus.CLOSED:
            return Rejected(ErrorCode.CHANNEL_CLOSED, "The channel is closed.")
        known = await self._store.get(CHANNEL_CLOSE, channel_id)
        if known is not None and known.value.epoch == channel.epoch:
            return Agreed(channel_id)
        found = await self._store.find(SUB_CHANNEL, {"channel_id": channel_id})
        rows = {key: row for key, row in found if row.value.epoch == channel.epoch}
        refused = _not_yet([row.value for row in rows.values()])
        if refused is not None:
            return refused
        proofs = self._proofs([row.value for row in rows.values()])
        earned = sum(row.value.paid_amount for row in rows.values())
        why = await self._contract.refuses_close(channel, proofs, earned)
        if why:
            return Rejected(ErrorCode.HUB_INSUFFICIENT_FUNDS, why)
        version = ABSENT if known is None else known.version
        return await self._agreed(channel, version, rows)

    async def run(self) -> int:
        """Go on with every close that is agreed; returns how many were done. Raises StoreError."""
        done = 0
        for _, row in await self._store.find(CHANNEL_CLOSE, {"state": CloseState.AGREED}):
            try:
                done += await self._advance(row)
            except ClaimUnderway:
                continue
            except RailError as error:
                _log.warning("channel.close_held", channel=row.value.channel_id, error=str(error))
        return done

    async def _agreed(
        self, channel: ChannelInfo, version: int, rows: dict[str, Row[SubChannel]]
    ) -> Agreed | Rejected:
        channel_id = channel.channel_id
        close = ChannelClose(channel_id=channel_id, epoch=channel.epoch)
        frozen = (
            Put(SUB_CHANNEL, key, msgspec.structs.replace(row.value, is_closing=True), row.version)
            for key, row in rows.items()
        )
        unit = Unit(
            new_id("cls"),
            puts=(Put(CHANNEL_CLOSE, channel_id, close, version), *frozen),
            events=(Event("channel.close_agreed", channel_id),),
        )
        outcome = await self._store.commit(unit)
        if isinstance(outcome, Applied):
            return Agreed(channel_id)
        return Rejected(ErrorCode.RAV_CONFLICT, "The channel is being paid on; ask again.")

    async def _advance(self, row: Row[ChannelClose]) -> bool:
        close = row.value
        found = await self._store.find(SUB_CHANNEL, {"channel_id": close.channel_id})
        rows = [one.value for _, one in found if one.value.epoch == close.epoch]
        proofs = self._proofs(rows)
        paid = await self._contract.close_as_payee(close.channel_id, close.epoch, proofs)
        channel = await self._payee.contract.channel(close.channel_id)
        assert channel is not None, "it was closed just now, and no channel is ever forgotten"
        self._payee.forget(channel)
        paid_to, ceiling = self._contract.paid_to(channel), await self._payee.ceiling(channel)
        for one in rows:
            if one.unclaimed_amount:
                amount = paid.get(one.fragment, one.claimed_amount)
                booked = await self._payee.sub_channels.claimed(one, amount, paid_to, ceiling)
                if booked.epoch == close.epoch and booked.unclaimed_amount:
                    await self._payee.sub_channels.lost(booked)
        done = msgspec.structs.replace(close, state=CloseState.DONE)
        unit = Unit(new_id("cls"), puts=(Put(CHANNEL_CLOSE, close.channel_id, done, row.version),))
        return isinstance(await self._store.commit(unit), Applied)

    def _proofs(self, rows: list[SubChannel]) -> list[SignedSubRAV]:
        """The newest vouchers that are worth something still."""
        chain_id = self._contract.chain_id
        newest = (accepted_voucher(row, chain_id) for row in rows if row.unclaimed_amount)
        return [one for one in newest if one is not None]


def _not_yet(rows: list[SubChannel]) -> Rejected | None:
    """Why a channel cannot be closed now: what is owed, and not signed for, would be lost."""
    if len(rows) > _SUB_CHANNELS_MAX:
        why = f"It has more than {_SUB_CHANNELS_MAX} keys; close it on its chain."
        return Rejected(ErrorCode.RAV_CONFLICT, why)
    serving = next((row for row in rows if row.serving is not None), None)
    if serving is not None:
        why = f"A request of {serving.fragment} is being served; ask again."
        return Rejected(ErrorCode.RAV_CONFLICT, why)
    owing = next((row for row in rows if row.pending is not None and row.pending.cost), None)
    if owing is not None:
        why = f"{owing.fragment} owes for its last request: commit the voucher, then ask again."
        return Rejected(ErrorCode.PAYMENT_REQUIRED, why)
    return None
