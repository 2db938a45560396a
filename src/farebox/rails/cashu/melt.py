"""Refunds over Lightning: the mint pays an invoice out of our proofs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from farebox.ecash import saga
from farebox.ecash.mint import MeltQuote
from farebox.ecash.plan import MeltPlan
from farebox.errors import InvalidCredential, RailRejected, RailUnavailable
from farebox.money import Rounding, divide
from farebox.payments import (
    RefundPlan,
    RefundRequest,
    RefundResult,
    Refusal,
    Rejected,
    Unresolved,
)
from farebox.rails.cashu import choose
from farebox.rails.cashu.choose import Inputs, Place, Purse
from farebox.rails.cashu.config import MSAT_PER_UNIT
from farebox.rails.cashu.give import amounts_told, freed, reserved
from farebox.rails.cashu.inventory import Held, Inventory, added
from farebox.rails.cashu.mints import Mints
from farebox.rails.cashu.payloads import Melt, to_bytes
from farebox.rails.cashu.records import ProofUse
from farebox.rails.web.lnurl import Fixed, Lnurl, PayEndpoint
from farebox.wire.cashu.model import Proof

#: The first invoice tells what the mint reserves for fees, the next leaves room for it.
_INVOICES_MAX = 3
_NOT_HELD = Refusal("insufficient_funds", "no mint holds this much; ask for less at a time")


@dataclass(frozen=True, slots=True)
class _Priced:
    """A melt quote, and the proofs that would pay it; `total` is the most it takes."""

    quote: MeltQuote
    inputs: Inputs

    @property
    def total(self) -> int:
        return self.quote.amount + self.quote.fee_reserve + self.inputs.fee


@dataclass(frozen=True, slots=True)
class _TooMuch:
    """By so much, in the mint's unit, would the payment exceed what may be taken.

    `is_short`: what may be taken would do, but there is not so much here that nobody else wants.
    """

    over: int
    is_short: bool = False


class Melting:
    """Plans and carries out refunds over Lightning."""

    def __init__(self, mints: Mints, inventory: Inventory, purse: Purse, lnurl: Lnurl) -> None:
        self._mints = mints
        self._inventory = inventory
        self._purse = purse
        self._lnurl = lnurl

    async def plan(self, request: RefundRequest, places: Sequence[Place]) -> RefundPlan | Refusal:
        """Pay the destination so that amount and every fee stay within what was asked for."""
        try:
            destination = await self._lnurl.resolve(request.destination)
        except InvalidCredential as error:
            return Refusal("destination_invalid", str(error))
        except (RailUnavailable, RailRejected) as error:
            return Refusal("destination_unavailable", str(error))
        refusal = _NOT_HELD
        for place in places:
            if place.mint.is_left_alone:
                refusal = Refusal("mint_unavailable", "the mint does not answer now")
                continue
            try:
                planned = await self._plan_at(place, request, destination)
            except RailUnavailable as error:
                planned = Refusal("mint_unavailable", str(error))
            except RailRejected as error:
                planned = Refusal("mint_refused", str(error))
            if isinstance(planned, RefundPlan):
                return planned
            refusal = planned
        return refusal

    async def _plan_at(
        self, place: Place, request: RefundRequest, destination: Fixed | PayEndpoint
    ) -> RefundPlan | Refusal:
        """Raises RailUnavailable and RailRejected, of the mint or of the destination."""
        limit = min(request.amount, place.held_msat) // place.unit_msat
        wanted, is_short = limit, False
        if isinstance(destination, PayEndpoint):
            wanted = min(limit, destination.max_msat // place.unit_msat)
        for _ in range(_INVOICES_MAX):
            if isinstance(destination, Fixed):
                amount_msat, invoice = destination.amount_msat, destination.text
            elif wanted * place.unit_msat < max(destination.min_msat, 1):
                break
            else:
                amount_msat = wanted * place.unit_msat
                invoice = await self._lnurl.invoice(destination, amount_msat)
            quote = await self._quote(place, invoice, amount_msat)
            priced = await self._price(place, quote, limit)
            if isinstance(priced, _Priced):
                return await self._planned(place, request, priced)
            is_short = priced.is_short
            if isinstance(destination, Fixed):
                break
            wanted -= priced.over
        if is_short:
            return _NOT_HELD
        return Refusal(
            "amount_too_small",
            "the amount does not cover what the destination asks for and the fees of paying it",
            {"amount_msat": limit * place.unit_msat},
        )

    async def _quote(self, place: Place, invoice: str, amount_msat: int) -> MeltQuote:
        quote = await place.mint.mint.melt_quote(invoice, place.unit)
        expected = divide(amount_msat, place.unit_msat, Rounding.UP)
        if quote.amount != expected or quote.unit != place.unit:
            raise RailUnavailable("the mint quotes another amount than the invoice asks for")
        return quote

    async def _price(self, place: Place, quote: MeltQuote, limit: int) -> _Priced | _TooMuch:
        need = quote.amount + quote.fee_reserve
        if need > limit:
            return _TooMuch(need - limit)
        if not await place.mint.gives_change():
            return await self._price_exactly(place, quote, limit)
        keysets = await place.mint.keysets(place.unit)
        over = need
        async for look in self._purse.looks(place):
            held = choose.alive(look, keysets, place.mint.now_s())
            inputs = choose.cover(held, need, keysets, fee_included=False)
            if inputs is not None:
                priced = _Priced(quote, inputs)
                return priced if priced.total <= limit else _TooMuch(priced.total - limit)
            over = min(over, max(need - choose.worth(held, keysets), 1))
        return _TooMuch(over, is_short=True)

    async def _price_exactly(self, place: Place, quote: MeltQuote, limit: int) -> _Priced:
        """Nothing may be over: it would be the mint's. Raises RailRejected, RailUnavailable."""
        keysets = await place.mint.keysets(place.unit)
        need = quote.amount + quote.fee_reserve
        async for look in self._purse.looks(place):
            held = choose.alive(look, keysets, place.mint.now_s())
            inputs = choose.cover_exactly(held, need, keysets)
            if inputs is not None and need + inputs.fee <= limit:
                return _Priced(quote, inputs)
        raise RailRejected(
            "the mint gives no change for a Lightning payment, and no proofs of ours make exactly "
            "this amount; take a token, or another amount"
        )

    async def _planned(
        self, place: Place, request: RefundRequest, priced: _Priced
    ) -> RefundPlan | Refusal:
        target = await place.mint.output_keyset(place.unit)
        if target is None:
            return Refusal("mint_unavailable", f"the mint issues no {place.unit} now")
        inputs = priced.inputs
        self._purse.claim(inputs.held)
        plan = MeltPlan(
            mint=place.mint.url,
            unit=place.unit,
            keyset_id=target.id,
            first_counter=0,
            quote=priced.quote.quote,
            amount=priced.quote.amount,
            input_fee=inputs.fee,
            inputs=self._inventory.proofs(inputs.held),
        )
        first = await self._inventory.take_counters(target.id, plan.output_count)
        payload = Melt(
            operation_id=request.operation_id,
            melt=msgspec.structs.replace(plan, first_counter=first),
            fee_ppk=target.input_fee_ppk,
            most=priced.total,
            recipient=request.destination,
        )
        puts = tuple(one.becomes(ProofUse.RESERVED, request.operation_id) for one in inputs.held)
        most_msat = priced.total * place.unit_msat
        return RefundPlan(to_bytes(payload), place.custody, most_msat, puts)

    async def melt(self, job: Melt, *, asked_before: bool) -> RefundResult | Rejected | Unresolved:
        """Make one step towards the end of the payment."""
        mint, keys = self._mints.any(job.melt.mint).mint, self._inventory.keys
        end = await saga.advance_melt(job.melt, mint, keys, asked_before=asked_before)
        held = await reserved(self._inventory, job.operation_id)
        match end:
            case saga.Paid(preimage, fee, change):
                return self._paid(job, held, preimage, fee, change)
            case saga.Rejected():
                return await freed(self._inventory, job.melt.keyset_id, held, end)
            case saga.Unknown(reason, alarm):
                return Unresolved(reason, alarm)

    def _paid(
        self,
        job: Melt,
        held: Sequence[Held],
        preimage: str | None,
        fee: int,
        change: tuple[Proof, ...],
    ) -> RefundResult | Unresolved:
        plan = job.melt
        taken = plan.amount + fee
        if taken > job.most:
            return Unresolved("the mint has kept more than it may", alarm=True)
        counters = self._inventory.counters_of(plan.keyset_id, plan.first_counter, change)
        puts = [one.becomes(ProofUse.SPENT, job.operation_id) for one in held]
        for counter, proof in zip(counters, change, strict=True):
            puts.append(added(plan.mint, plan.unit, counter, proof, job.fee_ppk))
        unit_msat = MSAT_PER_UNIT[plan.unit]
        reply = {"recipient": job.recipient} | amounts_told(plan.unit, plan.amount, unit_msat)
        if preimage:
            reply["preimage"] = preimage
        return RefundResult(taken * unit_msat, job.operation_id, reply, tuple(puts))
