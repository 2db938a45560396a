"""What a request costs: rules that match it, strategies that price it, a rate that converts it.

Prices are integers of 10^-12 USD, costs integers of the asset's base unit, rounded up once. What no
rule matches has no price and is refused: payment-kit serves it for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from farebox.channels.model import RequestMetadata
from farebox.channels.weighing import is_handshake
from farebox.errors import FareboxError
from farebox.ids import new_id
from farebox.money import Rounding, divide
from farebox.wire.subrav.model import ErrorCode, SubRAV
from farebox.wire.subrav.payload import RequestPayload


class BillingContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a price may depend on."""

    service_id: str
    operation: str
    asset_id: str
    channel_id: str | None = None
    vm_id_fragment: str | None = None
    facts: Mapping[str, Any] = {}


class Cost(msgspec.Struct, frozen=True):
    """A cost in base units of the asset, and what it is in 10^-12 USD."""

    amount: int
    pico_usd: int


class Unpriced(msgspec.Struct, frozen=True):
    """Why there is no price."""

    code: ErrorCode
    message: str


# ── strategies ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class PerRequest:
    """A fixed price, times the units used where a service reports any."""

    price_pico_usd: int

    def pico_usd(self, units: int) -> int:
        """The price for so many units."""
        return self.price_pico_usd * max(units, 1)


@dataclass(frozen=True, slots=True)
class PerToken:
    """A price per unit of usage; one that reports none is billed one, as in payment-kit."""

    unit_price_pico_usd: int

    def pico_usd(self, units: int) -> int:
        """The price for so many units."""
        return self.unit_price_pico_usd * max(units, 1)


@dataclass(frozen=True, slots=True)
class FinalCost:
    """The service reports the price itself, in 10^-12 USD."""

    def pico_usd(self, units: int) -> int:
        """What was reported."""
        return max(units, 0)


Strategy = PerRequest | PerToken | FinalCost


@dataclass(frozen=True, slots=True, kw_only=True)
class BillingRule:
    """The first rule that matches a request's facts prices it; a default matches every one."""

    id: str
    strategy: Strategy
    is_default: bool = False
    path: str | None = None
    path_regex: re.Pattern[str] | None = None
    method: str | None = None
    equal: Mapping[str, Any] = field(default_factory=dict)
    auth_required: bool = False
    admin_only: bool = False

    @property
    def payment_required(self) -> bool:
        """Whether the rule can ever charge."""
        strategy = self.strategy
        return not isinstance(strategy, PerRequest) or strategy.price_pico_usd != 0

    def matches(self, facts: Mapping[str, Any]) -> bool:
        """Whether the request is one of this rule's."""
        if self.is_default:
            return True
        path = facts.get("path", "")
        return (
            (self.path is None or path == self.path)
            and (self.path_regex is None or self.path_regex.search(str(path)) is not None)
            and (self.method is None or facts.get("method") == self.method)
            and all(facts.get(name) == value for name, value in self.equal.items())
        )


class RateProvider(Protocol):
    """What one base unit of an asset is worth."""

    async def price_pico_usd(self, asset_id: str) -> int:
        """10^-12 USD per base unit. Raises RateUnknown."""
        ...


class RateUnknown(FareboxError):
    """There is no price of an asset now. `fetched`: it should have one, and could not be had."""

    def __init__(self, asset_id: str, *, fetched: bool = False) -> None:
        self.fetched = fetched
        super().__init__(f"there is no price of {asset_id}")


@dataclass(frozen=True, slots=True)
class FixedRates:
    """Rates that the operator sets, by asset id."""

    pico_usd: Mapping[str, int]

    async def price_pico_usd(self, asset_id: str) -> int:
        """The rate that was set. Raises RateUnknown."""
        try:
            return self.pico_usd[asset_id]
        except KeyError:
            raise RateUnknown(asset_id) from None


class CostCalculator(Protocol):
    """Prices requests. `BillingEngine` is one; a service may bring its own."""

    def find_rule(self, context: BillingContext) -> BillingRule | None:
        """The rule that prices a request; None: it has no price and is refused."""
        ...

    async def calc_cost(self, context: BillingContext, units: int = 0) -> Cost | Unpriced:
        """What a request costs that used so many units."""
        ...


class BillingEngine:
    """Rules and rates."""

    def __init__(self, rules: Sequence[BillingRule], rates: RateProvider) -> None:
        """Rules in order; one that is the default counts as the last."""
        self._rules = sorted(rules, key=lambda rule: rule.is_default)
        self._rates = rates

    def find_rule(self, context: BillingContext) -> BillingRule | None:
        """The first rule that matches."""
        for rule in self._rules:
            if rule.matches(context.facts):
                return rule
        return None

    async def calc_cost(self, context: BillingContext, units: int = 0) -> Cost | Unpriced:
        """What the matching rule says, converted into the asset, rounded up."""
        rule = self.find_rule(context)
        if rule is None:
            return Unpriced(
                ErrorCode.BILLING_CONFIG_ERROR, f"No rule prices {context.operation}; add one."
            )
        pico_usd = rule.strategy.pico_usd(units)
        if not pico_usd:
            return Cost(0, 0)
        try:
            rate = await self._rates.price_pico_usd(context.asset_id)
        except RateUnknown as error:
            failed, missing = (
                ErrorCode.BILLING_RATE_FETCH_FAILED,
                ErrorCode.BILLING_RATE_NOT_AVAILABLE,
            )
            return Unpriced(failed if error.fetched else missing, f"{error}; try later.")
        if rate <= 0:
            return Unpriced(ErrorCode.BILLING_RATE_NOT_AVAILABLE, "The asset is worth nothing.")
        return Cost(divide(pico_usd, rate, Rounding.UP), pico_usd)


class BillingContextBuilder:
    """Makes billing contexts out of what a protocol knows."""

    @staticmethod
    def build(
        service_id: str, request_meta: RequestMetadata, default_asset_id: str = ""
    ) -> BillingContext:
        """From metadata; its own fields are facts as well, those that `facts` does not name."""
        facts: dict[str, Any] = {"operation": request_meta.operation}
        if request_meta.model is not None:
            facts["model"] = request_meta.model
        if request_meta.asset_id is not None:
            facts["assetId"] = request_meta.asset_id
        facts.update(request_meta.facts)
        return BillingContext(
            service_id=service_id,
            operation=request_meta.operation,
            asset_id=request_meta.asset_id or default_asset_id,
            channel_id=request_meta.channel_id,
            vm_id_fragment=request_meta.vm_id_fragment,
            facts=facts,
        )

    @staticmethod
    def from_http_request(
        service_id: str,
        method: str,
        path: str,
        default_asset_id: str = "",
        payment: RequestPayload | None = None,
        **facts: object,
    ) -> BillingContext:
        """From a request's method and path, without its query, and the voucher it brought."""
        operation = f"{method}:{path}"
        signed = None if payment is None else payment.signed_sub_rav
        return BillingContext(
            service_id=service_id,
            operation=operation,
            asset_id=default_asset_id,
            channel_id=None if signed is None else signed.sub_rav.channel_id,
            vm_id_fragment=None if signed is None else signed.sub_rav.vm_id_fragment,
            facts={"operation": operation, "method": method, "path": path, **facts},
        )


class PaymentUtils:
    """Small questions about payments, under the names of the API reference."""

    @staticmethod
    def generate_tx_ref() -> str:
        """A fresh reference to one request."""
        return new_id("tx")

    @staticmethod
    def sub_ravs_match(first: SubRAV, second: SubRAV) -> bool:
        """Whether two SubRAVs are the same in every field."""
        return first == second

    @staticmethod
    def is_handshake(sub_rav: SubRAV) -> bool:
        """Whether a SubRAV promises nothing: nonce 0 and amount 0."""
        return is_handshake(sub_rav)

    @staticmethod
    def extract_error_code(error: str) -> str:
        """The code at the beginning of `CODE: message`; PAYMENT_ERROR where there is none."""
        code = error.partition(":")[0].strip()
        return code if code in set(ErrorCode) else ErrorCode.PAYMENT_ERROR
