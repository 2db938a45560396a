"""What the paywall says, in words: each answer that is not a forwarded one."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from farebox.clock import iso
from farebox.payments import Refusal
from farebox.payments.service import Pending
from farebox.paywall.dialects import Problem, Wanted, change_headers, problem, refusal, sentence
from farebox.paywall.model import Answer, Headers, Request, RequestState
from farebox.pricing.book import NoPrice, NoPriceReason, Quote
from farebox.pricing.rates import RateStale
from farebox.pricing.request import RequestFacts


def asks(quote: Quote) -> str:
    """The sentence of a first challenge."""
    return (
        f"This request costs at most {quote.maximum_msat} msat. Send it again with X-Cashu or an "
        "account key; what it does not use comes back."
    )


BALANCE_SHORT = "insufficient_balance"


def balance_short(balance_msat: int, quote: Quote) -> str:
    """The sentence for an account that does not cover what a request can cost."""
    return (
        f"The balance of {balance_msat} msat does not cover {quote.maximum_msat} msat, the most "
        "this request can cost; top it up, or lower its output limit."
    )


def wanted(
    quote: Quote,
    code: str,
    detail: str,
    create_url: str,
    extra: Mapping[str, object],
    channels: Mapping[str, object] | None,
) -> Wanted:
    """What a challenge for this quote asks for."""
    expires_at = iso(quote.expires_at_ns)
    maximum_msat = quote.maximum_msat
    return Wanted(code, detail, quote.id, maximum_msat, expires_at, create_url, extra, channels)


def unpriced(why: NoPrice | RateStale, facts: RequestFacts) -> Answer:
    """What has no price is refused, not free."""
    if isinstance(why, RateStale):
        return refusal(
            "rate_unavailable",
            f"There is no trustworthy exchange rate for {why.currency} right now.",
            {},
        )
    if why.reason is NoPriceReason.UNREADABLE and facts.problem is not None:
        return refusal("request_unreadable", f"{facts.problem.value}.", {})
    return refusal("no_price", f"{why.reason.value}; it is refused, not free.", {})


def refused(by_core: Refusal, money: str = "") -> Answer:
    """A refusal of the core. Where money is nevertheless at hand, `money` says where."""
    return refusal(by_core.code, sentence(by_core.message), by_core.details, money)


def pending(operation: Pending) -> Answer:
    """A payment whose outcome is unknown forwards nothing."""
    return problem(
        Problem(
            503,
            "payment_pending",
            "Payment pending",
            "The mint has not told yet whether it took the token; nothing was forwarded. "
            "Send the same request with the same token again.",
            "If it was taken, it is on the token's account.",
            {"operation": operation.operation_id},
            ((b"retry-after", b"2"),),
        )
    )


def in_progress(request_id: str) -> Answer:
    """The request that this money pays for has not ended."""
    return problem(
        Problem(
            409,
            "request_in_progress",
            "Still in progress",
            "The same request is still running; ask again.",
            "The money is held for the request.",
            {"request_id": request_id, "state": RequestState.AUTHORISED.value},
            ((b"retry-after", b"1"),),
        )
    )


def name_unreadable(chars_max: int) -> Answer:
    """400: what stands in `Idempotency-Key` is no name."""
    detail = f"An Idempotency-Key has 1 to {chars_max} printable ASCII characters."
    return refusal("idempotency_key_unreadable", detail, {})


def name_reused() -> Answer:
    """422: the name belongs to another request."""
    return problem(
        Problem(
            422,
            "idempotency_key_reused",
            "Idempotency key reused",
            "This Idempotency-Key was used for another request; choose a new one.",
        )
    )


def answer_not_stored(request_id: str, request: Request, receipt: Headers) -> Answer:
    """409: what a named request came to; the answer of the service itself is kept nowhere."""
    return problem(
        Problem(
            409,
            "answer_not_stored",
            "Answered already",
            "The request of this Idempotency-Key was answered and charged; its answer is not kept. "
            "Send it with a new Idempotency-Key to have and pay it again.",
            "It was charged once, and is not charged again.",
            {
                "request_id": request_id,
                "state": request.state.value,
                "ended": request.ended,
                "charged_msat": request.charged_msat,
            },
            receipt,
        )
    )


def redeemed_before() -> Answer:
    """The token was taken, but not for this, and what is left is not enough."""
    return refusal(
        "insufficient_payment",
        "This token was redeemed before; what is left of it does not cover this request. "
        "Use it as a bearer key to spend or refund the rest.",
        {},
        "The money is on the token's account.",
    )


def too_many_failures(wait_s: int) -> Answer:
    """429: this address has presented too much that was worth nothing."""
    return problem(
        Problem(
            429,
            "too_many_failures",
            "Too many failures",
            f"Too many refused credentials came from this address; try again in {wait_s} s.",
            headers=((b"retry-after", str(wait_s).encode()),),
        )
    )


def token_required() -> Answer:
    """Change is told to whoever presents the money."""
    return problem(
        Problem(
            401,
            "token_required",
            "Token required",
            "Present the token that paid for this request, as X-Cashu or as bearer.",
        )
    )


def request_unknown() -> Answer:
    """The same answer whether the request or the token is wrong."""
    return problem(
        Problem(
            404,
            "request_unknown",
            "No such request",
            "No request of this id was paid with this token.",
        )
    )


def told_again(request_id: str, request: Request, token: str, *, asked: bool) -> Answer:
    """Status and change of a settled request: 200 to who asked for it, else 409."""
    facts: dict[str, object] = {
        "request_id": request_id,
        "state": request.state.value,
        "quoted_msat": request.quote.maximum_msat,
        "charged_msat": request.charged_msat,
        "returned_msat": request.returned_msat,
        "credited_msat": request.credited_msat,
        "token": token or None,
    }
    if request.change and not token:
        facts["change_spent"] = True
    change = change_headers(token)
    if not asked:
        return problem(
            Problem(
                409,
                "payment_used",
                "This token has paid already",
                "This token paid for an earlier request; its change is here.",
                "The change is in `token`, and in X-Cashu where it fits.",
                facts,
                change,
            )
        )
    body = msgspec.json.encode(facts)
    headers = (
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *change,
    )
    return Answer(200, headers, body)
