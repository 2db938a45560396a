"""Both sides' port to `0x3::payment_channel`. Channels of one payer share its hub."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from farebox.channels.chain import ChannelInfo, ChannelStatus, PaidTo, SubChannelInfo
from farebox.errors import InvalidCredential, RailRejected, RailUnavailable
from farebox.ledger.model import Kind
from farebox.rails.rooch.rpc import RoochRpc
from farebox.rails.rooch.states import (
    ChannelState,
    field_key,
    read_channel,
    read_coins,
    read_hub_store,
    read_sub_channel,
)
from farebox.rails.rooch.transactions import (
    Call,
    encode_call,
    object_id_argument,
    sign_transaction,
    u64_argument,
    u256_argument,
)
from farebox.wire.subrav.bcs import encode_close_proofs, string
from farebox.wire.subrav.keys import KeyType, SigningKey, VerificationKey
from farebox.wire.subrav.model import SignedSubRAV
from farebox.wire.subrav.rooch import (
    address_did,
    canonical_coin_type,
    channel_id,
    did_address,
    hub_id,
)

_STATUSES = (ChannelStatus.ACTIVE, ChannelStatus.CLOSING, ChannelStatus.CLOSED)


class RoochContract:
    """The contract, asked and called by one key of one DID: a payee's or a payer's.

    One for each process and DID: its transactions go one after the other.
    """

    def __init__(
        self, rpc: RoochRpc, chain_id: int, did: str, fragment: str, key: SigningKey
    ) -> None:
        """`did#fragment` must be a verification method in the DID's document on the chain."""
        self._rpc = rpc
        self._chain_id = chain_id
        self._address = did_address(did)
        self._fragment = fragment
        self._key = key
        self._sending = asyncio.Lock()
        self._is_checked = False

    @property
    def chain_id(self) -> int:
        """What every SubRAV of this chain says in `chain_id`."""
        return self._chain_id

    async def channel(self, channel_id: str) -> ChannelInfo | None:
        """A channel as it stands. Raises RailUnavailable."""
        state = await self._state(channel_id)
        if state is None:
            return None
        payer = address_did(state.sender)
        try:
            return ChannelInfo(
                channel_id=channel_id,
                payer_did=payer,
                payee_did=address_did(state.receiver),
                asset_id=canonical_coin_type(state.coin_type),
                epoch=state.epoch,
                status=_STATUSES[min(state.status, len(_STATUSES) - 1)],
                backing=hub_id(payer),
            )
        except InvalidCredential as error:
            raise RailUnavailable(f"Rooch told of a channel that makes no sense: {error}") from None

    async def sub_channel(self, channel_id: str, fragment: str) -> SubChannelInfo | None:
        """An authorised sub-channel with its frozen key. Raises RailUnavailable."""
        state = await self._state(channel_id)
        if state is None:
            return None
        raw = await self._rpc.field_state(state.sub_channels, field_key(fragment))
        if raw is None:
            return None
        try:
            found = read_sub_channel(raw, fragment)
            return SubChannelInfo(
                channel_id=channel_id,
                vm_id_fragment=fragment,
                epoch=state.epoch,
                key=VerificationKey.from_multibase(
                    _key_type(found.method_type), found.key_multibase
                ),
                last_claimed_amount=found.last_claimed_amount,
                last_confirmed_nonce=found.last_confirmed_nonce,
            )
        except InvalidCredential as error:
            raise RailUnavailable(f"Rooch told of a key that makes no sense: {error}") from None

    async def balance(self, backing: str, asset_id: str) -> int:
        """What a hub holds of a coin. Raises RailUnavailable: unlike payment-kit, which takes a
        hub that cannot be read for an empty one."""
        coin_type = canonical_coin_type(asset_id)
        hub = await self._rpc.object_state(backing)
        if hub is None:
            return 0
        try:
            store = read_hub_store(hub)
            raw = await self._rpc.field_state(store, field_key(coin_type))
            return 0 if raw is None else read_coins(raw, coin_type)
        except InvalidCredential as error:
            raise RailUnavailable(f"Rooch told of a hub that makes no sense: {error}") from None

    def paid_to(self, channel: ChannelInfo) -> PaidTo:
        """Claims land in the payee's revenue hub."""
        return PaidTo(f"custody:rooch:{channel.asset_id}", Kind.CUSTODY)

    async def claim(self, signed: SignedSubRAV) -> int:
        """Redeem a voucher, unless the chain has paid it already. Raises RailRejected where the
        contract refuses it, RailUnavailable where nobody knows."""
        sub_rav = signed.sub_rav
        before = await self.sub_channel(sub_rav.channel_id, sub_rav.vm_id_fragment)
        if before is None or before.epoch != sub_rav.channel_epoch:
            raise RailRejected("the voucher is of another epoch, or its key may not sign")
        if before.last_confirmed_nonce >= sub_rav.nonce:
            return before.last_claimed_amount
        await self._call(
            "claim_from_channel_entry",
            object_id_argument(sub_rav.channel_id),
            string(sub_rav.vm_id_fragment.encode()),
            u256_argument(sub_rav.accumulated_amount),
            u64_argument(sub_rav.nonce),
            string(signed.signature),
        )
        after = await self.sub_channel(sub_rav.channel_id, sub_rav.vm_id_fragment)
        if after is None:
            raise RailUnavailable("Rooch no longer tells of the sub-channel")
        return after.last_claimed_amount

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
        """Put `collateral` into the payer's hub, open the channel if it is not, and let a key sign.

        The contract takes the key from the payer's DID document: RailRejected where it is another.
        """
        if did_address(payer_did) != self._address:
            raise RailRejected("a channel is opened by its payer")
        named = channel_id(payer_did, payee_did, asset_id)
        if collateral:
            await self._call(
                "deposit_to_hub_entry", self._address, u256_argument(collateral), coin=asset_id
            )
        found = await self.channel(named)
        if found is None or found.status is not ChannelStatus.ACTIVE:
            await self._call(
                "open_channel_with_sub_channel_entry",
                did_address(payee_did),
                string(fragment.encode()),
                coin=asset_id,
            )
        await self.authorize_sub_channel(named, fragment, key)
        return await self._there(named)

    async def authorize_sub_channel(
        self, channel_id: str, fragment: str, key: VerificationKey
    ) -> SubChannelInfo:
        """Let one more key of the payer's DID document sign. RailRejected where it is another."""
        found = await self.sub_channel(channel_id, fragment)
        if found is None:
            await self._call(
                "authorize_sub_channel_entry",
                object_id_argument(channel_id),
                string(fragment.encode()),
            )
            found = await self.sub_channel(channel_id, fragment)
        if found is None or found.key != key:
            raise RailRejected(f"the DID document has another key as {fragment}")
        return found

    async def request_close(self, channel_id: str) -> ChannelInfo:
        """Begin the challenge period of a day."""
        await self._call("initiate_cancellation_entry", object_id_argument(channel_id))
        return await self._there(channel_id)

    async def close(self, channel_id: str, proofs: Sequence[SignedSubRAV] = ()) -> ChannelInfo:
        """As its payee: claim the proofs and close at once. As anybody else: close after the
        challenge period, for what the contract knows."""
        found = await self._there(channel_id)
        named = object_id_argument(channel_id)
        if did_address(found.payee_did) == self._address:
            await self._call("close_channel_entry", named, string(encode_close_proofs(proofs)))
        else:
            await self._call("finalize_cancellation_entry", named)
        return await self._there(channel_id)

    async def _state(self, channel_id: str) -> ChannelState | None:
        raw = await self._rpc.object_state(channel_id)
        if raw is None:
            return None
        try:
            return read_channel(raw)
        except InvalidCredential as error:
            raise RailUnavailable(f"Rooch told of a channel that makes no sense: {error}") from None

    async def _there(self, channel_id: str) -> ChannelInfo:
        found = await self.channel(channel_id)
        if found is None:
            raise RailUnavailable("Rooch does not tell of the channel")
        return found

    async def _call(self, function: str, *arguments: bytes, coin: str | None = None) -> None:
        async with self._sending:
            if not self._is_checked:
                chain_id = await self._rpc.chain_id()
                if chain_id != self._chain_id:
                    raise RailUnavailable(f"the node is of chain {chain_id}, not {self._chain_id}")
                self._is_checked = True
            data = encode_call(
                Call(function, arguments, coin),
                sender=self._address,
                sequence_number=await self._rpc.sequence_number(self._address),
                chain_id=self._chain_id,
            )
            await self._rpc.execute(sign_transaction(data, self._key, self._fragment))


def _key_type(text: str) -> KeyType:
    try:
        return KeyType(text)
    except ValueError:
        raise InvalidCredential(f"{text[:64]} is no kind of key that signs vouchers") from None
