"""Tokens of foreign mints: the foreign mint pays an invoice of a mint of ours, over Lightning.

One operation, two calls that move value, each asked about before it is repeated:

| what is known                     | step                                                    |
|-----------------------------------|---------------------------------------------------------|
| never sent                        | melt at the foreign mint                                |
| our quote PAID or ISSUED          | mint here: the money arrived, whatever the other says   |
| our quote UNPAID, melt not paid   | melt again if nothing happened, else wait               |
| our quote UNPAID, token spent     | Rejected, once it is so for as long as a call may take  |
| our quote UNPAID, melt "paid"     | wait: Lightning is not done, or the foreign mint lies   |
| our quote UNPAID, invoice expired | Rejected: it can never be paid now                      |

What arrives here is credited, and neither waits for the foreign mint nor for the keyset it was
planned in. What the foreign mint gives back of its fee reserve stays there, in rows of ours that no
account counts; where it does not tell at once, it is asked later (`leftover.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from farebox.ecash import receive as weighing
from farebox.ecash import saga
from farebox.ecash.codes import NutError
from farebox.ecash.mint import MeltQuote, MintQuote
from farebox.ecash.plan import MeltPlan, MintPlan
from farebox.errors import InvalidAmount, InvalidCredential, RailRejected, RailUnavailable
from farebox.ids import new_id
from farebox.money import Rounding, divide
from farebox.payments import PaymentPlan, PaymentResult, Refusal, Rejected, Reserve, Unresolved
from farebox.rails.cashu.anew import Replanning, Standing
from farebox.rails.cashu.config import MSAT_PER_UNIT, custody_account
from farebox.rails.cashu.inventory import Inventory, added
from farebox.rails.cashu.leftover import Leftover, change_rows
from farebox.rails.cashu.mints import MintPlace, Mints
from farebox.rails.cashu.payloads import ReceiveAcross, to_bytes
from farebox.rails.cashu.receive import PAYMENT_TYPE, reachable, refused, rejected, use_of
from farebox.wire.bolt11 import decode_invoice
from farebox.wire.cashu import crypto
from farebox.wire.cashu.amounts import binary_parts, split
from farebox.wire.cashu.model import Keyset, Proof, Token

#: The first invoice tells what the foreign mint reserves for fees, the next leaves room for it.
_INVOICES_MAX = 3
#: How long after its expiry an invoice of ours may still turn out to be paid.
_GRACE_S = 3_600


@dataclass(frozen=True, slots=True)
class _Quoted:
    """An invoice of ours for `amount` that the foreign mint can pay out of the token."""

    label: str | None
    ours: MintQuote
    theirs: MeltQuote
    amount: int


class Crossing:
    """Plans and carries out receiving across Lightning."""

    def __init__(
        self, mints: Mints, inventory: Inventory, replanning: Replanning, leftover: Leftover
    ) -> None:
        self._mints = mints
        self._inventory = inventory
        self._replanning = replanning
        self._leftover = leftover

    async def plan(
        self, token: Token, reference: str, reserve: Reserve | None
    ) -> PaymentPlan | Refusal:
        """Quotes at both mints; nothing moves. Raises InvalidCredential."""
        foreign, home = self._mints.any(token.mint), self._home(token.unit)
        if home is None:
            return Refusal("unit_not_accepted", f"tokens in {token.unit} are not accepted here")
        offer = await reachable(foreign, token)
        if isinstance(offer, Refusal):
            return offer
        reserve_msat = reserve.amount_msat if reserve else 0
        terms = weighing.Terms(unit=token.unit)
        weighed = weighing.plan_receive(offer.token, offer.keysets, terms, foreign.now_s())
        if isinstance(weighed, weighing.Refusal):
            return refused(weighed, reserve)
        try:
            quoted = await self._quote(home, foreign, token.unit, weighed.net)
            target = await home.output_keyset(token.unit)
        except (RailUnavailable, RailRejected) as error:
            return Refusal("mint_unavailable", f"the token cannot be swapped now: {error}")
        unit_msat = MSAT_PER_UNIT[token.unit]
        if quoted is None or quoted.amount * unit_msat < reserve_msat:
            message = "too little of the token is left after the fees of paying it across"
            code = "insufficient_payment" if reserve_msat else "amount_too_small"
            return Refusal(code, message, {"needed_msat": reserve_msat})
        amounts = _amounts(quoted.amount, divide(reserve_msat, unit_msat, Rounding.UP), target)
        if target is None or amounts is None:
            return Refusal("mint_unavailable", f"our mint issues no {token.unit} now")
        job = ReceiveAcross(
            reference=reference,
            owner=reserve.owner if reserve else "",
            melt=await self._melt_plan(weighed, quoted.theirs),
            mint=await self._mint_plan(home, token.unit, quoted, target, amounts),
            fee_ppk=target.input_fee_ppk,
            melt_fee_ppk=offer.keysets[weighed.keyset_id].input_fee_ppk,
            gives_up_at_s=decode_invoice(quoted.ours.request).expires_at_s + _GRACE_S,
        )
        return PaymentPlan(
            to_bytes(job),
            custody_account(home.url, token.unit),
            amount_msat=quoted.amount * unit_msat,
            fee_msat=(token.amount - quoted.amount) * unit_msat,
        )

    def _home(self, unit: str) -> MintPlace | None:
        """A mint of ours that the money can go to."""
        for place in self._mints.trusted():
            if unit in place.terms.units and unit in MSAT_PER_UNIT and not place.is_left_alone:
                return place
        return None

    async def _quote(
        self, home: MintPlace, foreign: MintPlace, unit: str, net: int
    ) -> _Quoted | None:
        """The largest invoice that `net` pays with its fees, or None."""
        amount = net
        for _ in range(_INVOICES_MAX):
            if amount < 1:
                return None
            label = new_id("quote")
            public_key = crypto.public_key(self._inventory.keys.quote_key(label))
            ours = await home.mint.mint_quote(amount, unit, public_key)
            _check_invoice(ours, amount * MSAT_PER_UNIT[unit])
            theirs = await foreign.mint.melt_quote(ours.request, unit)
            if theirs.amount < amount or theirs.unit != unit:
                raise RailUnavailable("the foreign mint quotes another amount than it must pay")
            over = theirs.amount + theirs.fee_reserve - net
            if over <= 0:
                # A mint without NUT-20 gives a quote without a key; its id then is the secret.
                locked = label if ours.public_key == public_key else None
                return _Quoted(locked, ours, theirs, amount)
            amount -= over
        return None

    async def _melt_plan(self, weighed: weighing.Receive, theirs: MeltQuote) -> MeltPlan:
        bare = MeltPlan(
            mint=weighed.mint,
            unit=weighed.unit,
            keyset_id=weighed.keyset_id,
            first_counter=0,
            quote=theirs.quote,
            amount=theirs.amount,
            input_fee=weighed.fee,
            inputs=weighed.inputs,
        )
        first = await self._inventory.take_counters(weighed.keyset_id, bare.output_count)
        return msgspec.structs.replace(bare, first_counter=first)

    async def _mint_plan(
        self,
        home: MintPlace,
        unit: str,
        quoted: _Quoted,
        target: Keyset,
        amounts: tuple[int, ...],
    ) -> MintPlan:
        return MintPlan(
            mint=home.url,
            unit=unit,
            keyset_id=target.id,
            first_counter=await self._inventory.take_counters(target.id, len(amounts)),
            quote=quoted.ours.quote,
            amounts=amounts,
            key_label=quoted.label,
        )

    async def receive(
        self, job: ReceiveAcross, *, asked_before: bool
    ) -> PaymentResult | Rejected | Unresolved:
        """Make one step, or two, towards the proofs at our mint."""
        if not asked_before:
            return await self._melt_then_mint(job, asked_before=False)
        standing, minted = await self._mint(job, asked_before=True)
        if isinstance(minted, saga.NotPaid):
            if self._mints.any(job.mint.mint).now_s() >= job.gives_up_at_s:
                reason = "the token's mint has not paid our invoice in time"
                return Rejected("not_arrived", reason, again=True)
            return await self._melt_then_mint(job, asked_before=True)
        if isinstance(minted, saga.Done):
            # The money is here already: the foreign mint is asked in passing, never sent again.
            foreign, keys = self._mints.any(job.melt.mint).mint, self._inventory.keys
            melted = await saga.find_melt(job.melt, foreign, keys)
            change = melted.change if isinstance(melted, saga.Paid) else None
            return self._result(job, standing, minted.proofs, change, asked_before=True)
        return _unresolved(minted)

    async def _melt_then_mint(
        self, job: ReceiveAcross, *, asked_before: bool
    ) -> PaymentResult | Rejected | Unresolved:
        foreign, keys = self._mints.any(job.melt.mint).mint, self._inventory.keys
        melted = await saga.advance_melt(job.melt, foreign, keys, asked_before=asked_before)
        match melted:
            case saga.Rejected():
                return rejected(melted)
            case saga.Unknown(_, _, NutError.PROOFS_SPENT) if asked_before:
                # Spent elsewhere: vague, since a mint may be slow to say that it has paid.
                return rejected(saga.Rejected(NutError.PROOFS_SPENT, melted.reason, vague=True))
            case saga.Unknown(reason):
                # No alarm for what a foreign mint says: ours decides, and the invoice expires.
                return Unresolved(reason)
            case saga.Paid(_, _, change):
                standing, minted = await self._mint(job, asked_before=asked_before)
                if isinstance(minted, saga.Done):
                    proofs = minted.proofs
                    return self._result(job, standing, proofs, change, asked_before=asked_before)
                return _unresolved(minted)

    async def _mint(
        self, job: ReceiveAcross, *, asked_before: bool
    ) -> tuple[Standing[MintPlan], saga.Done | saga.NotPaid | saga.Rejected | saga.Unknown]:
        place, keys = self._mints.any(job.mint.mint), self._inventory.keys

        async def step(
            plan: MintPlan, asked: bool
        ) -> saga.Done | saga.NotPaid | saga.Rejected | saga.Unknown:
            return await saga.advance_mint(plan, place.mint, keys, asked_before=asked)

        planned = Standing(job.mint, job.fee_ppk)
        return await self._replanning.advance(
            job.reference, planned, place, step, asked_before=asked_before
        )

    def _result(
        self,
        job: ReceiveAcross,
        standing: Standing[MintPlan],
        proofs: Sequence[Proof],
        change: Sequence[Proof] | None,
        *,
        asked_before: bool,
    ) -> PaymentResult:
        """What is credited; `change` is None where the foreign mint has not told it yet."""
        mint, fee_ppk = standing.plan, standing.fee_ppk
        use = use_of(job.owner, asked_before)
        puts = [
            added(mint.mint, mint.unit, counter, proof, fee_ppk, use=use, owner=job.owner)
            for counter, proof in enumerate(proofs, mint.first_counter)
        ]
        if change is None:
            puts.append(self._leftover.asked_later(job.melt, job.melt_fee_ppk))
        else:
            puts += change_rows(self._inventory, job.melt, change, job.melt_fee_ppk)
        amount = sum(mint.amounts)
        return PaymentResult(
            amount * MSAT_PER_UNIT[mint.unit],
            mint.unit,
            PAYMENT_TYPE,
            job.reference,
            amount=amount,
            puts=tuple(puts),
        )


def _unresolved(minted: saga.NotPaid | saga.Rejected | saga.Unknown) -> Unresolved:
    match minted:
        case saga.NotPaid():
            return Unresolved("the payment has not arrived at our mint yet")
        case saga.Rejected(_, reason, vague=True):
            return Unresolved(f"our mint was paid and gives no proofs yet: {reason}")
        case saga.Rejected(_, reason):
            return Unresolved(f"our mint was paid and gives no proofs: {reason}", alarm=True)
        case saga.Unknown(reason, alarm):
            return Unresolved(reason, alarm)


def _check_invoice(quote: MintQuote, amount_msat: int) -> None:
    try:
        invoice = decode_invoice(quote.request)
    except InvalidCredential:
        raise RailUnavailable("our mint gave no invoice") from None
    if invoice.amount_msat != amount_msat:
        raise RailUnavailable("our mint's invoice is for another amount than was asked for")


def _amounts(amount: int, maximum: int, target: Keyset | None) -> tuple[int, ...] | None:
    """Parts of `amount`, so that any change from a charge of at most `maximum` is among them."""
    if target is None:
        return None
    try:
        parts = [amount - maximum, *binary_parts(maximum)]
        return tuple(sorted(small for part in parts for small in split(part, target.keys.keys())))
    except InvalidAmount:
        return None
