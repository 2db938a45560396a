"""One call to PayPal, and what its answer means (https://developer.paypal.com/api/rest/responses).

| answer                                     | means                                             |
|--------------------------------------------|---------------------------------------------------|
| 422 with an issue                          | hard or soft by the list below; unlisted: hard    |
| 400, 404                                   | hard: this order cannot be                        |
| 401 once more; 403 of PayPal's own; no     | technical: nothing was carried out                |
| connection                                 |                                                   |
| 409, 429, 5xx, no answer, one cut short,   | unknown, and asked with the same request id       |
| 422: it is still at it                     |                                                   |

429 may be the answer to a copy that a proxy has made of a call, when the first was carried out.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Mapping
from typing import TypeVar

import aiohttp
import msgspec
from yarl import URL

from farebox.clock import NS_PER_S, Clock
from farebox.errors import RailRejected, RailUnavailable
from farebox.payments.cards.model import Decline, Declined, Unknown
from farebox.rails.paypal.config import PaypalConfig
from farebox.rails.paypal.documents import AccessToken, ErrorJson
from farebox.rails.web.bounded import read_bounded
from farebox.rails.web.breaker import Breaker, BreakerState

T = TypeVar("T")

_ANSWER_MAX_BYTES = 4 * 1024 * 1024
#: A token is renewed so long before it ends.
_TOKEN_SLACK_S = 60
_SOFT = frozenset(
    {
        "CARD_BRAND_NOT_SUPPORTED",
        "INSTRUMENT_DECLINED",
        "PAYER_ACTION_REQUIRED",
        "PAYER_CANNOT_PAY",
        "PAYMENT_DENIED",
        "REDIRECT_PAYER_FOR_ALTERNATE_FUNDING",
        "TRANSACTION_LIMIT_EXCEEDED",
        "TRANSACTION_REFUSED",
    }
)
#: It could not, or our account there cannot.
_TECHNICAL = frozenset(
    {
        "INTERNAL_SERVER_ERROR",
        "NOT_ENABLED_FOR_CARD_PROCESSING",
        "PAYEE_ACCOUNT_LOCKED_OR_CLOSED",
        "PAYEE_ACCOUNT_RESTRICTED",
        "PAYEE_NOT_ENABLED_FOR_CARD_PROCESSING",
        "SERVICE_UNAVAILABLE",
        "TRANSACTION_RECEIVING_LIMIT_EXCEEDED",
    }
)
_IN_PROGRESS = "ORDER_COMPLETION_IN_PROGRESS"


class PaypalLine:
    """Calls with an access token that is renewed when it ends."""

    def __init__(
        self, config: PaypalConfig, session: aiohttp.ClientSession, breaker: Breaker, clock: Clock
    ) -> None:
        self._config = config
        self._session = session
        self._breaker = breaker
        self._clock = clock
        self._renewing = asyncio.Lock()
        self._token = ""
        self._token_until_ns = 0

    async def ask(
        self,
        method: str,
        path: str,
        shape: type[T],
        body: object = None,
        *,
        request_id: str = "",
        query: Mapping[str, str] | None = None,
    ) -> T | Declined | Unknown:
        """One call; an answer that cannot be read says nothing."""
        if self._breaker.state is BreakerState.OPEN:
            said = "PayPal did not answer lately; it is left alone for a while"
            return Declined(Decline.TECHNICAL, "left_alone", said)
        raw = None if body is None else msgspec.json.encode(body)
        try:
            with self._breaker.attempt():
                told = await self._exchange(method, path, raw, request_id, query or {})
                return told if isinstance(told, Declined) else _read(told, shape)
        except RailUnavailable as error:
            return Unknown(str(error))

    async def sure(
        self,
        method: str,
        path: str,
        shape: type[T],
        body: object = None,
        *,
        request_id: str = "",
        query: Mapping[str, str] | None = None,
    ) -> T:
        """A call that moves nothing. Raises RailUnavailable, RailRejected."""
        told = await self.ask(method, path, shape, body, request_id=request_id, query=query)
        match told:
            case Declined(Decline.TECHNICAL):
                raise RailUnavailable(told.message)
            case Declined():
                raise RailRejected(told.message)
            case Unknown():
                raise RailUnavailable(told.reason)
            case _:
                return told

    async def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None,
        request_id: str,
        query: Mapping[str, str],
    ) -> bytes | Declined:
        ended = ""
        for _ in range(2):
            async with self._renewing:
                token = await self._access(ended)
            if isinstance(token, Declined):
                return token
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            headers |= {"Prefer": "return=representation"}
            if request_id:
                headers["PayPal-Request-Id"] = request_id
            url = URL(f"{self._config.url}{path}", encoded=True).update_query(query)
            answer = await self._send(method, url, body, headers)
            if isinstance(answer, Declined):
                return answer
            status, raw = answer
            if status != 401:
                return _meaning(status, raw)
            ended = token
        return Declined(Decline.TECHNICAL, "not_let_in", "PayPal does not let us in")

    async def _access(self, ended: str) -> str | Declined:
        """A token other than one that has `ended`; one call for all who wait for it."""
        now_ns = self._clock.now_ns()
        if self._token not in ("", ended) and now_ns < self._token_until_ns:
            return self._token
        config = self._config
        basic = b64encode(f"{config.client_id}:{config.client_secret}".encode()).decode()
        headers = {
            "Authorization": f"Basic {basic}",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        url = URL(f"{config.url}/v1/oauth2/token")
        answer = await self._send("post", url, b"grant_type=client_credentials", headers)
        if isinstance(answer, Declined):
            return answer
        status, raw = answer
        if status in (400, 401, 403):
            return Declined(Decline.TECHNICAL, "not_let_in", "PayPal does not let us in")
        if status != 200:
            raise RailUnavailable(f"PayPal answered with status {status}")
        told = _read(raw, AccessToken)
        self._token = told.access_token
        self._token_until_ns = now_ns + max(told.expires_in - _TOKEN_SLACK_S, 0) * NS_PER_S
        return self._token

    async def _send(
        self, method: str, url: URL, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes] | Declined:
        try:
            async with self._session.request(
                method,
                url,
                data=body,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=self._config.timeout_s),
                allow_redirects=False,  # what lets us in goes to PayPal or nowhere
            ) as response:
                raw = await read_bounded(response, _ANSWER_MAX_BYTES, "PayPal")
                return response.status, raw
        except aiohttp.ClientConnectorError:
            return Declined(Decline.TECHNICAL, "unreachable", "PayPal cannot be reached")
        except TimeoutError:
            raise RailUnavailable("PayPal did not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # The text of a foreign error may quote what was sent; its type says enough.
            raise RailUnavailable(f"PayPal gave no answer: {type(error).__name__}") from None


def decline_of(issue: str) -> Decline:
    """What an issue leaves to be tried; one that nobody has listed: nothing."""
    if issue in _TECHNICAL:
        return Decline.TECHNICAL
    return Decline.SOFT if issue in _SOFT else Decline.HARD


def _meaning(status: int, raw: bytes) -> bytes | Declined:
    if 200 <= status < 300:
        return raw or b"{}"
    if status == 403 and _read(raw, ErrorJson).issue:  # else it is of something before PayPal
        return Declined(Decline.TECHNICAL, "status_403", "PayPal takes no such call now")
    if status in (400, 404, 422):
        issue = _read(raw, ErrorJson).issue[:64] or f"status_{status}"
        if issue == _IN_PROGRESS:
            raise RailUnavailable("PayPal is still at it")
        return Declined(decline_of(issue), issue.lower(), f"PayPal refused: {issue}")
    raise RailUnavailable(f"PayPal answered with status {status}")


def _read(raw: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RailUnavailable("PayPal's answer is not what the call answers with") from None
