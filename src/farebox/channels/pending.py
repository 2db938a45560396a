"""The proposals that wait for their signature: one at most on each sub-channel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from farebox.channels.book import SubChannels
from farebox.channels.model import SubChannel, proposed
from farebox.clock import NS_PER_S
from farebox.errors import InvalidInput
from farebox.ledger.store import PAGE_MAX
from farebox.wire.subrav.model import SubRAV

#: Charges an amount to (channel, fragment) and says what to sign for it.
Propose = Callable[[str, str, int], Awaitable[SubRAV]]


@dataclass(frozen=True, slots=True)
class PendingSubRAVStats:
    """How many proposals are owed and not written off, and since when the oldest (ns, UTC)."""

    pending_count: int
    oldest_at: int | None


class PendingSubRAVStore:
    """Finds, makes and writes off proposals. Most are made where their requests are charged.

    Written off, a proposal is no longer in the books as owed. Nobody is served again before it is
    paid all the same: payment-kit forgets it, and so gives each payer a free request every half
    hour.
    """

    def __init__(self, sub_channels: SubChannels, propose: Propose) -> None:
        self._sub_channels = sub_channels
        self._propose = propose

    async def save(self, sub_rav: SubRAV) -> None:
        """Propose exactly this, and charge what it adds. What is proposed already stays so.

        Raises InvalidInput for what does not follow from the last voucher.
        """
        channel_id, fragment = sub_rav.channel_id, sub_rav.vm_id_fragment
        row = await self._sub_channels.read(channel_id, fragment)
        if row is None:
            raise InvalidInput("nothing was served on this sub-channel; use generate_proposal")
        if proposed(row, self._sub_channels.chain_id) == sub_rav:
            return
        terms = (sub_rav.chain_id, sub_rav.channel_epoch, sub_rav.nonce)
        if terms != (self._sub_channels.chain_id, row.epoch, row.paid_nonce + 1):
            raise InvalidInput("the proposal is of another chain or epoch, or its nonce not next")
        if sub_rav.accumulated_amount < row.paid_amount:
            raise InvalidInput(f"the total would fall, from {row.paid_amount}")
        await self._propose(channel_id, fragment, sub_rav.accumulated_amount - row.paid_amount)

    async def find(self, channel_id: str, nonce: int, fragment: str = "") -> SubRAV | None:
        """The proposal of this nonce on a sub-channel of a channel, or on any of them."""
        row = await self._row(channel_id, nonce, fragment)
        return None if row is None else proposed(row, self._sub_channels.chain_id)

    async def find_latest_by_sub_channel(self, channel_id: str, fragment: str) -> SubRAV | None:
        """The proposal that a sub-channel owes, written off or not."""
        row = await self._sub_channels.read(channel_id, fragment)
        return None if row is None else proposed(row, self._sub_channels.chain_id)

    async def remove(self, channel_id: str, nonce: int, fragment: str) -> bool:
        """Write off one proposal, in the books; False: there is none, or it was before."""
        row = await self._row(channel_id, nonce, fragment)
        if row is None or row.pending_at is None:
            return False
        return await self._sub_channels.write_off(row)

    async def cleanup(self, max_age_s: int) -> int:
        """Write off proposals older than this, in the books; returns how many."""
        at_most = self._sub_channels.ledger.clock.now_ns() - max_age_s * NS_PER_S
        done = 0
        async for row in self._since(at_most):
            done += await self._sub_channels.write_off(row)
        return done

    async def clear(self) -> int:
        """Write off all there are; returns how many."""
        return await self.cleanup(0)

    async def get_stats(self) -> PendingSubRAVStats:
        """What is owed now."""
        times = [
            row.pending_at
            async for row in self._since(self._sub_channels.ledger.clock.now_ns())
            if row.pending_at is not None
        ]
        return PendingSubRAVStats(len(times), min(times, default=None))

    async def _row(self, channel_id: str, nonce: int, fragment: str) -> SubChannel | None:
        for row in await self._sub_channels.of_channel(channel_id):
            is_meant = fragment in ("", row.fragment)
            if is_meant and row.pending is not None and row.pending.nonce == nonce:
                return row
        return None

    async def _since(self, at_most: int) -> AsyncIterator[SubChannel]:
        after = ""
        while True:
            page = await self._sub_channels.due("pending_at", at_most, after)
            for key, row in page:
                after = key
                yield row
            if len(page) < PAGE_MAX:
                return
