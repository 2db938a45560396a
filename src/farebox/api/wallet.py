"""Create, top up, refund: the calls that move money."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from farebox.api import claims
from farebox.api.caller import Caller, identify, parse_credential, shut_out, take
from farebox.api.context import ApiContext
from farebox.api.http import Incoming, document, read_json
from farebox.api.once import Told, once, once_named, settled
from farebox.api.problems import bad_request, conflict, keys_exhausted
from farebox.clock import NS_PER_S
from farebox.identity import TEXT_MAX_CHARS, KeysExhausted, KeyTerms, token_account
from farebox.money import BTC
from farebox.payments import PaymentCredentials, Refusal
from farebox.payments.service import Pending, Refunded
from farebox.paywall.answers import refused
from farebox.paywall.model import Answer

#: A token names its own creation: whatever else is asked for with it, it makes one key.
_CREATE = "create"
#: In 2255; as nanoseconds it fits the 64 bits of a column.
_EXPIRY_MAX_S = 9 * 10**9
#: Other calls may spend between reading a balance and refunding all of it.
_REFUND_ALL_TRIES = 4


class CreateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a new key is made of. `key_expiry_time` is Unix seconds."""

    initial_balance_token: str = ""
    cashu_token: str = ""
    claim_secret: str = ""
    label: str = ""
    refund_address: str | None = None
    refund_currency: str | None = None
    refund_mint_url: str | None = None
    key_expiry_time: int | None = None


class TopUpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The money to add, and for a public credential the secret that its deposit came with."""

    cashu_token: str = ""
    claim_secret: str = ""


class RefundBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much to give back (None: all) and where to; one name for the address is enough.

    Unknown members are refused: a misspelt amount must not empty the account.
    """

    amount_msat: int | None = None
    destination: str = ""
    refund_address: str = ""
    lightning_address: str = ""


# ── create ───────────────────────────────────────────────────────────────────────────────────────


async def create(context: ApiContext, incoming: Incoming) -> Answer:
    """Redeem a token and make a key to its account.

    One token makes one key: asked again within a day, with or without an Idempotency-Key, it gets
    the first answer. The token stays a key to the account as well, so nothing is lost with a lost
    answer.
    """
    asked = _create_request(incoming)
    if isinstance(asked, Answer):
        return asked
    credentials = await parse_credential(context, asked.initial_balance_token or asked.cashu_token)
    if isinstance(credentials, Answer):
        return credentials
    terms = _terms(context, asked, credentials)
    if isinstance(terms, Answer):
        return terms

    if claims.is_public(context, credentials):
        return await claims.create(context, incoming, credentials, terms, asked.claim_secret)
    identity = credentials.identity_or_hash
    refused_early = await shut_out(context, incoming, token_account(identity))
    if refused_early is not None:
        return refused_early
    scope = f"{_CREATE}:{identity}"

    async def one_key(operation_id: str) -> Told:
        return await _create(context, incoming, credentials, terms, operation_id)

    async def act(_: str) -> Told:
        return settled(await once_named(context, scope, _CREATE, _CREATE.encode(), one_key))

    return await once(context, incoming, f"{scope}:named", act)


async def _create(
    context: ApiContext,
    incoming: Incoming,
    credentials: PaymentCredentials,
    terms: KeyTerms,
    operation_id: str,
) -> Told:
    account = token_account(credentials.identity_or_hash)
    for key in await context.keys.of_account(account):
        if key.origin != operation_id:
            return Told(_has_a_key(), final=False)
        # Made by this very call before it was cut off: nobody has ever seen its secret.
        await context.keys.revoke(key.id)
    if not await context.keys.has_room():
        return Told(keys_exhausted(), final=False)
    received = await take(context, incoming, credentials, account)
    if isinstance(received, Answer):
        return Told(received, final=False)
    new = await context.keys.create(account, terms, origin=operation_id)
    if isinstance(new, KeysExhausted):
        return Told(keys_exhausted(), final=False)
    held = await context.ledger.store.account(account)
    balance_msat = 0 if held is None else held.available
    body = {"api_key": new.secret, "balance": balance_msat}
    if isinstance(received, Pending):
        # The key is theirs whatever becomes of the token: the money will be found on its account.
        late = {"state": "pending", "operation": received.operation_id}
        return Told(document(body | late, 202), final=True)
    return Told(document(body), final=True)


def _create_request(incoming: Incoming) -> CreateRequest | Answer:
    if incoming.method == "POST":
        return read_json(incoming, CreateRequest)
    try:
        return msgspec.convert(incoming.query, CreateRequest, strict=False)
    except msgspec.ValidationError as error:
        return bad_request("query_invalid", f"The query is not as documented: {error}.")


def _terms(
    context: ApiContext, asked: CreateRequest, credentials: PaymentCredentials
) -> KeyTerms | Answer:
    now = context.ledger.clock.now_ns()
    expires_at = now + context.key_expiry_s * NS_PER_S if context.key_expiry_s else None
    if asked.key_expiry_time is not None:
        expires_at = asked.key_expiry_time * NS_PER_S
        if asked.key_expiry_time > _EXPIRY_MAX_S or expires_at <= now:
            return bad_request("expiry_invalid", "key_expiry_time is not a time to come.")
    method = context.payments.methods[credentials.payment_type]
    remembered = dict(method.get_refund_metadata(credentials))
    terms = KeyTerms(
        label=asked.label,
        expires_at=expires_at,
        refund_address=asked.refund_address or "",
        refund_currency=asked.refund_currency or remembered.get("refund_currency", ""),
        refund_mint_url=asked.refund_mint_url or remembered.get("refund_mint_url", ""),
        refund_method=credentials.payment_type,
        refund_metadata=remembered,
    )
    if not terms.is_printable:
        return bad_request("text_invalid", "A label or address is too long or not printable.")
    if context.payments.gives_back_only(terms.refund_method):
        return terms
    nowhere = context.payments.no_way_to(terms.refund_address)
    return terms if nowhere is None else refused(nowhere)


def _has_a_key() -> Answer:
    return conflict(
        "key_exists",
        "This token has made a key already. The token itself opens the same account: send it as "
        "Authorization: Bearer.",
        "The money is on the token's account.",
    )


# ── top up ───────────────────────────────────────────────────────────────────────────────────────


async def topup(context: ApiContext, incoming: Incoming) -> Answer:
    """Add a token's money to the caller's account. The same token again gets the same answer."""
    caller = await identify(context, incoming)
    if isinstance(caller, Answer):
        return caller
    asked = read_json(incoming, TopUpRequest)
    if isinstance(asked, Answer):
        return asked
    credentials = await parse_credential(
        context, asked.cashu_token or incoming.query.get("cashu_token", "")
    )
    if isinstance(credentials, Answer):
        return credentials
    if claims.is_public(context, credentials):
        secret = asked.claim_secret
        return await claims.topup(context, incoming, credentials, caller.account, secret)

    async def act(_: str) -> Told:
        received = await take(context, incoming, credentials, caller.account)
        if isinstance(received, Answer):
            return settled(received)
        if isinstance(received, Pending):
            return settled(_pending(received))
        return settled(document({"msats": received.amount_msat}))

    return await once(context, incoming, caller.account, act)


def _pending(waiting: Pending) -> Answer:
    body = {"state": "pending", "operation": waiting.operation_id}
    return document(body, 202, ((b"retry-after", b"2"),))


# ── refund ───────────────────────────────────────────────────────────────────────────────────────


async def refund(context: ApiContext, incoming: Incoming) -> Answer:
    """Give back all or a part: to an address, or as new money of the kind that was paid in."""
    caller = await identify(context, incoming, expired_too=True)
    if isinstance(caller, Answer):
        return caller
    asked = read_json(incoming, RefundBody)
    if isinstance(asked, Answer):
        return asked
    if asked.amount_msat is not None and not 0 < asked.amount_msat < 2**63:
        return bad_request("amount_invalid", "amount_msat is a positive whole number of msat.")
    named = {asked.destination, asked.refund_address, asked.lightning_address} - {""}
    if len(named) > 1 or any(len(address) > TEXT_MAX_CHARS for address in named):
        return bad_request("destination_invalid", "Name one address, at most 2048 characters.")
    needs_none = context.payments.gives_back_only(caller.refund_method)
    fallback = caller.key.refund_address if caller.key and not needs_none else ""
    destination = next(iter(named), fallback)
    if destination:  # which may be none of the way that the money came
        way = await context.payments.way_back(caller.account, caller.refund_method, destination)
        caller = replace(caller, refund_method=way)

    async def act(operation_id: str) -> Told:
        return await _refund(context, caller, asked.amount_msat, destination, operation_id)

    return await once(context, incoming, caller.account, act)


async def _refund(
    context: ApiContext,
    caller: Caller,
    amount_msat: int | None,
    destination: str,
    operation_id: str,
) -> Told:
    told: Refunded | Pending | Refusal = Refusal("insufficient_balance", "the balance is empty")
    for _ in range(_REFUND_ALL_TRIES):
        wanted_msat = amount_msat
        # An operation of this id has its amount already; the balance it left says nothing.
        if wanted_msat is None and await context.operations.get(operation_id) is None:
            held = await context.ledger.store.account(caller.account)
            wanted_msat = 0 if held is None else held.available
            if wanted_msat == 0:
                break
        told = await context.payments.refund(
            caller.account,
            wanted_msat or 0,
            method=caller.refund_method,
            operation_id=operation_id,
            destination=destination,
            metadata=dict(caller.refund_metadata),
        )
        if amount_msat is not None or not _overtaken(told):
            break
    return settled(refund_answer(told))


def _overtaken(told: Refunded | Pending | Refusal) -> bool:
    return isinstance(told, Refusal) and told.code == "insufficient_balance"


def refund_answer(told: Refunded | Pending | Refusal) -> Answer:
    """What the receiver of a refund is told, however often it asks."""
    if isinstance(told, Pending):
        return _pending(told)
    if isinstance(told, Refusal):
        return refused(told)
    return document(refund_document(told))


def refund_document(told: Refunded) -> dict[str, object]:
    """The method's own words, and what was taken from the account in all."""
    body: dict[str, object] = dict(told.reply)
    if told.asset == BTC.code and "sats" not in body and "msats" not in body:
        body["msats"] = str(told.amount)
    if told.asset == BTC.code:
        body["amount_msat"] = told.amount
    return body | {"operation": told.operation_id}
