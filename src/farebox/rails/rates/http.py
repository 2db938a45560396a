"""A price page: a URL that answers with JSON, and where in it a price stands."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Final
from urllib.parse import unquote, urlsplit

import aiohttp
import msgspec

from farebox.clock import NS_PER_S, Clock
from farebox.errors import InvalidSettings, RailRejected, RailUnavailable
from farebox.money import MSAT_PER_BTC
from farebox.pricing.rates import Observation

_ANSWER_MAX_BYTES: Final = 256 * 1024
_PRICE_MAX_CHARS: Final = 40
_PRICE_MAX_EXPONENT: Final = 20
_AGE_MAX_S: Final = 10**9
_POINTER_FORM: Final = (
    'a URL with a JSON pointer to the price of one, such as "https://…/ticker#/data/amount"'
)

_decode = msgspec.json.Decoder(float_hook=Decimal).decode


def worth_in_msat(price_of_bitcoin: Fraction) -> Fraction:
    """What one of a currency is worth, by the price of one bitcoin in it."""
    return MSAT_PER_BTC / price_of_bitcoin


class HttpRateSource:
    """Reads a price, and what `worth` makes of it. Its currency is whatever the page is about.

    Its name is its host: several pages of one host are one source, for they err together.
    """

    def __init__(
        self,
        address: str,
        session: aiohttp.ClientSession,
        clock: Clock,
        *,
        worth: Callable[[Fraction], Fraction] = worth_in_msat,
        timeout_s: float = 5,
    ) -> None:
        """`address` ends in `#` and a JSON pointer (RFC 6901). Raises InvalidSettings."""
        parts = urlsplit(address)
        if not parts.fragment.startswith("/") or parts.scheme not in ("http", "https"):
            raise InvalidSettings("rates.sources", address, _POINTER_FORM)
        self._url = parts._replace(fragment="").geturl()
        self._pointer = [
            token.replace("~1", "/").replace("~0", "~")
            for token in unquote(parts.fragment).split("/")[1:]
        ]
        self._session = session
        self._clock = clock
        self._worth = worth
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self.name = parts.hostname or "unknown"

    async def observe(self) -> Observation:
        """Read the page once.

        The price is as old as the `Age` of a cached answer says. Raises RailUnavailable where
        the page cannot be had, RailRejected where it holds no price.
        """
        now_ns = self._clock.now_ns()
        try:
            async with self._session.get(
                self._url, timeout=self._timeout, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise RailUnavailable(f"{self.name} answered {response.status}")
                body = await _read_bounded(response, self.name)
                age_s = _age_s(response.headers.get("Age"))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RailUnavailable(f"{self.name} did not answer: {type(error).__name__}") from error
        price = self._find_price(body)
        return Observation(self._worth(price), now_ns - age_s * NS_PER_S)

    def _find_price(self, body: bytes) -> Fraction:
        try:
            value = _decode(body)
        except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError):
            raise RailRejected(f"{self.name} answered with something else than JSON") from None
        for token in self._pointer:
            value = _step(value, token)
        price = _price(value)
        if price is None:
            raise RailRejected(f"{self.name} has no price at /{'/'.join(self._pointer)}")
        return price


async def _read_bounded(response: aiohttp.ClientResponse, name: str) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _ANSWER_MAX_BYTES:
            raise RailUnavailable(f"{name} answered with more than {_ANSWER_MAX_BYTES} bytes")
    return bytes(body)


def _age_s(header: str | None) -> int:
    if header is None or not header.isdecimal() or not header.isascii():
        return 0
    return min(int(header[:12]), _AGE_MAX_S)


def _step(value: object, token: str) -> object:
    if isinstance(value, dict):
        return value.get(token)
    if isinstance(value, list) and token.isdecimal() and int(token[:9]) < len(value):
        return value[int(token[:9])]
    return None


def _price(value: object) -> Fraction | None:
    """A price above zero from a JSON number or decimal text, exactly."""
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        return None
    if isinstance(value, str) and len(value) > _PRICE_MAX_CHARS:
        return None
    try:
        price = Decimal(value.replace(",", "") if isinstance(value, str) else value)
    except ArithmeticError:
        return None
    # The exponent is looked at before the number is expanded into digits.
    if not price.is_finite() or price <= 0 or abs(price.adjusted()) > _PRICE_MAX_EXPONENT:
        return None
    return Fraction(price) if len(price.as_tuple().digits) <= _PRICE_MAX_CHARS else None
