"""Keys past their expiry: what is left on their account goes to their refund address.

| boundary                    | what can fail | recovery                                           |
|-----------------------------|---------------|----------------------------------------------------|
| before the refund is opened | anything      | the key is still due; the next run tries again     |
| refund opened → key EXPIRED | we stop       | the next run finds the same refund by the key's id |

A key without a refund address keeps its balance: its owner takes it out with the expired key. One
whose money may still be taken back (`payments.maturity`) stays due until that is ripe. By a method
that only gives back (cards) it goes to who has paid, whatever the address, one payment after the
other, in each currency.
"""

from __future__ import annotations

import structlog

from farebox.errors import InvalidInput, RailError
from farebox.identity import ApiKey, Keys, KeyState
from farebox.ids import derived_id
from farebox.ledger.service import Ledger
from farebox.payments import Refusal
from farebox.payments.maturity import MATURING, ripe_at
from farebox.payments.operations import Operations
from farebox.payments.service import Payments, Pending

_log = structlog.get_logger("farebox.expiry")

#: Keys looked at in one run; the rest wait for the next.
_PAGES_MAX = 50
_PAGE = 100
#: Payments of one key that are given back, each by itself.
_PAYMENTS_MAX = 64
_UNRIPE = "funds_not_ripe"
#: Refusals where nothing, or no more, was paid in a currency: there may be in the next.
_NONE_IN_THIS = frozenset({"amount_too_small", "nothing_to_refund"})
#: Other refusals that pass by themselves.
_PASSING = frozenset(
    {
        "busy",
        "insufficient_balance",
        "insufficient_funds",
        "mint_unavailable",
        "rail_unavailable",
        "rate_unavailable",
    }
)


class KeyExpiry:
    """The job that ends keys."""

    def __init__(
        self, ledger: Ledger, operations: Operations, payments: Payments, keys: Keys
    ) -> None:
        self._ledger = ledger
        self._operations = operations
        self._payments = payments
        self._keys = keys
        #: Where the next run begins: the keys that wait keep nobody behind them from their turn.
        self._after = ""
        #: Until when the money of a key is not ripe: nobody is asked about it again before. What
        #: a restart forgets is asked once more.
        self._ripe_at: dict[str, int] = {}

    async def run(self) -> int:
        """Refund and end the keys that are due; returns how many were ended."""
        ended, now = 0, self._ledger.clock.now_ns()
        for _ in range(_PAGES_MAX):
            due = await self._keys.due(self._after, _PAGE)
            for _, key in due:
                if self._ripe_at.get(key.id, 0) <= now and await self._is_settled(key):
                    await self._keys.expire(key.id)
                    self._ripe_at.pop(key.id, None)
                    ended += 1
            self._after = due[-1][0] if len(due) == _PAGE else ""
            if not self._after:
                break
        return ended

    async def _is_settled(self, key: ApiKey) -> bool:
        """Whether nothing more is to be done for this key; False leaves it to the next run."""
        for turn in range(_PAYMENTS_MAX):
            told = await self._is_refunded(key, turn)
            if told is not None:
                return told
        return True

    async def _is_refunded(self, key: ApiKey, turn: int) -> bool | None:
        """The same after one refund; None: that one was made, and another payment may have more."""
        parts = (str(turn),) if turn else ()
        operation_id = derived_id("op", "key-expiry", key.id, *parts)
        amount_msat = 0
        if await self._operations.get(operation_id) is None:
            held = await self._ledger.store.account(key.account)
            if held is None or not key.refund_address or await self._has_another(key):
                return True
            if held.debits_pending or held.credits_pending:
                return False  # a request or a payment is under way: what remains shows afterwards
            if held.available == 0:
                return True
            amount_msat = held.available
        return await self._refund(key, amount_msat, operation_id)

    async def _has_another(self, key: ApiKey) -> bool:
        keys = await self._keys.of_account(key.account)
        now = self._ledger.clock.now_ns()
        return any(
            one.state is KeyState.ACTIVE and (one.expires_at is None or one.expires_at > now)
            for one in keys
        )

    async def _refund(self, key: ApiKey, amount_msat: int, operation_id: str) -> bool | None:
        method = await self._payments.way_back(key.account, key.refund_method, key.refund_address)
        gives_back_only = self._payments.gives_back_only(method)
        try:
            assets = self._payments.assets_for_msat(method, key.refund_currency) or ("",)
            for asset in assets if gives_back_only else assets[:1]:
                told = await self._payments.refund(
                    key.account,
                    amount_msat,
                    method=method,
                    operation_id=operation_id,
                    destination="" if gives_back_only else key.refund_address,
                    metadata=key.refund_terms,
                    asset=asset,
                )
                if not isinstance(told, Refusal) or told.code not in _NONE_IN_THIS:
                    break
        except RailError as error:
            _log.warning("expiry.refund_delayed", key=key.id, reason=str(error))
            return False
        except (InvalidInput, KeyError) as error:
            # An address that nobody can pay to, or a method that is gone: the owner takes it out.
            _log.warning("expiry.refund_impossible", key=key.id, error=type(error).__name__)
            return True
        if isinstance(told, Pending):
            return False
        if isinstance(told, Refusal) and told.code == _UNRIPE:
            row = await self._ledger.store.get(MATURING, key.account)
            self._ripe_at[key.id] = ripe_at(row.value if row else None)
            return False
        if isinstance(told, Refusal):
            _log.warning("expiry.refund_refused", key=key.id, code=told.code)
            opened = await self._operations.get(operation_id) is not None
            return opened or told.code not in _PASSING
        return None if gives_back_only else True
