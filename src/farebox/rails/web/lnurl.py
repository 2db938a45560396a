"""Lightning addresses and LNURL-pay (LUD-01, LUD-06, LUD-16): from a destination to an invoice.

Promises: an address that a caller chose is reached over HTTPS, at public addresses only, without
redirects, within a time and a size; an invoice is for exactly the amount that was asked for.
Never: a payment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated, TypeVar

import aiohttp
import msgspec
from yarl import URL

from farebox.errors import InvalidCredential, RailRejected, RailUnavailable
from farebox.rails.web.bounded import read_bounded
from farebox.wire import bech32
from farebox.wire.bolt11 import Invoice, decode_invoice

_TOTAL_S = 10
_CONNECT_S = 5
_ANSWER_BYTES_MAX = 1 << 16
_DESTINATION_CHARS_MAX = 8_192
_LNURL_CHARS_MAX = 2_048
_REASON_MAX_CHARS = 200
_ADDRESS = re.compile(r"([a-z0-9._+-]{1,64})@([a-z0-9.-]{1,253}(?::[0-9]{1,5})?)")
_INVOICE = re.compile(r"ln(bc|tb|tbs|sb|bcrt)[0-9]", re.IGNORECASE)
_T = TypeVar("_T")
_Msat = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


@dataclass(frozen=True, slots=True)
class Fixed:
    """An invoice that the receiver brought along."""

    text: str
    invoice: Invoice
    amount_msat: int


@dataclass(frozen=True, slots=True)
class PayEndpoint:
    """Who makes invoices for a Lightning address, and between which amounts."""

    callback: URL
    min_msat: int
    max_msat: int
    metadata: str = field(default="", repr=False)


class _PayJson(msgspec.Struct, frozen=True, rename="camel"):
    callback: str
    min_sendable: _Msat
    max_sendable: _Msat
    tag: str
    metadata: str = ""


class _InvoiceJson(msgspec.Struct, frozen=True):
    pr: str


class _ErrorJson(msgspec.Struct, frozen=True):
    status: str = ""
    reason: str = ""


class Lnurl:
    """Resolves destinations over a guarded session (`guard.open_guarded_session`).

    `allow_plain_http` is for tests on loopback.
    """

    def __init__(self, session: aiohttp.ClientSession, *, allow_plain_http: bool = False) -> None:
        self._session = session
        self._schemes = ("https", "http") if allow_plain_http else ("https",)

    async def resolve(self, destination: str) -> Fixed | PayEndpoint:
        """What a destination stands for: an invoice, a Lightning address or an LNURL.

        Raises InvalidCredential for anything else, RailUnavailable, RailRejected.
        """
        text = _bare(destination)
        if _INVOICE.match(text):
            return _fixed(text)
        answer = await self._get(self._pay_url(text), _PayJson)
        if answer.tag != "payRequest" or not 0 < answer.min_sendable <= answer.max_sendable:
            raise RailUnavailable("the destination does not offer to be paid")
        callback = self._url(answer.callback)
        return PayEndpoint(callback, answer.min_sendable, answer.max_sendable, answer.metadata)

    def is_lasting(self, destination: str) -> bool:
        """Whether this reads as a Lightning address or an LNURL; whether one is there, only
        `resolve` finds out."""
        try:
            self._pay_url(_bare(destination))
        except InvalidCredential:
            return False
        return True

    async def invoice(self, endpoint: PayEndpoint, amount_msat: int) -> str:
        """An invoice for exactly this amount, and for what the destination said it is for.

        A hash of its description must be that of the metadata (LUD-06 once demanded that there is
        one; many receivers leave it out). Raises RailUnavailable, RailRejected.
        """
        url = endpoint.callback.update_query(amount=str(amount_msat))
        answer = await self._get(url, _InvoiceJson)
        try:
            invoice = decode_invoice(answer.pr)
        except InvalidCredential as error:
            raise RailUnavailable(f"the destination gave no invoice: {error}") from None
        if invoice.amount_msat != amount_msat:
            raise RailUnavailable("the destination's invoice is for another amount")
        said = sha256(endpoint.metadata.encode()).digest()
        if invoice.description_hash not in (None, said):
            raise RailUnavailable("the destination's invoice is for something else")
        return answer.pr

    def _pay_url(self, text: str) -> URL:
        address = _ADDRESS.fullmatch(text.lower())
        if address is not None:
            # Plain HTTP only where the tests allow it, and then for their own machine.
            local = address[2].split(":")[0] in ("localhost", "127.0.0.1")
            scheme = "http" if local and "http" in self._schemes else "https"
            return self._url(f"{scheme}://{address[2]}/.well-known/lnurlp/{address[1]}")
        if text[:6].lower() == "lnurl1":
            decoded = bech32.decode(text, bech32.Checksum.BECH32, _LNURL_CHARS_MAX)
            try:
                return self._url(bech32.to_bytes(decoded.words).decode("ascii"))
            except UnicodeDecodeError:
                raise InvalidCredential("the LNURL holds no URL") from None
        raise InvalidCredential(
            "a destination is a Lightning address, an LNURL or a Lightning invoice"
        )

    def _url(self, text: str) -> URL:
        try:
            url = URL(text)
        except ValueError:
            raise InvalidCredential("the destination's URL cannot be read") from None
        if url.scheme not in self._schemes or not url.host or url.user or url.password:
            raise InvalidCredential("the destination's URL must be an https URL with a host")
        return url

    async def _get(self, url: URL, shape: type[_T]) -> _T:
        try:
            async with self._session.get(
                url,
                timeout=aiohttp.ClientTimeout(total=_TOTAL_S, sock_connect=_CONNECT_S),
                allow_redirects=False,  # where it leads was not checked
            ) as response:
                status, raw = (
                    response.status,
                    await read_bounded(response, _ANSWER_BYTES_MAX, "the destination"),
                )
        except TimeoutError:
            raise RailUnavailable("the destination did not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            name = type(error).__name__
            raise RailUnavailable(f"the destination cannot be reached: {name}") from None
        try:
            refused = msgspec.json.decode(raw, type=_ErrorJson)
            if refused.status.upper() == "ERROR":
                raise RailRejected(
                    f"the destination refuses: {refused.reason[:_REASON_MAX_CHARS]!r}"
                )
            if status == 200:
                return msgspec.json.decode(raw, type=shape)
        except (msgspec.DecodeError, RecursionError, OverflowError, UnicodeError):
            pass
        raise RailUnavailable(f"the destination's answer (status {status}) cannot be read")


def _bare(destination: str) -> str:
    text = destination.strip()
    if len(text) > _DESTINATION_CHARS_MAX:
        raise InvalidCredential("the destination is too long")
    return text[10:] if text[:10].lower() == "lightning:" else text


def _fixed(text: str) -> Fixed:
    invoice = decode_invoice(text)
    if not invoice.amount_msat:
        raise InvalidCredential("the Lightning invoice names no amount")
    return Fixed(text, invoice, invoice.amount_msat)
