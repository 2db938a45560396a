"""The error codes of the NUTs, and which of them settle a call.

A mint's error says that *this* call was refused. Whether an earlier one, whose answer was lost,
was carried out is another question, so a refusal settles a call only if it could not be the echo
of our own success. Codes are not reliable beyond that: mints in use answer 11000 for a melt that
is already paid, 11003 for a secret that is too long, 0 for a database that failed half-way, and
numbered some errors differently before 2026. Whatever is not on the list below is asked about.
"""

from __future__ import annotations

import enum
from typing import assert_never


class Call(enum.Enum):
    """The calls of a mint that move value."""

    SWAP = "swap"
    MINT = "mint"
    MELT = "melt"


class Verdict(enum.Enum):
    """What a refusal means for the operation behind the call."""

    DEFINITE = "definite"  # not carried out, and the same call never will be
    ASK = "ask"  # may be the echo of an earlier attempt, or passing: ask the mint


class NutError(enum.IntEnum):
    """The error codes of the NUTs that concern swap, mint and melt."""

    PROOFS_INVALID = 10001
    PROOFS_SPENT = 11001
    PROOFS_PENDING = 11002
    OUTPUTS_SIGNED = 11003
    OUTPUTS_PENDING = 11004
    UNBALANCED = 11005
    AMOUNT_OUTSIDE_LIMITS = 11006
    INPUTS_DUPLICATE = 11007
    OUTPUTS_DUPLICATE = 11008
    UNITS_SEVERAL = 11009
    UNITS_DIFFER = 11010
    INVOICE_AMOUNTLESS = 11011
    INVOICE_AMOUNT_DIFFERS = 11012
    UNIT_UNSUPPORTED = 11013
    INPUTS_TOO_MANY = 11014
    OUTPUTS_TOO_MANY = 11015
    KEYSET_UNKNOWN = 12001
    KEYSET_INACTIVE = 12002
    KEYSET_EXPIRED = 12003
    QUOTE_UNPAID = 20001
    QUOTE_ISSUED = 20002
    MINTING_DISABLED = 20003
    PAYMENT_FAILED = 20004
    QUOTE_PENDING = 20005
    INVOICE_PAID = 20006
    QUOTE_EXPIRED = 20007
    QUOTE_SIGNATURE_INVALID = 20008
    QUOTE_KEY_REQUIRED = 20009
    CLEAR_AUTH_REQUIRED = 30001
    CLEAR_AUTH_FAILED = 30002
    BLIND_AUTH_REQUIRED = 31001
    BLIND_AUTH_FAILED = 31002


def verdict(call: Call, code: int | None) -> Verdict:
    """Whether a refusal with `code` settles a first attempt at `call`."""
    try:
        error = NutError(code or 0)
    except ValueError:
        return Verdict.ASK
    match error:
        case (
            NutError.PROOFS_SPENT
            | NutError.PROOFS_PENDING
            | NutError.OUTPUTS_SIGNED
            | NutError.OUTPUTS_PENDING
            | NutError.QUOTE_UNPAID
            | NutError.QUOTE_ISSUED
            | NutError.QUOTE_PENDING
            | NutError.INVOICE_PAID
            | NutError.PAYMENT_FAILED
        ):
            return Verdict.ASK
        case (
            NutError.PROOFS_INVALID
            | NutError.UNBALANCED
            | NutError.AMOUNT_OUTSIDE_LIMITS
            | NutError.INPUTS_DUPLICATE
            | NutError.OUTPUTS_DUPLICATE
            | NutError.UNITS_SEVERAL
            | NutError.UNITS_DIFFER
            | NutError.INVOICE_AMOUNTLESS
            | NutError.INVOICE_AMOUNT_DIFFERS
            | NutError.UNIT_UNSUPPORTED
            | NutError.INPUTS_TOO_MANY
            | NutError.OUTPUTS_TOO_MANY
            | NutError.KEYSET_UNKNOWN
            | NutError.KEYSET_INACTIVE
            | NutError.KEYSET_EXPIRED
            | NutError.CLEAR_AUTH_REQUIRED
            | NutError.CLEAR_AUTH_FAILED
            | NutError.BLIND_AUTH_REQUIRED
            | NutError.BLIND_AUTH_FAILED
        ):
            return Verdict.DEFINITE
        case (
            NutError.MINTING_DISABLED
            | NutError.QUOTE_EXPIRED
            | NutError.QUOTE_SIGNATURE_INVALID
            | NutError.QUOTE_KEY_REQUIRED
        ):
            # A swap has no quote: a mint that answers so has not understood the call.
            return Verdict.ASK if call is Call.SWAP else Verdict.DEFINITE
    assert_never(error)
