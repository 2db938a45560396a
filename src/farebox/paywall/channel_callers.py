"""Who asks on a channel, proven by `Authorization: DIDAuthV1`, a signature of its key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from farebox.channels.payee import PaymentChannelPayeeClient
from farebox.clock import NS_PER_S, Clock
from farebox.errors import InvalidCredential, RailError
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

    async def identify(self, auth: didauth.DidAuth, method: str, target: str) -> Caller | Refused:
        """Who signed, for a request of `method` for `target`, path and query as they were sent."""
        admin = self.admins.get(auth.key_id)
        if admin is not None:
            refused = self._judge(auth, admin, method, target)
            return refused or Caller(auth.signer_did, auth.fragment, "", is_admin=True)
        try:
            channel_id = self.channel_id(auth.signer_did, self.payee.payee_did, self.asset_id)
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
        return self._judge(auth, sub_channel.key, method, target) or Caller(
            auth.signer_did, auth.fragment, channel_id
        )

    def _judge(
        self, auth: didauth.DidAuth, key: VerificationKey, method: str, target: str
    ) -> Refused | None:
        """Why an authorization is not good. What it says of the request is compared with it, though
        the wire leaves that unsigned: it keeps honest mistakes out, and nobody else."""
        now_s = self.clock.now_ns() // NS_PER_S
        try:
            told = urlsplit(str(auth.params.get("uri", "")))
        except ValueError:
            return Refused(ErrorCode.AUTH_INVALID, "The authorization's URI cannot be read.")
        path, _, query = target.partition("?")
        if not auth.verifies(key):
            why = "The authorization is not signed by its key."
        elif abs(now_s - auth.timestamp_s) > didauth.WINDOW_S:
            why = f"The authorization's time is more than {didauth.WINDOW_S} s off."
        elif auth.operation != didauth.HTTP_OPERATION or auth.params.get("method") != method:
            why = "The authorization is for another operation."
        elif (told.path or "/", told.query) != (path, query):
            why = "The authorization is for another URI."
        elif not self.nonces.take(auth.signer_did, auth.nonce, auth.timestamp_s, now_s):
            why = "The authorization was used before; sign a new one."
        else:
            return None
        return Refused(ErrorCode.AUTH_INVALID, why)
