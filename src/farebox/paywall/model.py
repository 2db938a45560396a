"""What passes between the paywall and the doors that use it (gateway, middleware)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import msgspec

from farebox.ledger.records import RecordType
from farebox.pricing.book import Quote
from farebox.wire.subrav.didauth import DidAuth
from farebox.wire.subrav.payload import RequestPayload

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer that a dialect has written: a challenge, a refusal, a status."""

    status: int
    headers: Headers = field(repr=False)  # money may be in them: change, a new key
    body: bytes = field(repr=False)
    #: What a problem document is about; "" for everything else.
    code: str = ""


@dataclass(frozen=True, slots=True)
class RequestName:
    """`Idempotency-Key`: the caller's name for one request, and what tells that from others."""

    text: str
    fingerprint: bytes


class KeyPresented(msgspec.Struct, frozen=True, gc=False):
    """`Authorization: Bearer sk-…`"""

    secret: str
    name: RequestName | None = None

    def __repr__(self) -> str:
        return "KeyPresented(…)"  # whoever has it may spend


class BearerMoney(msgspec.Struct, frozen=True, gc=False):
    """`Authorization: Bearer cashu…`: redeemed once, then the key to its account."""

    credential: str
    name: RequestName | None = None

    def __repr__(self) -> str:
        return "BearerMoney(…)"  # whoever has it may spend


@dataclass(frozen=True, slots=True)
class ChangeWish:
    """`X-Farebox-Change: [token|credit][; key=<key id>]`: how the payer wants the rest.

    `as_credit` None leaves it to the operator. What does not go back as money stays on the
    token's own account, or joins the account of the key, where small change adds up.
    """

    as_credit: bool | None = None
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class EmbeddedMoney:
    """`X-Cashu: cashu…`: pays for this request, the rest comes back."""

    credential: str = field(repr=False)
    wish: ChangeWish = ChangeWish()


class ChannelPresented(msgspec.Struct, frozen=True):
    """`X-Payment-Channel-Data`, `Authorization: DIDAuthV1 …`, or both: a voucher for the request
    before this one, or who will sign for this one. `target` is what was asked for, path and query.
    """

    payload: RequestPayload | None
    auth: DidAuth | None
    method: str
    target: str

    def __repr__(self) -> str:
        return "ChannelPresented(…)"  # an authorization is in it

    @property
    def client_tx_ref(self) -> str:
        """The payer's own reference, where it gave one."""
        return "" if self.payload is None else self.payload.client_tx_ref


@dataclass(frozen=True, slots=True)
class NothingPresented:
    """No payment in the request."""


Presented = KeyPresented | BearerMoney | EmbeddedMoney | ChannelPresented | NothingPresented


class Ended(enum.StrEnum):
    """How a forwarded request ended; decides what is charged."""

    COMPLETE = "complete"
    REFUSED = "refused"  # by the upstream: no 2xx, or not reached at all: nothing is charged
    CLIENT_LEFT = "client_left"  # charged for what the upstream had delivered
    UPSTREAM_DIED = "upstream_died"  # in mid-stream: charged for what was metered
    CUT = "cut"  # by us, at the end of the hold
    CRASHED = "crashed"  # we stopped: charged for the last checkpoint


class Admission(msgspec.Struct, frozen=True, gc=False):
    """A request that may be forwarded: its hold is in the books."""

    request_id: str
    account: str
    quote: Quote
    #: Joins the first headers of the answer (request id, where to fetch change).
    headers: Headers
    #: The payer's own reference, where a channel pays: a stream ends with what to sign next.
    client_tx_ref: str = ""

    @property
    def is_free(self) -> bool:
        """Nothing is held and nothing will be charged."""
        return not self.account


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """The end of a request in the books."""

    charged_msat: int
    returned_msat: int
    #: Change and receipt, for answers whose headers are not sent yet.
    headers: Headers
    receipt: str
    #: The change as money, "" where there is none.
    change: str = ""
    #: What a channel's payer is to sign next, for the end of a stream; it is in `headers` as well.
    proposal: str = ""

    def __repr__(self) -> str:
        return f"Settlement({self.charged_msat} msat …)"  # change is in it

    @property
    def comment(self) -> bytes:
        """Receipt and change as an SSE comment, which standard clients ignore."""
        change = f" change={self.change}" if self.change else ""
        return f": farebox receipt={self.receipt}{change}\n\n".encode()


class RequestState(enum.StrEnum):
    """Where a paid request stands."""

    AUTHORISED = "authorised"
    SETTLED = "settled"


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One paid request: its hold until settled, then what it came to.

    `credential` is the identity of the money embedded in it, "" for a request on an account;
    `change` finds the change of it again. `credited_msat` is the part of the change that stays as
    credit: on the money's own account, or on `change_account`. `channel_id` and `fragment` name the
    sub-channel that pays, whose row says what is held and owed.
    """

    account: str
    hold: str
    owner: str
    quote: Quote
    created_at: int
    state: RequestState = RequestState.AUTHORISED
    method: str = ""
    credential: str = ""
    channel_id: str = ""
    fragment: str = ""
    checkpoint_msat: int = 0
    change_as_credit: bool = False
    change_account: str = ""
    charged_msat: int = 0
    returned_msat: int = 0
    credited_msat: int = 0
    ended: str = ""
    settled_at: int = 0
    change: bytes = b""


REQUEST = RecordType(
    "request", Request, indexes=(("state",),), resting=frozenset({RequestState.SETTLED.value})
)
