"""Lightning as a way to pay: deposits by invoice in, payments to invoices and addresses out."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence

import aiohttp

from farebox.clock import NS_PER_S
from farebox.errors import InvalidCredential, RailUnavailable
from farebox.ledger.service import Ledger
from farebox.money import BTC
from farebox.payments import (
    RefundPlan,
    RefundQuote,
    RefundRequest,
    RefundResult,
    Refusal,
    Rejected,
    Standing,
    Unresolved,
)
from farebox.payments.deposits import DepositState
from farebox.payments.rail import (
    AssetTerms,
    DepositMethod,
    DepositOrder,
    Holding,
    Payable,
    Sighting,
    Terms,
    Watched,
)
from farebox.rails.lightning.config import LightningConfig
from farebox.rails.lightning.node import LightningNode, NodeInfo, Settled
from farebox.rails.lightning.paying import Paying
from farebox.rails.web.breaker import Breaker
from farebox.rails.web.lnurl import Lnurl
from farebox.wire.bolt11 import decode_invoice

PAYMENT_TYPE = "lightning"
_CREDENTIAL = re.compile(r"(lightning:)?ln(bcrt|bc|tbs|tb|sb)[0-9]", re.IGNORECASE)


class LightningMethod(DepositMethod):
    """Paid by invoices of one node, pays by the same. `guarded` reaches what callers name."""

    payment_type = PAYMENT_TYPE
    credential_noun = "an invoice"
    credential_hint = "a Lightning invoice that was issued here (lnbc…)"

    def __init__(
        self,
        config: LightningConfig,
        node: LightningNode,
        breaker: Breaker,
        ledger: Ledger,
        guarded: aiohttp.ClientSession,
    ) -> None:
        self.config = config
        self.pays_invoices = not config.allowed
        self.node = node
        self._breaker = breaker
        self._ledger = ledger
        lnurl = Lnurl(guarded, allow_plain_http=config.allow_private)
        self._lnurl = lnurl
        self._paying = Paying(config, node, lnurl, ledger)
        self._fault = "the node was not asked yet"

    async def start(self) -> None:
        """Put the node's ceiling into the books. Raises StoreError."""
        config = self.config
        await self._ledger.limit_custody(config.custody, BTC.code, config.ceiling_msat)

    # ── credentials ──────────────────────────────────────────────────────────────────────────────

    def can_handle(self, credential: str) -> bool:
        """Whether it begins like an invoice."""
        return _CREDENTIAL.match(credential) is not None

    def reference_of(self, credential: str) -> str:
        """Its payment hash."""
        return decode_invoice(credential).payment_hash.hex()

    @property
    def place(self) -> str:
        """This node's custody account."""
        return self.config.custody

    # ── in ───────────────────────────────────────────────────────────────────────────────────────

    async def ask(self, order: DepositOrder) -> Payable | Refusal:
        """An invoice, checked to be what was asked for."""
        amount_msat = order.amount
        if self.node.unit_msat > 1 and (amount_msat is None or amount_msat % self.node.unit_msat):
            return Refusal("amount_out_of_bounds", "this node asks for whole satoshi only")
        config = self.config
        issued = await self.node.make_invoice(amount_msat, config.memo, config.invoice_expiry_s)
        try:
            invoice = decode_invoice(issued.text)
        except InvalidCredential as error:
            raise RailUnavailable(f"the node gave no invoice: {error}") from None
        if (invoice.network, invoice.amount_msat) != (config.network, amount_msat):
            raise RailUnavailable("the node's invoice is not what was asked for")
        return Payable(
            reference=invoice.payment_hash.hex(),
            text=issued.text,
            uri=f"lightning:{issued.text}",
            custody=config.custody,
            amount=amount_msat,
            expires_at=invoice.expires_at_s * NS_PER_S,
        )

    async def look(self, reference: str) -> list[Sighting]:
        """The invoice's payment, once it is settled."""
        settled = await self.node.settled(reference)
        return [] if settled is None else [_sighting(settled)]

    async def watch(self, cursor: str) -> AsyncGenerator[Watched, None]:
        """Settled invoices from a cursor on, also those that the node made for others."""
        async for settled in self.node.settled_from(cursor):
            yield Watched(_sighting(settled), settled.cursor)

    # ── out ──────────────────────────────────────────────────────────────────────────────────────

    async def quote_refund(self, request: RefundRequest) -> RefundQuote | Refusal:
        """Amount, most fee, and where the node can tell what it would be now."""
        return await self._paying.quote(request)

    def fee_max(self, amount: int, asset: str) -> int:
        """The operator's limit."""
        return self.config.fee_limit_msat(amount)

    def can_pay_to(self, address: str) -> bool:
        """A Lightning address or an LNURL."""
        return self._lnurl.is_lasting(address)

    async def plan_refund(self, request: RefundRequest) -> RefundPlan | Refusal:
        """To an invoice, a Lightning address or an LNURL."""
        try:
            return await self._paying.plan(request)
        except RailUnavailable as error:
            return Refusal("rail_unavailable", str(error))

    async def refund_payment(
        self, payload: bytes, *, asked_before: bool
    ) -> RefundResult | Rejected | Unresolved:
        """Pay as planned, or find out what became of an earlier try."""
        return await self._paying.pay(payload, asked_before=asked_before)

    # ── standing ─────────────────────────────────────────────────────────────────────────────────

    async def probe(self) -> None:
        """Ask the node who it is. Raises RailUnavailable."""
        try:
            self._fault = fault_of(await self.node.info(), self.config)
        except RailUnavailable as error:
            self._fault = str(error)
            raise

    async def holdings(self) -> Sequence[Holding]:
        """What its channels could send; nothing where the node does not tell."""
        send_msat = (await self.node.info()).send_msat
        return () if send_msat is None else (Holding(self.place, BTC.code, send_msat),)

    def standing(self) -> Standing:
        """By the last probe and by how calls have fared since."""
        return self._breaker.standing(self._fault)

    def terms(self) -> Terms:
        """The operator's limits and fees."""
        config = self.config
        return Terms(
            assets=(AssetTerms(BTC, config.deposits, config.payouts),),
            fees=(
                "in: none; out: what routing takes, at most "
                f"{config.fee_base_msat} msat and {config.fee_ppm} millionths of the amount"
            ),
            expected_s=5,
            destinations=(
                ("a Lightning invoice", "a Lightning address", "an LNURL", "a QR code")
                if self.pays_invoices
                else ("a Lightning address or LNURL that the operator allows",)
            ),
        )


def fault_of(info: NodeInfo, config: LightningConfig) -> str:
    """What is wrong with a node that answers; empty when nothing is."""
    if info.network != config.network:
        return f"the node is on ln{info.network}…, the settings say ln{config.network}…"
    return "" if info.is_synced else "the node is still catching up with its chain"


def _sighting(settled: Settled) -> Sighting:
    return Sighting(
        reference=settled.payment_hash,
        external=settled.payment_hash,
        amount=settled.received_msat,
        state=DepositState.CONFIRMED,
        at=settled.at_s * NS_PER_S,
    )
