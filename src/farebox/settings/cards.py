"""Card money as the operator decides about it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from farebox.errors import InvalidSettings
from farebox.settings.fields import optional, setting
from farebox.settings.secrets import Secret
from farebox.settings.values import (
    FIAT,
    MEMO,
    NAME,
    SECRET,
    URL,
    WORD,
    choice,
    integer,
    many,
    seconds,
)

_DAY_S = 86_400


class CardCurrency(enum.Enum):
    """A currency of card money."""

    USD = "USD"
    EUR = "EUR"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardSettings:
    """What every provider of card money is told."""

    name: str = setting(
        NAME, "What this account is called in the books. A new account gets a new name.", "main"
    )
    currencies: tuple[CardCurrency, ...] = setting(
        many(choice(CardCurrency), least=1),
        "What payers are charged in: currencies that the provider settles to you as they are.",
        ["USD"],
    )
    deposit_min: int = setting(FIAT, "The least that is paid in at once.", "5.00")
    deposit_max: int = setting(FIAT, "The most that is paid in at once.", "200.00")
    fee_fixed: int = setting(
        FIAT, "What a payer is charged on top for paying this way: so much …", "0.30"
    )
    fee_ppm: int = setting(
        integer(0, 1_000_000),
        "… and so many millionths of the amount. Less than the provider keeps is your loss.",
        35_000,
    )
    maturity_days: int = setting(
        integer(0, 3650),
        "How long after it was paid such money can be spent here and given back to its payer, but "
        "not paid out any other way: as long as a bank may take it back.",
        120,
    )
    link_expiry_s: int = setting(
        integer(1_900, _DAY_S - 100), "How long a payment link of ours may be paid.", 3_600
    )
    title: str = setting(MEMO, "What a payer is shown as bought.", "Top-up")
    timeout_s: float = setting(
        seconds(600), "How long the provider may take; then the outcome is asked for.", 20
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeSettings(CardSettings):
    """A Stripe account. Without a `key` there is none."""

    key: Secret | None = optional(
        SECRET,
        "What lets us in: a restricted key that may write Checkout Sessions, Customers, "
        "PaymentIntents, PaymentMethods and Refunds, and read Balance, Charges, Disputes and "
        "Events. Left out, Stripe is not used.",
        {"file": "stripe.key"},
    )
    webhook_secret: Secret | None = optional(
        SECRET,
        "The signing secret of the webhook endpoint <public_url>/v1/webhooks/stripe. Without one "
        "Stripe is only asked, every ten seconds.",
        {"file": "stripe-webhook.secret"},
    )
    pay_url: str | None = optional(
        URL,
        "A page of yours with Stripe's script, to pay on instead of Stripe's own.",
        "https://example.com/pay",
    )
    return_url: str | None = optional(
        URL, "Where a payer's browser goes after paying.", "https://example.com/paid"
    )
    url: str = setting(URL, "Where Stripe's API is.", "https://api.stripe.com")


@dataclass(frozen=True, slots=True, kw_only=True)
class PaypalSettings(CardSettings):
    """A PayPal app. Without a `client_id` there is none."""

    client_id: str | None = optional(
        WORD, "The app's client id. Left out, PayPal is not used.", "AZDxjDScFp"
    )
    client_secret: Secret | None = optional(SECRET, "The app's secret.", {"file": "paypal.secret"})
    webhook_id: str | None = optional(
        WORD,
        "PayPal's id of the webhook <public_url>/v1/webhooks/paypal. Without one PayPal is only "
        "asked, every ten seconds.",
        "8PT597110X687430L",
    )
    return_url: str | None = optional(
        URL, "Where a payer's browser goes after paying.", "https://example.com/paid"
    )
    url: str = setting(
        URL,
        "Where PayPal's API is; https://api-m.sandbox.paypal.com plays with it.",
        "https://api-m.paypal.com",
    )


def check_cards(name: str, found: CardSettings) -> None:
    """Raises InvalidSettings for what no single setting shows."""
    if isinstance(found, PaypalSettings) and found.client_id and found.client_secret is None:
        raise InvalidSettings("paypal.client_secret", "nothing", "the secret of paypal.client_id")
    if found.deposit_min > found.deposit_max:
        raise InvalidSettings(f"{name}.deposit_min", found.deposit_min, "at most deposit_max")
