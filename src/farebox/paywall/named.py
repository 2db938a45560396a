"""Requests on an account that their caller has named (`Idempotency-Key`): each is charged once.

The name is written by the very commit that holds the money, so there is no name without a request.

| the same request again        | is answered                                                      |
|-------------------------------|------------------------------------------------------------------|
| while the first one runs      | 409 `request_in_progress`                                        |
| when the first was charged    | 409 `answer_not_stored`: what it came to, and its receipt        |
| when it was charged nothing   | by carrying it out, under the same name                          |
| another request by this name  | 422 `idempotency_key_reused`                                     |

A day after its request began a name is free again. Money inside a request is a name of its own.
The service is told a name of ours, which no two accounts share.
"""

from __future__ import annotations

import hashlib

import msgspec

from farebox.clock import NS_PER_S
from farebox.identity.idempotency import KEPT_S, NAME_MAX_CHARS
from farebox.ids import derived_id
from farebox.ledger.model import ABSENT, Put
from farebox.ledger.records import RecordType
from farebox.ledger.service import Ledger
from farebox.paywall import answers
from farebox.paywall.model import REQUEST, Answer, Request, RequestName, RequestState
from farebox.paywall.receipts import Receipts
from farebox.paywall.settling import NO_USAGE, receipt_facts, settlement

#: None where the caller gave it none.
Name = RequestName | None
Puts = tuple[Put, ...]


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """The request that a name stands for; `fingerprint` tells it from any other."""

    fingerprint: bytes
    request_id: str
    named_at: int


NAMED = RecordType("named_request", Named)


def name_of(raw: bytes, method: str, target: str, body: bytes) -> RequestName | Answer:
    """Read an `Idempotency-Key`, or say why it is none."""
    text = raw.decode("latin-1")
    if not len(text) <= NAME_MAX_CHARS or not (text.isascii() and text.isprintable()):
        return answers.name_unreadable(NAME_MAX_CHARS)
    whole = hashlib.sha256(f"{method} {target}\n".encode())
    whole.update(body)
    return RequestName(text, whole.digest())


async def naming(
    ledger: Ledger, receipts: Receipts, account: str, name: Name, request_id: str
) -> Puts | Answer:
    """What names a request, for the commit that admits it; or what became of the first one."""
    if name is None:
        return ()
    store, now_ns = ledger.store, ledger.clock.now_ns()
    key = derived_id("named", account, name.text)
    row = await store.get(NAMED, key)
    if row is not None and row.value.named_at > now_ns - KEPT_S * NS_PER_S:
        if row.value.fingerprint != name.fingerprint:
            return answers.name_reused()
        first = await store.get(REQUEST, row.value.request_id)
        assert first is not None, "both are written by one commit"
        if first.value.state is RequestState.AUTHORISED:
            return answers.in_progress(row.value.request_id)
        if first.value.charged_msat:
            return await _told(receipts, row.value.request_id, first.value)
    named = Named(fingerprint=name.fingerprint, request_id=request_id, named_at=now_ns)
    return (Put(NAMED, key, named, ABSENT if row is None else row.version),)


async def _told(receipts: Receipts, request_id: str, request: Request) -> Answer:
    receipt = await receipts.sign(receipt_facts(request_id, request, NO_USAGE))
    return answers.answer_not_stored(request_id, request, settlement(request, receipt, "").headers)
