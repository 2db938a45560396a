"""The port to where channels are backed: the ledger itself, or a chain.

`ledger_chain` implements it on the book, `farebox.rails.evm.channels` on a contract of ours;
`farebox.rails.rooch` on Rooch's; `farebox.testing.channels` in memory, named as on Rooch.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from farebox.errors import RailUnavailable
from farebox.ledger.model import Kind
from farebox.wire.subrav.keys import VerificationKey
from farebox.wire.subrav.model import SignedSubRAV


class ChannelStatus(enum.StrEnum):
    """Whether a channel may be paid on."""

    ACTIVE = "active"
    CLOSING = "closing"  # the payer wants out; the payee may claim until the challenge period ends
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelInfo:
    """A channel as its chain has it. `backing` names the collateral, which channels may share."""

    channel_id: str
    payer_did: str
    payee_did: str
    asset_id: str
    epoch: int
    status: ChannelStatus
    backing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubChannelInfo:
    """One key's stream in a channel, with what was claimed of it in this epoch."""

    channel_id: str
    vm_id_fragment: str
    epoch: int
    key: VerificationKey
    last_claimed_amount: int = 0
    last_confirmed_nonce: int = 0
    last_updated_ms: int = 0


@dataclass(frozen=True, slots=True)
class PaidTo:
    """The ledger account that what was claimed has arrived on."""

    account: str
    kind: Kind


class ClaimUnderway(RailUnavailable):
    """A claim waits to be sent, or for the blocks that make it final. Ask again later."""


class PayeeContract(Protocol):
    """What a payee asks of the chain. All methods raise RailUnavailable and RailRejected."""

    @property
    def chain_id(self) -> int:
        """What every SubRAV of this chain says in `chain_id`."""
        ...

    async def channel(self, channel_id: str) -> ChannelInfo | None:
        """A channel as it stands; None: there is none of this id."""
        ...

    async def sub_channel(self, channel_id: str, fragment: str) -> SubChannelInfo | None:
        """An authorised sub-channel; None: its key may not sign for the channel."""
        ...

    async def balance(self, backing: str, asset_id: str) -> int:
        """What is left of the collateral, claims already taken off."""
        ...

    async def claim(self, signed: SignedSubRAV) -> int:
        """Redeem a voucher; returns all that is claimed of its sub-channel now.

        What was claimed up to this voucher or further before is no error and moves nothing.
        RailRejected: it was not paid and will not be, as things stand. ClaimUnderway: on a chain
        that takes its time; called again, it tells when it is done.
        """
        ...

    def paid_to(self, channel: ChannelInfo) -> PaidTo:
        """Where a claim's money goes."""
        ...


class ClosingContract(PayeeContract, Protocol):
    """A chain on which a payee may close a channel at once, for a payer that asks."""

    async def refuses_close(
        self, channel: ChannelInfo, proofs: Sequence[SignedSubRAV], earned: int
    ) -> str:
        """Why closing is not worth its fee, where the channel has brought `earned` in this epoch;
        "": it is."""
        ...

    async def close_as_payee(
        self, channel_id: str, epoch: int, proofs: Sequence[SignedSubRAV] = ()
    ) -> Mapping[str, int]:
        """Claim the last vouchers and give back the rest; all that was claimed then, by fragment.

        ClaimUnderway: on a chain that takes its time; called again, it tells when it is done. Once
        for each epoch, however often it is called.
        """
        ...


class PayerContract(Protocol):
    """What a payer asks of the chain. All methods raise RailUnavailable and RailRejected."""

    @property
    def chain_id(self) -> int:
        """What every SubRAV of this chain says in `chain_id`."""
        ...

    async def channel(self, channel_id: str) -> ChannelInfo | None:
        """A channel as it stands."""
        ...

    async def sub_channel(self, channel_id: str, fragment: str) -> SubChannelInfo | None:
        """A sub-channel as it stands."""
        ...

    async def open_channel_with_sub_channel(
        self,
        *,
        payer_did: str,
        payee_did: str,
        asset_id: str,
        collateral: int,
        fragment: str,
        key: VerificationKey,
    ) -> ChannelInfo:
        """Lock collateral and let one key sign. One that is open already takes the collateral."""
        ...

    async def authorize_sub_channel(
        self, channel_id: str, fragment: str, key: VerificationKey
    ) -> SubChannelInfo:
        """Let one more key sign for the channel, on a sub-channel of its own."""
        ...

    async def request_close(self, channel_id: str) -> ChannelInfo:
        """Begin the challenge period, in which the payee may still claim."""
        ...

    async def close(self, channel_id: str, proofs: Sequence[SignedSubRAV] = ()) -> ChannelInfo:
        """Claim the last vouchers and give back the rest, once the challenge period is over."""
        ...
