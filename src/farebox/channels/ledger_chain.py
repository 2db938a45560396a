"""Channels between accounts of one Farebox: the ledger itself is the chain.

| what happens                | postings                                                          |
|-----------------------------|-------------------------------------------------------------------|
| opened, topped up           | transfer customer → escrow, the collateral                        |
| a voucher is claimed        | transfer escrow → the payee's account, the delta                  |
| closed                      | transfer escrow → customer, the rest                              |

The payer asks to close and waits out the challenge period, in which the payee still claims; the
payee may close at once. Each of these is one commit. A payee whose vouchers stand in this same
book is paid through a clearing account, which its own claim empties again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import msgspec

from farebox.channels.chain import ChannelInfo, ChannelStatus, PaidTo, SubChannelInfo
from farebox.channels.model import NAMED_MAX
from farebox.clock import NS_PER_S
from farebox.errors import InvalidCredential, RailRejected, StoreError
from farebox.ids import derived_id, new_id
from farebox.ledger.model import (
    ABSENT,
    Applied,
    Balancing,
    Event,
    Kind,
    Open,
    Put,
    Refused,
    Replayed,
    Step,
    Transfer,
    Unit,
)
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger, State
from farebox.wire.subrav.keys import KeyType, VerificationKey, verify_sub_rav
from farebox.wire.subrav.model import VERSION, SignedSubRAV, check_fragment

#: What SubRAVs on a Farebox ledger say in `chain_id`.
LEDGER_CHAIN_ID = 402
CHALLENGE_PERIOD_S = 86_400
_DID_PREFIX = "did:farebox:"
_SUB_CHANNELS_MAX = 256


class LedgerSubChannel(msgspec.Struct, frozen=True, kw_only=True):
    """One key of a channel, and what was claimed with it in this epoch."""

    key_type: KeyType
    key: bytes
    claimed: int = 0
    nonce: int = 0


class LedgerChannel(msgspec.Struct, frozen=True, kw_only=True):
    """A channel on the ledger. `closes_at` is when a payer that asked for it may close."""

    payer: str
    payee: str
    asset: str
    epoch: int = 0
    status: ChannelStatus = ChannelStatus.ACTIVE
    closes_at: int = 0
    sub_channels: dict[str, LedgerSubChannel] = {}


LEDGER_CHANNEL = RecordType(
    "ledger_channel",
    LedgerChannel,
    indexes=(("payer",), ("payee",), ("status", "closes_at")),
)


def account_did(account: str) -> str:
    """The DID of a customer's account on this ledger."""
    return _DID_PREFIX + account.removeprefix("customer:")


def did_account(did: str) -> str:
    """Undo `account_did`. Raises InvalidCredential."""
    account = account_of(did)
    if not account:
        raise InvalidCredential("the DID names no account of this ledger: did:farebox:…")
    return account


def account_of(did: str) -> str:
    """The account of this ledger that a DID names; "" where it is of elsewhere."""
    name = did.removeprefix(_DID_PREFIX)
    return f"customer:{name}" if name and name != did else ""


@lru_cache(maxsize=NAMED_MAX)
def ledger_channel_id(payer_did: str, payee_did: str, asset_id: str) -> str:
    """The one channel between two parties in one asset: `0x` and 32 bytes."""
    first, second = (
        derived_id("ch", name, payer_did, payee_did, asset_id)[3:35] for name in ("id/0", "id/1")
    )
    return f"0x{first}{second}"


def escrow_account(channel_id: str) -> str:
    """Where a channel's collateral stands."""
    return f"escrow:channel:{channel_id}"


class LedgerContract:
    """Both sides' contract on one ledger.

    `house_did` is the payee that sells through this book itself: its vouchers are claimed into a
    clearing account. Every other payee is paid onto its own account.
    """

    chain_id = LEDGER_CHAIN_ID

    def __init__(
        self, ledger: Ledger, house_did: str, *, challenge_s: int = CHALLENGE_PERIOD_S
    ) -> None:
        self._ledger = ledger
        self._house_did = house_did
        self._challenge_ns = challenge_s * NS_PER_S

    # ── reading ──────────────────────────────────────────────────────────────────────────────────

    async def channel(self, channel_id: str) -> ChannelInfo | None:
        """A channel as it stands."""
        found = await self.stored(channel_id)
        return None if found is None else channel_info(channel_id, found)

    async def stored(self, channel_id: str) -> LedgerChannel | None:
        """A channel as the ledger keeps it."""
        row = await self._ledger.store.get(LEDGER_CHANNEL, channel_id)
        return None if row is None else row.value

    async def due(self) -> list[str]:
        """Channels whose challenge period is over, at most 1,000."""
        found = await self._ledger.store.find(
            LEDGER_CHANNEL,
            {"status": ChannelStatus.CLOSING},
            at_most=("closes_at", self._ledger.clock.now_ns()),
        )
        return [channel_id for channel_id, _ in found]

    async def sub_channel(self, channel_id: str, fragment: str) -> SubChannelInfo | None:
        """A sub-channel as it stands."""
        row = await self._ledger.store.get(LEDGER_CHANNEL, channel_id)
        sub = None if row is None else row.value.sub_channels.get(fragment)
        if row is None or sub is None:
            return None
        return SubChannelInfo(
            channel_id=channel_id,
            vm_id_fragment=fragment,
            epoch=row.value.epoch,
            key=VerificationKey(sub.key_type, sub.key),
            last_claimed_amount=sub.claimed,
            last_confirmed_nonce=sub.nonce,
        )

    async def balance(self, backing: str, asset_id: str) -> int:
        """What is left of a channel's collateral."""
        account = await self._ledger.store.account(escrow_account(backing))
        return account.available if account is not None and account.asset == asset_id else 0

    def paid_to(self, channel: ChannelInfo) -> PaidTo:
        """Where a claim of ours arrives."""
        return _paid_to(channel.asset_id)

    # ── what a payer does ────────────────────────────────────────────────────────────────────────

    async def open_channel_with_sub_channel(
        self,
        *,
        payer_did: str,
        payee_did: str,
        asset_id: str,
        collateral: int,
        fragment: str,
        key: VerificationKey,
        operation_id: str = "",
    ) -> ChannelInfo:
        """Lock collateral from the payer's account; an open channel takes it as a top-up.

        The same `operation_id` again locks nothing more. A closed one opens again in a new epoch,
        where nothing signed before is worth anything, and no key of before may sign.
        Raises RailRejected: the account does not hold so much, or the channel is closing.
        """
        payer, fragment = did_account(payer_did), check_fragment(fragment)
        channel_id = ledger_channel_id(payer_did, payee_did, asset_id)
        escrow = escrow_account(channel_id)

        def decide(channel: LedgerChannel | None, now: int) -> tuple[LedgerChannel, list[Step]]:
            found = channel or LedgerChannel(payer=payer_did, payee=payee_did, asset=asset_id)
            if found.status is ChannelStatus.CLOSING:
                raise RailRejected("the channel is closing; open it again once it is closed")
            if found.status is ChannelStatus.CLOSED:
                found = _reopened(found)
            steps: list[Step] = [
                Open(escrow, asset_id, Kind.ESCROW),
                Transfer(payer, escrow, collateral, "channel_open"),
            ]
            return _with_key(found, fragment, key), steps

        return await self._change(channel_id, "channel.opened", decide, operation_id)

    async def authorize_sub_channel(
        self, channel_id: str, fragment: str, key: VerificationKey
    ) -> SubChannelInfo:
        """Let one more key sign. Raises RailRejected for a fragment that has another key."""
        check_fragment(fragment)

        def decide(channel: LedgerChannel | None, now: int) -> tuple[LedgerChannel, list[Step]]:
            return _with_key(_active(channel), fragment, key), []

        await self._change(channel_id, "channel.key_authorized", decide)
        sub = await self.sub_channel(channel_id, fragment)
        assert sub is not None
        return sub

    async def request_close(self, channel_id: str) -> ChannelInfo:
        """Begin the challenge period. Asked twice, it does not begin anew."""

        def decide(channel: LedgerChannel | None, now: int) -> tuple[LedgerChannel, list[Step]]:
            if channel is not None and channel.status is ChannelStatus.CLOSING:
                return channel, []
            closing = msgspec.structs.replace(
                _active(channel),
                status=ChannelStatus.CLOSING,
                closes_at=now + self._challenge_ns,
            )
            return closing, []

        return await self._change(channel_id, "channel.closing", decide)

    # ── what a payee does, and closing ───────────────────────────────────────────────────────────

    async def claim(self, signed: SignedSubRAV) -> int:
        """Pay a voucher's delta out of the escrow. An older voucher moves nothing."""
        channel_id, fragment = signed.sub_rav.channel_id, signed.sub_rav.vm_id_fragment

        def decide(channel: LedgerChannel | None, now: int) -> tuple[LedgerChannel, list[Step]]:
            if channel is None or channel.status is ChannelStatus.CLOSED:
                raise RailRejected("the channel is closed")
            return self._claimed(channel_id, channel, signed)

        await self._change(channel_id, "channel.claimed_on_ledger", decide)
        sub = await self.sub_channel(channel_id, fragment)
        assert sub is not None
        return sub.last_claimed_amount

    async def close(self, channel_id: str, proofs: Sequence[SignedSubRAV] = ()) -> ChannelInfo:
        """Claim the proofs and give back the rest, once the challenge period is over."""
        return await self._close(channel_id, proofs, is_payee=False)

    async def close_as_payee(
        self, channel_id: str, proofs: Sequence[SignedSubRAV] = ()
    ) -> ChannelInfo:
        """Claim the proofs and give back the rest, at any time.

        Only ever for the payee, or with its consent: a proof says nothing of who brings it, since
        its payer can sign one of nothing, and so would take back what it owes.
        """
        return await self._close(channel_id, proofs, is_payee=True)

    async def _close(
        self, channel_id: str, proofs: Sequence[SignedSubRAV], *, is_payee: bool
    ) -> ChannelInfo:
        def decide(channel: LedgerChannel | None, now: int) -> tuple[LedgerChannel, list[Step]]:
            if channel is None:
                raise RailRejected("there is no such channel")
            if channel.status is ChannelStatus.CLOSED:
                return channel, []
            is_over = channel.status is ChannelStatus.CLOSING and now >= channel.closes_at
            if not is_payee and not is_over:
                raise RailRejected("the payee may still claim; close when the challenge is over")
            steps: list[Step] = []
            for proof in proofs:
                channel, more = self._claimed(channel_id, channel, proof)
                steps += more
            rest = Transfer(
                escrow_account(channel_id),
                did_account(channel.payer),
                _ALL,
                "channel_close",
                Balancing.DEBIT,
            )
            closed = msgspec.structs.replace(channel, status=ChannelStatus.CLOSED, closes_at=0)
            return closed, [*steps, rest]

        return await self._change(channel_id, "channel.closed", decide)

    def _claimed(
        self, channel_id: str, channel: LedgerChannel, signed: SignedSubRAV
    ) -> tuple[LedgerChannel, list[Step]]:
        sub_rav, sub = signed.sub_rav, channel.sub_channels.get(signed.sub_rav.vm_id_fragment)
        if sub is None or sub_rav.channel_id != channel_id:
            raise RailRejected("the voucher's key may not sign for this channel")
        terms = (sub_rav.version, sub_rav.chain_id, sub_rav.channel_epoch)
        if terms != (VERSION, self.chain_id, channel.epoch):
            raise RailRejected("the voucher is of another version, chain or epoch")
        if not verify_sub_rav(signed, VerificationKey(sub.key_type, sub.key)):
            raise RailRejected("the voucher is not signed by its key")
        delta = sub_rav.accumulated_amount - sub.claimed
        if delta <= 0:
            return channel, []
        # Whatever its nonce: who signed a small amount with a great nonce still owes the great one.
        claimed = msgspec.structs.replace(
            sub, claimed=sub_rav.accumulated_amount, nonce=max(sub.nonce, sub_rav.nonce)
        )
        subs = channel.sub_channels | {sub_rav.vm_id_fragment: claimed}
        return msgspec.structs.replace(channel, sub_channels=subs), [
            *self._payee_open(channel),
            Transfer(
                escrow_account(channel_id), self._payee_account(channel), delta, "channel_claim"
            ),
        ]

    def _payee_account(self, channel: LedgerChannel) -> str:
        if channel.payee == self._house_did:
            return _paid_to(channel.asset).account
        return did_account(channel.payee)

    def _payee_open(self, channel: LedgerChannel) -> list[Step]:
        kind = Kind.CLEARING if channel.payee == self._house_did else Kind.CUSTOMER
        return [Open(self._payee_account(channel), channel.asset, kind)]

    async def _change(
        self,
        channel_id: str,
        event: str,
        decide: Callable[[LedgerChannel | None, int], tuple[LedgerChannel, list[Step]]],
        operation_id: str = "",
    ) -> ChannelInfo:
        changed: list[LedgerChannel] = []
        # Of this call alone: another's change of one version is not ours.
        unit_id = f"lch_{operation_id}" if operation_id else new_id("lch")

        def whole(state: State, now: int) -> Unit | None:
            row = state.row(LEDGER_CHANNEL, channel_id)
            found, version = (None, ABSENT) if row is None else (row.value, row.version)
            channel, steps = decide(found, now)
            changed[:] = [channel]
            if channel == found and not steps:
                return None
            return Unit(
                unit_id,
                tuple(steps),
                puts=(Put(LEDGER_CHANNEL, channel_id, channel, version),),
                events=(_event(event, channel_id, channel, steps),),
            )

        outcome = await self._ledger.transact([(LEDGER_CHANNEL, channel_id)], whole)
        match outcome:
            case None | Applied() | Replayed(Applied()):
                return channel_info(channel_id, changed[0])
            case Refused() | Replayed(Refused()):
                raise RailRejected("the account or the collateral does not hold so much")
        raise StoreError(f"the channel cannot be changed: {outcome}")


#: More than any account holds: a balancing transfer of it moves all there is.
_ALL = 2**126


def channel_info(channel_id: str, channel: LedgerChannel) -> ChannelInfo:
    """What anybody may know of a channel, out of its row."""
    return ChannelInfo(
        channel_id=channel_id,
        payer_did=channel.payer,
        payee_did=channel.payee,
        asset_id=channel.asset,
        epoch=channel.epoch,
        status=channel.status,
        backing=channel_id,
    )


def _event(name: str, channel_id: str, channel: LedgerChannel, steps: Sequence[Step]) -> Event:
    """What happened, for the history of the payer's account; with what it moved last."""
    amounts = {"amount": len(steps) - 1} if steps else {}
    return Event(name, did_account(channel.payer), {"channel": channel_id}, amounts)


def _paid_to(asset: str) -> PaidTo:
    return PaidTo(f"clearing:channels:{asset}", Kind.CLEARING)


def _active(channel: LedgerChannel | None) -> LedgerChannel:
    if channel is None or channel.status is not ChannelStatus.ACTIVE:
        raise RailRejected("the channel is not open")
    return channel


def _with_key(channel: LedgerChannel, fragment: str, key: VerificationKey) -> LedgerChannel:
    sub = channel.sub_channels.get(fragment)
    if sub is not None:
        if (sub.key_type, sub.key) != (key.type, key.raw):
            raise RailRejected(f"{fragment} has another key; take another fragment")
        return channel
    if len(channel.sub_channels) >= _SUB_CHANNELS_MAX:
        raise RailRejected(f"a channel has at most {_SUB_CHANNELS_MAX} keys")
    added = LedgerSubChannel(key_type=key.type, key=key.raw)
    return msgspec.structs.replace(channel, sub_channels={**channel.sub_channels, fragment: added})


def _reopened(channel: LedgerChannel) -> LedgerChannel:
    """In its next epoch, where no key may sign yet: closing is how one that was lost is revoked."""
    return msgspec.structs.replace(
        channel, epoch=channel.epoch + 1, status=ChannelStatus.ACTIVE, sub_channels={}
    )
