"""A mint of play money: the NUTs a wallet needs, over HTTP, with faults on demand.

Promises: balances like a real mint, so that `audit` proves that nothing was lost or made on the
way; refuses what a real mint refuses; fails at exactly the call and the step it is told to.
Never: real money; rate limits, login, spending conditions (NUT-10 and later).
"""

from farebox.testing.mint.app import PlayMint
from farebox.testing.mint.bank import Audit
from farebox.testing.mint.faults import (
    CALLS,
    AnswersLate,
    DropAfter,
    DropBefore,
    ExecutesLate,
    Fail,
    Fault,
    Faults,
    Garbage,
    Refuse,
    StaysPending,
)
from farebox.testing.mint.lightning import PlayLightning

__all__ = [
    "CALLS",
    "AnswersLate",
    "Audit",
    "DropAfter",
    "DropBefore",
    "ExecutesLate",
    "Fail",
    "Fault",
    "Faults",
    "Garbage",
    "PlayLightning",
    "PlayMint",
    "Refuse",
    "StaysPending",
]
