"""A payee's view of its channels: what the chain says of them, and whether vouchers are good."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from farebox.channels.book import Charge, Standing, SubChannels, Turn
from farebox.channels.chain import ChannelInfo, PayeeContract, SubChannelInfo
from farebox.channels.checks import SignatureChecks
from farebox.channels.model import (
    PaymentErrorCode,
    VerificationResult,
    accepted_voucher,
    proposed,
    sub_channel_key,
)
from farebox.channels.pending import PendingSubRAVStore
from farebox.channels.postings import custody_account
from farebox.channels.weighing import (
    Accepted,
    Clear,
    Rejected,
    Replayed,
    check_channel,
    check_terms,
    is_handshake,
)
from farebox.clock import NS_PER_S
from farebox.errors import InvalidInput, RailError, StoreError
from farebox.ledger.processes import Processes
from farebox.ledger.service import Ledger
from farebox.wire.subrav.keys import verify_sub_rav
from farebox.wire.subrav.model import ErrorCode, SignedSubRAV, SubRAV

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")

#: How long what the chain said is believed: another claim or a closing may come any time.
_BELIEVED_NS = 5 * NS_PER_S
_REMEMBERED_MAX = 10_000
_CHAIN_IS_AWAY = Rejected(
    ErrorCode.INTERNAL_SERVER_ERROR, "The chain cannot be asked; try again later."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditPolicy:
    """How far a payer is trusted, in base units of the asset.

    `exposure_max` caps what one collateral may have unclaimed with us, even where it holds more.
    `request_max` caps what one request may cost that is priced after it was served.
    `backing_min` must be in the collateral, or claiming would not be worth its fee.
    """

    exposure_max: int = 10**18
    request_max: int = 10**9
    backing_min: int = 10_000_000


class PaymentChannelPayeeClient:
    """Reads channels from their chain and vouchers from their payers.

    One for each process and chain: its sub-channels take turns here.
    """

    def __init__(
        self,
        ledger: Ledger,
        processes: Processes,
        contract: PayeeContract,
        payee_did: str,
        *,
        policy: CreditPolicy | None = None,
        wait_s: int = 30,
    ) -> None:
        """`wait_s`: how long a request waits for the one before it on its sub-channel."""
        self.checks = SignatureChecks()
        self.contract = contract
        self.payee_did = payee_did
        self.policy = policy or CreditPolicy()
        self.sub_channels = SubChannels(ledger, processes, contract.chain_id, wait_s=wait_s)
        self.pending = PendingSubRAVStore(self.sub_channels, self.generate_proposal)
        self._clock = ledger.clock
        self._channels: _Remembered[str, ChannelInfo] = _Remembered()
        self._subs: _Remembered[tuple[str, str], SubChannelInfo] = _Remembered()
        self._balances: _Remembered[tuple[str, str], int] = _Remembered()

    # ── what the chain says ──────────────────────────────────────────────────────────────────────

    async def channel_info(self, channel_id: str) -> ChannelInfo | None:
        """A channel, as the chain had it some seconds ago at most. Raises RailError."""
        asked_at = self._clock.now_ns()
        known = self._channels.known(channel_id, asked_at)
        if known is not None:
            return known
        return self._channels.learn(channel_id, await self.contract.channel(channel_id), asked_at)

    async def sub_channel_info(self, channel_id: str, fragment: str) -> SubChannelInfo | None:
        """A sub-channel, as the chain had it some seconds ago at most. Raises RailError."""
        key = (channel_id, fragment)
        asked_at = self._clock.now_ns()
        known = self._subs.known(key, asked_at)
        if known is not None:
            return known
        return self._subs.learn(key, await self.contract.sub_channel(*key), asked_at)

    async def balance(self, channel: ChannelInfo) -> int:
        """What is left of a channel's collateral. Raises RailError."""
        backing, asset = channel.backing, channel.asset_id
        asked_at = self._clock.now_ns()
        known = self._balances.known((backing, asset), asked_at)
        if known is not None:
            return known
        balance = await self.contract.balance(backing, asset)
        return self._balances.learn((backing, asset), balance, asked_at) or 0

    def knows(self, channel_id: str) -> bool:
        """Whether the chain was asked about a channel before, and had it."""
        return self._channels.knows(channel_id)

    def forget(self, channel: ChannelInfo, fragment: str = "") -> None:
        """Ask the chain again: something of ours changed there."""
        self._channels.forget(channel.channel_id)
        self._subs.forget((channel.channel_id, fragment))
        self._balances.forget((channel.backing, channel.asset_id))

    # ── what a voucher is worth ──────────────────────────────────────────────────────────────────

    async def turn(
        self, channel_id: str, fragment: str, voucher: SignedSubRAV | None, once: str = ""
    ) -> Turn | Rejected:
        """Everything about a voucher, or its absence, but how it compares with what is stored.

        `once`, where given, names the request that comes with it, so that it is served once. Fails
        closed: a chain that cannot be asked lets nobody be served.
        """
        try:
            now = self._clock.now_ns()
            channel = self._channels.known(channel_id, now)
            if channel is None:
                channel = await self.channel_info(channel_id)
                now = self._clock.now_ns()
            refused = check_channel(channel, self.payee_did)
            if refused is not None or channel is None:
                return refused or Rejected(ErrorCode.CHANNEL_NOT_FOUND, "no such channel")
            sub_channel = self._subs.known((channel_id, fragment), now)
            if sub_channel is None:
                sub_channel = await self.sub_channel_info(channel_id, fragment)
            if sub_channel is not None and sub_channel.epoch != channel.epoch:
                # One of the two was read before the channel was opened anew: both again next time.
                self._channels.forget(channel_id)
                self._subs.forget((channel_id, fragment))
                return _CHAIN_IS_AWAY
        except RailError:
            return _CHAIN_IS_AWAY
        if sub_channel is None:
            return Rejected(
                ErrorCode.SUBCHANNEL_NOT_AUTHORIZED,
                f"The key {fragment} may not sign for this channel; authorize it first.",
            )
        if voucher is not None:
            refused = check_terms(voucher.sub_rav, channel, self.contract.chain_id)
            if refused is not None:
                return refused
            if not await self.checks.run(partial(verify_sub_rav, voucher, sub_channel.key)):
                return Rejected(
                    ErrorCode.INVALID_SIGNATURE, f"The voucher is not signed by {fragment}."
                )
        key = sub_channel_key(channel_id, fragment)
        return Turn(key, channel, sub_channel, voucher, 0, once)

    async def covered(self, turn: Turn) -> Turn | Rejected:
        """A turn with what the collateral covers."""
        channel = turn.channel
        balance = self._balances.known((channel.backing, channel.asset_id), self._clock.now_ns())
        try:
            if balance is None:
                balance = await self.balance(channel)
        except RailError:
            return Rejected(
                ErrorCode.HUB_BALANCE_FETCH_FAILED, "The collateral cannot be read; try later."
            )
        if balance < self.policy.backing_min:
            return Rejected(
                ErrorCode.HUB_INSUFFICIENT_FUNDS,
                f"PaymentHub balance insufficient: {balance}, required: {self.policy.backing_min}"
                f" for asset {turn.channel.asset_id}",
                {
                    "balance": str(balance),
                    "required": str(self.policy.backing_min),
                    "assetId": turn.channel.asset_id,
                },
            )
        ceiling = min(balance, self.policy.exposure_max)
        return Turn(turn.key, turn.channel, turn.sub_channel, turn.voucher, ceiling, turn.once)

    async def ceiling(self, channel: ChannelInfo) -> int:
        """How much may stand unclaimed against a channel's collateral. Raises RailError."""
        return min(await self.balance(channel), self.policy.exposure_max)

    async def room(self, turn: Turn) -> int:
        """What the collateral still covers beside everything that is signed, owed or served."""
        account = await self.sub_channels.ledger.store.account(
            custody_account(turn.channel.backing)
        )
        if account is None:
            return turn.ceiling
        return max(0, turn.ceiling - account.held - account.debits_pending)

    async def verify_sub_rav(self, signed: SignedSubRAV) -> VerificationResult:
        """Whether a voucher is signed by its sub-channel's key, on an open channel that pays us."""
        sub_rav = signed.sub_rav
        turn = await self.turn(sub_rav.channel_id, sub_rav.vm_id_fragment, signed)
        return invalid(turn) if isinstance(turn, Rejected) else _valid(turn)

    async def verify_handshake(self, signed: SignedSubRAV) -> VerificationResult:
        """Whether a voucher of nonce 0 and amount 0 shows that its sender holds the key."""
        if not is_handshake(signed.sub_rav):
            return VerificationResult(
                is_valid=False,
                error="A handshake has nonce 0 and amount 0.",
                error_code=PaymentErrorCode.INVALID_PAYMENT,
            )
        return await self.verify_sub_rav(signed)

    async def confirm_signed_proposal(
        self, signed: SignedSubRAV, pending_store: PendingSubRAVStore | None = None
    ) -> VerificationResult:
        """Take a voucher for the proposal it signs. One that was taken before is a replay.

        `pending_store`, where given, must be this client's own, whose proposals are these.
        """
        if pending_store is not None and pending_store is not self.pending:
            raise InvalidInput("proposals are kept with their sub-channels; pass `payee.pending`")
        sub_rav = signed.sub_rav
        turn = await self.turn(sub_rav.channel_id, sub_rav.vm_id_fragment, signed)
        if isinstance(turn, Rejected):
            return invalid(turn)
        standing = await self.sub_channels.serve(turn, None)
        match standing.verdict:
            case Rejected():
                return invalid(standing.verdict)
            case Accepted():
                return _valid(turn)
            case Replayed():
                return _valid(turn, is_replay=True)
        row = standing.row
        last = None if row is None else accepted_voucher(row, self.contract.chain_id)
        if last is not None and last.sub_rav == sub_rav:
            return _valid(turn, is_replay=True)
        return invalid(Rejected(ErrorCode.UNKNOWN_SUBRAV, "No such voucher was proposed."))

    async def generate_proposal(
        self, channel_id: str, vm_id_fragment: str, amount: int, description: str = ""
    ) -> SubRAV:
        """Charge `amount` to a sub-channel and say what is to be signed for it.

        For what was rendered already: it has no request to refuse. `description` becomes the
        reference. Raises InvalidInput where nothing can be charged, with the reason.
        """
        turn = await self.turn(channel_id, vm_id_fragment, None)
        if isinstance(turn, Turn):
            turn = await self.covered(turn)
        if isinstance(turn, Rejected):
            raise InvalidInput(f"{turn.code}: {turn.message}")
        async with self.sub_channels.turn(turn.key) as came:
            if not came:
                raise StoreError("the sub-channel is busy; try again")
            standing = await self.sub_channels.serve(turn, Charge(amount, 0), description)
        return _made(standing, self.contract.chain_id)


def _made(standing: Standing, chain_id: int) -> SubRAV:
    if isinstance(standing.verdict, Rejected):
        raise InvalidInput(f"{standing.verdict.code}: {standing.verdict.message}")
    made = None if standing.row is None else proposed(standing.row, chain_id)
    if made is None or not isinstance(standing.verdict, Accepted | Clear):
        raise InvalidInput(f"{ErrorCode.PAYMENT_REQUIRED}: a proposal is outstanding already")
    return made


def invalid(rejected: Rejected) -> VerificationResult:
    """A rejection as a result."""
    return VerificationResult(is_valid=False, error=rejected.message, error_code=rejected.code)


def _valid(turn: Turn, *, is_replay: bool = False) -> VerificationResult:
    return VerificationResult(is_valid=True, is_replay=is_replay, payer_key_id=payer_key_id(turn))


def payer_key_id(turn: Turn) -> str:
    """The DID URL of the key that signs on a sub-channel."""
    return f"{turn.channel.payer_did}#{turn.sub_channel.vm_id_fragment}"


class _Remembered(Generic[_K, _V]):
    """Answers of the chain, believed for some seconds, never longer: staleness would serve a
    closed channel. That something is not there is never remembered."""

    def __init__(self) -> None:
        self._found: OrderedDict[_K, tuple[_V, int]] = OrderedDict()

    def known(self, key: _K, now: int) -> _V | None:
        found = self._found.get(key)
        if found is not None and 0 <= now - found[1] < _BELIEVED_NS:
            return found[0]
        return None

    def learn(self, key: _K, value: _V | None, asked_at: int) -> _V | None:
        if value is None:
            self._found.pop(key, None)
            return None
        self._found[key] = value, asked_at
        self._found.move_to_end(key)
        if len(self._found) > _REMEMBERED_MAX:
            self._found.popitem(last=False)
        return value

    def knows(self, key: _K) -> bool:
        return key in self._found

    def forget(self, key: _K) -> None:
        self._found.pop(key, None)
