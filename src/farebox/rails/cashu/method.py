"""Cashu as a way to pay."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp

from farebox.errors import InvalidCredential
from farebox.ids import derived_id
from farebox.ledger.service import Ledger
from farebox.payments import (
    AbstractPaymentMethod,
    PaymentCredentials,
    PaymentPlan,
    PaymentResult,
    PlannedChange,
    RefundPlan,
    RefundRequest,
    RefundResult,
    Refusal,
    Rejected,
    Reserve,
    Standing,
    Unresolved,
)
from farebox.rails.cashu.across import Crossing
from farebox.rails.cashu.anew import Replanning
from farebox.rails.cashu.change import Change
from farebox.rails.cashu.choose import Claims, Purse, places
from farebox.rails.cashu.config import CashuConfig
from farebox.rails.cashu.give import Giving
from farebox.rails.cashu.inventory import Inventory
from farebox.rails.cashu.leftover import Leftover
from farebox.rails.cashu.locked import Locked
from farebox.rails.cashu.melt import Melting
from farebox.rails.cashu.mints import Mints
from farebox.rails.cashu.payloads import (
    Give,
    Melt,
    ReceiveAcross,
    ReceiveLocked,
    ReceiveSwap,
    SwapAndGive,
    from_bytes,
)
from farebox.rails.cashu.receive import PAYMENT_TYPE, Receiving
from farebox.rails.web.lnurl import Lnurl
from farebox.signer import Signer
from farebox.wire.cashu.model import SHORT_ID_CHARS, Token
from farebox.wire.cashu.token import decode_token

_PREFIXES = ("cashuA", "cashuB")


class CashuMethod(AbstractPaymentMethod):
    """Tokens of several mints in, change and refunds out as tokens or over Lightning.

    `session` reaches the listed mints, `guarded` the addresses that callers choose. Both stay the
    caller's to close.
    """

    payment_type = PAYMENT_TYPE
    credential_hint = "a Cashu token (cashuA… or cashuB…)"

    def __init__(
        self,
        config: CashuConfig,
        ledger: Ledger,
        signer: Signer,
        session: aiohttp.ClientSession,
        guarded: aiohttp.ClientSession,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self.mints = Mints(config, ledger.clock, session, guarded)
        self.inventory = Inventory(ledger, signer.derive("cashu/seed"))
        self.locked = Locked(ledger, signer)
        replanning = Replanning(self.inventory, ledger, signer)
        self._receiving = Receiving(self.mints, self.inventory, self.locked, replanning)
        self._crossing = Crossing(self.mints, self.inventory, replanning, Leftover(ledger, signer))
        self._change = Change(self.inventory, config)
        purse = Purse(self.inventory, Claims(ledger.clock))
        lnurl = Lnurl(guarded, allow_plain_http=config.allow_private)
        self._giving = Giving(self.mints, self.inventory, purse)
        self._lnurl = lnurl
        self._melting = Melting(self.mints, self.inventory, purse, lnurl)

    async def start(self) -> None:
        """Put the mints' ceilings into the books. Raises StoreError."""
        await self.mints.set_ceilings(self._ledger)

    def can_handle(self, credential: str) -> bool:
        """Whether it begins like a token of version 3 or 4."""
        return credential.startswith(_PREFIXES)

    async def parse_credential(self, credential: str) -> PaymentCredentials:
        """Decode the token. Raises InvalidCredential."""
        token = decode_token(credential)
        metadata = {"mint": token.mint, "unit": token.unit, "amount": token.amount, "token": token}
        return PaymentCredentials(credential, PAYMENT_TYPE, metadata, identity(token))

    def standing(self) -> Standing:
        """By its trusted mints: one that answers is enough."""
        if any(not mint.is_left_alone for mint in self.mints.trusted()):
            return Standing(works=True)
        return Standing(works=False, reason="no mint that is trusted answers, or none is named")

    async def plan_payment(
        self, credentials: PaymentCredentials, reserve: Reserve | None
    ) -> PaymentPlan | Refusal:
        """Weigh the token and prepare the swap that also cuts its change; nothing moves."""
        token = credentials.metadata.get("token")
        if not isinstance(token, Token):
            token = decode_token(credentials.raw_credential)
        is_foreign = self.mints.known(token.mint) is None and self._config.swap_foreign
        plan = self._crossing.plan if is_foreign else self._receiving.plan
        return await plan(token, identity(token), reserve)

    async def receive_payment(
        self, payload: bytes, *, asked_before: bool
    ) -> PaymentResult | Rejected | Unresolved:
        """Swap as planned: one call to the mint, if it was never sent before."""
        match from_bytes(payload):
            case ReceiveSwap() as job:
                return await self._receiving.receive(job, asked_before=asked_before)
            case ReceiveLocked() as job:
                return await self.locked.receive(job, PAYMENT_TYPE)
            case ReceiveAcross() as job:
                return await self._crossing.receive(job, asked_before=asked_before)
            case other:
                raise InvalidCredential(f"{type(other).__name__} receives nothing")

    def can_pay_to(self, address: str) -> bool:
        """A Lightning address or an LNURL, which a mint pays for us."""
        return self._lnurl.is_lasting(address)

    async def plan_refund(self, request: RefundRequest) -> RefundPlan | Refusal:
        """A new token, or with a destination a Lightning payment, from where we hold most."""
        found = await places(self.mints, self._ledger.store, request.metadata)
        if request.destination:
            return await self._melting.plan(request, found)
        return await self._giving.plan(request, found)

    async def refund_payment(
        self, payload: bytes, *, asked_before: bool
    ) -> RefundResult | Rejected | Unresolved:
        """Give as planned, or find out what became of an earlier try."""
        match from_bytes(payload):
            case Give() as job:
                return await self._giving.give(job)
            case SwapAndGive() as job:
                return await self._giving.swap(job, asked_before=asked_before)
            case Melt() as job:
                return await self._melting.melt(job, asked_before=asked_before)
            case other:
                raise InvalidCredential(f"{type(other).__name__} refunds nothing")

    def get_refund_metadata(self, credentials: PaymentCredentials) -> Mapping[str, str]:
        """The mint and unit to give a refund in, so that its receiver knows them already."""
        mint, unit = credentials.metadata.get("mint"), credentials.metadata.get("unit")
        return {"refund_mint_url": str(mint), "refund_currency": str(unit)} if mint else {}

    async def plan_change(self, owner: str, amount_msat: int) -> PlannedChange | None:
        """Change out of what the request's swap cut; no call to a mint."""
        return await self._change.plan(owner, amount_msat)

    async def render_change(self, reference: bytes) -> str | None:
        """The change as a token, the same each time; None once it was spent."""
        return await self._change.render(reference)


def identity(token: Token) -> str:
    """One name for the same money, in whatever version, order and length of keyset id.

    Mint, keyset and amount count too: with them altered it is not the same money, and a refusal
    of the altered one must not be held against the token itself.
    """
    parts = [
        (proof.secret.encode(), proof.C, proof.keyset_id[:SHORT_ID_CHARS], str(proof.amount))
        for proof in token.proofs
    ]
    flat = [part for parts_of_one in sorted(parts) for part in parts_of_one]
    return derived_id("cashu", token.mint, token.unit, *flat)
