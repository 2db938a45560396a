"""What an operator can ask of a book: one type for each command, as it goes through the door.

How it is done is in `desk`, which takes the whole house; who only asks a running server needs this.
"""

from __future__ import annotations

from typing import Any

import msgspec

from farebox.ids import new_id
from farebox.money import BTC
from farebox.payments.capital import Flow

#: What came of a request, as it is shown: amounts in msat, times as RFC 3339.
Facts = dict[str, Any]


class Balance(msgspec.Struct, frozen=True, tag="balance"):
    """What the book holds, owes and has earned."""


class CreateKey(msgspec.Struct, frozen=True, tag="keys create"):
    """Make an account key. `lives_ns` is how long it lives, 0 for ever."""

    label: str = ""
    lives_ns: int = 0
    refund_address: str = ""


class ListKeys(msgspec.Struct, frozen=True, tag="keys list"):
    """A page of keys behind a cursor."""

    after: str = ""
    limit: int = 100


class ShowKey(msgspec.Struct, frozen=True, tag="keys show"):
    """One key with its account."""

    id: str


class RevokeKey(msgspec.Struct, frozen=True, tag="keys revoke"):
    """End a key for good."""

    id: str


class Withdraw(msgspec.Struct, frozen=True, tag="withdraw"):
    """Take earnings out, once for one `id`: as a token, or to a Lightning address or invoice.

    `amount_msat` None takes all there is; `mint` says whose money, "" leaves it to the rail.
    `method` is the way to pay whose money it is, `asset` what leaves where that has several.
    `again` only goes on with what was begun.
    """

    id: str
    amount_msat: int | None = None
    destination: str = ""
    mint: str = ""
    method: str = "cashu"
    asset: str = ""
    again: bool = False


class ListWithdrawals(msgspec.Struct, frozen=True, tag="withdraw list"):
    """A page of withdrawals behind a cursor, oldest first."""

    after: str = ""
    limit: int = 100


class MoveCapital(msgspec.Struct, frozen=True, tag="capital"):
    """Note capital that was put in at a way to pay, or is taken out there, once for one `id`.

    `amount` is as people write it: "100 sat", or a decimal of the asset's everyday unit.
    """

    id: str
    flow: Flow
    amount: str
    method: str
    asset: str = BTC.code


class Recover(msgspec.Struct, frozen=True, tag="recover"):
    """Carry on what was left unfinished, now."""


class Reopen(msgspec.Struct, frozen=True, tag="recover reopen"):
    """Let a manual operation be asked about again."""

    id: str


class Resolve(msgspec.Struct, frozen=True, tag="recover resolve"):
    """Close a manual operation by what a person found out.

    `amount_msat` left for good, fees included; None says that it never happened.
    """

    id: str
    amount_msat: int | None = None


class Examine(msgspec.Struct, frozen=True, tag="doctor"):
    """Look at everything a server depends on, with the settings it runs by."""


class Reconcile(msgspec.Struct, frozen=True, tag="reconcile"):
    """Hold a book against what mints and rails say, and open a closed one. `claim` takes over what
    was found at the mints, also of an open book."""

    claim: bool = False


class GiveFound(msgspec.Struct, frozen=True, tag="reconcile give"):
    """Put a part of what was found after a restore on the account of a key, once for one `id`."""

    id: str
    key: str
    amount_msat: int


class Unsigned(msgspec.Struct, frozen=True, tag="psbt list"):
    """What waits for a signature of the operator's own."""


class Sign(msgspec.Struct, frozen=True, tag="psbt import"):
    """Take a signed PSBT (base64) back, and send what it pays."""

    id: str
    psbt: str


Request = (
    Balance
    | CreateKey
    | ListKeys
    | ShowKey
    | RevokeKey
    | Withdraw
    | ListWithdrawals
    | MoveCapital
    | Recover
    | Reopen
    | Resolve
    | Examine
    | Reconcile
    | GiveFound
    | Unsigned
    | Sign
)


def new_withdrawal() -> str:
    """The name of a withdrawal: presenting it again finds the same one."""
    return new_id("wd")
