"""What `farebox balance` tells: a whole book, added up."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from farebox.ledger.cover import Covers
from farebox.ledger.model import Account, Kind
from farebox.ledger.service import Ledger
from farebox.money import BTC

Facts = dict[str, Any]

#: What is told of an asset that is not bitcoin.
_OTHER = ("custody", "owed", "exchanged", "earned", "capital")


async def balance(ledger: Ledger) -> Facts:
    """What the book holds, owes and has earned, and whether the one covers the other."""
    custody: list[Facts] = []
    totals: Counter[str] = Counter()
    others: dict[str, Counter[str]] = {}
    covers = Covers()
    after = ""
    while accounts := await ledger.store.accounts(after):
        covers.add(accounts)
        for account in accounts:
            if account.asset == BTC.code:
                _count(account, totals, custody)
            else:
                _count_other(account, others.setdefault(account.asset, Counter()))
        after = accounts[-1].id
        await asyncio.sleep(0)  # a long book must not keep a server's callers waiting
    if "channels_msat" in totals:  # an account each, and thousands of them
        held_msat = totals["channels_msat"]
        custody.append(
            {"account": "custody:channels", "held_msat": held_msat, "ceiling_msat": None}
        )
    told = covers.told()
    beyond_msat = max(0, told[BTC.code].surplus) if BTC.code in told else 0
    owns = ("customers_msat", "revenue_msat", "capital_msat", "others_msat")
    liabilities_msat = sum(totals[one] for one in owns)
    return {
        "custody_msat": totals["custody_msat"],
        "liabilities_msat": liabilities_msat,
        "customers_msat": totals["customers_msat"],
        "customer_accounts": totals["customer_accounts"],
        "revenue_msat": totals["revenue_msat"],
        "withdrawable_msat": min(totals["withdrawable_msat"], beyond_msat),
        "held_msat": totals["held_msat"],
        "arriving_msat": totals["arriving_msat"],
        "exchanged_msat": totals["exchanged_msat"],
        "capital_msat": totals["capital_msat"],
        "covered": all(cover.surplus >= 0 for cover in told.values()),
        "custody": custody,
        "other_assets": {
            asset: {what: str(counts[what]) for what in _OTHER}
            for asset, counts in sorted(others.items())
        },
    }


def _count_other(account: Account, counts: Counter[str]) -> None:
    match account.kind:
        case Kind.CUSTODY:
            counts["custody"] += account.held
        case Kind.EXCHANGE:
            counts["exchanged"] += account.held
        case Kind.REVENUE:
            counts["earned"] -= account.held
        case Kind.CAPITAL:
            counts["capital"] -= account.held
        case Kind.CUSTOMER | Kind.IMMATURE | Kind.ESCROW | Kind.PAYABLE:
            counts["owed"] -= account.held


def _count(account: Account, totals: Counter[str], custody: list[Facts]) -> None:
    owed_msat = account.credits_posted - account.debits_posted
    match account.kind:
        case Kind.CUSTODY:
            totals["custody_msat"] += account.held
            if account.id.startswith("custody:channel:"):
                totals["channels_msat"] += account.held
                return
            totals["arriving_msat"] += account.debits_pending
            custody.append(
                {"account": account.id, "held_msat": account.held, "ceiling_msat": account.ceiling}
            )
        case Kind.CUSTOMER:
            totals["customers_msat"] += owed_msat
            totals["customer_accounts"] += 1
            totals["held_msat"] += account.debits_pending
        case Kind.REVENUE:
            totals["revenue_msat"] += owed_msat
            totals["withdrawable_msat"] += account.available
        case Kind.CAPITAL:
            totals["capital_msat"] += owed_msat
        case Kind.EXCHANGE:
            totals["exchanged_msat"] -= owed_msat
        case _:
            totals["others_msat"] += owed_msat
