"""What can be paid with, and out to, now."""

from __future__ import annotations

from farebox.api.context import ApiContext
from farebox.api.http import Incoming, document
from farebox.payments import AbstractPaymentMethod
from farebox.payments.rail import AssetTerms, DepositMethod, Limits
from farebox.paywall.model import Answer


async def methods(context: ApiContext, incoming: Incoming) -> Answer:
    """`GET /v1/methods`, from memory: asking often costs nobody anything."""
    return document({"methods": [_method(one) for one in context.payments.methods]})


def _method(method: AbstractPaymentMethod) -> dict[str, object]:
    standing = method.standing()
    shown: dict[str, object] = {
        "method": method.payment_type,
        "credential": method.credential_hint or method.payment_type,
        "works": standing.works,
        "reason": standing.reason,
    }
    if not isinstance(method, DepositMethod):
        return shown
    terms = method.terms()
    return shown | {
        "assets": [_asset(one) for one in terms.assets],
        "destinations": list(terms.destinations),
        "fees": terms.fees,
        "expected_s": terms.expected_s,
    }


def _asset(terms: AssetTerms) -> dict[str, object]:
    return {
        "asset": terms.asset.code,
        "scale": terms.asset.scale,
        "deposits": _limits(terms.deposits),
        "payouts": _limits(terms.payouts),
    }


def _limits(limits: Limits | None) -> dict[str, str] | None:
    if limits is None:
        return None
    return {"least": str(limits.least), "most": str(limits.most)}
