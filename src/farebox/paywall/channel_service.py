"""A payee's service, and who asks there: proven by `Authorization: DIDAuthV1`, a signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol
from urllib.parse import urlsplit

from farebox.channels.book import USED_BEFORE
from farebox.channels.claims import ClaimScheduler
from farebox.channels.closing import CooperativeClose
from farebox.channels.payee import PaymentChannelPayeeClient
from farebox.channels.processor import PaymentProcessor
from farebox.clock import NS_PER_S, Clock, SystemClock, iso
from farebox.errors import InvalidCredential, RailError
from farebox.ids import derived_id
from farebox.wire.subrav import didauth
from farebox.wire.subrav.documents import WELL_KNOWN_PATH, ServiceInfo
from farebox.wire.subrav.keys import VerificationKey
from farebox.wire.subrav.model import ErrorCode


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, by a signature of its sub-channel's key.

    `once` names the authorization. Whatever is served for it takes that name in the same commit, or
    by `ChannelService.admit` where it has none: so it is good once, whichever process it comes to.
    """

    did: str
    fragment: str
    channel_id: str
    once: str
    is_admin: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """Who asks is not who it says, or may not."""

    code: ErrorCode
    message: str


class Asked(Protocol):
    """A request as its protocol has it: what an authorization of it says."""

    @property
    def operation(self) -> str:
        """What the authorization names it."""
        ...

    def matches(self, params: Mapping[str, Any]) -> bool:
        """Whether the authorization is for this one."""
        ...


@dataclass(frozen=True, slots=True)
class HttpAsked:
    """A request of `method` for `target`, path and query as they were sent."""

    method: str
    target: str
    operation: str = didauth.HTTP_OPERATION

    def matches(self, params: Mapping[str, Any]) -> bool:
        """Its method and target."""
        try:
            told = urlsplit(str(params.get("uri", "")))
        except ValueError:
            return False
        path, _, query = self.target.partition("?")
        return params.get("method") == self.method and (told.path or "/", told.query) == (
            path,
            query,
        )


@dataclass(frozen=True, slots=True)
class ToolAsked:
    """A call of an MCP tool. `client_tx_ref` is its payment's; None: it has none."""

    tool: str
    client_tx_ref: str | None
    operation: str = didauth.MCP_OPERATION

    def matches(self, params: Mapping[str, Any]) -> bool:
        """Its tool, and the reference where both have one."""
        reference = params.get("clientTxRef")
        return params.get("tool") == self.tool and (
            None in (reference, self.client_tx_ref) or reference == self.client_tx_ref
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelService:
    """A payee as its callers see it: what it tells of itself, and who asks.

    `channel_id` names the channel of (payer DID, payee DID, asset): `rooch.channel_id` or
    `ledger_channel_id`. `admins` are the keys, by DID URL, that may see and trigger claims. The
    gateway's own paywall has no `processor`. `closing`, where given, closes at once for who asks.
    """

    payee: PaymentChannelPayeeClient
    info: ServiceInfo
    channel_id: Callable[[str, str, str], str]
    processor: PaymentProcessor | None = None
    claims: ClaimScheduler | None = None
    closing: CooperativeClose | None = None
    admins: Mapping[str, VerificationKey] = field(default_factory=dict)
    clock: Clock = field(default_factory=SystemClock)

    @property
    def now(self) -> str:
        """The time, as documents have it."""
        return iso(self.clock.now_ns())

    def owns(self, path: str) -> bool:
        """Whether a path is an endpoint's, also one that is not there."""
        return path == WELL_KNOWN_PATH or path.startswith(f"{self.info.base_path}/")

    async def identify(self, auth: didauth.DidAuth, asked: Asked) -> Caller | Refused:
        """Who signed this for a request."""
        once = derived_id("srv", didauth.SCHEME, auth.key_id, auth.nonce)
        admin = self.admins.get(auth.key_id)
        if admin is not None:
            refused = await self._judge(auth, admin, asked)
            return refused or Caller(auth.signer_did, auth.fragment, "", once, is_admin=True)
        try:
            channel_id = self.channel_id(
                auth.signer_did, self.payee.payee_did, self.info.default_asset_id
            )
            sub_channel = await self.payee.sub_channel_info(channel_id, auth.fragment)
        except InvalidCredential as error:
            return Refused(ErrorCode.AUTH_INVALID, f"{auth.key_id}: {error}")
        except RailError:
            return Refused(ErrorCode.DID_RESOLVE_FAILED, "The chain cannot be asked; try later.")
        if sub_channel is None:
            return Refused(
                ErrorCode.SUBCHANNEL_NOT_AUTHORIZED,
                f"{auth.key_id} has no channel with us; open one.",
            )
        return await self._judge(auth, sub_channel.key, asked) or Caller(
            auth.signer_did, auth.fragment, channel_id, once
        )

    async def admit(self, caller: Caller) -> Refused | None:
        """Take the name of an authorization that nothing is sold for. Raises StoreError."""
        if await self.payee.sub_channels.take_once(caller.once):
            return None
        return Refused(USED_BEFORE.code, USED_BEFORE.message)

    async def _judge(
        self, auth: didauth.DidAuth, key: VerificationKey, asked: Asked
    ) -> Refused | None:
        """Why an authorization is not good. What it says of the request is compared with it, though
        the wire leaves that unsigned: it keeps honest mistakes out, and nobody else."""
        now_s = self.clock.now_ns() // NS_PER_S
        if not await self.payee.checks.run(partial(auth.verifies, key)):
            why = "The authorization is not signed by its key."
        elif abs(now_s - auth.timestamp_s) > didauth.WINDOW_S:
            why = f"The authorization's time is more than {didauth.WINDOW_S} s off."
        elif auth.audience != self.payee.payee_did and (
            auth.audience is not None or auth.operation == didauth.CLOSE_OPERATION
        ):
            why = "The authorization is for another service."
        elif auth.operation != asked.operation or not asked.matches(auth.params):
            why = "The authorization is for another request."
        else:
            return None
        return Refused(ErrorCode.AUTH_INVALID, why)
