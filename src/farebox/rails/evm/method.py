"""One EVM chain as a way to pay: deposits to addresses of ours in, payments to addresses out."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from farebox.clock import NS_PER_S, Clock
from farebox.errors import InvalidCredential, RailError, RailUnavailable
from farebox.ids import derived_id
from farebox.ledger.model import Put
from farebox.ledger.service import Ledger
from farebox.payments import (
    PaymentCredentials,
    PaymentPlan,
    PaymentResult,
    RefundPlan,
    RefundQuote,
    RefundRequest,
    RefundResult,
    Refusal,
    Rejected,
    Reserve,
    Standing,
    Unresolved,
)
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
from farebox.rails.evm.addresses import Addresses
from farebox.rails.evm.arrivals import Arrivals
from farebox.rails.evm.config import EvmConfig
from farebox.rails.evm.holding import holdings_of
from farebox.rails.evm.links import Link, payment_link, read_address
from farebox.rails.evm.outbox import custody_of
from farebox.rails.evm.payouts import Payouts
from farebox.rails.evm.records import ARRIVAL
from farebox.rails.evm.rpc import Quantity, Rpc
from farebox.rails.evm.scan import Scan
from farebox.rails.evm.sweeping import Sweeping

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_TRANSACTION = re.compile(r"0x[0-9a-fA-F]{64}")
#: What people write in front of an address, to say which token they mean.
_NAMED = re.compile(r"[a-z0-9-]{1,32}:(?=0x)", re.IGNORECASE)
#: Names of tokens that are none of their codes.
_ALIASES = {"tether": "USDT"}
#: What credentials that pay by themselves say in their metadata.
_KIND = "signed"


class Taking(Protocol):
    """A kind of credential that pays by itself, since its payer has signed it."""

    def can_handle(self, credential: str) -> bool:
        """Whether it looks like one. Cheap, never raises."""
        ...

    def identity(self, credential: str) -> str:
        """The same for two texts of the same money. Raises InvalidCredential."""
        ...

    def asset(self, credential: str) -> str:
        """What it pays in; "" where only the chain tells. Raises InvalidCredential."""
        ...

    async def plan(self, credential: str) -> PaymentPlan | Refusal:
        """As `AbstractPaymentMethod.plan_payment`."""
        ...

    async def receive(self, payload: bytes) -> PaymentResult | Rejected | Unresolved:
        """As `AbstractPaymentMethod.receive_payment`."""
        ...


class EvmMethod(DepositMethod):
    """Paid to addresses of ours on one chain, pays from its senders."""

    credential_noun, asked_for = "a transaction", "the address"

    def __init__(
        self,
        config: EvmConfig,
        rpc: Rpc,
        scan: Scan,
        arrivals: Arrivals,
        addresses: Addresses,
        payouts: Payouts,
        sweeping: Sweeping,
        takings: Mapping[str, Taking],
        ledger: Ledger,
    ) -> None:
        self.config = config
        self.payment_type = config.name
        self.credential_hint = f"a deposit's address or transaction on {config.name} (0x…)"
        self.rpc = rpc
        self._scan = scan
        self._arrivals = arrivals
        self._addresses = addresses
        self._payouts = payouts
        self._takings = takings
        self.sweeping = sweeping
        self.sending = sweeping.sending
        self._ledger = ledger
        self._fault = "the node was not asked yet"

    async def start(self) -> None:
        """Put the ceilings into the books. Raises StoreError."""
        for one in self.config.assets:
            custody = custody_of(self.config.name, one.asset.code)
            await self._ledger.limit_custody(custody, one.asset.code, one.ceiling)

    # ── credentials ──────────────────────────────────────────────────────────────────────────────

    def can_handle(self, credential: str) -> bool:
        """Whether it is an address or a transaction, alone or named as ours, or a signed claim or
        transfer on this chain.

        One that names no chain is handled by the first chain there is, for all of them.
        """
        bare = self._bare(credential)
        if any(taking.can_handle(credential.strip()) for taking in self._takings.values()):
            return True
        return bool(_ADDRESS.fullmatch(bare) or _TRANSACTION.fullmatch(bare))

    async def parse_credential(self, credential: str) -> PaymentCredentials:
        """Find out whose deposit it names, on whichever chain. Raises InvalidCredential."""
        bare = self._bare(credential)
        chain, reference = self.payment_type, bare
        for kind, taking in self._takings.items():
            if taking.can_handle(credential.strip()):
                identity = taking.identity(credential.strip())
                return PaymentCredentials(credential, chain, {_KIND: kind}, identity)
        if _TRANSACTION.fullmatch(bare):
            rows = await self._ledger.store.find(ARRIVAL, {"transaction": bare.lower()}, limit=1)
            if rows:
                chain, reference = rows[0][1].value.chain, rows[0][1].value.address
        else:
            reference = self.reference_of(credential)
            known = await self._addresses.find(reference)
            chain = known.chain if known else chain
        identity = derived_id("evm", chain, reference)
        return PaymentCredentials(credential, chain, {"reference": reference}, identity)

    def reference_of(self, credential: str) -> str:
        """The address, with its checksum."""
        return read_address(self._bare(credential), self.config.chain_id)

    def _bare(self, credential: str) -> str:
        """What stands behind a name that is this chain's, a token's or a scheme's with its id."""
        text = credential.strip()
        ours = str(self.config.chain_id)
        if text.startswith("ethereum:"):
            try:
                return read_address(text, self.config.chain_id)
            except InvalidCredential:
                return text
        if text.startswith(f"eip155:{ours}:"):
            return text.removeprefix(f"eip155:{ours}:")
        name = _NAMED.match(text)
        if name is None:
            return text
        named = name[0][:-1]
        code = _ALIASES.get(named.lower(), named.upper())
        is_ours = named == self.payment_type or self.config.of(code) is not None
        return text[name.end() :] if is_ours else text

    async def plan_payment(
        self, credentials: PaymentCredentials, reserve: Reserve | None
    ) -> PaymentPlan | Refusal:
        """A signed claim or transfer is taken; else refused: everybody can read a chain."""
        kind = credentials.metadata.get(_KIND)
        if not isinstance(kind, str):
            return await super().plan_payment(credentials, reserve)
        plan = await self._takings[kind].plan(credentials.raw_credential.strip())
        if isinstance(plan, Refusal):
            return plan
        return replace(plan, payload=f"{kind}:".encode() + plan.payload)

    def get_refund_metadata(self, credentials: PaymentCredentials) -> Mapping[str, str]:
        """What a signed transfer pays in, so that it goes back in that."""
        kind = credentials.metadata.get(_KIND)
        if not isinstance(kind, str):
            return {}
        asset = self._takings[kind].asset(credentials.raw_credential.strip())
        return {"refund_currency": asset} if asset else {}

    async def receive_payment(
        self, payload: bytes, *, asked_before: bool
    ) -> PaymentResult | Rejected | Unresolved:
        """Take what was planned, or find out how far it is."""
        kind, _, rest = payload.partition(b":")
        return await self._takings[kind.decode()].receive(rest)

    @property
    def place(self) -> str:
        """All of this chain's custody."""
        return f"custody:evm:{self.config.name}"

    def custody(self, asset: str) -> str:
        """Of an asset on this chain."""
        return custody_of(self.config.name, asset)

    # ── in ───────────────────────────────────────────────────────────────────────────────────────

    async def ask(self, order: DepositOrder) -> Payable | Refusal:
        """An address that nobody else was shown."""
        of = self.config.of(order.asset)
        assert of is not None, "it is among the terms"
        head = await self._arrivals.begin()
        made = await self._addresses.fresh(int(head.number))
        return Payable(
            reference=made.address,
            text=made.address,
            uri=payment_link(Link(made.address, of.token, order.amount), self.config.chain_id),
            custody=self.custody(order.asset),
            amount=order.amount,
            expires_at=self._ledger.clock.now_ns() + self.config.expiry_s * NS_PER_S,
        )

    async def look(self, reference: str) -> list[Sighting]:
        """What has arrived at an address, as the chain has it now."""
        await self._arrivals.advance()
        return await self._arrivals.of_address(reference)

    @property
    def behind(self) -> int | None:
        """Blocks from where it has looked to the newest."""
        return self._arrivals.behind

    async def watch(self, cursor: str) -> AsyncGenerator[Watched, None]:
        """What arrives from now on. The cursor is the rail's own: it moves without payments too."""
        while True:
            is_all = await self._arrivals.advance()
            for sighting in await self._arrivals.to_be_told():
                yield Watched(sighting, "")
            if is_all:
                await asyncio.sleep(self.config.poll_s)

    # ── out ──────────────────────────────────────────────────────────────────────────────────────

    async def quote_refund(self, request: RefundRequest) -> RefundQuote | Refusal:
        """Amount, and what gas costs now with the operator's margin."""
        return await self._no_way(request) or await self._payouts.quote(request)

    def fee_max(self, amount: int, asset: str) -> int:
        """What gas would cost at the operator's cap; all of it where nobody can say."""
        return self._payouts.fee_at_cap(asset) or amount

    def can_pay_to(self, address: str) -> bool:
        """An address, or one with this chain's name before it."""
        try:
            read_address(address, self.config.chain_id)
        except InvalidCredential:
            return False
        return True

    async def plan_refund(self, request: RefundRequest) -> RefundPlan | Refusal:
        """To an address on this chain that is none of ours."""
        if no := await self._no_way(request):
            return no
        try:
            return await self._payouts.plan(request)
        except RailUnavailable as error:
            return Refusal("rail_unavailable", str(error))

    async def _no_way(self, request: RefundRequest) -> Refusal | None:
        """Why what is named is no address to pay."""
        try:
            to = read_address(request.destination, self.config.chain_id)
        except InvalidCredential as error:
            return Refusal("destination_invalid", str(error))
        if await self._addresses.find(to) is not None:
            return Refusal("destination_invalid", "this is a deposit address of this house")
        return None

    async def refund_payment(
        self, payload: bytes, *, asked_before: bool
    ) -> RefundResult | Rejected | Unresolved:
        """Pay as planned, or find out how far it is: the outbox knows."""
        return await self._payouts.pay(payload)

    async def give_up_refund(self, payload: bytes) -> tuple[Put, ...]:
        """One that still waits joins no batch any more."""
        return await self._payouts.give_up(payload)

    # ── standing ─────────────────────────────────────────────────────────────────────────────────

    async def probe(self) -> None:
        """Ask the node which chain it is on and how old its newest block is.

        Raises RailUnavailable.
        """
        try:
            self._fault = await fault_of(self.config, self.rpc, self._scan, self._ledger.clock)
        except RailError as error:
            self._fault = str(error)
            raise

    async def holdings(self) -> Sequence[Holding]:
        """What lies at our senders, in the treasury and at addresses that were not swept yet."""
        hot = {*self.sending.keys.addresses, *self.sweeping.terms.treasuries}
        return await holdings_of(self.config, hot, self.rpc, self._ledger)

    def standing(self) -> Standing:
        """By the last probe and by how calls have fared since."""
        return self.rpc.breaker.standing(self._fault)

    def terms(self) -> Terms:
        """The operator's limits."""
        return Terms(
            assets=tuple(
                AssetTerms(one.asset, one.deposits, one.payouts) for one in self.config.assets
            ),
            fees="in: none; out: what gas costs at the time, quoted before",
            expected_s=self.config.expected_s,
            destinations=(f"an address on {self.config.name} (chain {self.config.chain_id})",),
        )


async def fault_of(config: EvmConfig, rpc: Rpc, scan: Scan, clock: Clock) -> str:
    """What is wrong with a node that answers; empty when nothing is. Raises RailError."""
    chain_id = int(await rpc.call(Quantity, "eth_chainId"))
    if chain_id != config.chain_id:
        return f"the node is on chain {chain_id}, the settings say {config.chain_id}"
    head = await scan.header("latest")
    if head is None:
        return "the node has no block yet"
    age_s = clock.now_ns() // NS_PER_S - int(head.timestamp)
    if age_s > config.stale_after_s:
        return f"the newest block is {age_s} s old: chain or node stand still"
    return ""
