"""The contract of a payer whose channel is backed by its account at a Farebox elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import aiohttp
import msgspec

from farebox.channels.chain import ChannelInfo, ChannelStatus, SubChannelInfo
from farebox.channels.ledger_chain import LEDGER_CHAIN_ID
from farebox.clock import NS_PER_S, Clock, SystemClock
from farebox.errors import RailRejected, RailUnavailable
from farebox.ids import new_id
from farebox.wire.subrav.documents import WELL_KNOWN_PATH
from farebox.wire.subrav.keys import KeyType, VerificationKey
from farebox.wire.subrav.model import SignedSubRAV, check_fragment

T = TypeVar("T")

_PATH = "/v1/channels"
#: How long what the house said of a channel is believed: a payer asks before each signature.
_BELIEVED_S = 5
_ATTEMPTS_MAX = 4
_BACK_OFF_S = 0.2
_TIMEOUT = aiohttp.ClientTimeout(total=30)
_ANSWER_MAX_BYTES = 1 << 20
_NOT_FOUND, _IN_PROGRESS = 404, 409


class _Key(msgspec.Struct, frozen=True):
    fragment: str
    key_type: KeyType
    public_key: str
    claimed_msat: int
    nonce: int


class _Channel(msgspec.Struct, frozen=True):
    channel: str
    payer_did: str
    payee_did: str
    chain_id: int
    asset: str
    epoch: int
    status: ChannelStatus
    collateral_msat: int
    keys: list[_Key]

    @property
    def info(self) -> ChannelInfo:
        return ChannelInfo(
            channel_id=self.channel,
            payer_did=self.payer_did,
            payee_did=self.payee_did,
            asset_id=self.asset,
            epoch=self.epoch,
            status=self.status,
            backing=self.channel,
        )


class _Service(msgspec.Struct, frozen=True, rename="camel"):
    service_did: str
    default_asset_id: str


class _Problem(msgspec.Struct, frozen=True):
    code: str = ""
    detail: str = ""


class RemoteLedgerContract:
    """A payer's contract (`PayerContract`) over the API of a house: opens, tops up, closes.

    `session` has the house's address as its `base_url`; `account_key` (`sk-…`) opens the account
    whose balance is locked, and goes to that API alone, with no request that is paid by voucher.
    All methods raise RailUnavailable: nobody answers, ask again; RailRejected: the house refuses.
    """

    chain_id = LEDGER_CHAIN_ID

    def __init__(
        self, session: aiohttp.ClientSession, account_key: str, clock: Clock | None = None
    ) -> None:
        self._session = session
        self._headers = {"Authorization": f"Bearer {account_key}"}
        self._clock = clock or SystemClock()
        self._known: tuple[_Channel, int] | None = None

    async def channel(self, channel_id: str) -> ChannelInfo | None:
        """The account's channel, as it stood some seconds ago at most; None: it has another id."""
        found = await self._shown()
        return found.info if found is not None and found.channel == channel_id else None

    async def sub_channel(self, channel_id: str, fragment: str) -> SubChannelInfo | None:
        """A sub-channel in the same way."""
        found = await self._shown()
        if found is None or found.channel != channel_id:
            return None
        key = next((one for one in found.keys if one.fragment == fragment), None)
        if key is None:
            return None
        return SubChannelInfo(
            channel_id=channel_id,
            vm_id_fragment=fragment,
            epoch=found.epoch,
            key=VerificationKey.from_multibase(key.key_type, key.public_key),
            last_claimed_amount=key.claimed_msat,
            last_confirmed_nonce=key.nonce,
        )

    async def balance(self) -> int:
        """What the collateral of the account's channel still holds, in msat."""
        self._known = None
        found = await self._shown()
        return 0 if found is None else found.collateral_msat

    async def open(
        self, amount_msat: int, fragment: str, key: VerificationKey, operation_id: str = ""
    ) -> ChannelInfo:
        """Lock so much of the account for its channel, and let a key sign; an open channel takes it
        as a top-up, and 0 only lets the key sign.

        The same `operation_id` again locks nothing more: name it, and a program that was killed
        here may call again.
        """
        body = {
            "amount_msat": amount_msat,
            "fragment": check_fragment(fragment),
            "key_type": key.type.value,
            "public_key": key.multibase,
        }
        return (await self._changed(_PATH, body, operation_id or new_id("op"))).info

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
        """The same, once the house says that it is this payee and sells in this asset."""
        answer = await self._answer("GET", WELL_KNOWN_PATH, None, {})
        service = _read(answer[1], _Service)
        if (service.service_did, service.default_asset_id) != (payee_did, asset_id):
            raise RailRejected(f"the house is {service.service_did}, in {service.default_asset_id}")
        found = await self.open(collateral, fragment, key)
        if found.payer_did != payer_did:
            raise RailRejected(f"the key opens the account of {found.payer_did}")
        return found

    async def authorize_sub_channel(
        self, channel_id: str, fragment: str, key: VerificationKey
    ) -> SubChannelInfo:
        """Let one more key sign, on a sub-channel of its own."""
        await self.open(0, fragment, key)
        sub = await self.sub_channel(channel_id, fragment)
        if sub is None:
            raise RailRejected("the account has another channel")
        return sub

    async def request_close(self, channel_id: str) -> ChannelInfo:
        """Begin to close; after the challenge period the rest is on the account again by itself."""
        if await self.channel(channel_id) is None:
            raise RailRejected("the account has another channel, or none")
        return (await self._changed(f"{_PATH}/close", {}, new_id("op"))).info

    async def close(self, channel_id: str, proofs: Sequence[SignedSubRAV] = ()) -> ChannelInfo:
        """The channel, once the house has closed it. RailRejected: the challenge is not over."""
        self._known = None
        found = await self.channel(channel_id)
        if found is None or found.status is not ChannelStatus.CLOSED:
            raise RailRejected("it is closed by itself when the challenge period is over")
        return found

    # ── over the wire ────────────────────────────────────────────────────────────────────────────

    async def _shown(self) -> _Channel | None:
        now = self._clock.now_ns()
        if self._known is not None and 0 <= now - self._known[1] < _BELIEVED_S * NS_PER_S:
            return self._known[0]
        self._known = None
        status, raw = await self._answer("GET", _PATH, None, self._headers)
        if status == _NOT_FOUND:
            return None
        return self._believed(status, raw)

    async def _changed(self, path: str, body: object, operation_id: str) -> _Channel:
        self._known = None
        headers = self._headers | {"Idempotency-Key": operation_id}
        return self._believed(*await self._answer("POST", path, body, headers))

    def _believed(self, status: int, raw: bytes) -> _Channel:
        if not 200 <= status < 300:
            _refused(status, raw)
        found = _read(raw, _Channel)
        if found.chain_id != self.chain_id:
            raise RailRejected(f"the channel is on chain {found.chain_id}, not on a ledger")
        self._known = found, self._clock.now_ns()
        return found

    async def _answer(
        self, method: str, path: str, body: object, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        """The last word; what has none is asked for again, under the same name."""
        why = ""
        for attempt in range(_ATTEMPTS_MAX):
            if attempt:
                await asyncio.sleep(_BACK_OFF_S * 2**attempt)
            try:
                status, raw = await self._call(method, path, body, headers)
            except (aiohttp.ClientError, TimeoutError) as error:
                why = str(error) or type(error).__name__
                continue
            if status < 500 and status != _IN_PROGRESS:
                return status, raw
            why = f"it answered {status}"
        raise RailUnavailable(f"the house does not answer: {why}")

    async def _call(
        self, method: str, path: str, body: object, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        asked: dict[str, Any] = {} if body is None else {"json": body}
        async with self._session.request(
            method, path, headers=headers, timeout=_TIMEOUT, allow_redirects=False, **asked
        ) as answer:
            raw = await answer.content.read(_ANSWER_MAX_BYTES)
            while not answer.content.at_eof():
                more = await answer.content.read(_ANSWER_MAX_BYTES)
                raw += more
                if len(raw) > _ANSWER_MAX_BYTES:
                    raise RailRejected("the house's answer is too long")
            return answer.status, raw


def _read(raw: bytes, of: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=of)
    except msgspec.DecodeError:
        raise RailRejected("the house's answer cannot be read; is it a Farebox?") from None


def _refused(status: int, raw: bytes) -> NoReturn:
    try:
        told = msgspec.json.decode(raw, type=_Problem)
    except msgspec.DecodeError:
        told = _Problem()
    raise RailRejected(told.detail or f"the house refuses, with status {status}")
