"""A payer's side of a channel: what it signs, and what it refuses to.

    prepare ──► sent ──► answered (the next proposal is kept) ──► prepare signs it ──► …
                  └────► lost: the payee may ask once for what the lost answer cost, within limits

Everything signed is stored before it is sent: after a crash nothing is signed twice differently.
payment-kit 0.7.0 signs whatever a payee asks for; this signs the last total plus the stated cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from farebox.channels.chain import ChannelInfo, ChannelStatus, PayerContract
from farebox.channels.codecs import PaymentCodec, PaymentMetadata
from farebox.channels.model import sub_channel_key
from farebox.clock import NS_PER_S
from farebox.errors import SigningRefused, StoreError
from farebox.ids import new_id
from farebox.ledger.model import Applied, Put, Replayed, Unit
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger, State
from farebox.wire.subrav.didauth import DidAuth, sign_did_auth
from farebox.wire.subrav.keys import SigningKey, sign_sub_rav, verify_sub_rav
from farebox.wire.subrav.model import VERSION, ErrorCode, SignedSubRAV, SubRAV
from farebox.wire.subrav.payload import PaymentError


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendingLimits:
    """What a payer risks, in base units of the asset.

    `request_max`: one request. `unserved_max`: in all, for requests whose answer never came.
    `total_max`: everything signed in one epoch of the channel.
    """

    request_max: int
    unserved_max: int
    total_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SignSubRAVOptions:
    """One request's own reference and limit, where they are not to be made up."""

    client_tx_ref: str | None = None
    max_amount: int | None = None


class Asked(msgspec.Struct, frozen=True):
    """A request that was sent and not answered yet."""

    client_tx_ref: str
    max_amount: int


class Next(msgspec.Struct, frozen=True):
    """A proposal that was checked and will be signed with the next request."""

    amount: int
    nonce: int
    is_unserved: bool = False


class PayerSubChannel(msgspec.Struct, frozen=True, kw_only=True):
    """A payer's own record of one sub-channel in its newest epoch."""

    channel_id: str
    fragment: str
    epoch: int
    amount: int = 0
    nonce: int = 0
    next: Next | None = None
    asked: Asked | None = None
    has_lost: bool = False
    unserved: int = 0


PAYER_SUB_CHANNEL = RecordType("payer_sub_channel", PayerSubChannel)


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidatedResponse:
    """A payee's answer that was checked. `sub_rav` will be signed with the next request.

    `is_retry_wanted`: nothing was served; send the request again, it will carry the voucher.
    `metadata` is what was sent with the request that this answers.
    """

    sub_rav: SubRAV | None
    cost: int
    error: PaymentError | None = None
    service_tx_ref: str | None = None
    is_retry_wanted: bool = False
    metadata: PaymentMetadata | None = None


class PaymentChannelPayerClient:
    """One key's sub-channel with one payee. One request at a time: sub-channels run in parallel."""

    def __init__(
        self,
        ledger: Ledger,
        contract: PayerContract,
        key: SigningKey,
        channel_id: str,
        fragment: str,
        limits: SpendingLimits,
    ) -> None:
        self._ledger = ledger
        self._contract = contract
        self._key = key
        self._channel_id = channel_id
        self._fragment = fragment
        self._limits = limits
        self._row = sub_channel_key(channel_id, fragment)

    async def state(self) -> PayerSubChannel | None:
        """What is stored of the sub-channel; None: nothing was ever sent."""
        row = await self._ledger.store.get(PAYER_SUB_CHANNEL, self._row)
        return None if row is None else row.value

    async def authorize(self, operation: str, params: Mapping[str, Any]) -> DidAuth:
        """Say who asks, once and to nobody but the channel's payee.

        Of `params` the wire signs nothing; see `wire.subrav.didauth`. Raises SigningRefused and
        RailError.
        """
        channel = await self._open_channel()
        return sign_did_auth(
            channel.payer_did,
            self._fragment,
            self._key,
            operation=operation,
            params=params,
            nonce=new_id("nonce"),
            timestamp_s=self._ledger.clock.now_ns() // NS_PER_S,
            audience=channel.payee_did,
        )

    async def sign_and_encode(
        self,
        sub_rav: SubRAV | None,
        codec: PaymentCodec,
        options: SignSubRAVOptions | None = None,
    ) -> str:
        """The payment of the next request: the voucher for the last one, if it has one to sign.

        `sub_rav` is what `decode_and_validate` returned; None means whatever is stored. What was
        not validated is refused. Raises SigningRefused, RailError, StoreError.
        """
        channel = await self._open_channel()
        base = await self._base(channel)
        told = options or SignSubRAVOptions()
        limit = min(told.max_amount or self._limits.request_max, self._limits.request_max)
        asked = Asked(told.client_tx_ref or new_id("tx"), limit)
        signs: list[Next] = []

        def decide(state: State) -> PayerSubChannel:
            found = self._current(state.value(PAYER_SUB_CHANNEL, self._row), base)
            self._check_choice(found, sub_rav)
            signs[:] = [found.next] if found.next is not None else []
            changed = msgspec.structs.replace(
                _signed(found), asked=asked, has_lost=found.has_lost or found.asked is not None
            )
            if found.next is not None and found.next.is_unserved:
                changed = msgspec.structs.replace(changed, has_lost=False)
            return changed

        await self._commit(decide)
        voucher = sign_sub_rav(self._sub_rav(channel, signs[0]), self._key) if signs else None
        metadata = PaymentMetadata(client_tx_ref=asked.client_tx_ref, max_amount=limit)
        return codec.encode(voucher, metadata)

    async def decode_and_validate(self, encoded: str, codec: PaymentCodec) -> ValidatedResponse:
        """Check a payee's answer to the request in flight, and keep what may be signed next.

        Raises InvalidCredential for what cannot be read, SigningRefused for a proposal that does
        not follow from the last voucher, the stated cost and the limits: sign nothing more then.
        """
        payload = codec.decode_response(encoded)
        channel = await self._open_channel()
        base = await self._base(channel)
        error, proposal = payload.error, payload.sub_rav
        is_demand = error is not None and error.code == ErrorCode.PAYMENT_REQUIRED
        kept: list[Next | None] = []
        sent: list[Asked] = []

        def decide(state: State) -> PayerSubChannel:
            found = self._current(state.value(PAYER_SUB_CHANNEL, self._row), base)
            if found.asked is None or found.asked.client_tx_ref != payload.client_tx_ref:
                raise SigningRefused("the answer is to no request of ours")
            upcoming = None
            if proposal is not None and is_demand:
                upcoming = self._weigh_demand(found, proposal, channel)
            elif proposal is not None and error is None:
                if payload.cost is None:
                    raise SigningRefused("the answer states no cost for what it asks to sign")
                upcoming = self._weigh_cost(found, proposal, channel, payload.cost)
            kept[:] = [upcoming]
            sent[:] = [found.asked]
            return msgspec.structs.replace(found, next=upcoming, asked=None)

        await self._commit(decide)
        upcoming = kept[0]
        return ValidatedResponse(
            sub_rav=None if upcoming is None else self._sub_rav(channel, upcoming),
            cost=payload.cost or 0,
            error=error,
            service_tx_ref=payload.service_tx_ref,
            is_retry_wanted=is_demand and upcoming is not None,
            metadata=PaymentMetadata(
                client_tx_ref=sent[0].client_tx_ref, max_amount=sent[0].max_amount
            ),
        )

    async def answered_free(self, client_tx_ref: str | None = None) -> None:
        """Note that the request in flight was answered and cost nothing."""
        base = await self._base(await self._open_channel())

        def decide(state: State) -> PayerSubChannel | None:
            found = self._current(state.value(PAYER_SUB_CHANNEL, self._row), base)
            if found.asked is None or client_tx_ref not in (None, found.asked.client_tx_ref):
                return None
            return msgspec.structs.replace(found, asked=None)

        await self._commit(decide)

    async def recover(self, last_signed: SignedSubRAV | None) -> PayerSubChannel:
        """Begin again after everything was lost, from what the chain and the payee can prove.

        `last_signed` is the newest voucher that the payee has: it bears our own signature, so it
        says where we stood. What the payee then asks for counts as unserved, within the limits.
        A record that is there is only ever moved forward.
        """
        channel = await self._open_channel()
        base = await self._base(channel)
        if last_signed is not None:
            sub_rav = last_signed.sub_rav
            if sub_rav != self._sub_rav(channel, Next(sub_rav.accumulated_amount, sub_rav.nonce)):
                raise SigningRefused("the voucher is of another sub-channel or epoch")
            if not verify_sub_rav(last_signed, self._key.public):
                raise SigningRefused("the voucher does not bear our signature")
            if sub_rav.nonce >= base.nonce and sub_rav.accumulated_amount >= base.amount:
                base = msgspec.structs.replace(
                    base, amount=sub_rav.accumulated_amount, nonce=sub_rav.nonce
                )

        def decide(state: State) -> PayerSubChannel:
            found = self._current(state.value(PAYER_SUB_CHANNEL, self._row), base)
            if found.nonce < base.nonce:
                found = base
            return msgspec.structs.replace(found, has_lost=True)

        await self._commit(decide)
        found = await self.state()
        assert found is not None
        return found

    # ── what may be signed ───────────────────────────────────────────────────────────────────────

    def _weigh_cost(
        self, found: PayerSubChannel, proposal: SubRAV, channel: ChannelInfo, cost: int
    ) -> Next:
        assert found.asked is not None
        delta = self._delta(found, proposal, channel)
        if delta != cost:
            raise SigningRefused(f"the proposal adds {delta}, the stated cost is {cost}")
        if cost > found.asked.max_amount:
            raise SigningRefused(f"the cost is {cost}, allowed were {found.asked.max_amount}")
        return Next(proposal.accumulated_amount, proposal.nonce)

    def _weigh_demand(self, found: PayerSubChannel, proposal: SubRAV, channel: ChannelInfo) -> Next:
        if (proposal.nonce, proposal.accumulated_amount) == (found.nonce, found.amount):
            self._check_terms(proposal, channel)
            return Next(found.amount, found.nonce)  # signed before: the payee did not get it
        delta = self._delta(found, proposal, channel)
        if not found.has_lost:
            raise SigningRefused("a payment is asked for, and no answer of ours was lost")
        if delta > self._limits.request_max:
            raise SigningRefused(f"a lost answer cost {delta}, over {self._limits.request_max}")
        if found.unserved + delta > self._limits.unserved_max:
            raise SigningRefused(
                f"lost answers cost {found.unserved + delta}, they may {self._limits.unserved_max}"
            )
        return Next(proposal.accumulated_amount, proposal.nonce, is_unserved=True)

    def _delta(self, found: PayerSubChannel, proposal: SubRAV, channel: ChannelInfo) -> int:
        self._check_terms(proposal, channel)
        if proposal.nonce != found.nonce + 1:
            raise SigningRefused(f"nonce {proposal.nonce} does not follow {found.nonce}")
        if proposal.accumulated_amount > self._limits.total_max:
            raise SigningRefused(
                f"the total would be {proposal.accumulated_amount}, it may {self._limits.total_max}"
            )
        delta = proposal.accumulated_amount - found.amount
        if delta < 0:
            raise SigningRefused("the total falls")
        return delta

    def _check_terms(self, proposal: SubRAV, channel: ChannelInfo) -> None:
        expected = self._sub_rav(channel, Next(proposal.accumulated_amount, proposal.nonce))
        if proposal != expected:
            raise SigningRefused("the proposal is of another version, chain, channel, epoch or key")

    def _check_choice(self, found: PayerSubChannel, sub_rav: SubRAV | None) -> None:
        if sub_rav is None:
            return
        if found.next is None or (sub_rav.nonce, sub_rav.accumulated_amount) != (
            found.next.nonce,
            found.next.amount,
        ):
            raise SigningRefused("this proposal was not validated; decode the answer first")

    # ── what is stored ───────────────────────────────────────────────────────────────────────────

    async def _open_channel(self) -> ChannelInfo:
        channel = await self._contract.channel(self._channel_id)
        if channel is None or channel.status is not ChannelStatus.ACTIVE:
            raise SigningRefused("the channel is not open")
        return channel

    async def _base(self, channel: ChannelInfo) -> PayerSubChannel:
        """Where a sub-channel without a record stands: at what the chain has seen of it."""
        found = await self.state()
        if found is not None and found.epoch == channel.epoch:
            return found
        sub = await self._contract.sub_channel(self._channel_id, self._fragment)
        if sub is None or sub.key != self._key.public:
            raise SigningRefused(f"the key {self._fragment} may not sign for the channel")
        return PayerSubChannel(
            channel_id=self._channel_id,
            fragment=self._fragment,
            epoch=channel.epoch,
            amount=sub.last_claimed_amount,
            nonce=sub.last_confirmed_nonce,
        )

    def _current(self, found: PayerSubChannel | None, base: PayerSubChannel) -> PayerSubChannel:
        return base if found is None or found.epoch < base.epoch else found

    def _sub_rav(self, channel: ChannelInfo, upcoming: Next) -> SubRAV:
        return SubRAV(
            version=VERSION,
            chain_id=self._contract.chain_id,
            channel_id=self._channel_id,
            channel_epoch=channel.epoch,
            vm_id_fragment=self._fragment,
            accumulated_amount=upcoming.amount,
            nonce=upcoming.nonce,
        )

    async def _commit(self, decide: Callable[[State], PayerSubChannel | None]) -> None:
        """Store what is decided; None changes nothing. The unit's id is of this call alone."""
        unit_id = new_id("payer")

        def whole(state: State, now: int) -> Unit | None:
            row = decide(state)
            if row is None:
                return None
            version = state.version(PAYER_SUB_CHANNEL, self._row)
            return Unit(unit_id, puts=(Put(PAYER_SUB_CHANNEL, self._row, row, version),))

        outcome = await self._ledger.transact([(PAYER_SUB_CHANNEL, self._row)], whole)
        if not isinstance(outcome, Applied | Replayed | None):
            raise StoreError(f"the payment cannot be stored: {outcome}")


def _signed(found: PayerSubChannel) -> PayerSubChannel:
    """The record once its next proposal is signed."""
    upcoming = found.next
    if upcoming is None:
        return found
    unserved = upcoming.amount - found.amount if upcoming.is_unserved else 0
    return msgspec.structs.replace(
        found,
        amount=upcoming.amount,
        nonce=upcoming.nonce,
        next=None,
        unserved=found.unserved + unserved,
    )
