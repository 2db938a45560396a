"""Providers of card money from the settings."""

from __future__ import annotations

import aiohttp

from farebox.clock import Clock
from farebox.errors import InvalidSettings
from farebox.ledger.service import Ledger
from farebox.payments.cards.connector import Connector
from farebox.payments.cards.method import CardMethod
from farebox.payments.cards.model import CURRENCIES
from farebox.payments.cards.terms import CardTerms
from farebox.payments.rail import Limits
from farebox.rails.paypal import PaypalConfig, PaypalConnector, PaypalLine
from farebox.rails.web import Breaker
from farebox.settings import PaypalSettings, Secret, Settings, StripeSettings
from farebox.settings.cards import CardSettings

_DAY_S = 86_400


def open_cards(
    settings: Settings, session: aiohttp.ClientSession, ledger: Ledger, url: str
) -> list[CardMethod]:
    """A method for each provider that the settings name. Raises InvalidSettings."""
    clock = ledger.clock
    for code in sorted(CURRENCIES.keys() & set(settings.rates.held)):
        # Fees and disputes are told long after, and are borne in what the account is kept in.
        raise InvalidSettings("rates.held", code, "no currency of cards: it is converted")
    return [
        CardMethod(terms_of(name, told), connector_of(name, settings, session, clock, url), ledger)
        for name, told in providers(settings).items()
    ]


def providers(settings: Settings) -> dict[str, CardSettings]:
    """The providers that the settings name."""
    found: dict[str, CardSettings] = {}
    if settings.stripe.key is not None:
        found["stripe"] = settings.stripe
    if settings.paypal.client_id is not None:
        found["paypal"] = settings.paypal
    return found


def connector_of(
    provider: str, settings: Settings, session: aiohttp.ClientSession, clock: Clock, url: str
) -> Connector:
    """One provider's connector. Raises InvalidSettings."""
    if provider == "stripe":
        return stripe_connector(settings.stripe, session, clock, url)
    return paypal_connector(settings.paypal, session, clock, url)


def hears(found: CardSettings) -> bool:
    """Whether webhooks of a provider can be checked."""
    match found:
        case StripeSettings():
            return found.webhook_secret is not None
        case PaypalSettings():
            return found.webhook_id is not None
        case _:
            return False


def paypal_connector(
    found: PaypalSettings, session: aiohttp.ClientSession, clock: Clock, public_url: str
) -> Connector:
    """PayPal's REST API on a session of ours. Raises InvalidSettings."""
    config = PaypalConfig(
        client_id=found.client_id or "",
        client_secret=_revealed("paypal.client_secret", found.client_secret),
        webhook_id=found.webhook_id or "",
        url=found.url,
        return_url=found.return_url or public_url,
        title=found.title,
        timeout_s=found.timeout_s,
    )
    line = PaypalLine(config, session, Breaker(clock, who="PayPal"), clock)
    return PaypalConnector(config, line, clock)


def stripe_connector(
    found: StripeSettings, session: aiohttp.ClientSession, clock: Clock, public_url: str
) -> Connector:
    """Stripe's SDK on a session of ours. Raises InvalidSettings."""
    try:
        from farebox.rails.stripe import StripeConfig, StripeConnector, open_client
    except ImportError:
        allowed = "`pip install 'farebox[cards]'` first, or leave it out"
        raise InvalidSettings("stripe.key", "a key (hidden)", allowed) from None
    config = StripeConfig(
        api_key=_revealed("stripe.key", found.key),
        webhook_secret=_revealed("stripe.webhook_secret", found.webhook_secret),
        url=found.url,
        return_url=found.return_url or public_url,
        pay_url=found.pay_url or "",
        title=found.title,
        timeout_s=found.timeout_s,
    )
    breaker = Breaker(clock, who="Stripe")
    return StripeConnector(config, open_client(config, session), breaker, clock)


def terms_of(provider: str, found: CardSettings) -> CardTerms:
    """The operator's terms as the rail takes them."""
    limits = Limits(found.deposit_min, found.deposit_max)
    return CardTerms(
        provider=provider,
        name=found.name,
        currencies={one.value: limits for one in found.currencies},
        fee_fixed=found.fee_fixed,
        fee_ppm=found.fee_ppm,
        expiry_s=found.link_expiry_s,
        maturity_s=found.maturity_days * _DAY_S,
    )


def _revealed(key: str, secret: Secret | None) -> str:
    text = secret.reveal().strip() if secret else ""
    if not text.isascii() or not text.isprintable():
        raise InvalidSettings(key, "a text (hidden)", "printable ASCII")
    return text
