"""The proposals that wait for their signature: one at most on each sub-channel."""

from __future__ import annotations

from farebox.channels.book import SubChannels
from farebox.channels.model import proposed
from farebox.clock import NS_PER_S
from farebox.ledger.store import PAGE_MAX
from farebox.wire.subrav.model import SubRAV


class PendingSubRAVStore:
    """Finds and clears proposals. They are made where their requests are charged."""

    def __init__(self, sub_channels: SubChannels) -> None:
        self._sub_channels = sub_channels

    async def find(self, channel_id: str, nonce: int) -> SubRAV | None:
        """The proposal of this nonce on any sub-channel of a channel."""
        for row in await self._sub_channels.of_channel(channel_id):
            pending = proposed(row, self._sub_channels.chain_id)
            if pending is not None and pending.nonce == nonce:
                return pending
        return None

    async def find_latest_by_sub_channel(self, channel_id: str, fragment: str) -> SubRAV | None:
        """The proposal that a sub-channel owes, written off or not."""
        row = await self._sub_channels.read(channel_id, fragment)
        return None if row is None else proposed(row, self._sub_channels.chain_id)

    async def cleanup(self, max_age_s: int) -> int:
        """Write off proposals older than this, in the books; returns how many.

        Nobody is served again before such a proposal is paid: payment-kit forgets it, and so gives
        each payer a free request every half hour.
        """
        ledger = self._sub_channels.ledger
        at_most, done, after = ledger.clock.now_ns() - max_age_s * NS_PER_S, 0, ""
        while True:
            due = await self._sub_channels.due("pending_at", at_most, after)
            for key, row in due:
                done += await self._sub_channels.write_off(row)
                after = key
            if len(due) < PAGE_MAX:
                return done
