"""Payments out, one by one: checked, priced and stored here; `batches.py` lets them leave."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import structlog

from farebox.clock import NS_PER_S
from farebox.errors import InvalidInput, RailUnavailable
from farebox.ids import derived_id
from farebox.ledger.model import ABSENT, Put, Unit
from farebox.ledger.records import Row
from farebox.ledger.service import Ledger
from farebox.money import MSAT_PER_SAT
from farebox.payments import (
    RefundPlan,
    RefundQuote,
    RefundRequest,
    RefundResult,
    Refusal,
    Rejected,
    Unresolved,
)
from farebox.rails.bitcoin.batches import Batches
from farebox.rails.bitcoin.config import BitcoinConfig
from farebox.rails.bitcoin.records import PAYOUT, Payout, PayoutState
from farebox.rails.bitcoin.wallet import Wallet
from farebox.wire.bitcoin import read_uri

_log = structlog.get_logger("farebox.bitcoin")

#: A payment that leaves alone: overhead, two inputs and change of the usual kind, and around its
#: own script its value (BIP-141; an input is 68, an output 31 virtual bytes).
_AROUND_VBYTES = 11 + 2 * 68 + 31 + 9
_USUAL_SCRIPT = 34
#: What is quoted covers a rate three times as high: a payment that is stuck goes dearer.
_MARGIN = 3
#: How long one waits for coins, or for a fee within its limit: then its money goes back, while the
#: name that it was asked for with is still remembered, and tells so.
_WAITS_MAX_S = 43_200


@dataclass(frozen=True, slots=True)
class _Priced:
    address: str
    amount_msat: int
    fee_max_msat: int
    estimate_msat: int


class Paying:
    """Plans payments to addresses and tells what became of each."""

    def __init__(
        self, config: BitcoinConfig, wallet: Wallet, batches: Batches, ledger: Ledger
    ) -> None:
        self._config = config
        self._wallet = wallet
        self._batches = batches
        self._ledger = ledger

    def fee_max_msat(self) -> int:
        """The most that one payment may cost, at the last rate that was heard of."""
        vbytes = _AROUND_VBYTES + _USUAL_SCRIPT
        return _MARGIN * self._config.fee_msat(self._batches.rate, vbytes)

    async def plan(self, request: RefundRequest) -> RefundPlan | Refusal:
        """Check and price; the row that queues it joins the opening commit."""
        priced = await self._priced(request)
        if isinstance(priced, Refusal):
            return priced
        payout = Payout(
            address=priced.address,
            amount_sat=priced.amount_msat // MSAT_PER_SAT,
            fee_max_sat=priced.fee_max_msat // MSAT_PER_SAT,
            asked_at=self._ledger.clock.now_ns(),
        )
        put = Put(PAYOUT, request.operation_id, payout, ABSENT)
        most_msat = priced.amount_msat + priced.fee_max_msat
        payload = msgspec.json.encode(request.operation_id)
        return RefundPlan(payload, self._config.custody, most_msat, (put,))

    async def quote(self, request: RefundRequest) -> RefundQuote | Refusal:
        """What `plan` would come to."""
        priced = await self._priced(request)
        if isinstance(priced, Refusal):
            return priced
        return RefundQuote(priced.amount_msat, priced.fee_max_msat, priced.estimate_msat)

    async def pay(self, payload: bytes) -> RefundResult | Rejected | Unresolved:
        """How it stands; what waits is put into a batch when it is time."""
        operation_id = msgspec.json.decode(payload, type=str)
        row = await self._ledger.store.get(PAYOUT, operation_id)
        assert row is not None, "it was stored with its operation"
        reason = "it leaves with its batch"
        if row.value.state is PayoutState.WAITING:
            reason = await self._batches.form() or reason
            row = await self._ledger.store.get(PAYOUT, operation_id) or row
        if row.value.state is PayoutState.WAITING and self._waits_too_long(row.value):
            row = await self._refused(operation_id) or row
        payout = row.value
        if payout.state is PayoutState.REFUSED:
            reason = "no batch could take it for twelve hours: nothing has left"
            return Rejected("not_payable", reason)
        if payout.state is not PayoutState.PAID:
            return Unresolved(reason)
        reply = {
            "recipient": payout.address,
            "sats": str(payout.amount_sat),
            "msats": str(payout.amount_sat * MSAT_PER_SAT),
            "fee_msat": str(payout.fee_sat * MSAT_PER_SAT),
            "txid": payout.txid,
        }
        left_msat = (payout.amount_sat + payout.fee_sat) * MSAT_PER_SAT
        return RefundResult(left_msat, payout.txid, reply)

    def _waits_too_long(self, payout: Payout) -> bool:
        waited_ns = self._ledger.clock.now_ns() - payout.asked_at
        return waited_ns > (self._config.batch_window_s + _WAITS_MAX_S) * NS_PER_S

    async def _refused(self, operation_id: str) -> Row[Payout] | None:
        """Take it out of what waits, unless a batch has taken it meanwhile; how it stands then."""
        puts = await self.give_up(msgspec.json.encode(operation_id))
        if puts:
            _log.warning("bitcoin.not_payable", operation=operation_id)
            await self._ledger.store.commit(Unit(derived_id("refused", operation_id), puts=puts))
        return await self._ledger.store.get(PAYOUT, operation_id)

    async def give_up(self, payload: bytes) -> tuple[Put, ...]:
        """What takes it out of what waits; nothing where it is in a batch, which may be out."""
        operation_id = msgspec.json.decode(payload, type=str)
        row = await self._ledger.store.get(PAYOUT, operation_id)
        if row is None or row.value.state is not PayoutState.WAITING:
            return ()
        refused = msgspec.structs.replace(row.value, state=PayoutState.REFUSED)
        return (Put(PAYOUT, operation_id, refused, row.version),)

    def is_address(self, text: str) -> bool:
        """Whether this reads as an address of our network."""
        try:
            self._wallet.script(read_uri(text)[0])
        except InvalidInput:
            return False
        return True

    async def _priced(self, request: RefundRequest) -> _Priced | Refusal:
        if not request.destination:
            return Refusal(
                "destination_required", "the chain has no way back to a payer: name an address"
            )
        try:
            address, wanted_sat = read_uri(request.destination)
            if request.is_exact and wanted_sat not in (None, request.amount // MSAT_PER_SAT):
                raise InvalidInput(f"the address asks for {wanted_sat} sat")
            script = self._wallet.script(address)
            allowed = [self._wallet.script(one) for one in self._config.allowed]
            if allowed and script not in allowed:
                text = "the operator pays certain addresses only"
                return Refusal("destination_not_allowed", text)
            rate = await self._batches.learn_rate()
        except InvalidInput as error:
            return Refusal("destination_invalid", str(error))
        except RailUnavailable as error:
            return Refusal("rail_unavailable", str(error))
        config = self._config
        whole_sat = max(config.dust_sat, request.amount // MSAT_PER_SAT)
        alone_sat = await self._batches.estimate_sat(address, whole_sat, rate)
        estimate_msat = (alone_sat or 0) * MSAT_PER_SAT
        if alone_sat is None:
            estimate_msat = config.fee_msat(rate, _AROUND_VBYTES + len(script))
        limit_msat = _MARGIN * estimate_msat
        fee_max_msat = limit_msat
        if request.fee_max is not None:
            fee_max_msat = min(limit_msat, request.fee_max)
        fee_max_msat -= fee_max_msat % MSAT_PER_SAT
        if fee_max_msat < estimate_msat:
            return Refusal(
                "fee_over_limit",
                f"the chain takes about {estimate_msat} msat now, over the limit of {fee_max_msat}",
            )
        amount_msat = request.amount
        if request.is_exact and amount_msat % MSAT_PER_SAT:
            return Refusal("amount_out_of_bounds", "the chain knows whole satoshi only")
        if not request.is_exact:
            amount_msat -= fee_max_msat
            amount_msat -= amount_msat % MSAT_PER_SAT
        if amount_msat < config.dust_sat * MSAT_PER_SAT:
            return Refusal(
                "amount_too_small",
                f"after fees {max(0, amount_msat)} msat would arrive; below {config.dust_sat} sat "
                "an output is dust: it costs more to spend than it is worth, and nodes refuse it",
            )
        no = config.payouts.why_not(amount_msat, "payment out")
        return no or _Priced(address, amount_msat, fee_max_msat, estimate_msat)
