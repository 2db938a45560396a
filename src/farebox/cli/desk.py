"""How what an operator asks is done with an open book.

The same requests are carried out here whether they come from the command line itself or through
the door of a running server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from farebox.bootstrap import Farebox
from farebox.cli import checks
from farebox.cli.options import amount_msat
from farebox.cli.output import sat
from farebox.cli.requests import (
    Balance,
    CreateKey,
    Examine,
    Facts,
    GiveFound,
    ListKeys,
    ListWithdrawals,
    MoveCapital,
    Reconcile,
    Recover,
    Reopen,
    Request,
    Resolve,
    RevokeKey,
    ShowKey,
    Sign,
    Unsigned,
    Withdraw,
)
from farebox.cli.restoring import give, reconcile
from farebox.cli.signing import sign, unsigned
from farebox.cli.totals import balance
from farebox.cli.withdrawals import withdrawals
from farebox.clock import iso
from farebox.errors import InvalidInput
from farebox.identity import ApiKey, KeysExhausted, KeyTerms, new_account
from farebox.ledger.model import Put
from farebox.ledger.service import Ledger
from farebox.money import AMOUNT_END, BTC, parse_decimal
from farebox.operating import Finding, Verdict
from farebox.payments import Refusal
from farebox.payments.capital import CapitalMove, free_of, move_capital
from farebox.payments.exchange import REVENUE, balance_of
from farebox.payments.model import Operation, OperationState, Rejected, Succeeded
from farebox.payments.service import OVERTAKEN, PAYOUT, REFUND, Pending, Refunded
from farebox.rails.cashu.choose import ONLY_MINT
from farebox.rails.cashu.config import MSAT_PER_UNIT, custody_account
from farebox.wire.cashu.model import normalize_mint_url

_OUT = frozenset({REFUND, PAYOUT})
_ASKED_AT_ONCE = 16
#: Withdrawals that may be quicker than one before it is refused.
_TRIES_MAX = 16

#: What may be asked of a closed book.
_WHILE_CLOSED = (
    Balance,
    ListKeys,
    ListWithdrawals,
    ShowKey,
    RevokeKey,
    Examine,
    Reconcile,
    Unsigned,
)


async def carry_out(house: Farebox, request: Request) -> Facts:
    """Do what is asked and say what came of it. Raises InvalidInput for a definite no."""
    if not isinstance(request, _WHILE_CLOSED):
        house.doors.require_open()
    match request:
        case Balance():
            return await balance(house.ledger)
        case Reconcile(claim=claim):
            return await reconcile(house, claim=claim)
        case GiveFound(id=give_id, key=key_id, amount_msat=amount_msat):
            account = (await _key(house, key_id)).account
            return await give(house, give_id, account, amount_msat)
        case CreateKey():
            return await _create_key(house, request)
        case ListKeys():
            return await _list_keys(house, request)
        case ShowKey(id=key_id):
            return await _key_facts(house.ledger, await _key(house, key_id))
        case RevokeKey(id=key_id):
            revoked = await house.keys.revoke(key_id)
            return await _key_facts(house.ledger, revoked or _no_key(key_id))
        case Withdraw():
            return await _withdraw(house, request)
        case ListWithdrawals():
            return await withdrawals(house, request)
        case MoveCapital():
            return await _capital(house, request)
        case Recover():
            return await _recover(house)
        case Reopen(id=operation_id):
            await house.operations.reopen(await _manual(house, operation_id))
            return await _recover(house)
        case Resolve():
            await _resolve(house, request)
            return await _recover(house)
        case Unsigned():
            return {"unsigned": await unsigned(house)}
        case Sign(id=batch, psbt=psbt):
            return await sign(house, batch, psbt)
        case Examine():
            looked = await checks.examine(house.settings, is_served=True, say=lambda _: None)
            now = (house.vitals.serving(), house.vitals.book(), house.vitals.clock())
            looked += [replace(one, check=f"running server: {one.check}") for one in now]
            return examination(looked)
        case _:
            assert_never(request)


def examination(findings: Sequence[Finding]) -> Facts:
    """What `farebox doctor` shows."""
    return {
        "ok": all(finding.verdict is not Verdict.FAILURE for finding in findings),
        "checks": [
            {
                "check": finding.check,
                "verdict": finding.verdict.value,
                "found": finding.found,
                "advice": finding.advice,
            }
            for finding in findings
        ],
    }


# ── money ────────────────────────────────────────────────────────────────────────────────────────


async def _withdraw(house: Farebox, wanted: Withdraw) -> Facts:
    ways = [one.payment_type for one in house.payments.methods]
    if wanted.method not in ways:
        raise InvalidInput(f"{wanted.method!r} is no way to pay here; there is {', '.join(ways)}")
    codes = house.payments.assets_out(wanted.method)
    if wanted.asset and wanted.asset.upper() not in codes:
        raise InvalidInput(f"{wanted.method} pays out {', '.join(codes)}, not {wanted.asset}")
    known = await house.operations.get(wanted.id)
    if known is None and wanted.again:
        raise InvalidInput(
            f"no withdrawal {wanted.id!r} was begun: `farebox withdraw --list` shows all"
        )
    metadata = {ONLY_MINT: normalize_mint_url(wanted.mint)} if wanted.mint else {}
    for _ in range(_TRIES_MAX):
        amount, puts = (0, ()) if known else await _to_withdraw(house, wanted)
        if known is None and amount == 0:
            raise InvalidInput(
                "there is nothing to withdraw: `farebox balance` shows what was earned"
            )
        left = await house.payments.refund(
            REVENUE,
            amount,
            method=wanted.method,
            operation_id=wanted.id,
            destination=wanted.destination,
            metadata=metadata,
            asset=house.payments.asset_out(wanted.method, wanted.asset),
            puts=puts,
        )
        if left != OVERTAKEN:
            break
    match left:
        case Refunded(asset=BTC.code):
            return {"id": wanted.id, "amount_msat": left.amount, **left.reply}
        case Refunded():
            return {"id": wanted.id, "asset": left.asset, **left.reply, "amount": str(left.amount)}
        case Pending():
            return {"id": wanted.id, "state": "pending"}
        case Refusal(message=message):
            raise InvalidInput(f"nothing was withdrawn: {message}")
        case _:
            assert_never(left)


async def _to_withdraw(house: Farebox, wanted: Withdraw) -> tuple[int, tuple[Put, ...]]:
    """How much: msat, or of an asset that is kept as it comes all that was earned of it; and what
    keeps another process from counting on the same.

    What was earned and then lost is not there any more, whatever the account says. Raises
    InvalidInput.
    """
    asset = house.payments.asset_out(wanted.method, wanted.asset)
    is_held = asset in house.payments.exchange.held
    there = await _held_at(house, wanted.mint) if wanted.mint else AMOUNT_END
    if wanted.amount_msat is not None and is_held:
        raise InvalidInput(f"{asset} is kept as it comes: leave the amount out, and all of it goes")
    kept_in = asset if is_held else BTC.code
    free = await free_of(house.ledger, kept_in)
    puts = (free.taken(wanted.id),)
    if wanted.amount_msat is None:
        revenue = await house.ledger.store.account(balance_of(REVENUE, kept_in))
        return min(revenue.available if revenue else 0, free.amount, there), puts
    if wanted.amount_msat > free.amount:
        raise InvalidInput(
            f"nothing was withdrawn: {sat(free.amount)} are beyond what customers own"
        )
    return wanted.amount_msat, puts


async def _held_at(house: Farebox, mint: str) -> int:
    """The most, in msat, that one token of this mint can be. Raises InvalidInput for nothing."""
    places = [custody_account(normalize_mint_url(mint), unit) for unit in MSAT_PER_UNIT]
    accounts = [await house.ledger.store.account(place) for place in places]
    held_msat = max(account.held if account else 0 for account in accounts)
    if held_msat <= 0:
        raise InvalidInput(f"nothing is held at {mint}: `farebox balance` shows where money is")
    return held_msat


async def _capital(house: Farebox, wanted: MoveCapital) -> Facts:
    rail = house.deposits.rails().get(wanted.method)
    terms = rail.terms().of(wanted.asset) if rail else None
    if rail is None or terms is None:
        found = [
            f"{name} ({', '.join(one.asset.code for one in rail.terms().assets)})"
            for name, rail in house.deposits.rails().items()
        ]
        known = f"it can at {', '.join(found)}" if found else "there is no node or other rail here"
        told = f"capital in {wanted.asset} cannot be noted at {wanted.method!r}: {known}"
        raise InvalidInput(f"{told}; at a mint nothing needs to be noted")
    is_btc = wanted.asset == BTC.code
    amount = (
        amount_msat(wanted.amount) if is_btc else parse_decimal(wanted.amount, terms.asset.scale)
    )
    move = CapitalMove(wanted.id, wanted.flow, wanted.asset, amount)
    moved = await move_capital(house.ledger, house.payments.exchange, rail, move)
    if isinstance(moved, Refusal):
        raise InvalidInput(f"nothing moved: {moved.message}")
    account = await house.ledger.store.account(moved.account)
    facts: Facts = {"id": wanted.id, "flow": wanted.flow.value, "account": moved.account}
    facts |= {"kept_in": moved.kept_in, "counted": moved.counted}
    return facts | {"capital": account.available if account else 0}


# ── unfinished operations ────────────────────────────────────────────────────────────────────────


async def _recover(house: Farebox) -> Facts:
    """Unlike the worker's rounds this asks at once, also where the next time is yet to come."""
    settled = await house.paywall.recover()
    waiting = [
        one for one in await house.operations.unfinished() if one.state is not OperationState.MANUAL
    ]
    limit = asyncio.Semaphore(_ASKED_AT_ONCE)

    async def ask(operation_id: str) -> None:
        async with limit:
            await house.operations.advance(operation_id)

    await asyncio.gather(*(ask(one.id) for one in waiting))
    unfinished = await house.operations.unfinished()
    return {
        "looked_at": settled + len(waiting),
        "unfinished": [_operation_facts(one) for one in unfinished],
    }


def _operation_facts(operation: Operation) -> Facts:
    return {
        "id": operation.id,
        "kind": operation.kind,
        "state": operation.state.value,
        "account": operation.account,
        "since": iso(operation.created_at),
        "attempts": operation.attempts,
        "next_check_at": iso(operation.next_check_at),
        "reason": operation.error,
        "way_out": _way_out(operation),
    }


def _way_out(operation: Operation) -> str:
    if operation.state is not OperationState.MANUAL:
        return "none needed: it is asked about again by itself while a server runs"
    ways = [f"`--ask-again {operation.id}`", f"`--failed {operation.id}` if it never happened"]
    if operation.kind in _OUT:
        ways.append(f"`--succeeded {operation.id} --amount …` if the money left")
    return "find out at the other side, then `farebox recover` with " + ", or ".join(ways)


async def _manual(house: Farebox, operation_id: str) -> str:
    """The id, if such an operation waits for a person."""
    operation = await house.operations.get(operation_id)
    if operation is None or operation.state is not OperationState.MANUAL:
        raise InvalidInput(
            f"no operation {operation_id!r} waits for you: `farebox recover` lists those that do"
        )
    return operation_id


async def _resolve(house: Farebox, wanted: Resolve) -> None:
    operation = await house.operations.get(await _manual(house, wanted.id))
    assert operation is not None  # operations are never removed
    verdict: Succeeded | Rejected
    if wanted.amount_msat is None and operation.kind in _OUT:
        verdict = await house.payments.sending.given_up(operation)
    elif wanted.amount_msat is None:
        verdict = Rejected("operator", "the operator found that it never happened")
    elif operation.kind in _OUT:
        verdict = Succeeded(wanted.amount_msat, house.signer.seal(b"{}", operation.id))
    else:
        # Money that came in is proofs; without them there is nothing to credit.
        raise InvalidInput("only money that went out can be noted as gone; use --ask-again")
    closed = await house.operations.resolve(wanted.id, verdict)
    if closed is not None and closed.state is OperationState.MANUAL:
        raise InvalidInput(f"the books refuse it: {closed.error}")


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────


async def _create_key(house: Farebox, wanted: CreateKey) -> Facts:
    expires_at = house.ledger.clock.now_ns() + wanted.lives_ns if wanted.lives_ns else None
    terms = KeyTerms(
        label=wanted.label, expires_at=expires_at, refund_address=wanted.refund_address
    )
    if not terms.is_printable:
        raise InvalidInput("a label or address is too long or not printable")
    nowhere = house.payments.no_way_to(terms.refund_address)
    if nowhere is not None:
        raise InvalidInput(nowhere.message)
    made = await house.keys.create(new_account(), terms)
    if isinstance(made, KeysExhausted):
        raise InvalidInput(
            f"{made.keys_max} keys exist, which is the limit: raise accounts.keys_max"
        )
    return {"api_key": made.secret, **await _key_facts(house.ledger, made.key)}


async def _list_keys(house: Farebox, wanted: ListKeys) -> Facts:
    page = await house.keys.page(wanted.after, wanted.limit)
    keys = [await _key_facts(house.ledger, key) for _, key in page]
    return {"keys": keys, "next": page[-1][0] if len(page) == wanted.limit else None}


async def _key(house: Farebox, key_id: str) -> ApiKey:
    return await house.keys.by_id(key_id) or _no_key(key_id)


def _no_key(key_id: str) -> ApiKey:
    raise InvalidInput(f"there is no key {key_id!r}: `farebox keys list` shows all")


async def _key_facts(ledger: Ledger, key: ApiKey) -> Facts:
    account = await ledger.store.account(key.account)
    return {
        "id": key.id,
        "key": key.masked,
        "label": key.label,
        "state": key.state.value,
        "account": key.account,
        "balance_msat": account.available if account else 0,
        "reserved_msat": account.debits_pending if account else 0,
        "created_at": iso(key.created_at),
        "expires_at": None if key.expires_at is None else iso(key.expires_at),
        "refund_address": key.refund_address,
    }
