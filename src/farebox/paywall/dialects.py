"""How a paywall speaks HTTP: reads payments from headers, writes challenges and problems.

NUT-24 (`X-Cashu`), bearer keys, and RFC 9457 problem documents. The problem documents carry an
`error` member too, because model clients show that one to their users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from farebox.paywall.model import (
    Answer,
    BearerMoney,
    ChangeWish,
    EmbeddedMoney,
    Headers,
    KeyPresented,
    NothingPresented,
    Presented,
)
from farebox.wire.cashu.request import LockOption, PaymentRequest, encode_request
from farebox.wire.subrav.didauth import SCHEME
from farebox.wire.subrav.payload import HEADER_NAME

_KEY_PREFIX = "sk-"
CHANNEL_HEADER = HEADER_NAME.lower().encode()
_DID_AUTH = f"{SCHEME.lower()} ".encode()
#: Where Anthropic's clients put their key.
_API_KEY = b"x-api-key"
_READ = frozenset({b"x-cashu", b"authorization", b"x-farebox-change", _API_KEY, CHANNEL_HEADER})
#: What in that place is meant for us; whatever else it may be is nobody's payment.
_OURS = (_KEY_PREFIX.encode(), b"cashu")
_NO_WISH = ChangeWish()
#: A credential longer than this is refused before anything reads it.
CREDENTIAL_MAX_CHARS = 65_536
#: Many take 8 KiB for one line, name and all.
_HEADER_MAX_CHARS = 8_000


@dataclass(frozen=True, slots=True)
class CashuOffer:
    """What a token must be to pay: `amount` in `unit`, mint fees allowed for.

    One with the `lock` is taken without asking its mint; one without it is good money too.
    """

    amount: int
    unit: str
    mints: tuple[str, ...]
    lock: LockOption | None = None


class CashuTerms(Protocol):
    """Who knows which tokens are accepted."""

    async def offer(self, amount_msat: int) -> CashuOffer | None:
        """The token that pays for `amount_msat`; None when no mint is accepted."""
        ...


@dataclass(frozen=True, slots=True)
class Problem:
    """An RFC 9457 problem. `code` is stable; `money` says whether any moved and where it is."""

    status: int
    code: str
    title: str
    detail: str
    money: str = "No money moved."
    extra: Mapping[str, object] | None = None
    headers: Headers = ()


def problem(fault: Problem) -> Answer:
    """Write a problem document."""
    document = {
        "type": f"urn:farebox:problem:{fault.code}",
        "title": fault.title,
        "status": fault.status,
        "code": fault.code,
        "detail": fault.detail,
        "money": fault.money,
        **(fault.extra or {}),
        "error": {"message": fault.detail, "type": "payment_error", "code": fault.code},
    }
    body = msgspec.json.encode(document)
    headers = (
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *fault.headers,
    )
    return Answer(fault.status, headers, body, fault.code)


@dataclass(frozen=True, slots=True)
class ChannelFound:
    """What of a channel is in a request's headers: payments, and who says to send them."""

    payments: Sequence[bytes]
    auths: Sequence[bytes]


def read(
    headers: Iterable[tuple[bytes, bytes]], accepted: Callable[[], Sequence[str]]
) -> Presented | ChannelFound | Answer:
    """Find the one payment in a request's headers; more than one is an error, none touched.

    Names are in lower case, as ASGI has them. What is in `X-Api-Key` counts where nothing else
    does. `accepted` is what an error says would do. A channel's is not read yet: who sells through
    none has no use for it.
    """
    embedded: list[bytes] = []
    bearer: list[bytes] = []
    channel: list[bytes] = []
    auths: list[bytes] = []
    api_keys: list[bytes] = []
    wish: ChangeWish | None = _NO_WISH
    for name, value in headers:
        if name not in _READ:
            continue
        if name == b"x-cashu":
            embedded.append(value)
        elif name == b"x-farebox-change":
            wish = _wish(value)
        elif name == CHANNEL_HEADER:
            channel.append(value)
        elif name == _API_KEY:
            api_keys += [value] if value.startswith(_OURS) else ()
        elif value[:7].lower() == b"bearer ":
            bearer.append(value[7:].strip())
        elif value[: len(_DID_AUTH)].lower() == _DID_AUTH:
            auths.append(value)
    if not (embedded or bearer or channel or auths):
        bearer = api_keys
    if len(embedded) + len(bearer) + max(len(channel), len(auths)) > 1:
        return problem(
            Problem(
                400,
                "two_payments",
                "More than one payment",
                "The request carries more than one payment; send exactly one.",
                extra={"accepted": list(accepted())},
            )
        )
    if embedded:
        text = _text(embedded[0])
        if wish is None:
            return refusal("change_not_understood", f"X-Farebox-Change is {_WISH_FORM}.", {})
        return EmbeddedMoney(text, wish) if text else unreadable(accepted())
    if bearer:
        text = _text(bearer[0])
        if not text:
            return unreadable(accepted())
        return KeyPresented(text) if text.startswith(_KEY_PREFIX) else BearerMoney(text)
    return ChannelFound(channel, auths) if channel or auths else NothingPresented()


_WISH_FORM = '"token", "credit", or one of them and "; key=" with the id of an account key'


def _wish(raw: bytes) -> ChangeWish | None:
    way, _, parameter = (part.strip() for part in _text(raw).partition(";"))
    name, _, key_id = parameter.partition("=")
    if way not in _WAYS or (parameter and (name.strip() != "key" or not key_id)):
        return None
    return ChangeWish(_WAYS[way], key_id.strip())


_WAYS = {"token": False, "credit": True}


def _text(raw: bytes) -> str:
    try:
        return raw.decode("ascii").strip() if len(raw) <= CREDENTIAL_MAX_CHARS else ""
    except UnicodeDecodeError:
        return ""


def unreadable(accepted: Sequence[str]) -> Answer:
    """A credential that nothing here can handle."""
    return problem(
        Problem(
            400,
            "credential_not_understood",
            "Payment not understood",
            f"Nothing here can read this credential; accepted are: {', '.join(accepted)}.",
            extra={"accepted": list(accepted)},
        )
    )


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a challenge asks for, and why."""

    code: str
    detail: str
    quote_id: str
    maximum_msat: int
    expires_at: str
    create_url: str
    extra: Mapping[str, object]
    #: How a channel pays, where one may.
    channels: Mapping[str, object] | None = None


def challenge(wanted: Wanted, offer: CashuOffer | None) -> Answer:
    """402 with terms that every dialect's client understands."""
    headers: Headers = ()
    accepted: dict[str, object] = {"accepted_mints": [], "units": []}
    if offer is not None:
        request = PaymentRequest(
            amount=offer.amount,
            unit=offer.unit,
            mints=offer.mints,
            single_use=True,
            lock=offer.lock,
        )
        headers = ((b"x-cashu", encode_request(request).encode()),)
        accepted = {
            "amount": offer.amount,
            "unit": offer.unit,
            "accepted_mints": list(offer.mints),
            "units": [offer.unit],
        }
        if offer.lock is not None:
            accepted["nut10"] = {"kind": offer.lock.kind, "data": offer.lock.data}
    return problem(
        Problem(
            402,
            wanted.code,
            "Payment required",
            wanted.detail,
            extra={
                "amount_msat": wanted.maximum_msat,
                **accepted,
                "quote": wanted.quote_id,
                "quote_expires_at": wanted.expires_at,
                "create_account_key": wanted.create_url,
                **({} if wanted.channels is None else {"channels": wanted.channels}),
                **wanted.extra,
            },
            headers=headers,
        )
    )


#: Refusal code → (status, title). What is not here is the payer's fault: 400.
_REFUSALS: Mapping[str, tuple[int, str]] = {
    "insufficient_payment": (402, "Payment too small"),
    "insufficient_balance": (402, "Balance too small"),
    "card_declined": (402, "Card declined"),
    "deposit_unpaid": (402, "Not paid yet"),
    "deposit_unknown": (404, "No such deposit"),
    "claim_secret_required": (403, "Claim secret required"),
    "claim_refused": (403, "Wrong claim secret"),
    "not_addressed_to_you": (403, "Another's deposit"),
    "invoice_used": (409, "Invoice used"),
    "rail_unavailable": (503, "Payment network unavailable"),
    "key_unknown": (401, "Unknown key"),
    "key_revoked": (401, "Revoked key"),
    "key_expired": (401, "Expired key"),
    "already_credited": (409, "Credited before"),
    "keys_exhausted": (503, "No more keys"),
    "mint_unavailable": (503, "Mint unavailable"),
    "insufficient_funds": (503, "Not so much at one mint"),
    "custody_full": (503, "No more accepted at this mint"),
    "busy": (503, "Busy"),
    "rate_unavailable": (503, "No exchange rate"),
    "no_price": (403, "No price"),
}


def refusal(code: str, detail: str, details: Mapping[str, object], money: str = "") -> Answer:
    """A refusal of the core as a problem document."""
    status, title = _REFUSALS.get(code, (400, "Payment refused"))
    headers: Headers = ()
    if status == 401:
        headers = ((b"www-authenticate", b'Bearer realm="farebox"'),)
    elif status == 503:
        headers = ((b"retry-after", b"5"),)
    return problem(
        Problem(
            status, code, title, detail, money or "No money moved.", extra=details, headers=headers
        )
    )


def sentence(message: str) -> str:
    """A message of the core as a sentence to show."""
    return f"{message[:1].upper()}{message[1:]}."


def change_headers(token: str) -> Headers:
    """Change as a header (NUT-24's convention), unless it is so long that clients and proxies
    would refuse the whole answer for it: then the link, and the same token again, tell it."""
    fits = 0 < len(token) <= _HEADER_MAX_CHARS
    return ((b"x-cashu", token.encode()),) if fits else ()
