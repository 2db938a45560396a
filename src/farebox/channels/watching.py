"""Answers payers that close behind our back: what they signed is claimed before their time is up.

| boundary                     | what can fail | recovery                                          |
|------------------------------|---------------|---------------------------------------------------|
| closing on the chain → noted | we stop       | the stored cursor: it is told again               |
| noted → claimed for good     | we stop       | it stays noted, and is claimed again until there  |
|                              |               | is nothing left to claim                          |
| a chain that cannot be asked | for hours     | noted late; the challenge period has to be longer |

A channel stays noted until nothing of it is unclaimed. `ClaimScheduler` looks at every channel that
owes anything as well, every `watch_s`; this hears of a closing within seconds, for one question.
"""

from __future__ import annotations

import msgspec
import structlog

from farebox.channels.chain import WatchedContract
from farebox.channels.claims import ClaimScheduler
from farebox.channels.model import SubChannel
from farebox.channels.payee import PaymentChannelPayeeClient
from farebox.errors import StoreError
from farebox.ids import new_id
from farebox.ledger.model import Applied, Put, Replayed, Unit
from farebox.ledger.records import RecordType
from farebox.ledger.service import State

_log = structlog.get_logger("farebox.channels")
#: Closings that may be answered at once; the cursor waits for the others.
_NOTED_MAX = 10_000


class Watched(msgspec.Struct, frozen=True):
    """How far a chain has been read, and which channels close and are not claimed whole."""

    cursor: str
    closing: tuple[str, ...] = ()


CHANNEL_WATCH = RecordType("channel_watch", Watched)


class ClosingWatch:
    """Hears of closings and has them claimed. `name` is the chain's, the key of its cursor."""

    def __init__(
        self,
        name: str,
        contract: WatchedContract,
        payee: PaymentChannelPayeeClient,
        claims: ClaimScheduler,
    ) -> None:
        self._name = name
        self._contract = contract
        self._payee = payee
        self._claims = claims

    async def run_once(self) -> int:
        """Claim whatever of closing channels is unclaimed; returns how many still wait.

        Call it every few seconds. Raises RailUnavailable, StoreError: then nothing is forgotten.
        """
        row = await self._payee.sub_channels.ledger.store.get(CHANNEL_WATCH, self._name)
        before = Watched("") if row is None else row.value
        if len(before.closing) < _NOTED_MAX:
            told = await self._contract.closings(before.cursor)
            noted = Watched(told.cursor, tuple(dict.fromkeys((*before.closing, *told.channel_ids))))
            if noted != before:
                await self._store(noted)
            for channel_id in set(noted.closing) - set(before.closing):
                _log.warning("channel.closing", channel=channel_id)
            before = noted
        left = tuple([one for one in before.closing if not await self._is_claimed(one)])
        if left != before.closing:
            await self._store(Watched(before.cursor, left))
        return len(left)

    async def _is_claimed(self, channel_id: str) -> bool:
        if not any(row.unclaimed_amount for row in await self._rows(channel_id)):
            return True
        await self._claims.trigger(channel_id)
        return not any(row.unclaimed_amount for row in await self._rows(channel_id))

    async def _rows(self, channel_id: str) -> list[SubChannel]:
        return await self._payee.sub_channels.of_channel(channel_id)

    async def _store(self, watched: Watched) -> None:
        unit_id = new_id("watch")

        def decide(state: State, now: int) -> Unit:
            version = state.version(CHANNEL_WATCH, self._name)
            return Unit(unit_id, puts=(Put(CHANNEL_WATCH, self._name, watched, version),))

        outcome = await self._payee.sub_channels.ledger.transact(
            [(CHANNEL_WATCH, self._name)], decide
        )
        if not isinstance(outcome, Applied | Replayed):
            raise StoreError(f"the watch's cursor cannot be stored: {outcome}")
