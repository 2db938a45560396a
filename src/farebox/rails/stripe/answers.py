"""What Stripe's refusals mean (https://docs.stripe.com/declines/codes, /error-low-level).

| answer                                    | means                                              |
|-------------------------------------------|----------------------------------------------------|
| 402 with a decline code                   | hard or soft by the lists below; unlisted: hard    |
| 400, 404                                  | hard: this card or order cannot be charged         |
| 401, 403                                  | technical: nothing was carried out                 |
| 409, 429, 5xx, no answer, one cut short   | unknown, and asked with the same key               |

429 may be the answer to a copy that a proxy has made of a call, when the first was carried out.
"""

from __future__ import annotations

import aiohttp
import stripe

from farebox.payments.cards.model import Decline, Declined, Unknown

_SOFT = frozenset(
    {
        "approve_with_id",
        "authentication_required",
        "call_issuer",
        "card_velocity_exceeded",
        "do_not_honor",
        "generic_decline",
        "insufficient_funds",
        "no_action_taken",
        "not_permitted",
        "withdrawal_count_limit_exceeded",
    }
)
_TECHNICAL = frozenset(
    {"issuer_not_available", "processing_error", "reenter_transaction", "try_again_later"}
)


def decline_of(code: str) -> Decline:
    """What a decline code leaves to be tried; one that nobody has listed: nothing."""
    if code in _TECHNICAL:
        return Decline.TECHNICAL
    return Decline.SOFT if code in _SOFT else Decline.HARD


def meaning(error: stripe.StripeError) -> Declined | Unknown:
    """What an error of the SDK means. Its own text is not shown: it may quote what was sent."""
    match error:
        case stripe.CardError():
            code = str(_detail(error, "decline_code") or error.code or "card_declined")
            return Declined(decline_of(code), code, f"the card was declined: {code}")
        case stripe.RateLimitError():
            return Unknown("Stripe takes no more calls now")
        case stripe.AuthenticationError() | stripe.PermissionError():
            return Declined(Decline.TECHNICAL, "not_let_in", "Stripe does not let us in")
        case stripe.IdempotencyError():
            return Unknown("the same key was used for something else")
        case stripe.InvalidRequestError():
            code = str(error.code or "invalid_request")
            return Declined(Decline.HARD, code, f"Stripe refused: {code}")
        case stripe.APIConnectionError() if _never_left(error):
            return Declined(Decline.TECHNICAL, "unreachable", "Stripe cannot be reached")
        case _:
            return Unknown(f"Stripe gave no answer: {type(error).__name__}")


def _detail(error: stripe.StripeError, name: str) -> object:
    body = error.json_body
    inner = body.get("error") if isinstance(body, dict) else None
    return inner.get(name) if isinstance(inner, dict) else None


def _never_left(error: BaseException) -> bool:
    """Whether there was no connection that the call could have left by."""
    return isinstance(error.__cause__, aiohttp.ClientConnectorError)
