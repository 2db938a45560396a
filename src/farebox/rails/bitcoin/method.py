"""Bitcoin on the chain as a way to pay: a fresh address per deposit, payments out in batches."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence

from farebox.clock import NS_PER_S
from farebox.errors import InvalidCredential, InvalidInput, RailUnavailable
from farebox.ledger.model import Put
from farebox.ledger.service import Ledger
from farebox.money import BTC, MSAT_PER_SAT
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
from farebox.payments.operations import Operations
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
from farebox.rails.bitcoin.addresses import Addresses
from farebox.rails.bitcoin.arrivals import Arrivals
from farebox.rails.bitcoin.batches import Batches
from farebox.rails.bitcoin.chain import GENESIS, ChainInfo, View
from farebox.rails.bitcoin.config import BitcoinConfig
from farebox.rails.bitcoin.paying import Paying
from farebox.rails.bitcoin.wallet import Wallet
from farebox.wire.bitcoin import read_uri, uri_of

PAYMENT_TYPE = "bitcoin"
_BLOCK_S = 600
_TXID = re.compile(r"[0-9a-fA-F]{64}")
_SCHEME = re.compile(r"(bitcoin|btc):", re.IGNORECASE)


class BitcoinMethod(DepositMethod):
    """Paid at addresses of one wallet, pays by the same."""

    payment_type = PAYMENT_TYPE
    credential_noun, asked_for = "a transaction", "its address"
    credential_hint = "a transaction id or address that pays a deposit asked for here (bitcoin:…)"
    #: A transaction may wait for days in the pools.
    grace_s = 14 * 86_400

    def __init__(
        self, config: BitcoinConfig, wallet: Wallet, ledger: Ledger, operations: Operations
    ) -> None:
        self.config = config
        self.wallet = wallet
        self._ledger = ledger
        self._addresses = Addresses(config, wallet, ledger)
        self._arrivals = Arrivals(config, wallet.keys, ledger)
        self.batches = Batches(config, wallet, self._addresses, ledger, operations)
        self._paying = Paying(config, wallet, self.batches, ledger)
        self._fault = "the chain was not asked yet"

    async def start(self) -> None:
        """Put the wallet's ceiling into the books. Raises StoreError."""
        config = self.config
        await self._ledger.limit_custody(config.custody, BTC.code, config.ceiling_msat)

    # ── credentials ──────────────────────────────────────────────────────────────────────────────

    def can_handle(self, credential: str) -> bool:
        """Whether it begins like one of ours."""
        return bool(_TXID.fullmatch(credential) or _SCHEME.match(credential))

    def reference_of(self, credential: str) -> str:
        """The address that it names; of a transaction, the first that it pays here.

        Raises InvalidCredential.
        """
        try:
            text, _ = read_uri(credential)
        except InvalidInput as error:
            raise InvalidCredential(str(error)) from None
        if not _TXID.fullmatch(text):
            return self.wallet.address(text)
        view = self.wallet.view
        paid = [
            coin
            for coin in (view.coins if view else ())
            if coin.outpoint.startswith(f"{text.lower()}:") and not coin.is_change
        ]
        if not paid:
            raise InvalidCredential("no such transaction has paid an address of ours yet")
        return self.wallet.keys.address(paid[0].index)

    @property
    def place(self) -> str:
        """This wallet's custody account."""
        return self.config.custody

    # ── in ───────────────────────────────────────────────────────────────────────────────────────

    async def ask(self, order: DepositOrder) -> Payable | Refusal:
        """A fresh address, counted in the book before it is shown."""
        amount_msat, config = order.amount, self.config
        if amount_msat is not None and amount_msat % MSAT_PER_SAT:
            return Refusal("amount_out_of_bounds", "the chain knows whole satoshi only")
        if amount_msat is not None and amount_msat < config.dust_sat * MSAT_PER_SAT:
            return Refusal(
                "amount_too_small",
                f"below {config.dust_sat} sat an output is dust: it costs more to spend than it is "
                "worth, and nodes refuse it",
            )
        address = await self._addresses.give()
        now = self._ledger.clock.now_ns()
        return Payable(
            reference=address,
            text=address,
            uri=uri_of(address, amount_msat and amount_msat // MSAT_PER_SAT),
            custody=config.custody,
            amount=amount_msat,
            expires_at=now + config.deposit_expiry_s * NS_PER_S,
        )

    async def look(self, reference: str) -> list[Sighting]:
        """What the chain knows of one address and the books do not."""
        view = await self._addresses.look()
        return [one async for one in self._news(view, reference)]

    async def watch(self, cursor: str) -> AsyncGenerator[Watched, None]:
        """Round after round: the chain, what arrived, and what is to leave.

        The wallet as a whole is compared with the book each time, so nothing is missed that came
        while nobody looked; the cursor only says how far that was.
        """
        while True:
            view = await self._addresses.look()
            position = f"{view.tip.height}:{view.tip.hash}"
            async for sighting in self._news(view):
                yield Watched(sighting, position)
            await self.batches.tend(view)
            await asyncio.sleep(self.config.round_s)

    async def _news(self, view: View, address: str = "") -> AsyncGenerator[Sighting, None]:
        """What changed. Nothing is taken back by one view alone: what the books say of it may be
        younger, by another process or another call. A look that began after it was read tells.
        """
        gone = dict[tuple[str, int], Sighting]()
        async for sighting in self._arrivals.news(view, address=address):
            if sighting.state is DepositState.REVERSED:
                gone[sighting.external, sighting.index] = sighting
            else:
                yield sighting
        if not gone:
            return
        again = await self._addresses.look()
        async for sighting in self._arrivals.news(again, address=address):
            first = gone.get((sighting.external, sighting.index))
            if first is not None and sighting.state is DepositState.REVERSED:
                yield first

    # ── out ──────────────────────────────────────────────────────────────────────────────────────

    async def quote_refund(self, request: RefundRequest) -> RefundQuote | Refusal:
        """Amount, most fee, and what the chain would take now."""
        return await self._paying.quote(request)

    def fee_max(self, amount: int, asset: str) -> int:
        """What a payment out may cost: by its bytes, not by its amount."""
        return self._paying.fee_max_msat()

    def can_pay_to(self, address: str) -> bool:
        """An address of this network, bare or as a URI."""
        return self._paying.is_address(address)

    async def plan_refund(self, request: RefundRequest) -> RefundPlan | Refusal:
        """To an address of this chain."""
        return await self._paying.plan(request)

    async def refund_payment(
        self, payload: bytes, *, asked_before: bool
    ) -> RefundResult | Rejected | Unresolved:
        """See how it stands: its batch carries it out."""
        return await self._paying.pay(payload)

    async def give_up_refund(self, payload: bytes) -> tuple[Put, ...]:
        """One that still waits joins no batch any more."""
        return await self._paying.give_up(payload)

    # ── standing ─────────────────────────────────────────────────────────────────────────────────

    async def probe(self) -> None:
        """Ask the source who it is. Raises RailUnavailable."""
        try:
            self._fault = fault_of(await self.wallet.info(), self.config)
        except RailUnavailable as error:
            self._fault = str(error)
            raise

    async def holdings(self) -> Sequence[Holding]:
        """What is in blocks and not spent."""
        view = await self._addresses.look()
        coins = [one for one in view.coins if one.block is not None and not one.is_spent]
        held_msat = sum(one.amount_sat for one in coins) * MSAT_PER_SAT
        return (Holding(self.place, BTC.code, held_msat),)

    def standing(self) -> Standing:
        """By the last probe and by how calls have fared since."""
        return self.wallet.breaker.standing(self._fault)

    def terms(self) -> Terms:
        """The operator's limits, and what the chain takes."""
        config = self.config
        return Terms(
            assets=(AssetTerms(BTC, config.deposits, config.payouts),),
            fees=(
                "in: none; out: a share of the transaction's fee, at most "
                f"{self._paying.fee_max_msat()} msat now"
            ),
            expected_s=_BLOCK_S * min(one.confirmations for one in config.depths),
            destinations=(f"an address of the {config.network} network",),
        )

    def view(self) -> View | None:
        """The chain as it was last seen."""
        return self.wallet.view


def fault_of(info: ChainInfo, config: BitcoinConfig) -> str:
    """What is wrong with a source that answers; empty when nothing is."""
    if info.genesis != GENESIS[config.network]:
        return f"it is on another chain than {config.network}, which the settings name"
    return "" if info.is_synced else "it is still catching up with its chain"
