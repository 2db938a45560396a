"""Create and top up by a deposit: public credentials, such as an invoice that was issued here.

Nothing is taken here; the deposit was credited, or is now, to whom it was addressed.
"""

from __future__ import annotations

import msgspec

from farebox.api.context import ApiContext
from farebox.api.http import Incoming, document
from farebox.api.once import Told, once, once_named, settled
from farebox.api.problems import conflict, keys_exhausted
from farebox.identity import KeysExhausted, KeyTerms
from farebox.money import BTC
from farebox.payments import PaymentCredentials, Refusal
from farebox.payments.rail import DepositMethod
from farebox.payments.requests import Claimed
from farebox.paywall.answers import refused, too_many_failures
from farebox.paywall.model import Answer

_CREATE = "create"


def is_public(context: ApiContext, credentials: PaymentCredentials) -> bool:
    """Whether a credential is one that anybody can know: it names a deposit and signs nothing."""
    is_rail = isinstance(context.payments.methods[credentials.payment_type], DepositMethod)
    return is_rail and "reference" in credentials.metadata


async def create(
    context: ApiContext,
    incoming: Incoming,
    credentials: PaymentCredentials,
    terms: KeyTerms,
    claim_secret: str,
) -> Answer:
    """Make the one key to a deposit's own account, for who holds its claim secret."""
    if not claim_secret:
        return refused(_SECRET_WANTED)
    claimed = await _claim(context, incoming, credentials, "", claim_secret)
    if isinstance(claimed, Answer):
        return claimed
    if not claimed.opens_account:
        return refused(_ANOTHERS)
    if not terms.refund_currency and claimed.asset != BTC.code:  # back in what it was paid in
        terms = msgspec.structs.replace(terms, refund_currency=claimed.asset)
    scope = f"{_CREATE}:{credentials.identity_or_hash}"

    async def one_key(operation_id: str) -> Told:
        for key in await context.keys.of_account(claimed.account):
            if key.origin != operation_id:
                return Told(_has_a_key(), final=False)
            # Made by this very call before it was cut off: nobody has ever seen its secret.
            await context.keys.revoke(key.id)
        new = await context.keys.create(claimed.account, terms, origin=operation_id)
        if isinstance(new, KeysExhausted):
            return Told(keys_exhausted(), final=False)
        held = await context.ledger.store.account(claimed.account)
        balance_msat = held.available if held else 0
        return Told(document({"api_key": new.secret, "balance": balance_msat}), final=True)

    async def act(_: str) -> Told:
        return settled(await once_named(context, scope, _CREATE, _CREATE.encode(), one_key))

    return await once(context, incoming, f"{scope}:named", act)


async def topup(
    context: ApiContext,
    incoming: Incoming,
    credentials: PaymentCredentials,
    account: str,
    claim_secret: str,
) -> Answer:
    """Tell the caller what its deposit has added; the same again is told the same."""
    claimed = await _claim(context, incoming, credentials, account, claim_secret)
    if isinstance(claimed, Answer):
        return claimed
    return document({"msats": claimed.amount_msat})


async def _claim(
    context: ApiContext,
    incoming: Incoming,
    credentials: PaymentCredentials,
    account: str,
    claim_secret: str,
) -> Claimed | Answer:
    wait_s = context.failures.wait_s(incoming.address)
    if wait_s:
        return too_many_failures(wait_s)
    claimed = await context.deposits.claim(
        credentials.payment_type,
        str(credentials.metadata["reference"]),
        account=account,
        secret=claim_secret,
    )
    if isinstance(claimed, Claimed):
        return claimed
    if claimed.code != "deposit_unpaid":
        context.failures.failed(incoming.address)
    return refused(claimed)


def _has_a_key() -> Answer:
    return conflict(
        "key_exists",
        "This deposit has made a key already.",
        "The money is on the account of that key.",
    )


_SECRET_WANTED = Refusal(
    "claim_secret_required",
    "an invoice is no secret: send the claim_secret that POST /v1/deposits gave with it",
)
_ANOTHERS = Refusal(
    "not_addressed_to_you", "this deposit was asked for by an account that has its keys already"
)
