"""The payment gateway: every provider of card money behind one interface.

It hears what the providers tell, keeps payers' stored methods, and charges them. Of a stored method
it knows a provider's token and what may be shown of it, never a card's number.

| boundary                      | what can fail | recovery                                      |
|-------------------------------|---------------|-----------------------------------------------|
| kept at the provider → here   | we stop       | added again: the same there, the same here    |
| dropped at the provider → here| we stop       | removed again: none there is no error         |
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from farebox.clock import NS_PER_S
from farebox.ids import derived_id
from farebox.ledger.model import Applied, Put, Unit
from farebox.ledger.service import Ledger, RowName, State
from farebox.payments.cards.charging import CHARGE, Candidate, ChargePlan, Charging
from farebox.payments.cards.method import CardMethod
from farebox.payments.cards.model import Declined, Forged, RequiresAction
from farebox.payments.cards.records import (
    CHOSEN_METHOD,
    STORED_METHOD,
    ChosenMethod,
    StoredMethod,
)
from farebox.payments.cards.routing import Successes, route
from farebox.payments.exchange import Exchange
from farebox.payments.method import Refusal, no_rate
from farebox.payments.model import Operation
from farebox.payments.operations import Operations
from farebox.payments.requests import DepositRequests
from farebox.signer import Signer

#: Notices that are remembered as heard. One that is forgotten costs a call, and changes nothing.
_HEARD_MAX = 4_096
_STORED_MAX = 16
#: How long a payer has to prove that it is them.
_ACT_S = 3_600


@dataclass(frozen=True, slots=True)
class Charged:
    """How a charge stands, and what its payer has to do, if anything."""

    operation: Operation
    action: RequiresAction | None = None


class PaymentGateway:
    """The providers at hand, by name."""

    def __init__(
        self,
        rails: Mapping[str, CardMethod],
        requests: DepositRequests,
        ledger: Ledger,
        operations: Operations,
        signer: Signer,
        exchange: Exchange,
    ) -> None:
        self.rails = rails
        self._requests = requests
        self._ledger = ledger
        self._operations = operations
        self._signer = signer
        self._exchange = exchange
        self._heard: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._successes = Successes()
        self._charging = Charging(rails, ledger, signer, self._successes)
        operations.register(CHARGE, self._charging)

    # ── hearing ──────────────────────────────────────────────────────────────────────────────────

    async def hear(self, provider: str, headers: Mapping[str, str], body: bytes) -> Forged | None:
        """Take a webhook: None once everything that follows from it is in the books.

        Raises RailUnavailable, StoreError: the provider shall send it again.
        """
        rail = self.rails.get(provider)
        if rail is None:
            return Forged("no such provider is used here")
        notice = await rail.hear(headers, body)
        if notice is None or isinstance(notice, Forged):
            return notice
        name = (provider, notice.id)
        if name in self._heard:
            return None
        for reference in notice.references:
            async for sighting in rail.about(reference):
                await self._requests.seen(provider, sighting)
        self._heard[name] = None
        if len(self._heard) > _HEARD_MAX:
            self._heard.popitem(last=False)
        return None

    # ── stored methods ───────────────────────────────────────────────────────────────────────────

    async def stored(self, account: str) -> list[StoredMethod]:
        """An account's methods, the default first, then the oldest."""
        chosen = await self._ledger.store.get(CHOSEN_METHOD, account)
        found = await self._ledger.store.find(STORED_METHOD, {"account": account})
        kept = [row.value for _, row in found if not row.value.removed_at]
        wanted = chosen.value.method if chosen else ""
        kept.sort(key=lambda one: (one.id != wanted, one.created_at, one.id))
        return [msgspec.structs.replace(one, is_default=one is kept[0]) for one in kept]

    async def add(self, account: str, provider: str, token: str) -> StoredMethod | Refusal:
        """Keep what a payer's browser gave the provider. The first is the default.

        Raises RailUnavailable, RailRejected.
        """
        rail = self.rails.get(provider)
        if rail is None:
            known = ", ".join(self.rails) or "none here"
            return Refusal("method_unknown", f"payment methods are kept at: {known}")
        kept = await self.stored(account)
        if len(kept) >= _STORED_MAX:
            return Refusal("methods_exhausted", f"an account keeps at most {_STORED_MAX} of them")
        told = await rail.connector.store(token, derived_id("payer", account))
        if isinstance(told, Declined):
            return Refusal(told.code, told.message)
        key = derived_id("pm", account, provider, told.token)

        def decide(state: State, now_ns: int) -> Unit | StoredMethod:
            known = state.value(STORED_METHOD, key)
            if known is not None and not known.removed_at:
                return known
            made = StoredMethod(
                id=key,
                account=account,
                provider=provider,
                token=told.token,
                customer=told.customer,
                label=told.label,
                expires=told.expires,
                created_at=now_ns,
            )
            version = state.version(STORED_METHOD, key)
            return Unit(f"{key}:add:{version}", puts=(Put(STORED_METHOD, key, made, version),))

        await self._ledger.transact([(STORED_METHOD, key)], decide)
        return await self._stored_one(account, key) or _GONE

    async def make_default(self, account: str, method_id: str) -> StoredMethod | None:
        """Charge this one first from now on; None: the account has none of that name."""
        if await self._stored_one(account, method_id) is None:
            return None

        def decide(state: State, _: int) -> Unit | None:
            if state.value(CHOSEN_METHOD, account) == ChosenMethod(method_id):
                return None
            version = state.version(CHOSEN_METHOD, account)
            put = Put(CHOSEN_METHOD, account, ChosenMethod(method_id), version)
            return Unit(derived_id("default", account, method_id, str(version)), puts=(put,))

        await self._ledger.transact([(CHOSEN_METHOD, account)], decide)
        return await self._stored_one(account, method_id)

    async def remove(self, account: str, method_id: str) -> bool:
        """Drop one, here and at its provider; False: the account has none of that name.

        The oldest of the others is the default after one that was. Raises RailUnavailable.
        """
        found = await self._stored_one(account, method_id)
        if found is None:
            return False
        rail = self.rails.get(found.provider)
        if rail is not None:
            await rail.connector.forget(found.token)
        rows: list[RowName] = [(STORED_METHOD, method_id), (CHOSEN_METHOD, account)]

        def decide(state: State, now_ns: int) -> Unit | None:
            row = state.row(STORED_METHOD, method_id)
            if row is None or row.value.removed_at:
                return None
            gone = msgspec.structs.replace(row.value, removed_at=now_ns)
            puts = [Put(STORED_METHOD, method_id, gone, row.version)]
            chosen = state.row(CHOSEN_METHOD, account)
            if chosen is not None and chosen.value.method == method_id:
                puts.append(Put(CHOSEN_METHOD, account, ChosenMethod(""), chosen.version))
            return Unit(f"{method_id}:remove:{row.version}", puts=tuple(puts))

        await self._ledger.transact(rows, decide)
        return True

    async def _stored_one(self, account: str, method_id: str) -> StoredMethod | None:
        return next((one for one in await self.stored(account) if one.id == method_id), None)

    # ── charging them ────────────────────────────────────────────────────────────────────────────

    async def charge(
        self, account: str, asset: str, amount: int, operation_id: str, *, method_id: str = ""
    ) -> Charged | Refusal:
        """Have `amount` of a currency come to an account, at most once for one `operation_id`.

        By the stored method that is named and no other; else by the default, and by the next where
        a definite answer leaves that to be tried.
        """
        is_fresh = False
        if await self._operations.get(operation_id) is None:
            plan = await self._plan(account, asset, amount, method_id)
            if isinstance(plan, Refusal):
                return plan
            sealed = self._signer.seal(msgspec.json.encode(plan), operation_id)
            opened = Operation(id=operation_id, kind=CHARGE, account=account, hold="", plan=sealed)
            is_fresh = isinstance(await self._operations.open(opened), Applied)
        done = await self._operations.advance(operation_id, fresh=is_fresh)
        if done.account != account or done.kind != CHARGE:
            return Refusal("operation_taken", "this name belongs to another payment")
        return Charged(done, self._charging.actions.get(operation_id))

    async def _plan(
        self, account: str, asset: str, amount: int, method_id: str
    ) -> ChargePlan | Refusal:
        kept = await self.stored(account)
        if method_id:
            kept = [one for one in kept if one.id == method_id]
        chosen = route(kept, self.rails, self._successes, asset, amount)
        if not chosen:
            return Refusal(
                "method_unknown", f"no stored method of this account takes so much {asset}"
            )
        quoted = self._exchange.quote(asset)
        if quoted is None:
            return no_rate(asset)
        return ChargePlan(
            asset=asset,
            amount=amount,
            fees=tuple(self.rails[one.provider].card_terms.fee(amount) for one in chosen),
            quoted=quoted,
            candidates=tuple(Candidate(one.provider, one.token, one.customer) for one in chosen),
            act_until=self._ledger.clock.now_ns() + _ACT_S * NS_PER_S,
        )


_GONE = Refusal("method_unknown", "it was removed as it was added")
