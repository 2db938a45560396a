"""What is kept of card money beside the books: never a card's number, only a provider's tokens."""

from __future__ import annotations

import enum

import msgspec

from farebox.ledger.records import RecordType


class CardMoney(msgspec.Struct, frozen=True, kw_only=True):
    """What has been booked of one payment. Its key is that of its deposit.

    In the currency's smallest unit: `extra` is what was charged beyond what was credited, `fees`
    what the provider kept, `taken` what went back or was disputed without our asking.
    """

    extra: int = 0
    fees: int = 0
    taken: int = 0


CARD_MONEY = RecordType("card_money", CardMoney)


class GivingState(enum.StrEnum):
    """How far a refund has come."""

    OPEN = "open"
    DONE = "done"
    FAILED = "failed"
    UNDONE = "undone"  # it was done, and the money came back to us


class Giving(msgspec.Struct, frozen=True):
    """One refund of a payment by us. Its key is the deposit's and the refund's number there."""

    payment: str
    operation_id: str
    amount: int
    state: GivingState = GivingState.OPEN


GIVING = RecordType("card_refund", Giving, indexes=(("payment",), ("operation_id",)))


class StoredMethod(msgspec.Struct, frozen=True, kw_only=True):
    """A payer's card or account at a provider, by the provider's names for it.

    `is_default` is told where it is read; what is chosen stands in a row of the account's.
    """

    id: str
    account: str
    provider: str
    token: str
    customer: str
    label: str
    expires: str = ""
    is_default: bool = False
    created_at: int = 0
    removed_at: int = 0

    def __repr__(self) -> str:
        return f"StoredMethod({self.id}, {self.provider}, {self.label})"


STORED_METHOD = RecordType("stored_method", StoredMethod, indexes=(("account",),))


class ChosenMethod(msgspec.Struct, frozen=True):
    """Which of an account's methods its payer wants charged first; its key is the account.

    Where that is none that is kept, the oldest is the default.
    """

    method: str


CHOSEN_METHOD = RecordType("chosen_method", ChosenMethod)


class ChargeProgress(msgspec.Struct, frozen=True):
    """Which of its candidates a charge is at; those before have definitely declined.

    `reference` is the provider's name for what is under way with this one, once it has told it.
    """

    at: int
    reference: str = ""


CHARGE_PROGRESS = RecordType("card_charge", ChargeProgress)

RECORDS = (CARD_MONEY, GIVING, STORED_METHOD, CHOSEN_METHOD, CHARGE_PROGRESS)
