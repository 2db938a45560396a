"""A payer's side of channels on an EVM chain: each call is a transaction, waited for to its end.

One that is on its way already, also from before a crash, is waited for and not sent again; whoever
begins again asks for the channel first, since opening an open one tops it up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from farebox.channels.chain import ChannelInfo, SubChannelInfo
from farebox.errors import RailRejected, RailUnavailable
from farebox.money import Rounding, divide
from farebox.rails.evm.channels import contract as abi
from farebox.rails.evm.channels.names import account_did, did_address
from farebox.rails.evm.channels.reading import ChannelReader
from farebox.rails.evm.outbox import Call, Slot, SlotState
from farebox.rails.evm.sending import Held, Parcel, Sending
from farebox.wire.subrav.keys import KeyType, VerificationKey
from farebox.wire.subrav.model import SignedSubRAV, check_fragment
from farebox.wire.subrav.typed_data import ADDRESS_BYTES

_GAS_PERCENT = 125
_POLL_S = 0.5


class EvmPayer:
    """A payer's contract (`PayerContract`); the first key of `sending` is who pays.

    `wait_s`: how long a transaction is waited for, its confirmations included. RailUnavailable
    says that it is still on its way: call again.
    """

    def __init__(
        self,
        reader: ChannelReader,
        sending: Sending,
        *,
        wait_s: float = 600,
        poll_s: float = _POLL_S,
    ) -> None:
        self.terms = reader.terms
        self._reader = reader
        self._sending = sending
        self._wait_s = wait_s
        self._poll_s = poll_s

    @property
    def chain_id(self) -> int:
        """The chain's own number, which every SubRAV says."""
        return self.terms.chain_id

    @property
    def did(self) -> str:
        """Who pays."""
        return account_did(self.chain_id, self._sender)

    async def channel(self, channel_id: str) -> ChannelInfo | None:
        """A channel as it stood some blocks ago."""
        return await self._reader.channel(channel_id)

    async def sub_channel(self, channel_id: str, fragment: str) -> SubChannelInfo | None:
        """A sub-channel in the same way."""
        return await self._reader.sub_channel(channel_id, fragment)

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
        """Lock collateral; a token is approved first, for this much and no more.

        Raises InvalidCredential, RailRejected: the chain would refuse it; RailUnavailable.
        """
        if did_address(payer_did, self.chain_id) != self._sender.lower():
            raise RailRejected("a channel is opened by its payer's own key")
        payee, token = did_address(payee_did, self.chain_id), self.terms.token(asset_id)
        channel_id = self.terms.channel_id(payer_did, payee_did, asset_id)
        fragment, signer = check_fragment(fragment), self._signer(key)
        purpose = f"channel-open:{channel_id}"
        if token != abi.ETHER and await self._open_slot(purpose) is None:
            await self._approve(token, collateral)
        data = abi.open_call(payee, token, collateral, fragment, signer)
        value = collateral if token == abi.ETHER else 0
        await self._done(purpose, Call(self.terms.contract, value, data))
        return await self._shown(channel_id)

    async def authorize_sub_channel(
        self, channel_id: str, fragment: str, key: VerificationKey
    ) -> SubChannelInfo:
        """Let one more key sign. Raises RailRejected, RailUnavailable."""
        data = abi.authorize_call(channel_id, check_fragment(fragment), self._signer(key))
        purpose = f"channel-key:{channel_id}#{fragment}"
        await self._done(purpose, Call(self.terms.contract, 0, data))
        sub = await self.sub_channel(channel_id, fragment)
        if sub is None:
            raise RailUnavailable("the key is not seen yet; ask again")
        return sub

    async def request_close(self, channel_id: str) -> ChannelInfo:
        """Begin the challenge period. Raises RailRejected, RailUnavailable."""
        data = abi.request_close_call(channel_id)
        await self._done(f"channel-closing:{channel_id}", Call(self.terms.contract, 0, data))
        return await self._shown(channel_id)

    async def close(self, channel_id: str, proofs: Sequence[SignedSubRAV] = ()) -> ChannelInfo:
        """Give back the rest, once the challenge period is over. Raises RailRejected before."""
        data = abi.close_call(channel_id, proofs)
        await self._done(f"channel-close:{channel_id}", Call(self.terms.contract, 0, data))
        return await self._shown(channel_id)

    async def _approve(self, token: str, amount: int) -> None:
        allowed = await self._reader.allowance(token, self._sender)
        if allowed >= amount:
            return
        # Some tokens change an allowance from nothing only.
        for limit in (0, amount) if allowed else (amount,):
            data = abi.approve_call(self.terms.contract, limit)
            await self._done(f"channel-approve:{token}:{limit}", Call(token, 0, data))

    async def _done(self, purpose: str, call: Call) -> None:
        """Send a call, or take up the one on its way, and wait for its end."""
        slot = await self._open_slot(purpose)
        if slot is None:
            used = await self._sending.chain.gas(self._sender, call)
            gas = divide(used * _GAS_PERCENT, 100, Rounding.UP)
            whole = Call(call.to, call.value, call.data, gas)
            sent = await self._sending.send(Parcel(self._sender, whole, purpose))
            if not isinstance(sent, Slot):
                reason = sent.reason if isinstance(sent, Held) else "another took its place"
                raise RailUnavailable(f"the transaction is not sent: {reason}")
            slot = sent
        try:
            async with asyncio.timeout(self._wait_s):
                while slot.is_open:
                    slot = await self._sending.push(slot.key)
                    if slot.is_open:
                        await asyncio.sleep(self._poll_s)
        except TimeoutError:
            raise RailUnavailable("the transaction is on its way; ask again") from None
        if slot.state is SlotState.LOST or slot.mined is None:
            raise RailUnavailable("the transaction's nonce was used by another; look at the chain")
        if not slot.mined.ok:
            raise RailRejected("the contract refused the transaction")

    async def _open_slot(self, purpose: str) -> Slot | None:
        slots = await self._sending.open_slots(self._sender)
        return next((slot for slot in slots if slot.purpose == purpose), None)

    async def _shown(self, channel_id: str) -> ChannelInfo:
        channel = await self.channel(channel_id)
        if channel is None:
            raise RailUnavailable("the channel is not seen yet; ask again")
        return channel

    def _signer(self, key: VerificationKey) -> str:
        """The address of a key of ours for this contract. Raises RailRejected."""
        contract = key.raw[:ADDRESS_BYTES]
        if key.type is not KeyType.EIP712 or contract != self.terms.contract_bytes:
            raise RailRejected("the key must sign EIP-712 vouchers for this very contract")
        return "0x" + key.raw[ADDRESS_BYTES:].hex()

    @property
    def _sender(self) -> str:
        return self._sending.keys.addresses[0]
