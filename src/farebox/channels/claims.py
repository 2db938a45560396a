"""When vouchers are redeemed: a claim costs a fee, and what is not claimed is at risk."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from farebox.channels.chain import ChannelStatus, ClaimUnderway
from farebox.channels.model import SubChannel, accepted_voucher, sub_channel_key
from farebox.channels.payee import PaymentChannelPayeeClient
from farebox.channels.postings import custody_account
from farebox.clock import NS_PER_S
from farebox.errors import RailError, RailRejected, StoreError
from farebox.ledger.store import PAGE_MAX

_log = structlog.get_logger("farebox.channels")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimPolicy:
    """When a sub-channel is claimed: as soon as any of these holds.

    Below `min_claim_amount` (base units) nothing is ever claimed, because its fee would cost more;
    that apart, `age_s` after the first unclaimed voucher, `idle_s` after the last request, and
    when the unclaimed vouchers of all sub-channels together take `exposure_percent` of what their
    collateral covers. Every `watch_s`, and at the start, the channels that owe anything are looked
    at: what closes is claimed whatever its amount.
    """

    min_claim_amount: int = 10_000_000
    threshold: int = 1_000_000_000
    age_s: int = 86_400
    idle_s: int = 3_600
    exposure_percent: int = 50
    concurrent_max: int = 10
    retry_s: int = 60
    retries_max: int = 3
    watch_s: int = 600


class ClaimReason(enum.StrEnum):
    """Why a sub-channel is claimed now."""

    THRESHOLD = "threshold"
    AGE = "age"
    IDLE = "idle"
    EXPOSURE = "exposure"
    ASKED = "asked"


class ClaimOutcome(enum.StrEnum):
    """What became of a claim."""

    CLAIMED = "claimed"
    NOTHING = "no_delta"
    REFUSED = "refused"
    LOST = "channel_closed"
    UNDERWAY = "underway"
    UNKNOWN = "unknown"


_CLOSED = ChannelStatus.CLOSED
_AGAIN = (ClaimOutcome.REFUSED, ClaimOutcome.UNDERWAY, ClaimOutcome.UNKNOWN)


@dataclass(slots=True)
class ClaimStatus:
    """How claims went, since the scheduler was made."""

    active: int = 0
    claimed: int = 0
    refused: int = 0
    unknown: int = 0


def claim_reason(
    row: SubChannel, policy: ClaimPolicy, now: int, ceiling: int = 0, exposed: int = 0
) -> ClaimReason | None:
    """Why a sub-channel is due, if it is. `ceiling`: what its collateral covers; 0: unknown.

    `exposed`: what is unclaimed of the same collateral in all, where more is known than this row.
    """
    unclaimed = row.unclaimed_amount
    if unclaimed < max(1, policy.min_claim_amount) or row.unclaimed_since is None:
        return None
    if unclaimed >= policy.threshold:
        return ClaimReason.THRESHOLD
    if ceiling and max(unclaimed, exposed) * 100 >= ceiling * policy.exposure_percent:
        return ClaimReason.EXPOSURE
    if now - row.unclaimed_since >= policy.age_s * NS_PER_S:
        return ClaimReason.AGE
    if now - row.last_at >= policy.idle_s * NS_PER_S:
        return ClaimReason.IDLE
    return None


#: How long until a claim that is underway is asked after again: twice as long each time.
_UNDERWAY_S, _DOUBLINGS_MAX = 10, 4
#: What `watch_s` finds later needs no place in memory.
_HEARD_MAX = 10_000


class _Exposures:
    """What stands unclaimed of each collateral, and what it covers, read once a run."""

    def __init__(self, payee: PaymentChannelPayeeClient) -> None:
        self._store = payee.sub_channels.ledger.store
        self._known: dict[str, tuple[int, int]] = {}

    async def of(self, backing: str) -> tuple[int, int]:
        """Ceiling and unclaimed amount, in base units."""
        if backing not in self._known:
            account = await self._store.account(custody_account(backing))
            self._known[backing] = (
                (0, 0) if account is None else (account.ceiling or 0, account.held)
            )
        return self._known[backing]


@dataclass(slots=True)
class _Waiting:
    failures: int = 0
    looks: int = 0
    next_at: int = 0


class ClaimScheduler:
    """Redeems vouchers through the payee's contract.

    A claim is cumulative and may be repeated: whoever crashed between the chain and the books
    claims again, is told what is claimed already, and books that.
    """

    def __init__(self, payee: PaymentChannelPayeeClient, policy: ClaimPolicy | None = None) -> None:
        # What lets a payer begin must be worth a claim.
        least = min(ClaimPolicy().min_claim_amount, payee.policy.backing_min)
        self.policy = policy or ClaimPolicy(min_claim_amount=least)
        self.status = ClaimStatus()
        self._payee = payee
        self._clock = payee.sub_channels.ledger.clock
        self._noticed: dict[str, SubChannel] = {}
        #: Vouchers that came and made nothing due by themselves; their sum may.
        self._heard: dict[str, SubChannel] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._watch_at = 0

    def notice(self, row: SubChannel, ceiling: int) -> bool:
        """Hear of a voucher; True when it makes its sub-channel due. `run_once` then claims it."""
        due = claim_reason(row, self.policy, self._clock.now_ns(), ceiling) is not None
        key = sub_channel_key(row.channel_id, row.fragment)
        if due:
            self._noticed[key] = row
        elif len(self._heard) < _HEARD_MAX or key in self._heard:
            self._heard[key] = row
        return due

    async def run_noticed(self) -> int:
        """Claim what this process has noticed; returns how many claims were paid. Where several
        share a book, one of them has `run_once`, and the others this."""
        exposures = _Exposures(self._payee)
        heard, self._heard = self._heard, {}
        for key, row in heard.items():
            if await self._is_due(row, exposures):
                self._noticed.setdefault(key, row)
        noticed, self._noticed = self._noticed, {}
        return await self._claim_all(noticed)

    async def run_once(self) -> int:
        """Claim whatever is due; returns how many claims were paid. Call it every few seconds.

        What was noticed comes first; then what age or idleness made due, also after a restart.
        """
        done = await self.run_noticed()
        exposures = _Exposures(self._payee)
        # A sub-channel that is idle for so long has had something to claim for as long.
        quiet_s = min(self.policy.age_s, self.policy.idle_s)
        now = self._clock.now_ns()
        at_most, after = now - quiet_s * NS_PER_S, ""
        is_watch = now >= self._watch_at
        if is_watch:
            at_most, self._watch_at = now, now + self.policy.watch_s * NS_PER_S
        while True:
            page = await self._payee.sub_channels.due("unclaimed_since", at_most, after)
            due = {
                key: row
                for key, row in page
                if await self._is_due(row, exposures) or (is_watch and await self._closes(row))
            }
            done += await self._claim_all(due)
            if len(page) < PAGE_MAX:
                return done
            after = page[-1][0]

    async def _is_due(self, row: SubChannel, exposures: _Exposures) -> bool:
        ceiling, exposed = await exposures.of(row.backing)
        return claim_reason(row, self.policy, self._clock.now_ns(), ceiling, exposed) is not None

    async def _closes(self, row: SubChannel) -> bool:
        """Whether a channel closes or is closed; one that cannot be read is looked at again."""
        try:
            channel = await self._payee.channel_info(row.channel_id)
        except RailError:
            return False
        return channel is not None and channel.status is not ChannelStatus.ACTIVE

    async def _claim_all(self, due: Mapping[str, SubChannel]) -> int:
        turns, now = asyncio.Semaphore(self.policy.concurrent_max), self._clock.now_ns()

        async def one(key: str, row: SubChannel) -> bool:
            async with turns:
                waiting = self._waiting.get(key)
                may_try = waiting is None or waiting.next_at <= now
                outcome = await self.claim(row) if may_try else ClaimOutcome.REFUSED
                if outcome in _AGAIN:
                    self._noticed.setdefault(key, row)  # a newer voucher may have come meanwhile
                return outcome is ClaimOutcome.CLAIMED

        return sum(await asyncio.gather(*(one(key, row) for key, row in due.items())))

    async def trigger(self, channel_id: str) -> tuple[dict[str, int], dict[str, str]]:
        """Claim everything of a channel at once: amounts claimed, and why others were not."""
        done: dict[str, int] = {}
        skipped: dict[str, str] = {}
        for row in await self._payee.sub_channels.of_channel(channel_id):
            outcome = await self.claim(row)
            if outcome is ClaimOutcome.CLAIMED:
                done[row.fragment] = row.unclaimed_amount
            else:
                skipped[row.fragment] = outcome.value
        return done, skipped

    async def claim(self, row: SubChannel) -> ClaimOutcome:
        """Redeem a sub-channel's newest voucher. Never raises: money waits for the next time."""
        signed = accepted_voucher(row, self._payee.contract.chain_id)
        if signed is None or not row.unclaimed_amount:
            return ClaimOutcome.NOTHING
        key = sub_channel_key(row.channel_id, row.fragment)
        self.status.active += 1
        try:
            channel = await self._payee.channel_info(row.channel_id)
            if channel is None:
                raise RailRejected("the channel is gone")
            contract = self._payee.contract
            amount = await contract.claim(signed)
            self._payee.forget(channel)
            ceiling = await self._payee.ceiling(channel)
            paid_to = contract.paid_to(channel)
            await self._payee.sub_channels.claimed(row, amount, paid_to, ceiling)
            if amount < signed.sub_rav.accumulated_amount:
                raise RailRejected(f"the chain has paid {amount}, and pays no more")
        except RailRejected as error:
            self.status.refused += 1
            if await self._ends(row):
                self._waiting.pop(key, None)
                return ClaimOutcome.LOST
            self._wait(key, str(error))
            return ClaimOutcome.REFUSED
        except ClaimUnderway:
            self._look_again(key)
            return ClaimOutcome.UNDERWAY
        except (RailError, StoreError) as error:
            self.status.unknown += 1
            self._wait(key, str(error))
            return ClaimOutcome.UNKNOWN
        finally:
            self.status.active -= 1
        self.status.claimed += 1
        self._waiting.pop(key, None)
        return ClaimOutcome.CLAIMED

    async def _ends(self, row: SubChannel) -> bool:
        """Whether the row's epoch is over: books what was paid of it, and loses the rest.

        Once the channel is in a later epoch nobody tells what was paid in this one: it counts as
        nothing, as where the sub-channel itself is opened anew; but who closed it at once knows.
        """
        contract, sub_channels = self._payee.contract, self._payee.sub_channels
        try:
            channel = await contract.channel(row.channel_id)
            if channel is None or channel.epoch < row.epoch:
                return False
            if channel.epoch == row.epoch:
                sub = await contract.sub_channel(row.channel_id, row.fragment)
                if sub is None or sub.epoch != row.epoch or channel.status is not _CLOSED:
                    return False
                ceiling, paid_to = await self._payee.ceiling(channel), contract.paid_to(channel)
                await sub_channels.claimed(row, sub.last_claimed_amount, paid_to, ceiling)
            else:
                now = await sub_channels.read(row.channel_id, row.fragment)
                if now is None or now.is_closing:
                    return False
            await sub_channels.lost(row)
        except (RailError, StoreError):
            return False
        _log.error("channel.closed_unclaimed", channel=row.channel_id, fragment=row.fragment)
        return True

    def _look_again(self, key: str) -> None:
        """A chain may take minutes, or days where more is waited for: don't ask all the time."""
        waiting = self._waiting.setdefault(key, _Waiting())
        after_s = _UNDERWAY_S * 2 ** min(waiting.looks, _DOUBLINGS_MAX)
        waiting.looks += 1
        waiting.next_at = self._clock.now_ns() + after_s * NS_PER_S

    def _wait(self, key: str, why: str) -> None:
        """Try again later, each time later; after so many times say so aloud, and go on trying."""
        waiting = self._waiting.setdefault(key, _Waiting())
        waiting.failures += 1
        exponent = min(waiting.failures, self.policy.retries_max) - 1
        waiting.next_at = self._clock.now_ns() + self.policy.retry_s * 2**exponent * NS_PER_S
        tell = _log.warning if waiting.failures < self.policy.retries_max else _log.error
        tell("channel.claim_failed", sub_channel=key, failures=waiting.failures, error=why)
