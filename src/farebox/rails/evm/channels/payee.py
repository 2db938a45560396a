"""A payee's side of channels on an EVM chain: claims in batches, closings heard of.

    claim ──► waits ──► in a transaction with others ──► mined ──► confirmed ──► told as claimed
       ▲        │ (memory only: whoever asks again puts it back)                      │
       └────────┴──────────── asked again by the claim scheduler ◄────────────────────┘

| boundary                       | what can fail      | recovery                                  |
|--------------------------------|--------------------|-------------------------------------------|
| waits → sent                   | we stop            | the voucher is stored, and asked for anew |
| sent → confirmed               | anything           | the outbox follows it, through crashes,   |
|                                |                    | fees that rise and reorganisations        |
| a voucher in it is bad by now  | its channel closed | moves nothing, harms no other             |
| confirmed → booked             | we stop            | asked again: the chain tells what it paid |

What is claimed is read from the contract alone, never from a receipt, and counts once it is as deep
as everything else here. One transaction of claims is on its way at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from farebox.channels.chain import (
    ChannelInfo,
    ChannelStatus,
    ClaimUnderway,
    Closings,
    PaidTo,
    SubChannelInfo,
)
from farebox.errors import RailRejected
from farebox.ids import new_id
from farebox.ledger.model import Kind
from farebox.money import Rounding, divide
from farebox.rails.evm.channels import contract as abi
from farebox.rails.evm.channels.names import account_did
from farebox.rails.evm.channels.reading import ChannelReader
from farebox.rails.evm.fees import TooDear
from farebox.rails.evm.outbox import Call, Slot
from farebox.rails.evm.sending import Parcel, Sending
from farebox.wire.subrav.model import SignedSubRAV

_log = structlog.get_logger("farebox.evm")
_PURPOSE = "channel-claims:"
_WAITING_MAX = 10_000
#: Of the gas that a call used when it was tried, in percent.
_GAS_PERCENT = 125

#: What an amount of an asset (by its code) is worth in wei; None: nobody knows now.
Worth = Callable[[str, int], int | None]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A voucher that is to be claimed. `is_urgent`: its channel closes."""

    signed: SignedSubRAV
    asset_id: str
    delta: int
    is_urgent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """When a batch is sent: once what is in it is worth so many times its gas, in percent.

    One that holds a voucher of a closing channel is sent if it is worth its gas at all.
    """

    size_max: int = 25
    worth_percent: int = 1_000
    urgent_percent: int = 100


def is_worth_it(
    batch: Sequence[Waiting], gas_wei: int, worth: Worth | None, policy: BatchPolicy
) -> bool:
    """Whether a batch pays for its gas. What nobody knows the worth of is sent."""
    if worth is None:
        return True
    values = [worth(one.asset_id, one.delta) for one in batch]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return True
    is_urgent = any(one.is_urgent for one in batch)
    percent = policy.urgent_percent if is_urgent else policy.worth_percent
    return sum(known) * 100 >= gas_wei * percent


class EvmPayee:
    """A payee's contract (`WatchedContract`). `address` is who is paid, which needs no key here.

    Call `send_claims` every few seconds, and the sending's `tick`; in one process of a book.
    """

    def __init__(
        self,
        reader: ChannelReader,
        sending: Sending,
        address: str,
        *,
        policy: BatchPolicy | None = None,
        worth: Worth | None = None,
    ) -> None:
        self.terms = reader.terms
        self._reader = reader
        self._sending = sending
        self._address = address.lower()
        self._policy = policy or BatchPolicy()
        self._worth = worth
        self._waiting: dict[tuple[str, str], Waiting] = {}

    @property
    def chain_id(self) -> int:
        """The chain's own number, which every SubRAV says."""
        return self.terms.chain_id

    @property
    def did(self) -> str:
        """Who is paid."""
        return account_did(self.chain_id, self._address)

    async def channel(self, channel_id: str) -> ChannelInfo | None:
        """A channel as it stood some blocks ago."""
        return await self._reader.channel(channel_id)

    async def sub_channel(self, channel_id: str, fragment: str) -> SubChannelInfo | None:
        """A sub-channel in the same way."""
        return await self._reader.sub_channel(channel_id, fragment)

    async def balance(self, backing: str, asset_id: str) -> int:
        """What is left of a channel's collateral."""
        return await self._reader.balance(backing, asset_id)

    def paid_to(self, channel: ChannelInfo) -> PaidTo:
        """The custody account of our address on this chain."""
        return PaidTo(f"custody:evm:{self.terms.place}:{channel.asset_id}", Kind.CUSTODY)

    async def claim(self, signed: SignedSubRAV) -> int:
        """What is claimed for good. Less than the voucher: put it into the next batch, and raise
        ClaimUnderway; or the collateral is used up, and this is all there is.

        Raises RailRejected: the channel is closed, or its epoch has ended.
        """
        sub_rav = signed.sub_rav
        key = (sub_rav.channel_id, sub_rav.vm_id_fragment)
        channel = await self._reader.channel(sub_rav.channel_id)
        sub = await self._reader.sub_at(*key)
        if channel is None or sub is None:
            raise RailRejected("there is no such channel in an asset of ours, or no such key")
        if sub_rav.channel_epoch != sub.epoch:
            raise RailRejected("the voucher is of another epoch")
        delta = sub_rav.accumulated_amount - sub.claimed
        left = 0
        if delta > 0 and channel.status is not ChannelStatus.CLOSED:
            left = await self._reader.balance(channel.backing, channel.asset_id)
        if delta <= 0 or not left:
            self._waiting.pop(key, None)
            if delta > 0 and channel.status is ChannelStatus.CLOSED:
                raise RailRejected("the channel is closed")
            return sub.claimed
        if len(self._waiting) < _WAITING_MAX or key in self._waiting:
            is_urgent = channel.status is ChannelStatus.CLOSING
            self._waiting[key] = Waiting(signed, channel.asset_id, min(delta, left), is_urgent)
        raise ClaimUnderway("the claim waits for its transaction, or for its confirmations")

    async def send_claims(self) -> int:
        """Send the vouchers that wait, in one transaction; returns how many.

        Nothing while an earlier one is on its way. Raises RailUnavailable, StoreError: then they
        wait on, as they do where gas is too dear.
        """
        if not self._waiting or await self._on_its_way():
            return 0
        # Who closes first, then whoever has waited longest.
        batch = sorted(self._waiting.values(), key=lambda one: not one.is_urgent)
        batch = [one for one in batch[: self._policy.size_max] if await self._is_unclaimed(one)]
        batch = await self._executable(batch)
        if not batch:
            return 0
        call = self._call(batch)
        gas = await self._gas(call)
        fees = await self._sending.offer()
        if isinstance(fees, TooDear):
            _log.warning("channel.claims_held", reason=fees.reason)
            return 0
        if not is_worth_it(batch, gas * fees.max_fee, self._worth, self._policy):
            return 0
        sent = await self._sending.send(
            Parcel(self._sender, Call(call.to, 0, call.data, gas), new_id(_PURPOSE[:-1]))
        )
        if not isinstance(sent, Slot):
            _log.warning("channel.claims_held", reason=sent.reason if sent else "")
            return 0
        for one in batch:
            sub_rav = one.signed.sub_rav
            self._waiting.pop((sub_rav.channel_id, sub_rav.vm_id_fragment), None)
        _log.info("channel.claims_sent", vouchers=len(batch), nonce=sent.nonce)
        return len(batch)

    async def closings(self, cursor: str) -> Closings:
        """Our channels whose payers asked to close since then."""
        return await self._reader.closings(self._address, cursor)

    async def close_as_payee(
        self, channel_id: str, proofs: Sequence[SignedSubRAV] = ()
    ) -> str | None:
        """Close a channel at once: claim the last vouchers, give its payer back the rest.

        The cooperative close: its payer asks for it, and needs neither to wait nor to pay for gas.
        Only for vouchers that are all there is: what is not claimed with it never will be. Needs
        the key of `address`. The key of the transaction's slot, which `tick` follows; None: not
        now. Raises RailRejected, RailUnavailable.
        """
        call = Call(self.terms.contract, 0, abi.close_call(channel_id, proofs))
        own = next((one for one in self._sending.keys.addresses if self._is_ours(one)), None)
        if own is None:
            raise RailRejected("only the payee's own key closes at once, and it is not here")
        gas = divide(await self._sending.chain.gas(own, call) * _GAS_PERCENT, 100, Rounding.UP)
        sent = await self._sending.send(
            Parcel(own, Call(call.to, 0, call.data, gas), new_id("channel-close"))
        )
        return sent.key if isinstance(sent, Slot) else None

    def _is_ours(self, address: str) -> bool:
        return address.lower() == self._address

    @property
    def _sender(self) -> str:
        return self._sending.keys.addresses[0]

    async def _on_its_way(self) -> bool:
        slots = await self._sending.open_slots(self._sender)
        return any(slot.purpose.startswith(_PURPOSE[:-1]) for slot in slots)

    async def _is_unclaimed(self, one: Waiting) -> bool:
        """Whether a voucher is unclaimed in the newest block; one that is not will be, for good."""
        sub_rav = one.signed.sub_rav
        sub = await self._reader.sub_at(sub_rav.channel_id, sub_rav.vm_id_fragment, "latest")
        is_unclaimed = sub is not None and sub.claimed < sub_rav.accumulated_amount
        if not is_unclaimed:
            self._waiting.pop((sub_rav.channel_id, sub_rav.vm_id_fragment), None)
        return is_unclaimed

    async def _executable(self, batch: list[Waiting]) -> list[Waiting]:
        """The batch without what the contract would refuse, which would take all with it."""
        good: list[Waiting] = []
        try:
            if batch:
                await self._gas(self._call(batch))
            return batch
        except RailRejected:
            pass
        for one in batch:
            try:
                await self._gas(self._call([one]))
                good.append(one)
            except RailRejected as error:
                sub_rav = one.signed.sub_rav
                self._waiting.pop((sub_rav.channel_id, sub_rav.vm_id_fragment), None)
                _log.error("channel.claim_refused", channel=sub_rav.channel_id, error=str(error))
        return good

    def _call(self, batch: Sequence[Waiting]) -> Call:
        return Call(self.terms.contract, 0, abi.claim_call([one.signed for one in batch]))

    async def _gas(self, call: Call) -> int:
        used = await self._sending.chain.gas(self._sender, call)
        return divide(used * _GAS_PERCENT, 100, Rounding.UP)
