"""What a card provider has of the house, held against what the books say of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from farebox.ledger.batch import Staged
from farebox.ledger.model import Kind
from farebox.payments.cards.charging import CHARGE
from farebox.payments.cards.records import GIVING, GivingState
from farebox.payments.deposits import DEPOSIT, DEPOSIT_REQUEST, DepositState
from farebox.payments.model import OPERATION, OperationState
from tests.simulation.callers import Caller
from tests.simulation.card_payers import MSAT_PER_CENT
from tests.simulation.cards import BackState, ModelProvider
from tests.simulation.disk import Disk


class CardChecker:
    """Looks at the books and at the provider together."""

    #: The house bears what was spent of a payment that its payer took back.
    may_lack_cover = True

    def __init__(self, disk: Disk, provider: ModelProvider) -> None:
        self._disk = disk
        self._provider = provider
        self._source = provider.dialect.provider
        self._place = f"{self._source}:main:USD"

    @property
    def too_little_msat(self) -> int:
        """What stays on an account: less than a cent, and what the house lacks at the provider, who
        keeps fees for himself and money that was spent."""
        accounts = self._disk.accounts.values()
        owed = [one.held for one in accounts if one.kind is Kind.RECEIVABLE and one.asset == "BTC"]
        return (3 + self._provider.fees()) * MSAT_PER_CENT + sum(owed)

    def after_commit(self, staged: Staged) -> list[str]:
        """Nothing is credited that was not taken, and no more than that."""
        rows = [self._disk.rows[DEPOSIT.kind][row[1]] for row in staged.records.get(DEPOSIT, ())]
        credited = [
            row.value
            for row in rows
            if row.value.source == self._source and row.value.state is DepositState.CREDITED
        ]
        taken = {one.name for one in self._provider.dialect.taken()} if credited else set()
        return [
            f"{deposit} was credited, the provider has not taken it"
            for deposit in credited
            if deposit.reference not in taken
        ]

    def unfinished(self) -> list[str]:
        """What is not at its end, and what the provider tells and the books have not."""
        found = [
            f"deposit {key} is {row.value.state}"
            for key, row in self._disk.rows[DEPOSIT.kind].items()
            if row.value.state in (DepositState.DETECTED, DepositState.CONFIRMED)
        ]
        dialect, known = self._provider.dialect, self._known()
        found += [
            f"refund {one.name} is pending"
            for one in dialect.given_back()
            if one.state is BackState.PENDING
        ]
        found += [f"dispute {one.name} is open" for one in dialect.disputed() if one.is_open]
        found += [f"{one} is agreed to and not taken" for one in dialect.agreed() if one in known]
        held, there = self._held(), self._provider.balance()
        if held != there:
            found.append(f"the provider owes {there} cents, the books say {held}")
        return found

    def _held(self) -> int:
        custody, payable = (
            self._disk.accounts.get(f"{kind}:{self._place}") for kind in ("custody", "payable")
        )
        return (custody.held if custody else 0) - (payable.available if payable else 0)

    def at_rest(self, callers: Sequence[Caller]) -> list[str]:
        """Each payment is credited once, each refund and each charge is one operation's."""
        return [*self._payments(), *self._charges(), *self._refunds()]

    def _known(self) -> set[str]:
        return {row.value.id for row in self._disk.rows[DEPOSIT_REQUEST.kind].values()}

    def _credited(self) -> Counter[str]:
        """By payments of the provider."""
        credited: Counter[str] = Counter()
        for row in self._disk.rows[DEPOSIT.kind].values():
            if row.value.source == self._source and row.value.state is DepositState.CREDITED:
                credited[row.value.reference] += row.value.amount
        return credited

    def _payments(self) -> list[str]:
        known, credited = self._known(), self._credited()
        return [
            f"{one.amount} was paid as {one.name}, {credited[one.name]} credited"
            for one in self._provider.dialect.taken()
            if one.order in known and credited[one.name] != one.amount
        ]

    def _charges(self) -> list[str]:
        """What was taken of stored cards is what operations of the house say, and once."""
        known, credited = self._known(), self._credited()
        made: dict[str, list[str]] = {}
        for one in self._provider.dialect.taken():
            if one.order not in known:
                made.setdefault(one.order.rpartition("-")[0], []).append(one.name)
                if credited[one.name] != one.amount:
                    return [
                        f"{one.amount} was charged as {one.name}, {credited[one.name]} credited"
                    ]
        booked = {
            key: [row.value.result.decode()]
            for key, row in self._disk.rows[OPERATION.kind].items()
            if row.value.kind == CHARGE and row.value.state is OperationState.SUCCEEDED
        }
        return [
            f"{key} charged {made.get(key)}, {booked.get(key)} in the books"
            for key in dict.fromkeys((*made, *booked))
            if made.get(key) != booked.get(key)
        ]

    def _refunds(self) -> list[str]:
        givings = [row.value for row in self._disk.rows[GIVING.kind].values()]
        booked = {one.operation_id: one.amount for one in givings if one.state is GivingState.DONE}
        made: Counter[str] = Counter()
        for back in self._provider.dialect.given_back():
            if back.key and back.state is not BackState.FAILED:
                made[back.key] += back.amount
        return [
            f"{made[key]} cents were given back for {key}, {booked.get(key, 0)} are booked"
            for key in dict.fromkeys((*made, *booked))
            if made[key] != booked.get(key, 0)
        ]
