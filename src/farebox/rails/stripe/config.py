"""What the operator decides about Stripe, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeConfig:
    """One Stripe account. `webhook_secret` signs what it sends us; "" hears nothing.

    `url` is where its API is; `return_url` is where a payer's browser goes after paying. With a
    `pay_url` payers are sent there, to a page with Stripe's script, instead of to Stripe's own.
    """

    api_key: str = field(repr=False)
    webhook_secret: str = field(default="", repr=False)
    url: str = "https://api.stripe.com"
    return_url: str = "https://example.com/"
    pay_url: str = ""
    title: str = "Top-up"
    timeout_s: float = 20
    webhook_tolerance_s: int = 300
