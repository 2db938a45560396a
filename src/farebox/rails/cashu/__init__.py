"""Cashu: eCash tokens of several mints in, change and refunds out.

Promises: what must be stored before a call to a mint is stored; one call on the way of a payment
and none for its change; an answer of a mint is either what the specification says it is, or
RailUnavailable; a mint that is down fails fast and harms no other; nothing of a token reaches an
error or a log.
Never: a second attempt at a call that moves value before the mint was asked; a posting of its own
outside an operation's commits; a secret of a proof in the store.
"""

from farebox.rails.cashu.config import CashuConfig, MintTerms
from farebox.rails.cashu.http_mint import HttpMint, MintLimits, open_session
from farebox.rails.cashu.method import CashuMethod
from farebox.rails.cashu.reconcile import Reconciled, Reconciling
from farebox.rails.cashu.records import RECORDS
from farebox.rails.cashu.sweep import Sweep
from farebox.rails.cashu.upkeep import Upkeep

__all__ = [
    "RECORDS",
    "CashuConfig",
    "CashuMethod",
    "HttpMint",
    "MintLimits",
    "MintTerms",
    "Reconciled",
    "Reconciling",
    "Sweep",
    "Upkeep",
    "open_session",
]
