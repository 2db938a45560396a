"""What assets are worth, as the operator says or reads it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from farebox.settings.fields import optional, required, setting
from farebox.settings.values import ASSET, FEED_URL, PRICE, RATE, choice, integer, many

_DAY_S = 86_400
#: A conversion that costs half of what is converted is a mistake.
_SPREAD_MAX_PPM = 500_000


class PricedIn(enum.Enum):
    """What the price of an asset is written in."""

    BTC = "BTC"
    USD = "USD"


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetRateSettings:
    """What one of an asset costs. Without a rate it is neither taken nor paid out."""

    asset: str = required(ASSET, "The asset, as its rail names it.", "ETH")
    priced_in: PricedIn = setting(
        choice(PricedIn),
        "What its price is written in. Dollars need the rate of a bitcoin too.",
        "USD",
    )
    price: str | None = optional(PRICE, "A fixed price, instead of sources.", "3500.25")
    sources: tuple[str, ...] = setting(
        many(FEED_URL), "Where the price of one is read; the median of the answers counts.", []
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RatesSettings:
    """What a bitcoin is worth in dollars. Without a rate, prices in USD are refused."""

    btc_usd: str | None = optional(RATE, "A fixed rate, instead of sources.", "97000.50")
    sources: tuple[str, ...] = setting(
        many(FEED_URL),
        "Where the price of a bitcoin is read; the median of the answers counts.",
        [],
    )
    sources_min: int = setting(
        integer(1, 64), "How many sources must have answered for a rate to count.", 2
    )
    refresh_s: int = setting(integer(1, _DAY_S), "How often rates are read.", 60)
    age_max_s: int = setting(integer(1, _DAY_S), "A rate older than this is no rate.", 300)
    spread_ppm: int = setting(
        integer(0, _SPREAD_MAX_PPM),
        "What a conversion costs the customer, in millionths of what is converted.",
        5_000,
    )
    held: tuple[str, ...] = setting(
        many(ASSET),
        "Assets that stay on a balance of their own as they come, instead of being converted to "
        "bitcoin on arrival. The customer converts them with POST /v1/conversions.",
        [],
    )
