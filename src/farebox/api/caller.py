"""Whose account a call is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from farebox.api.context import ApiContext
from farebox.api.http import Incoming
from farebox.api.problems import bad_request, unauthorised
from farebox.errors import InvalidCredential
from farebox.identity import ApiKey, KeyRefused, KeyRefusedReason, token_account
from farebox.payments import PaymentCredentials, Refusal
from farebox.payments.service import Pending, Received
from farebox.paywall.answers import pending, refused, too_many_failures
from farebox.paywall.dialects import CREDENTIAL_MAX_CHARS, refusal, sentence, unreadable
from farebox.paywall.model import Answer, BearerMoney, KeyPresented

_HINT_CHARS = 6
_CREDITED_ELSEWHERE = (
    "The money is on the account it was credited to. If that is the token's own, the token as "
    "bearer opens it."
)
_NO_MONEY = (
    "The call brings no money: name it as `initial_balance_token` to POST /create, and as "
    "`cashu_token` to POST /topup; accepted are: {}."
)


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of an account, by key or by a token that serves as one."""

    account: str
    masked: str
    refund_method: str
    refund_metadata: Mapping[str, str] = field(repr=False)
    key: ApiKey | None = None


async def identify(
    context: ApiContext, incoming: Incoming, *, expired_too: bool = False
) -> Caller | Answer:
    """Resolve the bearer to an account. A token is redeemed the first time it is presented.

    `expired_too`: an expired key can no longer pay, but its owner may see and take the money.
    """
    presented = context.paywall.read(incoming.headers)
    match presented:
        case Answer():
            return presented
        case KeyPresented(secret):
            return await _by_key(context, incoming, secret, expired_too=expired_too)
        case BearerMoney(credential):
            return await _by_token(context, incoming, credential)
        case _:
            return unauthorised("Send Authorization: Bearer with an account key or a token.")


async def parse_credential(context: ApiContext, credential: str) -> PaymentCredentials | Answer:
    """Read a credential with the first method that can; nothing moves."""
    credential = credential.strip()
    methods = context.payments.methods
    if not credential:
        return bad_request("credential_missing", _NO_MONEY.format(", ".join(methods.accepted())))
    fits = 0 < len(credential) <= CREDENTIAL_MAX_CHARS and credential.isascii()
    method = methods.detect(credential) if fits else None
    if method is None:
        return unreadable(methods.accepted())
    try:
        return await method.parse_credential(credential)
    except InvalidCredential as error:
        return refusal("credential_malformed", sentence(str(error)), {})


async def shut_out(context: ApiContext, incoming: Incoming, account: str) -> Answer | None:
    """429 where an address has failed too often; but never for money that has arrived already.

    To be asked before anything is written down for a caller who may have nothing.
    """
    wait_s = context.failures.wait_s(incoming.address)
    if not wait_s:
        return None
    known = await context.ledger.store.account(account)
    return too_many_failures(wait_s) if known is None or known.credits_posted == 0 else None


async def take(
    context: ApiContext, incoming: Incoming, credentials: PaymentCredentials, account: str
) -> Received | Pending | Answer:
    """Receive a credential's money onto an account, or answer why not.

    A worthless credential costs us a call outside, so an address may present only so many.
    """
    wait_s = context.failures.wait_s(incoming.address)
    if wait_s:
        return too_many_failures(wait_s)
    received = await context.payments.receive(credentials, account)
    if not isinstance(received, Refusal):
        return received
    money = _CREDITED_ELSEWHERE if received.code == "already_credited" else ""
    answer = refused(received, money)
    if answer.status < 500:  # what is our fault or the mint's is not held against the caller
        context.failures.failed(incoming.address)
    return answer


async def _by_key(
    context: ApiContext, incoming: Incoming, secret: str, *, expired_too: bool
) -> Caller | Answer:
    key = await context.keys.authenticate(secret)
    if isinstance(key, KeyRefused):
        if key.reason is KeyRefusedReason.EXPIRED and key.key is not None and expired_too:
            return await _owner(context, key.key)
        if key.reason is KeyRefusedReason.UNKNOWN:
            # Known keys are never shut out: behind a shared proxy all callers have one address.
            wait_s = context.failures.wait_s(incoming.address)
            if wait_s:
                return too_many_failures(wait_s)
            context.failures.failed(incoming.address)
        return refusal(f"key_{key.reason.value}", key.message, {})
    return await _owner(context, key)


async def _owner(context: ApiContext, key: ApiKey) -> Caller:
    method = key.refund_method
    if method not in context.payments.methods:
        method = await context.payments.way_back(key.account)
    return Caller(key.account, key.masked, method, key.refund_terms, key)


async def _by_token(context: ApiContext, incoming: Incoming, credential: str) -> Caller | Answer:
    credentials = await parse_credential(context, credential)
    if isinstance(credentials, Answer):
        return credentials
    account = token_account(credentials.identity_or_hash)
    known = await context.ledger.store.account(account)
    if known is None or known.credits_posted == 0:
        received = await take(context, incoming, credentials, account)
        if isinstance(received, Answer):
            return received
        if isinstance(received, Pending):
            return pending(received)
    method = context.payments.methods[credentials.payment_type]
    return Caller(
        account,
        f"{credential.strip()[:_HINT_CHARS]}…",
        credentials.payment_type,
        method.get_refund_metadata(credentials),
    )
