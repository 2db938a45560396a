"""The nouns of payment channels: what a request is, what became of its payment, what is stored.

Names are those of the payment-processor API reference, in Python's manner. Amounts are in base
units of the channel's asset; `…_pico_usd` in 10^-12 USD.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from farebox.channels.chain import ChannelInfo
from farebox.ledger.records import RecordType
from farebox.wire.subrav.model import VERSION, ErrorCode, SignedSubRAV, SubRAV

PaymentErrorCode = ErrorCode

#: Names that are made of a sub-channel again and again stay made, for as many of them.
NAMED_MAX = 10_000


class RequestMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """A request to pay for, whatever protocol brought it.

    `payer_did` and `vm_id_fragment` are taken at their word where no voucher says otherwise:
    whoever fills them in has verified them, and `is_admin`, which opens rules for admins only.
    `max_amount` is the most the payer allows; None or 0: no limit. `usage` is what was used, where
    that is known already; `facts` are what rules match. `once` is a name that this request alone
    has, where whoever copied it should not be served: it is good once in all processes of a book.
    """

    operation: str
    model: str | None = None
    asset_id: str | None = None
    channel_id: str | None = None
    vm_id_fragment: str | None = None
    payer_did: str | None = None
    client_tx_ref: str | None = None
    max_amount: int | None = None
    is_admin: bool = False
    once: str = ""
    usage: int = 0
    facts: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationResult:
    """Whether a voucher is good, and if not, why. `is_replay`: it was accepted before."""

    is_valid: bool
    error: str | None = None
    error_code: PaymentErrorCode | None = None
    is_replay: bool = False
    payer_key_id: str | None = None


class PaymentProcessingResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request's payment.

    Serve the request when `is_admitted`. A replay of an accepted voucher is a success, charges
    nothing more and must not be served again: `cost` and `unsigned_sub_rav` are those of the
    request that it came with first. With an error, `unsigned_sub_rav` is what to sign instead.
    """

    success: bool
    cost: int = 0
    cost_pico_usd: int = 0
    asset_id: str = ""
    unsigned_sub_rav: SubRAV | None = None
    signed_sub_rav: SignedSubRAV | None = None
    auto_claim_triggered: bool = False
    is_handshake: bool = False
    is_replay: bool = False
    error: str | None = None
    error_code: PaymentErrorCode | None = None
    error_details: Mapping[str, str] | None = None
    payer_key_id: str | None = None
    service_tx_ref: str | None = None

    @property
    def is_admitted(self) -> bool:
        """Whether the request may be served now."""
        return self.success and not self.is_replay


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentProcessingStats:
    """How often what happened, since the processor was made."""

    total_requests: int
    successful_payments: int
    failed_payments: int
    replayed_payments: int
    handshakes: int
    auto_claims_triggered: int


# ── what is stored of a sub-channel ──────────────────────────────────────────────────────────────


class Voucher(msgspec.Struct, frozen=True):
    """The newest voucher accepted of an epoch."""

    amount: int
    nonce: int
    signature: bytes


class Proposal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the payer is asked to sign next. `hold` makes room for it under the collateral.

    `is_written_off`: it was never signed and is no longer in the books as owed. It is still asked
    for: nothing more is served until it is paid.
    """

    amount: int
    nonce: int
    cost: int
    cost_pico_usd: int
    hold: str
    service_tx_ref: str
    is_written_off: bool = False


class Serving(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request that is being served. `floor` is charged should its process never say what for.

    `request` names it where somebody else keeps it, who then settles it in any case.
    """

    process: str
    cover: str
    floor: int
    floor_pico_usd: int
    cap: int
    request: str = ""


class SubChannel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sub-channel with us, in its newest epoch.

    At most one of `pending` and `serving` is there: a payer owes for one request at most. The
    times are UTC nanoseconds: `pending_at` while the proposal may still be written off,
    `unclaimed_since` while there is something to claim.
    """

    channel_id: str
    fragment: str
    asset_id: str
    backing: str
    payer_did: str
    epoch: int
    base_amount: int = 0
    base_nonce: int = 0
    accepted: Voucher | None = None
    pending: Proposal | None = None
    serving: Serving | None = None
    claimed_amount: int = 0
    #: The ceiling of the receivable, as it was set last.
    owed_max: int | None = None
    pending_at: int | None = None
    unclaimed_since: int | None = None
    last_at: int = 0
    #: Its payer has asked to close, and we have agreed: nothing more is served in this epoch.
    is_closing: bool = False

    @property
    def paid_amount(self) -> int:
        """All that the payer has signed for."""
        return self.base_amount if self.accepted is None else self.accepted.amount

    @property
    def paid_nonce(self) -> int:
        """The nonce of the newest voucher, or of what the chain has seen."""
        return self.base_nonce if self.accepted is None else self.accepted.nonce

    @property
    def unclaimed_amount(self) -> int:
        """Signed for, and not yet claimed."""
        return max(0, self.paid_amount - self.claimed_amount)


SUB_CHANNEL = RecordType(
    "sub_channel",
    SubChannel,
    indexes=(("channel_id",), ("pending_at",), ("unclaimed_since",)),
)


class CloseState(enum.StrEnum):
    """How far a cooperative close is."""

    AGREED = "agreed"
    DONE = "done"


class ChannelClose(msgspec.Struct, frozen=True, kw_only=True):
    """A channel that its payee closes at once, because its payer asked; the newest of it."""

    channel_id: str
    epoch: int
    state: CloseState = CloseState.AGREED


CHANNEL_CLOSE = RecordType(
    "channel_close", ChannelClose, indexes=(("state",),), resting=frozenset({CloseState.DONE})
)


@lru_cache(maxsize=NAMED_MAX)
def sub_channel_key(channel_id: str, fragment: str) -> str:
    """The key of a sub-channel's row."""
    return f"{channel_id}#{fragment}"


def is_voucher_of(
    sub_rav: SubRAV, row: SubChannel, part: Proposal | Voucher | None, chain_id: int
) -> bool:
    """Whether a SubRAV is in every field what was proposed on a sub-channel, or accepted."""
    return part is not None and (
        sub_rav.nonce == part.nonce
        and sub_rav.accumulated_amount == part.amount
        and sub_rav.channel_epoch == row.epoch
        and sub_rav.chain_id == chain_id
        and sub_rav.channel_id == row.channel_id
        and sub_rav.vm_id_fragment == row.fragment
        and sub_rav.version == VERSION
    )


def proposed(row: SubChannel, chain_id: int) -> SubRAV | None:
    """The outstanding proposal as the payer has to sign it."""
    if row.pending is None:
        return None
    return SubRAV(
        chain_id=chain_id,
        channel_id=row.channel_id,
        channel_epoch=row.epoch,
        vm_id_fragment=row.fragment,
        accumulated_amount=row.pending.amount,
        nonce=row.pending.nonce,
    )


def accepted_voucher(row: SubChannel, chain_id: int) -> SignedSubRAV | None:
    """The newest voucher accepted, as it was signed."""
    if row.accepted is None:
        return None
    sub_rav = SubRAV(
        chain_id=chain_id,
        channel_id=row.channel_id,
        channel_epoch=row.epoch,
        vm_id_fragment=row.fragment,
        accumulated_amount=row.accepted.amount,
        nonce=row.accepted.nonce,
    )
    return SignedSubRAV(sub_rav, row.accepted.signature)


def opened(channel: ChannelInfo, fragment: str, amount: int, nonce: int) -> SubChannel:
    """A sub-channel that we see for the first time in this epoch, from where the chain has it."""
    return SubChannel(
        channel_id=channel.channel_id,
        fragment=fragment,
        asset_id=channel.asset_id,
        backing=channel.backing,
        payer_did=channel.payer_did,
        epoch=channel.epoch,
        base_amount=amount,
        base_nonce=nonce,
        claimed_amount=amount,
    )
