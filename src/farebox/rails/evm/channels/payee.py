"""A payee's side of channels on an EVM chain: claims, in batches that are worth their gas.

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
as everything else here. One transaction of claims is on its way at a time; should two processes
send one each, what the first has claimed moves nothing in the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from farebox.channels.chain import (
    ChannelInfo,
    ClaimUnderway,
    PaidTo,
    SubChannelInfo,
)
from farebox.errors import RailRejected
from farebox.ids import new_id
from farebox.ledger.model import Kind
from farebox.money import Rounding, divide
from farebox.payments.exchange import Exchange
from farebox.rails.evm.channels import contract as abi
from farebox.rails.evm.channels.contract import ChainStatus
from farebox.rails.evm.channels.names import account_did
from farebox.rails.evm.channels.reading import ChannelReader
from farebox.rails.evm.contracts import DEPLOYER, artifact
from farebox.rails.evm.fees import TooDear
from farebox.rails.evm.outbox import Call, Slot, custody_of
from farebox.rails.evm.sending import Parcel, Sending
from farebox.wire.subrav.model import SignedSubRAV

_log = structlog.get_logger("farebox.evm")
_CLAIMS = "channel-claims"
_CLOSE = "channel-close"
_DEPLOY = "channel-contract"
_WAITING_MAX = 10_000
#: Of the gas that a call used when it was tried, in percent.
_GAS_PERCENT = 125
#: What nobody knows the worth of is claimed: more than any gas costs.
_UNKNOWN = 2**256

_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A voucher that is to be claimed. `is_urgent`: its channel closes."""

    signed: SignedSubRAV
    asset_id: str
    delta: int
    is_urgent: bool

    @property
    def key(self) -> _Key:
        """Its channel and fragment."""
        return self.signed.sub_rav.channel_id, self.signed.sub_rav.vm_id_fragment


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """When a batch is sent: once its gas costs at most so much of what it is worth, in percent.

    A voucher of a closing channel may cost all that it is worth: later it is worth nothing.
    """

    size_max: int = 25
    gas_percent: int = 10


class EvmPayee:
    """A payee's contract (`PayeeContract`): the first address of `sending` is who is paid.

    Call `run` every few seconds, in each process of a book.
    """

    def __init__(
        self,
        reader: ChannelReader,
        sending: Sending,
        exchange: Exchange,
        policy: BatchPolicy | None = None,
    ) -> None:
        self.terms = reader.terms
        self._reader = reader
        self._sending = sending
        self._exchange = exchange
        self._policy = policy or BatchPolicy()
        self._waiting: dict[_Key, Waiting] = {}
        #: What the contract said to vouchers that it refused, until their claim is asked for again.
        self._refused: dict[_Key, str] = {}

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
        """The custody of our addresses on this chain."""
        return PaidTo(custody_of(self._sending.terms.chain, channel.asset_id), Kind.CUSTODY)

    async def claim(self, signed: SignedSubRAV) -> int:
        """What is claimed for good. Less than the voucher: put it into the next batch, and raise
        ClaimUnderway; or the collateral is used up, and this is all there is.

        Raises RailRejected: the channel is closed, or its epoch has ended.
        """
        sub_rav = signed.sub_rav
        key = (sub_rav.channel_id, sub_rav.vm_id_fragment)
        if refused := self._refused.pop(key, ""):
            raise RailRejected(refused)
        block = await self._reader.final_block()
        channel = await self._reader.at(sub_rav.channel_id, block)
        sub = await self._reader.sub_at(*key, block)
        asset = None if channel is None else self.terms.codes.get(channel.token)
        if channel is None or sub is None or asset is None:
            raise RailRejected("there is no such channel in an asset of ours, or no such key")
        if sub_rav.channel_epoch != sub.epoch:
            raise RailRejected("the voucher is of another epoch")
        delta = sub_rav.accumulated_amount - sub.claimed
        if delta > 0 and channel.status is ChainStatus.CLOSED:
            raise RailRejected("the channel is closed")
        if delta <= 0 or not channel.collateral:
            self._waiting.pop(key, None)
            return sub.claimed
        if len(self._waiting) < _WAITING_MAX or key in self._waiting:
            is_urgent = channel.status is ChainStatus.CLOSING
            self._waiting[key] = Waiting(signed, asset, min(delta, channel.collateral), is_urgent)
        raise ClaimUnderway("the claim waits for its transaction, or for its confirmations")

    async def run(self) -> int:
        """Send what is worth it; returns how many vouchers went. `Sending.tick` follows them.

        The contract is put on the chain first, where nobody has done so yet.
        Raises RailUnavailable, RailRejected, StoreError: then vouchers wait on.
        """
        return await self.send_claims() if await self._is_ready() else 0

    async def send_claims(self) -> int:
        """Send the vouchers that wait, in one transaction; returns how many.

        Nothing while an earlier one is on its way, where gas is too dear, or where they are not
        worth it. Raises as `run` does.
        """
        if not self._waiting or await self._is_on_its_way(_CLAIMS):
            return 0
        # What may cost most goes first: many that are worth little hold up none that is worth it.
        richest = sorted(self._waiting.values(), key=self._budget, reverse=True)
        batch = await self._executable(
            [one for one in richest[: self._policy.size_max] if await self._is_unclaimed(one)]
        )
        if not batch:
            return 0
        fees = await self._sending.offer()
        if isinstance(fees, TooDear):
            _log.warning("channel.claims_held", reason=fees.reason)
            return 0
        batch, gas = await self._affordable(batch, fees.max_fee)
        if not batch:
            return 0
        sent = await self._send(self._call(batch), gas, new_id(_CLAIMS))
        if sent is None:
            return 0
        for one in batch:
            self._waiting.pop(one.key, None)
        _log.info("channel.claims_sent", vouchers=len(batch), nonce=sent.nonce)
        return len(batch)

    async def refuses_close(
        self, channel: ChannelInfo, proofs: Sequence[SignedSubRAV], earned: int
    ) -> str:
        """Why closing at once costs more gas than the channel was worth; "": it does not.

        Raises RailRejected: the contract would refuse it; RailUnavailable.
        """
        gas = await self._gas(self._close_call(channel.channel_id, proofs))
        fees = await self._sending.offer()
        if isinstance(fees, TooDear):
            return f"The gas of a close is too dear now: {fees.reason}."
        native = self._sending.terms.native
        worth = self._exchange.worth(earned, channel.asset_id, native, Rounding.DOWN)
        if worth is None or gas * fees.max_fee * 100 > worth * self._policy.gas_percent:
            return "The channel has brought too little to pay for a close; close it on its chain."
        return ""

    async def close_as_payee(
        self, channel_id: str, epoch: int, proofs: Sequence[SignedSubRAV] = ()
    ) -> Mapping[str, int]:
        """Close a channel at once: claim the last vouchers, give its payer back the rest.

        Only for vouchers that are all there is: what is not claimed with it never will be. All that
        was claimed then, by fragment, once it is final; ClaimUnderway before: call again. Raises
        RailRejected, RailUnavailable.
        """
        promised = {one.sub_rav.vm_id_fragment: one.sub_rav.accumulated_amount for one in proofs}
        purpose = f"{_CLOSE}:{channel_id}:{epoch}"
        slot = await self._sending.slot_of(purpose)
        if slot is not None and slot.is_open:
            raise ClaimUnderway("the close waits for its confirmations")
        if slot is not None and slot.mined is not None and slot.mined.ok and not slot.is_cancelled:
            return promised
        block = await self._reader.final_block()
        found = await self._reader.at(channel_id, block)
        if found is not None and (found.epoch > epoch or found.status is ChainStatus.CLOSED):
            # Its payer was quicker, when the challenge period was over.
            subs = {name: await self._reader.sub_at(channel_id, name, block) for name in promised}
            return {name: sub.claimed for name, sub in subs.items() if sub and sub.epoch == epoch}
        newest = await self._reader.at(channel_id, "latest")
        if newest is None or newest.epoch > epoch or newest.status is ChainStatus.CLOSED:
            raise ClaimUnderway("another close waits for its confirmations")
        call = self._close_call(channel_id, proofs)
        await self._send(call, await self._gas(call), purpose)
        raise ClaimUnderway("the close is on its way")

    # ── steps ────────────────────────────────────────────────────────────────────────────────────

    @property
    def _sender(self) -> str:
        return self._sending.keys.addresses[0]

    @property
    def _address(self) -> str:
        return self._sender.lower()

    async def _is_ready(self) -> bool:
        """Whether the contract is on the chain; it is sent for where it is not."""
        made = artifact("FareboxChannels")
        if await self._sending.chain.code(self.terms.contract):
            return True
        if not await self._sending.chain.code(DEPLOYER):
            raise RailRejected(f"the chain lacks {DEPLOYER}, which would put the contract there")
        if not await self._is_on_its_way(_DEPLOY):
            call = Call(DEPLOYER, 0, made.deployment)
            await self._send(call, await self._gas(call), new_id(_DEPLOY))
        return False

    async def _is_on_its_way(self, purpose: str) -> bool:
        slots = await self._sending.open_slots(self._sender)
        return any(slot.purpose.startswith(f"{purpose}_") for slot in slots)

    async def _send(self, call: Call, gas: int, purpose: str) -> Slot | None:
        whole = Call(call.to, call.value, call.data, gas)
        sent = await self._sending.send(Parcel(self._sender, whole, purpose))
        if isinstance(sent, Slot):
            return sent
        _log.warning("channel.held", purpose=purpose, reason=sent.reason if sent else "")
        return None

    async def _affordable(self, batch: list[Waiting], fee: int) -> tuple[list[Waiting], int]:
        """The batch if it pays for its gas, else as many of it as do; and that gas."""
        while batch:
            gas = await self._gas(self._call(batch))
            cost = gas * fee * 100
            if sum(self._budget(one) for one in batch) >= cost:
                return batch, gas
            batch = [one for one in batch if self._budget(one) * len(batch) > cost]
        return [], 0

    def _budget(self, one: Waiting) -> int:
        """The most that a claim may cost, in hundredths of a wei."""
        native = self._sending.terms.native
        worth = self._exchange.worth(one.delta, one.asset_id, native, Rounding.DOWN)
        if worth is None:
            return _UNKNOWN
        return worth * max(self._policy.gas_percent, 100 if one.is_urgent else 0)

    async def _is_unclaimed(self, one: Waiting) -> bool:
        """Whether a voucher is unclaimed in the newest block; one that is not will be, for good."""
        sub = await self._reader.sub_at(*one.key, "latest")
        is_unclaimed = sub is not None and sub.claimed < one.signed.sub_rav.accumulated_amount
        if not is_unclaimed:
            self._waiting.pop(one.key, None)
        return is_unclaimed

    async def _executable(self, batch: list[Waiting]) -> list[Waiting]:
        """The batch without what the contract would refuse, which would take all with it."""
        if not batch or not await self._refusal(batch):
            return batch
        good: list[Waiting] = []
        for one in batch:
            refusal = await self._refusal([one])
            if not refusal:
                good.append(one)
                continue
            self._waiting.pop(one.key, None)
            self._refused[one.key] = refusal
        return good

    async def _refusal(self, batch: Sequence[Waiting]) -> str:
        try:
            await self._gas(self._call(batch))
        except RailRejected as error:
            return str(error)
        return ""

    def _close_call(self, channel_id: str, proofs: Sequence[SignedSubRAV]) -> Call:
        return Call(self.terms.contract, 0, abi.close_call(channel_id, proofs))

    def _call(self, batch: Sequence[Waiting]) -> Call:
        return Call(self.terms.contract, 0, abi.claim_call([one.signed for one in batch]))

    async def _gas(self, call: Call) -> int:
        used = await self._sending.chain.gas(self._sender, call)
        return divide(used * _GAS_PERCENT, 100, Rounding.UP)
