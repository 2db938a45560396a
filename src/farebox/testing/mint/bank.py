"""The rules of a mint, without HTTP: what is signed, what is refused and with which code.

Each call checks, then commits one change, and awaits nothing in between: of two calls that spend
one proof, one wins. Refusals are RailRejected with the codes of the NUTs.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from farebox.clock import NS_PER_S, Clock
from farebox.ecash.codes import NutError
from farebox.ecash.mint import MeltQuoteState, MintQuoteState, ProofState
from farebox.errors import InvalidCredential, RailRejected
from farebox.testing.mint.books import (
    Books,
    Change,
    MeltQuoteRow,
    MintQuoteRow,
    SignedRow,
    SpentRow,
)
from farebox.testing.mint.keys import Keyring, KeysetRow, PlayKeyset
from farebox.testing.mint.lightning import EXPIRY_S, PlayLightning
from farebox.wire.cashu import crypto
from farebox.wire.cashu.amounts import fee_of_ppk, powers_of_two, split
from farebox.wire.cashu.locks import is_unlocked
from farebox.wire.cashu.model import AMOUNT_END, BlindedMessage, BlindSignature, Dleq, Proof, Token

#: Most inputs or outputs in one call.
PARTS_MAX = 1_000
MSAT_PER_UNIT = {"sat": 1_000, "msat": 1}
_LIGHTNING_FEE_MSAT = 1_000
_RESERVE_MIN_MSAT = 2_000
_RESERVE_DIVISOR = 100
#: What mints in use answer for a quote that they do not have; the NUTs have no code for it.
_QUOTE_UNKNOWN = 11000
_LOCKED = 11000


@dataclass(frozen=True, slots=True)
class Audit:
    """What a mint issued and took back so far, per unit, and the Ys of what was spent.

    `outstanding` is what it owes: all that honest holders of its tokens can have together.
    """

    issued: dict[str, int]
    redeemed: dict[str, int]
    outstanding: dict[str, int]
    spent_ys: frozenset[bytes]


@dataclass(frozen=True, slots=True)
class _Given:
    """Inputs that may be spent."""

    unit: str
    amount: int
    fee: int
    rows: tuple[SpentRow, ...]


class Bank:
    """A mint in one object. Amounts are in the unit of their keyset or quote."""

    def __init__(
        self, books: Books, lightning: PlayLightning, clock: Clock, *, invoices_pay_themselves: bool
    ) -> None:
        self._books = books
        self._lightning = lightning
        self._clock = clock
        self._invoices_pay_themselves = invoices_pay_themselves
        if books.seed is None:
            books.commit(Change(seed=secrets.token_hex(16)))
        self._keyring = self._read_keyring()
        for row in books.mint_quotes.values():
            lightning.offer(row.preimage, self, partial(self._mark_paid, row.quote))

    @property
    def keyring(self) -> Keyring:
        """The keysets, inactive ones included."""
        return self._keyring

    def add_keyset(self, row: KeysetRow) -> None:
        """Add a keyset, which becomes the active one of its unit."""
        if row.unit not in MSAT_PER_UNIT:
            raise InvalidCredential(f"a play mint has no unit {row.unit!r}")
        with self._lightning.lock:
            self._books.commit(Change(keysets=(row,)))
            self._keyring = self._read_keyring()

    def issue(
        self,
        amount: int,
        unit: str,
        mint_url: str,
        secret_of: Callable[[], str] = lambda: secrets.token_hex(32),
    ) -> Token:
        """Hand out play money that nobody paid for, with DLEQ proofs and the caller's secrets."""
        keyset = self._active(unit)
        with self._lightning.lock:
            proofs, signed = [], []
            for part in split(amount, keyset.public.keys):
                secret, r = secret_of(), secrets.token_bytes(32)
                output = BlindedMessage(part, keyset.public.id, crypto.blind(secret, r))
                row = self._sign(output, part)
                signed.append(row)
                proofs.append(_unblind(keyset, secret, r, row.signature))
            self._books.commit(Change(signed=tuple(signed)))
        return Token(mint_url, unit, tuple(proofs))

    def audit(self) -> Audit:
        """What was issued, taken back and is owed, exactly."""
        issued: Counter[str] = Counter()
        redeemed: Counter[str] = Counter()
        with self._lightning.lock:
            for signed in self._books.signed.values():
                issued[signed.unit] += signed.signature.amount
            for spent in self._books.spent.values():
                redeemed[spent.unit] += spent.amount
            outstanding = {unit: issued[unit] - redeemed[unit] for unit in issued}
            return Audit(dict(issued), dict(redeemed), outstanding, frozenset(self._books.spent))

    def swap(
        self, inputs: Sequence[Proof], outputs: Sequence[BlindedMessage]
    ) -> tuple[BlindSignature, ...]:
        """NUT-03."""
        with self._lightning.lock:
            given = self._check_inputs(inputs)
            unit = self._check_outputs(outputs)
            if unit != given.unit:
                raise _refused(NutError.UNITS_DIFFER)
            if given.amount - given.fee != sum(output.amount for output in outputs):
                raise _refused(NutError.UNBALANCED)
            signed = tuple(self._sign(output, output.amount) for output in outputs)
            self._books.commit(Change(spent=given.rows, signed=signed))
            return tuple(row.signature for row in signed)

    def check_state(self, ys: Sequence[bytes]) -> tuple[ProofState, ...]:
        """NUT-07."""
        return tuple(
            ProofState.SPENT
            if y in self._books.spent
            else ProofState.PENDING
            if y in self._books.pending
            else ProofState.UNSPENT
            for y in ys
        )

    def restore(
        self, outputs: Sequence[BlindedMessage]
    ) -> tuple[tuple[BlindedMessage, BlindSignature], ...]:
        """NUT-09: the outputs that were signed, with their signatures."""
        signed = self._books.signed
        return tuple(
            (output, signed[output.B_].signature) for output in outputs if output.B_ in signed
        )

    def mint_quote(self, amount: int, unit: str, public_key: bytes | None) -> MintQuoteRow:
        """NUT-04, 20 and 23."""
        self._active(unit)
        if not 0 < amount < AMOUNT_END // MSAT_PER_UNIT[unit]:
            raise _refused(NutError.AMOUNT_OUTSIDE_LIMITS)
        preimage = secrets.token_bytes(32)
        with self._lightning.lock:
            row = MintQuoteRow(
                quote=secrets.token_urlsafe(24),
                request=self._lightning.invoice(amount * MSAT_PER_UNIT[unit], preimage),
                amount=amount,
                unit=unit,
                state=MintQuoteState.UNPAID,
                expiry_s=self._now_s() + EXPIRY_S,
                preimage=preimage,
                public_key=public_key,
            )
            self._books.commit(Change(mint_quotes=(row,)))
            self._lightning.offer(preimage, self, partial(self._mark_paid, row.quote))
            if self._invoices_pay_themselves:
                self._mark_paid(row.quote)
            return self._books.mint_quotes[row.quote]

    def mint_quote_state(self, quote: str) -> MintQuoteRow:
        """NUT-04."""
        row = self._books.mint_quotes.get(quote)
        if row is None:
            raise RailRejected("quote not found", code=_QUOTE_UNKNOWN)
        return row

    def mint(
        self, quote: str, outputs: Sequence[BlindedMessage], signature: str | None
    ) -> tuple[BlindSignature, ...]:
        """NUT-04 and 20."""
        with self._lightning.lock:
            row = self.mint_quote_state(quote)
            if row.state is MintQuoteState.UNPAID:
                raise _refused(NutError.QUOTE_UNPAID)
            if row.state is not MintQuoteState.PAID:
                raise _refused(NutError.QUOTE_ISSUED)
            if row.public_key is not None and not crypto.is_mint_quote_signed(
                row.public_key, quote, outputs, signature or ""
            ):
                raise _refused(NutError.QUOTE_SIGNATURE_INVALID)
            if self._check_outputs(outputs) != row.unit:
                raise _refused(NutError.UNITS_DIFFER)
            if sum(output.amount for output in outputs) != row.amount:
                raise _refused(NutError.UNBALANCED)
            signed = tuple(self._sign(output, output.amount) for output in outputs)
            issued = msgspec.structs.replace(row, state=MintQuoteState.ISSUED)
            self._books.commit(Change(signed=signed, mint_quotes=(issued,)))
            return tuple(one.signature for one in signed)

    def melt_quote(self, request: str, unit: str) -> MeltQuoteRow:
        """NUT-05 and 23. Raises InvalidCredential for what is no invoice."""
        self._active(unit)
        amount_msat = self._lightning.read(request).amount_msat
        if amount_msat is None:
            raise _refused(NutError.INVOICE_AMOUNTLESS)
        reserve_msat = max(_RESERVE_MIN_MSAT, amount_msat // _RESERVE_DIVISOR)
        row = MeltQuoteRow(
            quote=secrets.token_urlsafe(24),
            request=request,
            amount=-(-amount_msat // MSAT_PER_UNIT[unit]),
            fee_reserve=-(-reserve_msat // MSAT_PER_UNIT[unit]),
            unit=unit,
            state=MeltQuoteState.UNPAID,
            expiry_s=self._now_s() + EXPIRY_S,
        )
        with self._lightning.lock:
            self._books.commit(Change(melt_quotes=(row,)))
        return row

    def melt_quote_state(self, quote: str) -> MeltQuoteRow:
        """NUT-05."""
        row = self._books.melt_quotes.get(quote)
        if row is None:
            raise RailRejected("quote not found", code=_QUOTE_UNKNOWN)
        return row

    def melt(
        self,
        quote: str,
        inputs: Sequence[Proof],
        outputs: Sequence[BlindedMessage],
        *,
        stays_pending: bool = False,
    ) -> MeltQuoteRow:
        """NUT-05 and 08. With `stays_pending` the payment hangs until `settle`."""
        with self._lightning.lock:
            row = self.melt_quote_state(quote)
            self._check_open(row)
            given = self._check_inputs(inputs)
            if given.unit != row.unit:
                raise _refused(NutError.UNITS_DIFFER)
            if given.amount < row.amount + row.fee_reserve + given.fee:
                raise _refused(NutError.UNBALANCED)
            if outputs and self._check_outputs(outputs, blank=True) != row.unit:
                raise _refused(NutError.UNITS_DIFFER)
            held = msgspec.structs.replace(
                row,
                state=MeltQuoteState.PENDING,
                inputs=given.rows,
                input_fee=given.fee,
                outputs=tuple(outputs),
            )
            if not stays_pending:
                return self._pay(held)
            self._books.commit(Change(melt_quotes=(held,)))
            return held

    def settle(self, quote: str, *, paid: bool) -> MeltQuoteRow:
        """End a melt that stays pending: paid, or failed and its inputs free again."""
        with self._lightning.lock:
            row = self.melt_quote_state(quote)
            if row.state is not MeltQuoteState.PENDING:
                raise RailRejected("the melt is not pending", code=_QUOTE_UNKNOWN)
            if paid:
                return self._pay(row)
            freed = msgspec.structs.replace(
                row, state=MeltQuoteState.UNPAID, inputs=(), input_fee=0, outputs=()
            )
            self._books.commit(Change(melt_quotes=(freed,)))
            return freed

    def _pay(self, held: MeltQuoteRow) -> MeltQuoteRow:
        payment = self._lightning.pay(held.request, self)
        fee = 0 if payment.internal else -(-_LIGHTNING_FEE_MSAT // MSAT_PER_UNIT[held.unit])
        given = sum(row.amount for row in held.inputs)
        overpaid = given - held.input_fee - held.amount - fee
        # Too few blanks: the smallest parts are lost to the payer (NUT-08).
        parts = powers_of_two(overpaid)[::-1][: len(held.outputs)]
        change = tuple(
            self._sign(output, part) for output, part in zip(held.outputs, parts, strict=False)
        )
        row = msgspec.structs.replace(
            held,
            state=MeltQuoteState.PAID,
            preimage=payment.preimage,
            change=tuple(one.signature for one in change),
        )
        self._books.commit(Change(spent=held.inputs, signed=change, melt_quotes=(row,)))
        return row

    def _check_open(self, row: MeltQuoteRow) -> None:
        if row.state is MeltQuoteState.PAID:
            raise _refused(NutError.INVOICE_PAID)
        if row.state is MeltQuoteState.PENDING:
            raise _refused(NutError.QUOTE_PENDING)
        if row.expiry_s <= self._now_s():
            raise _refused(NutError.QUOTE_EXPIRED)

    def _mark_paid(self, quote: str) -> None:
        row = self._books.mint_quotes[quote]
        if row.state is MintQuoteState.UNPAID:
            paid = msgspec.structs.replace(row, state=MintQuoteState.PAID)
            self._books.commit(Change(mint_quotes=(paid,)))

    def _check_inputs(self, inputs: Sequence[Proof]) -> _Given:
        if len(inputs) > PARTS_MAX:
            raise _refused(NutError.INPUTS_TOO_MANY)
        if not inputs:
            raise _refused(NutError.UNBALANCED)
        if len({proof.secret for proof in inputs}) < len(inputs):
            raise _refused(NutError.INPUTS_DUPLICATE)
        rows, fee_ppk = [], 0
        for proof in inputs:
            keyset = self._live(proof.keyset_id)
            private = keyset.private.get(proof.amount)
            if private is None or not crypto.is_signed(proof.secret, proof.C, private):
                raise _refused(NutError.PROOFS_INVALID)
            if not is_unlocked(proof, self._now_s()):
                raise RailRejected("the witness does not open the lock", code=_LOCKED)
            y = crypto.hash_to_curve(proof.secret)
            rows.append(SpentRow(y, proof.amount, keyset.public.unit))
            fee_ppk += keyset.public.input_fee_ppk
        if len({row.unit for row in rows}) > 1:
            raise _refused(NutError.UNITS_SEVERAL)
        if any(row.y in self._books.spent for row in rows):
            raise _refused(NutError.PROOFS_SPENT)
        if any(row.y in self._books.pending for row in rows):
            raise _refused(NutError.PROOFS_PENDING)
        amount = sum(row.amount for row in rows)
        return _Given(rows[0].unit, amount, fee_of_ppk(fee_ppk), tuple(rows))

    def _check_outputs(self, outputs: Sequence[BlindedMessage], *, blank: bool = False) -> str:
        """Outputs that may be signed; gives their unit."""
        if len(outputs) > PARTS_MAX:
            raise _refused(NutError.OUTPUTS_TOO_MANY)
        if not outputs:
            raise _refused(NutError.UNBALANCED)
        if len({output.B_ for output in outputs}) < len(outputs):
            raise _refused(NutError.OUTPUTS_DUPLICATE)
        keysets = [self._live(output.keyset_id) for output in outputs]
        if not all(keyset.public.active for keyset in keysets):
            raise _refused(NutError.KEYSET_INACTIVE)
        if len({keyset.public.unit for keyset in keysets}) > 1:
            raise _refused(NutError.UNITS_SEVERAL)
        if any(output.B_ in self._books.signed for output in outputs):
            raise _refused(NutError.OUTPUTS_SIGNED)
        if not blank and any(
            output.amount not in keyset.private
            for output, keyset in zip(outputs, keysets, strict=True)
        ):
            raise _refused(NutError.AMOUNT_OUTSIDE_LIMITS)
        return keysets[0].public.unit

    def _live(self, keyset_id: str) -> PlayKeyset:
        keyset = self._keyring.get(keyset_id)
        if keyset is None:
            raise _refused(NutError.KEYSET_UNKNOWN)
        expiry_s = keyset.public.final_expiry
        if expiry_s is not None and expiry_s <= self._now_s():
            raise _refused(NutError.KEYSET_EXPIRED)
        return keyset

    def _active(self, unit: str) -> PlayKeyset:
        keyset = self._keyring.active(unit)
        if keyset is None:
            raise _refused(NutError.UNIT_UNSUPPORTED)
        return keyset

    def _sign(self, output: BlindedMessage, amount: int) -> SignedRow:
        keyset = self._live(output.keyset_id)
        signature = crypto.promise(output, amount, keyset.private[amount])
        return SignedRow(output.B_, keyset.public.unit, signature)

    def _read_keyring(self) -> Keyring:
        return Keyring(self._books.seed or "", self._books.keysets)

    def _now_s(self) -> int:
        return self._clock.now_ns() // NS_PER_S


def _unblind(keyset: PlayKeyset, secret: str, r: bytes, signature: BlindSignature) -> Proof:
    signed = crypto.unblind(signature.C_, r, keyset.public.keys[signature.amount])
    dleq = Dleq(signature.dleq.e, signature.dleq.s, r) if signature.dleq else None
    return Proof(signature.amount, keyset.public.id, secret, signed, dleq)


def _refused(code: NutError) -> RailRejected:
    return RailRejected(code.name.lower().replace("_", " "), code=int(code))


def open_bank(
    *,
    state: Path | None,
    keysets: Sequence[KeysetRow],
    lightning: PlayLightning,
    clock: Clock,
    invoices_pay_themselves: bool,
) -> Bank:
    """A bank with `keysets`, or with those it had where the file `state` already exists."""
    books = Books(state)
    bank = Bank(books, lightning, clock, invoices_pay_themselves=invoices_pay_themselves)
    if not books.keysets:
        for row in keysets:
            bank.add_keyset(row)
    return bank
