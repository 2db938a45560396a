"""Who is asking: account keys, limits on guessing them, and one answer per idempotency key.

Promises: a key's secret is shown once and stored as a hash; the same idempotency key never acts
twice. Never: money moved here, a secret in a repr, a log or an error.
"""

from farebox.identity.idempotency import (
    IDEMPOTENT,
    Idempotency,
    InProgress,
    KeyReused,
    Recorded,
    Ticket,
)
from farebox.identity.keys import (
    API_KEY,
    CUSTOMER_PREFIX,
    KEY_COUNT,
    TEXT_MAX_CHARS,
    ApiKey,
    KeyRefused,
    KeyRefusedReason,
    Keys,
    KeysExhausted,
    KeyState,
    KeyTerms,
    NewKey,
    new_account,
    token_account,
)
from farebox.identity.limits import FailureLimit

#: The rows this room keeps, for whoever opens the store.
RECORDS = (API_KEY, KEY_COUNT, IDEMPOTENT)

__all__ = [
    "API_KEY",
    "CUSTOMER_PREFIX",
    "IDEMPOTENT",
    "KEY_COUNT",
    "RECORDS",
    "TEXT_MAX_CHARS",
    "ApiKey",
    "FailureLimit",
    "Idempotency",
    "InProgress",
    "KeyRefused",
    "KeyRefusedReason",
    "KeyReused",
    "KeyState",
    "KeyTerms",
    "Keys",
    "KeysExhausted",
    "NewKey",
    "Recorded",
    "Ticket",
    "new_account",
    "token_account",
]
