"""Signed claims: a payment to an address that many pay to is his who signs for the payer's key.

A transaction is public, so naming it proves nothing. The payer's wallet signs a sentence about it
(EIP-191, `personal_sign`), and both together are the credential:

    eip191:<chain id>:<transaction>:<signature>

Claimed is what the signer has sent to one of our senders in that transaction, of one asset. It is
taken once nothing vanishes from so deep, since nobody looks after it later.

| boundary                | what can fail | recovery                                              |
|-------------------------|---------------|-------------------------------------------------------|
| plan → opening commit   | anything      | nothing happened                                      |
| opening commit → credit | we stop       | the operation credits what it planned; the deposit's  |
|                         |               | row is there once for a transaction and its payer     |
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
from eth_utils.address import to_checksum_address

from farebox.errors import InvalidCredential
from farebox.ids import derived_id
from farebox.money import AMOUNT_END
from farebox.payments import PaymentPlan, PaymentResult, Refusal, Rejected, Unresolved
from farebox.payments.rail import Limits
from farebox.rails.evm.accounts import Account, encode_defunct
from farebox.rails.evm.contracts import topic
from farebox.rails.evm.outbox import custody_of
from farebox.rails.evm.scan import TRANSFER, Placed, Scan, Transaction

_CLAIM = re.compile(r"eip191:([0-9]{1,16}):(0x[0-9a-fA-F]{64}):(0x[0-9a-fA-F]{130})")
#: Where a token was moved by a signature that is a credential itself.
_USED = topic("AuthorizationUsed(address,bytes32)")


class ClaimedAsset(msgspec.Struct, frozen=True):
    """What may be claimed; `token` is empty for the chain's coin."""

    asset: str
    token: str
    limits: Limits


class Claim(msgspec.Struct, frozen=True):
    """A claim that was read: `payer` is who has signed it."""

    transaction: str
    payer: str


class _Job(msgspec.Struct, frozen=True):
    chain: str
    asset: str
    amount: int
    claim: Claim


def sentence(chain_id: int, transaction: str) -> str:
    """What the payer's wallet signs, and shows before it does."""
    return f"I have made this payment and claim it.\nChain: {chain_id}\nTransaction: {transaction}"


def read_claim(text: str, chain_id: int) -> Claim:
    """Read a credential and find out who has signed it. Raises InvalidCredential."""
    found = _CLAIM.fullmatch(text)
    if found is None or int(found[1]) != chain_id:
        raise InvalidCredential("a claim is eip191:<chain id>:<transaction>:<signature>")
    transaction = found[2].lower()
    message = encode_defunct(text=sentence(chain_id, transaction))
    try:
        payer = Account.recover_message(message, signature=found[3])
    except Exception:  # the library has many ways to say that it is none
        raise InvalidCredential("the claim's signature is none") from None
    return Claim(transaction, to_checksum_address(payer))


class Claims:
    """Takes signed claims on one chain. `depth` is how deep a payment must be."""

    def __init__(
        self,
        chain: str,
        chain_id: int,
        assets: Sequence[ClaimedAsset],
        senders: Sequence[str],
        scan: Scan,
        depth: int,
    ) -> None:
        self._chain = chain
        self._chain_id = chain_id
        self._tokens = {one.token.lower(): one for one in assets}
        self._senders = {one.lower() for one in senders}
        self._scan = scan
        self._depth = depth

    def can_handle(self, credential: str) -> bool:
        """Whether it begins like a claim on this chain."""
        return credential.startswith(f"eip191:{self._chain_id}:")

    def identity(self, credential: str) -> str:
        """The same for every text that claims the same payment. Raises InvalidCredential."""
        claim = read_claim(credential, self._chain_id)
        return derived_id("evm-claim", self._chain, claim.transaction, claim.payer)

    def asset(self, credential: str) -> str:
        """Not told: only the chain knows what was paid."""
        return ""

    async def plan(self, credential: str) -> PaymentPlan | Refusal:
        """Find the payment. Raises RailUnavailable, RailRejected."""
        claim = read_claim(credential, self._chain_id)
        placed = (await self._scan.receipts([claim.transaction])).get(claim.transaction)
        sent = await self._scan.transaction(claim.transaction)
        if placed is None or sent is None:
            return Refusal("claim_unknown", "no block of this chain has the transaction")
        if placed.status != 1 or sent.sender.lower() in self._senders:
            return Refusal("claim_refused", "this transaction pays nothing here")
        head = await self._scan.header("latest")
        deep = 0 if head is None else int(head.number) - int(placed.block_number) + 1
        if deep < self._depth:
            text = f"it has {deep} of {self._depth} confirmations; claim it later"
            return Refusal("claim_unconfirmed", text)
        found = self._paid(claim.payer, sent, placed)
        if len(found) != 1:
            text = "the signer has sent nothing to an address of ours in it, or several assets"
            return Refusal("claim_refused", text)
        ((token, amount),) = found.items()
        of = self._tokens[token]
        if no := of.limits.why_not(amount, "deposit", f"units of {of.asset}"):
            return no
        job = _Job(self._chain, of.asset, amount, claim)
        custody = custody_of(self._chain, of.asset)
        return PaymentPlan(msgspec.json.encode(job), custody, asset=of.asset, amount=amount)

    def _paid(self, payer: str, sent: Transaction, placed: Placed) -> dict[str, int]:
        """What the signer has sent to us, by token; nothing that a credential of its own moved."""
        found: dict[str, int] = {}
        if sent.sender.lower() == payer.lower() and sent.to and sent.to.lower() in self._senders:
            found[""] = int(sent.value)
        authorized = {one.address.lower() for one in placed.logs if one.topics[:1] == (_USED,)}
        for event in placed.logs:
            token = event.address.lower()
            if token in authorized or event.topics[:1] != (TRANSFER,) or len(event.topics) != 3:
                continue
            if event.to in self._senders and event.payer == payer.lower():
                found[token] = found.get(token, 0) + event.value
        return {
            token: amount
            for token, amount in found.items()
            if token in self._tokens and 0 < amount < AMOUNT_END
        }

    async def receive(self, payload: bytes) -> PaymentResult | Rejected | Unresolved:
        """What was planned: it lies here already."""
        job = msgspec.json.decode(payload, type=_Job)
        return PaymentResult(
            amount_msats=0,
            currency=job.asset,
            payment_method=job.chain,
            transaction_id=f"{job.claim.transaction}:{job.claim.payer}",
            amount=job.amount,
        )
