"""What a payer does with a channel that is backed by its own account: open, top up, close.

    open, top up ──► active ──► close: closing, the last vouchers claimed ──► the challenge is over:
                       ▲                                                      the rest goes back
                       └────────────────── open: a new epoch ◄────────────────────────┘

There is one channel between an account and the house. `close_due` closes what has waited long
enough, in whatever process, once.
"""

from __future__ import annotations

from dataclasses import dataclass

from farebox.channels.chain import ChannelInfo
from farebox.channels.claims import ClaimOutcome, ClaimScheduler
from farebox.channels.ledger_chain import (
    LedgerChannel,
    LedgerContract,
    account_did,
    channel_info,
    ledger_channel_id,
)
from farebox.channels.payee import PaymentChannelPayeeClient
from farebox.wire.subrav.keys import VerificationKey


@dataclass(frozen=True, slots=True)
class OwnChannel:
    """A payer's channel, and what is left of its collateral."""

    info: ChannelInfo
    channel: LedgerChannel
    left: int


class LedgerDesk:
    """The channels between the accounts of this ledger and its house, in one asset."""

    def __init__(
        self,
        contract: LedgerContract,
        payee: PaymentChannelPayeeClient,
        claims: ClaimScheduler,
        asset_id: str,
    ) -> None:
        self._contract = contract
        self._payee = payee
        self._claims = claims
        self._asset_id = asset_id

    @property
    def chain_id(self) -> int:
        """What vouchers say in `chain_id`."""
        return self._contract.chain_id

    async def show(self, account: str) -> OwnChannel | None:
        """An account's channel with us."""
        channel_id = self._channel_id(account)
        channel = await self._contract.stored(channel_id)
        if channel is None:
            return None
        info = channel_info(channel_id, channel)
        return OwnChannel(info, channel, await self._contract.balance(info.backing, info.asset_id))

    async def fund(
        self, account: str, amount: int, fragment: str, key: VerificationKey, operation_id: str
    ) -> OwnChannel:
        """Lock `amount` of an account for its channel, which is opened if need be, and let a key
        sign; 0 only lets one more key sign. The same `operation_id` again locks nothing more.

        Raises RailRejected: the account does not hold so much, the channel is closing, or the
        fragment has another key. Raises InvalidCredential, StoreError.
        """
        if amount:
            info = await self._contract.open_channel_with_sub_channel(
                payer_did=account_did(account),
                payee_did=self._payee.payee_did,
                asset_id=self._asset_id,
                collateral=amount,
                fragment=fragment,
                key=key,
                operation_id=operation_id,
            )
            self._payee.forget(info, fragment)
        else:
            await self._contract.authorize_sub_channel(self._channel_id(account), fragment, key)
        return await self._shown(account)

    async def close(self, account: str) -> OwnChannel:
        """Begin to close an account's channel, and claim what its vouchers are worth.

        Asked again after the challenge period, it is closed. Raises RailRejected: there is none.
        """
        channel_id = self._channel_id(account)
        info = await self._contract.request_close(channel_id)
        self._payee.forget(info)
        await self._claims.trigger(channel_id)
        return await self._shown(account)

    async def close_due(self) -> int:
        """Give back what is left of channels whose challenge period is over; returns how many.

        One whose vouchers cannot be claimed now waits.
        """
        done = 0
        for channel_id in await self._contract.due():
            _, skipped = await self._claims.trigger(channel_id)
            if set(skipped.values()) <= {ClaimOutcome.NOTHING.value}:
                info = await self._contract.close(channel_id)
                self._payee.forget(info)
                done += 1
        return done

    async def _shown(self, account: str) -> OwnChannel:
        own = await self.show(account)
        assert own is not None, "it was changed just now, and no channel is ever forgotten"
        return own

    def _channel_id(self, account: str) -> str:
        return ledger_channel_id(account_did(account), self._payee.payee_did, self._asset_id)
