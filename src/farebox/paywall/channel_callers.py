"""Who asks on a channel, proven by `Authorization: DIDAuthV1`, a signature of its key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from farebox.channels.payee import PaymentChannelPayeeClient
from farebox.clock import NS_PER_S, Clock
from farebox.errors import RailError
from farebox.wire.subrav import didauth
from farebox.wire.subrav.keys import VerificationKey
from farebox.wire.subrav.model import ErrorCode

#: Some 3,000 requests a second, for as long as an authorization is good.
_NONCES_MAX: Final = 1_000_000
_S_PER_MINUTE: Final = 60


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, by a signature of its sub-channel's key."""

    did: str
    fragment: str
    channel_id: str
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


class SeenNonces:
    """Nonces of authorizations, each good once. Of this process alone: two of them that share a
    book take one twice, which is worth one request on credit to whoever copied the header."""

    def __init__(self) -> None:
        #: Digests by the minute in which their authorizations end.
        self._ending: dict[int, set[bytes]] = {}

    def take(self, did: str, nonce: str, timestamp_s: int, now_s: int) -> bool:
        """Whether the nonce is fresh. Where no more can be remembered, none is."""
        for minute in [each for each in self._ending if each < now_s // _S_PER_MINUTE]:
            del self._ending[minute]
        digest = hashlib.blake2b(f"{did} {nonce}".encode(), digest_size=16).digest()
        if any(digest in ending for ending in self._ending.values()):
            return False
        if sum(map(len, self._ending.values())) >= _NONCES_MAX:
            return False
        ends_s = timestamp_s + didauth.WINDOW_S
        self._ending.setdefault(ends_s // _S_PER_MINUTE, set()).add(digest)
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Callers:
    """Tells who asks. `channel_id` names the channel of (payer DID, payee DID, asset); `admins` are
    keys by DID URL."""

    payee: PaymentChannelPayeeClient
    asset_id: str
    channel_id: Callable[[str, str, str], str]
    clock: Clock
    admins: Mapping[str, VerificationKey] = field(default_factory=dict)
    nonces: SeenNonces = field(default_factory=SeenNonces)

    async def identify(self, auth: didauth.DidAuth, asked: Asked) -> Caller | Refused:
        """Who signed this for a request."""
        admin = self.admins.get(auth.key_id)
        if admin is not None:
            refused = self._judge(auth, admin, asked)
            return refused or Caller(auth.signer_did, auth.fragment, "", is_admin=True)
        channel_id = self.channel_id(auth.signer_did, self.payee.payee_did, self.asset_id)
        try:
            sub_channel = await self.payee.sub_channel_info(channel_id, auth.fragment)
        except RailError:
            return Refused(ErrorCode.DID_RESOLVE_FAILED, "The chain cannot be asked; try later.")
        if sub_channel is None:
            return Refused(
                ErrorCode.SUBCHANNEL_NOT_AUTHORIZED,
                f"{auth.key_id} has no channel with us; open one.",
            )
        return self._judge(auth, sub_channel.key, asked) or Caller(
            auth.signer_did, auth.fragment, channel_id
        )

    def _judge(self, auth: didauth.DidAuth, key: VerificationKey, asked: Asked) -> Refused | None:
        """Why an authorization is not good. What it says of the request is compared with it, though
        the wire leaves that unsigned: it keeps honest mistakes out, and nobody else."""
        now_s = self.clock.now_ns() // NS_PER_S
        if not auth.verifies(key):
            why = "The authorization is not signed by its key."
        elif abs(now_s - auth.timestamp_s) > didauth.WINDOW_S:
            why = f"The authorization's time is more than {didauth.WINDOW_S} s off."
        elif auth.audience not in (None, self.payee.payee_did):
            why = "The authorization is for another service."
        elif auth.operation != asked.operation or not asked.matches(auth.params):
            why = "The authorization is for another request."
        elif not self.nonces.take(auth.signer_did, auth.nonce, auth.timestamp_s, now_s):
            why = "The authorization was used before; sign a new one."
        else:
            return None
        return Refused(ErrorCode.AUTH_INVALID, why)
