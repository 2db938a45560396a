"""What the operator decides about PayPal, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class PaypalConfig:
    """One PayPal app. `webhook_id` is PayPal's name for our webhook; "" hears nothing.

    `url` is where its API is; `return_url` is where a payer's browser goes after paying.
    """

    client_id: str
    client_secret: str = field(repr=False)
    webhook_id: str = ""
    url: str = "https://api-m.paypal.com"
    return_url: str = "https://example.com/"
    title: str = "Top-up"
    timeout_s: float = 20
