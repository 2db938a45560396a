"""Stripe: card payments by the official SDK, behind the connector port of `payments.cards`.

Promises: each call that moves money carries its idempotency key; a lost answer is `Unknown`; a
webhook is believed only with a fresh signature, and only that something happened.
Never: a retry of its own, an API key in an error, a log or a repr.
"""

from farebox.rails.stripe.config import StripeConfig
from farebox.rails.stripe.connector import StripeConnector, open_client
from farebox.rails.stripe.webhook import check_signature

__all__ = ["StripeConfig", "StripeConnector", "check_signature", "open_client"]
