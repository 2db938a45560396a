"""EIP-3009: a payer signs a transfer to us, we send it and pay the gas.

The credential is what x402's `exact` scheme carries: JSON in base64, with `payload.authorization`
(from, to, value, validAfter, validBefore, nonce) and `payload.signature` (65 bytes); `network` is
the chain's name here or `eip155:<id>`. Which token it is for the signature says: it fits one
domain only.

    absent ──► reserved ──► settled          released ──► reserved   (may be handed in anew)
                  ├──► released    a definite no before anything was signed by us
                  └──► failed      reverted on the chain; never tried again

| boundary                   | what can fail             | recovery                                |
|----------------------------|---------------------------|-----------------------------------------|
| plan → opening commit      | anything                  | nothing happened                        |
| opening commit             | five at once              | one has the row, four find its operation|
| opening commit → nonce     | it is refused, has expired| released: nothing has left              |
| nonce → confirmed          | see `outbox.py`           | followed                                |
| reverted                   | somebody sent it before us| where the money arrived it is credited  |
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from eth_abi.abi import encode
from eth_keys.datatypes import Signature
from eth_keys.exceptions import BadSignature
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError

from farebox.clock import NS_PER_S
from farebox.errors import InvalidCredential, RailRejected
from farebox.ids import derived_id
from farebox.ledger.model import ABSENT, Put, Unit
from farebox.ledger.service import Ledger, State
from farebox.money import Rounding
from farebox.payments import PaymentPlan, PaymentResult, Refusal, Rejected, Unresolved
from farebox.payments.exchange import Exchange
from farebox.payments.method import no_rate
from farebox.payments.model import Changes
from farebox.rails.evm.contracts import answered, calldata, topic
from farebox.rails.evm.fees import TooDear, is_worth
from farebox.rails.evm.links import read_address
from farebox.rails.evm.outbox import INTENT, Call, Intent, IntentState, SlotState, custody_of
from farebox.rails.evm.reads import Receipt
from farebox.rails.evm.records import RESERVATION, Reservation, ReservationState
from farebox.rails.evm.sending import Held, Parcel, Sending

_CREDENTIAL_MAX_CHARS = 8_192
_REVERTED = 3
#: It must be valid for so long after it was handed in.
_SLACK_S = 120
_SETTLE = (
    "transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,"
    "uint8,bytes32,bytes32)"
)
_TYPE = keccak(
    text="TransferWithAuthorization(address from,address to,uint256 value,"
    "uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
_DOMAIN = keccak(
    text="EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
_TRANSFER = topic("Transfer(address,address,uint256)")
_USED = topic("AuthorizationUsed(address,bytes32)")
_CANCELED = topic("AuthorizationCanceled(address,bytes32)")
_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


@dataclass(frozen=True, slots=True)
class AuthorizedAsset:
    """A token that takes authorisations; `name` and `version` are those of its EIP-712 domain."""

    asset: str
    token: str
    name: str
    version: str
    least: int
    most: int


class Authorization(msgspec.Struct, frozen=True):
    """A transfer that its payer has signed. Times are UTC seconds."""

    payer: str
    to: str
    value: int
    valid_after: int
    valid_before: int
    nonce: str
    signature: str

    def __repr__(self) -> str:
        return f"Authorization({self.payer}, {self.value})"


class _Signed(msgspec.Struct, frozen=True):
    from_: str = msgspec.field(name="from")
    to: str
    value: str | int
    valid_after: str | int = msgspec.field(name="validAfter")
    valid_before: str | int = msgspec.field(name="validBefore")
    nonce: str


class _Payload(msgspec.Struct, frozen=True):
    authorization: _Signed
    signature: str


class _Accepted(msgspec.Struct, frozen=True):
    scheme: str = "exact"
    network: str = ""


class _Document(msgspec.Struct, frozen=True):
    payload: _Payload
    scheme: str = "exact"
    network: str = ""
    accepted: _Accepted = _Accepted()


class Job(msgspec.Struct, frozen=True):
    """All that settling needs, now or after a crash."""

    intent: str
    key: str
    asset: str
    token: str
    authorization: Authorization
    since: int  # the height from which on somebody else may have sent it


def read_authorization(text: str, chain: str, chain_id: int) -> Authorization:
    """Read a credential: its form and chain alone are checked. Raises InvalidCredential."""
    if len(text) > _CREDENTIAL_MAX_CHARS:
        raise InvalidCredential("the authorisation is too long")
    try:
        raw = base64.b64decode(text, validate=True)
        document = msgspec.json.decode(raw, type=_Document)
        signed = document.payload.authorization
        numbers = [int(n) for n in (signed.value, signed.valid_after, signed.valid_before)]
        nonce, signature = (
            bytes.fromhex(one.removeprefix("0x"))
            for one in (signed.nonce, document.payload.signature)
        )
    except (binascii.Error, msgspec.DecodeError, ValueError, RecursionError):
        raise InvalidCredential("not an x402 payment with an EIP-3009 authorisation") from None
    network = document.network or document.accepted.network
    if network not in ("", chain, f"eip155:{chain_id}"):
        raise InvalidCredential("the authorisation is for another chain")
    if "exact" not in (document.scheme, document.accepted.scheme):
        raise InvalidCredential("only the scheme `exact` is taken")
    if len(nonce) != 32 or len(signature) != 65 or not all(0 <= n < 2**256 for n in numbers):
        raise InvalidCredential("nonce, signature or amounts are out of bounds")
    return Authorization(
        payer=read_address(signed.from_, chain_id),
        to=read_address(signed.to, chain_id),
        value=numbers[0],
        valid_after=numbers[1],
        valid_before=numbers[2],
        nonce=f"0x{nonce.hex()}",
        signature=f"0x{signature.hex()}",
    )


def digest(one: Authorization, of: AuthorizedAsset, chain_id: int) -> bytes:
    """What the payer has signed (EIP-712)."""
    domain = encode(
        ("bytes32", "bytes32", "bytes32", "uint256", "address"),
        (_DOMAIN, keccak(text=of.name), keccak(text=of.version), chain_id, of.token),
    )
    message = encode(
        ("bytes32", "address", "address", "uint256", "uint256", "uint256", "bytes32"),
        (
            _TYPE,
            one.payer,
            one.to,
            one.value,
            one.valid_after,
            one.valid_before,
            bytes.fromhex(one.nonce[2:]),
        ),
    )
    return keccak(b"\x19\x01" + keccak(domain) + keccak(message))


def signed_for(
    one: Authorization, assets: Sequence[AuthorizedAsset], chain_id: int
) -> AuthorizedAsset | None:
    """The token that the payer's signature is for; None where it is for none of these."""
    r, s, v = _parts(one.signature)
    if s > _HALF_ORDER:
        return None  # the twin of a signature, which tokens refuse
    for of in assets:
        try:
            signature = Signature(vrs=(v - 27 if v >= 27 else v, r, s))
            signer = signature.recover_public_key_from_msg_hash(digest(one, of, chain_id))
        except (BadSignature, ValidationError):
            continue
        if signer.to_checksum_address() == one.payer:
            return of
    return None


def _parts(signature: str) -> tuple[int, int, int]:
    raw = bytes.fromhex(signature[2:])
    return int.from_bytes(raw[:32]), int.from_bytes(raw[32:64]), raw[64]


class Authorizations:
    """Takes signed transfers to our senders on one chain."""

    def __init__(
        self,
        assets: Sequence[AuthorizedAsset],
        sending: Sending,
        ledger: Ledger,
        exchange: Exchange,
        *,
        gas_percent: int,
    ) -> None:
        """Gas may be at most `gas_percent` of what a transfer brings."""
        self._exchange = exchange
        self._gas_percent = gas_percent
        self._assets = tuple(assets)
        self._sending = sending
        self._chain = sending.chain
        self._ledger = ledger

    def can_handle(self, credential: str) -> bool:
        """Whether it is an authorisation for this chain, as far as its form goes."""
        try:
            self._read(credential)
        except InvalidCredential:
            return False
        return True

    def _read(self, credential: str) -> Authorization:
        terms = self._sending.terms
        return read_authorization(credential, terms.chain, terms.chain_id)

    def identity(self, credential: str) -> str:
        """The same for every text that would use up the same nonce of the same payer.

        Raises InvalidCredential.
        """
        one = self._read(credential)
        of = signed_for(one, self._assets, self._sending.terms.chain_id)
        return derived_id("auth", self._key(one, of.token if of else ""))

    def asset(self, credential: str) -> str:
        """The token's that its signature is for; "" where it is for none of ours."""
        of = signed_for(self._read(credential), self._assets, self._sending.terms.chain_id)
        return of.asset if of else ""

    def _key(self, one: Authorization, token: str) -> str:
        parts = (self._sending.terms.chain, token.lower(), one.payer.lower(), one.nonce)
        return ":".join(parts)

    async def plan(self, credential: str) -> PaymentPlan | Refusal:
        """Check it and reserve its nonce. Raises RailUnavailable, RailRejected."""
        terms, one = self._sending.terms, self._read(credential)
        of = signed_for(one, self._assets, terms.chain_id)
        if of is None:
            return Refusal("signature_invalid", "this is not signed by its payer for a token here")
        if one.to not in self._sending.keys.addresses:
            return Refusal("not_addressed_to_us", "the authorisation pays somebody else")
        if not of.least <= one.value <= of.most:
            text = f"an authorisation is from {of.least} to {of.most} units of {of.asset} here"
            return Refusal("amount_out_of_bounds", text)
        if no := self._untimely(one):
            return no
        key = self._key(one, of.token)
        row = await self._ledger.store.get(RESERVATION, key)
        if row is not None and row.value.state is not ReservationState.RELEASED:
            return Refusal("already_credited", "this authorisation was handed in before")
        if await self._is_used(of.token, one) or not await self._would_work(of.token, one):
            return Refusal("authorization_refused", "the token refuses it: used, or not covered")
        if no := await self._too_dear(of, one):
            return no
        tries = 0 if row is None else row.value.tries + 1
        intent = f"{derived_id('auth', key)}:{tries}"
        reserved = Reservation(intent, tries)
        waiting = Intent(
            chain=terms.chain,
            to=one.to,
            amount=one.value,
            token=of.token,
            alone=True,
            created_at=self._ledger.clock.now_ns(),
        )
        puts = (
            Put(RESERVATION, key, reserved, ABSENT if row is None else row.version),
            Put(INTENT, intent, waiting, ABSENT),
        )
        # Who is quicker may stand in a branch that leaves blocks which are there now.
        since = max(0, await self._chain.height() - terms.used_for_good)
        job = Job(intent, key, of.asset, of.token, one, since)
        custody = custody_of(terms.chain, of.asset)
        payload = msgspec.json.encode(job)
        return PaymentPlan(payload, custody, puts=puts, asset=of.asset, amount=one.value)

    async def _too_dear(self, of: AuthorizedAsset, one: Authorization) -> Refusal | None:
        """Why its gas, which is ours to pay, is not worth paying: else anybody could burn it."""
        offered, native = await self._sending.offer(), self._sending.terms.native
        if isinstance(offered, TooDear):
            return Refusal("gas_too_dear", offered.reason)
        gas = await self._chain.gas(self._sending.keys.addresses[0], _settling(of.token, one))
        cost = self._exchange.worth(gas * offered.price, native, of.asset, Rounding.UP)
        if cost is None:
            return no_rate(native)
        if is_worth(cost, one.value, self._gas_percent):
            return None
        text = f"its gas would cost {cost} units of {of.asset}: sign for more, or use a deposit"
        return Refusal("amount_too_small", text)

    def _untimely(self, one: Authorization) -> Refusal | None:
        now_s = self._ledger.clock.now_ns() // NS_PER_S
        if one.valid_after >= now_s:
            return Refusal("authorization_early", "the authorisation is not valid yet")
        if one.valid_before < now_s + _SLACK_S:
            return Refusal("authorization_expired", "it has expired, or is about to; sign anew")
        return None

    async def receive(self, payload: bytes) -> PaymentResult | Rejected | Unresolved:
        """Settle as planned, or find out how far it is. Raises RailUnavailable."""
        job = msgspec.json.decode(payload, type=Job)
        row = await self._ledger.store.get(INTENT, job.intent)
        assert row is not None, "it was stored with the operation"
        if row.value.state is IntentState.WAITING:
            unsent = await self._begin(job)
            if unsent is not None:
                return unsent
            row = await self._ledger.store.get(INTENT, job.intent)
            assert row is not None, "intents are never removed"
        if row.value.state is IntentState.CANCELLED:
            return await self._refused(job, ReservationState.RELEASED)
        slot = await self._sending.push(row.value.slot)
        if slot.state is not SlotState.DONE or slot.mined is None:
            is_lost = slot.state is SlotState.LOST
            return Unresolved(f"{slot.state} as {slot.newest.hash}", alarm=is_lost)
        if slot.mined.ok and not slot.is_cancelled:
            return await self._arrived(job, slot.mined.hash)
        return await self._elsewhere(job) or await self._refused(job, ReservationState.FAILED)

    async def _begin(self, job: Job) -> PaymentResult | Rejected | Unresolved | None:
        """Send it; what keeps it from being sent, or None."""
        one = job.authorization
        if await self._is_used(job.token, one):
            found = await self._elsewhere(job)
            if found is not None:
                return found
        is_late = one.valid_before <= self._ledger.clock.now_ns() // NS_PER_S
        if is_late or not await self._would_work(job.token, one):
            await self._give_up(job)
            return None
        call, sender = _settling(job.token, one), self._sending.keys.addresses[0]
        gas = await self._chain.gas(sender, call)
        call = msgspec.structs.replace(call, gas=gas + gas // 4)
        sent = await self._sending.send(Parcel(sender, call, job.intent, (job.intent,)))
        return Unresolved(sent.reason) if isinstance(sent, Held) else None

    async def _give_up(self, job: Job) -> None:
        def decide(state: State, _: int) -> Unit | None:
            intent = state.value(INTENT, job.intent)
            if intent is None or intent.state is not IntentState.WAITING:
                return None
            version = state.version(INTENT, job.intent)
            ended = msgspec.structs.replace(intent, state=IntentState.CANCELLED)
            put = Put(INTENT, job.intent, ended, version)
            return Unit(f"intent:{job.intent}:{version}", puts=(put,))

        await self._ledger.transact([(INTENT, job.intent)], decide)

    async def _elsewhere(self, job: Job) -> PaymentResult | Unresolved | None:
        """Anybody may send it: the money came to us all the same. None: it did not."""
        one = job.authorization
        if not await self._is_used(job.token, one):
            return None
        which = (f"0x{one.payer[2:].lower():0>64}", one.nonce)
        found = await self._chain.told(job.token, (_USED, *which), job.since)
        if found is None:
            if await self._chain.told(job.token, (_CANCELED, *which), job.since):
                return None  # by its payer, so that nobody can send it
            return Unresolved("it is used, and the node does not show by which transaction")
        receipt = await self._chain.receipt(found)
        deep = await self._chain.height() - self._sending.terms.confirmations + 1
        if receipt is None or receipt.block_number > deep:
            return Unresolved("somebody else has sent it; not yet confirmed")
        return await self._arrived(job, found, receipt)

    async def _arrived(
        self, job: Job, transaction: str, receipt: Receipt | None = None
    ) -> PaymentResult | Unresolved:
        receipt = receipt or await self._chain.receipt(transaction)
        if receipt is None:
            return Unresolved("the node does not show the receipt now")
        if not _has_moved(receipt, job):
            return Unresolved("the token has moved another amount", alarm=True)
        one = job.authorization
        puts = await self._ended(job, ReservationState.SETTLED)
        return PaymentResult(
            amount_msats=0,
            currency=job.asset,
            payment_method=self._sending.terms.chain,
            transaction_id=f"{transaction}:{one.nonce}",  # one transaction may settle several
            amount=one.value,
            puts=puts,
        )

    async def _refused(self, job: Job, state: ReservationState) -> Rejected:
        changes = Changes(puts=await self._ended(job, state))
        is_released = state is ReservationState.RELEASED
        message = "the token refuses the authorisation: expired, used, or not covered"
        return Rejected("authorization_refused", message, changes, again=is_released)

    async def _ended(self, job: Job, state: ReservationState) -> tuple[Put, ...]:
        puts = []
        row = await self._ledger.store.get(RESERVATION, job.key)
        if row is not None and row.value.intent == job.intent:
            ended = msgspec.structs.replace(row.value, state=state)
            puts.append(Put(RESERVATION, job.key, ended, row.version))
        intent = await self._ledger.store.get(INTENT, job.intent)
        if intent is not None and intent.value.state is IntentState.SENT:
            done = msgspec.structs.replace(intent.value, state=IntentState.DONE)
            puts.append(Put(INTENT, job.intent, done, intent.version))
        elif intent is not None and intent.value.state is IntentState.WAITING:
            over = msgspec.structs.replace(intent.value, state=IntentState.CANCELLED)
            puts.append(Put(INTENT, job.intent, over, intent.version))
        return tuple(puts)

    async def _is_used(self, token: str, one: Authorization) -> bool:
        nonce = bytes.fromhex(one.nonce[2:])
        data = calldata("authorizationState(address,bytes32)", one.payer, nonce)
        told = await self._chain.run(self._sending.keys.addresses[0], Call(token, 0, data))
        return answered(("uint256",), told)[0] != 0

    async def _would_work(self, token: str, one: Authorization) -> bool:
        try:
            await self._chain.run(self._sending.keys.addresses[0], _settling(token, one))
        except RailRejected as error:
            if error.code == _REVERTED:
                return False
            raise
        return True


def _settling(token: str, one: Authorization) -> Call:
    r, s, v = _parts(one.signature)
    v = v if v >= 27 else v + 27
    times = (one.valid_after, one.valid_before, bytes.fromhex(one.nonce[2:]))
    parts = (v, r.to_bytes(32), s.to_bytes(32))
    return Call(token, 0, calldata(_SETTLE, one.payer, one.to, one.value, *times, *parts))


def _has_moved(receipt: Receipt, job: Job) -> bool:
    one = job.authorization
    ends = tuple(f"0x{address[2:].lower():0>64}" for address in (one.payer, one.to))
    return any(
        log.address.lower() == job.token.lower()
        and log.topics == (_TRANSFER, *ends)
        and int.from_bytes(log.data) == one.value
        for log in receipt.logs
    )
