"""A play chain for payment channels: in memory, its ids and rules as on Rooch.

Channels of one payer share its hub. A claim moves the delta out of the hub, is refused when the hub
holds less, and does nothing for an older voucher. It fails when told to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from farebox.channels.chain import ChannelInfo, ChannelStatus, PaidTo, SubChannelInfo
from farebox.errors import RailRejected, RailUnavailable
from farebox.ledger.model import Kind
from farebox.wire.subrav.keys import VerificationKey, verify_sub_rav
from farebox.wire.subrav.model import VERSION, SignedSubRAV
from farebox.wire.subrav.rooch import canonical_coin_type, channel_id, hub_id

#: payment-kit's number for a local Rooch.
LOCAL_CHAIN_ID = 4
RGAS = "0x3::gas_coin::RGas"


class PlayContract:
    """Both sides' contract. `is_away` fails every call, `loses_answers` executes claims first."""

    chain_id = LOCAL_CHAIN_ID

    def __init__(self) -> None:
        self.hubs: dict[tuple[str, str], int] = {}
        self.channels: dict[str, ChannelInfo] = {}
        self.subs: dict[tuple[str, str], SubChannelInfo] = {}
        self.claims: list[tuple[str, int]] = []
        self.is_away = False
        self.loses_answers = False

    async def channel(self, channel_id: str) -> ChannelInfo | None:
        """`getChannelStatus`."""
        self._reach()
        return self.channels.get(channel_id)

    async def sub_channel(self, channel_id: str, fragment: str) -> SubChannelInfo | None:
        """`getSubChannel`."""
        self._reach()
        return self.subs.get((channel_id, fragment))

    async def balance(self, backing: str, asset_id: str) -> int:
        """`getHubBalance`."""
        self._reach()
        return self.hubs.get((backing, canonical_coin_type(asset_id)), 0)

    def paid_to(self, channel: ChannelInfo) -> PaidTo:
        """A payee's revenue lands in its own hub."""
        return PaidTo(f"custody:rooch:{channel.asset_id}", Kind.CUSTODY)

    async def claim(self, signed: SignedSubRAV) -> int:
        """`claimFromChannel`: the contract checks what the chain of Rooch checks."""
        self._reach()
        sub_rav = signed.sub_rav
        channel = self.channels.get(sub_rav.channel_id)
        key = (sub_rav.channel_id, sub_rav.vm_id_fragment)
        sub = self.subs.get(key)
        if channel is None or sub is None or channel.status is ChannelStatus.CLOSED:
            raise RailRejected("the channel is closed, or the key may not sign")
        terms = (sub_rav.version, sub_rav.chain_id, sub_rav.channel_epoch)
        if terms != (VERSION, self.chain_id, channel.epoch) or not verify_sub_rav(signed, sub.key):
            raise RailRejected("the voucher is of another epoch, or badly signed")
        delta = sub_rav.accumulated_amount - sub.last_claimed_amount
        if sub_rav.nonce >= sub.last_confirmed_nonce and delta > 0:
            hub = (channel.backing, canonical_coin_type(channel.asset_id))
            if self.hubs.get(hub, 0) < delta:
                raise RailRejected("the hub holds less than the claim")
            self.hubs[hub] -= delta
            self.subs[key] = sub = replace(
                sub,
                last_claimed_amount=sub_rav.accumulated_amount,
                last_confirmed_nonce=sub_rav.nonce,
            )
            self.claims.append((sub_rav.vm_id_fragment, delta))
        if self.loses_answers:
            raise RailUnavailable("the answer was lost")
        return sub.last_claimed_amount

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
        """`openChannelWithSubChannel`; the collateral is put into the payer's hub."""
        self._reach()
        named, hub = channel_id(payer_did, payee_did, asset_id), hub_id(payer_did)
        asset = canonical_coin_type(asset_id)
        found = self.channels.get(named)
        if found is None or found.status is ChannelStatus.CLOSED:
            epoch = 0 if found is None else found.epoch + 1
            self.channels[named] = ChannelInfo(
                channel_id=named,
                payer_did=payer_did,
                payee_did=payee_did,
                asset_id=asset,
                epoch=epoch,
                status=ChannelStatus.ACTIVE,
                backing=hub,
            )
            for (of, name), sub in self.subs.items():
                if of == named:
                    fresh = replace(sub, epoch=epoch, last_claimed_amount=0, last_confirmed_nonce=0)
                    self.subs[of, name] = fresh
        self.hubs[hub, asset] = self.hubs.get((hub, asset), 0) + collateral
        await self.authorize_sub_channel(named, fragment, key)
        return self.channels[named]

    async def authorize_sub_channel(
        self, channel_id: str, fragment: str, key: VerificationKey
    ) -> SubChannelInfo:
        """`authorizeSubChannel`."""
        self._reach()
        epoch = self.channels[channel_id].epoch
        fresh = SubChannelInfo(channel_id=channel_id, vm_id_fragment=fragment, epoch=epoch, key=key)
        return self.subs.setdefault((channel_id, fragment), fresh)

    async def request_close(self, channel_id: str) -> ChannelInfo:
        """The payer wants out; its challenge period ends when the test calls `close`."""
        return self._with_status(channel_id, ChannelStatus.CLOSING)

    async def close(self, channel_id: str, proofs: Sequence[SignedSubRAV] = ()) -> ChannelInfo:
        """`closeChannel`: claims the proofs; what is left in the hub is the payer's as before."""
        for proof in proofs:
            await self.claim(proof)
        return self._with_status(channel_id, ChannelStatus.CLOSED)

    def _with_status(self, channel_id: str, status: ChannelStatus) -> ChannelInfo:
        self._reach()
        self.channels[channel_id] = replace(self.channels[channel_id], status=status)
        return self.channels[channel_id]

    def _reach(self) -> None:
        if self.is_away:
            raise RailUnavailable("the chain cannot be reached")
