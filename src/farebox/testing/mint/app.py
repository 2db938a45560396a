"""The play mint as a bare ASGI app."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from farebox.clock import Clock, SystemClock
from farebox.errors import InvalidInput, RailRejected
from farebox.testing.asgi import BodyTooLarge, Receive, Scope, Send, drop, read_body, respond
from farebox.testing.mint.bank import Audit, open_bank
from farebox.testing.mint.faults import (
    AnswersLate,
    DropAfter,
    DropBefore,
    ExecutesLate,
    Fail,
    Fault,
    Faults,
    Garbage,
    Refuse,
    StaysPending,
)
from farebox.testing.mint.handlers import ROUTES, Call, Document, Handler
from farebox.testing.mint.keys import KeysetRow
from farebox.testing.mint.lightning import PlayLightning
from farebox.wire.cashu.keysets import VERSION_2
from farebox.wire.cashu.model import Token
from farebox.wire.cashu.token import encode_token

_BODY_MAX_BYTES = 1 << 21
_T = TypeVar("_T")


class _SetFaults(msgspec.Struct, frozen=True):
    call: str
    faults: list[Fault]
    always: bool = False


class _Issue(msgspec.Struct, frozen=True):
    amount: int
    unit: str = "sat"


class _Settle(msgspec.Struct, frozen=True):
    quote: str
    paid: bool = True


class PlayMint:
    """A mint of play money; serve it with `farebox.testing.asgi.serving`.

    `faults` makes calls fail, `calls` counts them by name. Set `url` to where it is served: it
    goes into the tokens that `issue` makes. With `state` it goes on where the file ends. Mints
    that share a `lightning` can pay each other's invoices, if those don't pay themselves.
    """

    def __init__(
        self,
        *,
        url: str = "",
        units: Sequence[str] = ("sat",),
        fee_ppk: int = 0,
        keyset_version: str = VERSION_2,
        final_expiry: int | None = None,
        state: Path | None = None,
        lightning: PlayLightning | None = None,
        clock: Clock | None = None,
        invoices_pay_themselves: bool = True,
    ) -> None:
        self.url = url
        self.faults = Faults()
        self.calls: Counter[str] = Counter()
        clock = clock or SystemClock()
        self._bank = open_bank(
            state=state,
            keysets=[KeysetRow(unit, fee_ppk, final_expiry, keyset_version) for unit in units],
            lightning=lightning or PlayLightning(clock),
            clock=clock,
            invoices_pay_themselves=invoices_pay_themselves,
        )

    def issue(self, amount: int, unit: str = "sat") -> Token:
        """Hand out play money, in powers of two, with DLEQ proofs."""
        return self._bank.issue(amount, unit, self.url)

    def issue_with(self, secret_of: Callable[[], str], amount: int, unit: str = "sat") -> Token:
        """The same with secrets of the caller's making, such as locked ones."""
        return self._bank.issue(amount, unit, self.url, secret_of)

    def audit(self) -> Audit:
        """What was issued and redeemed so far."""
        return self._bank.audit()

    def rotate(
        self,
        unit: str = "sat",
        *,
        fee_ppk: int = 0,
        final_expiry: int | None = None,
        keyset_version: str = VERSION_2,
    ) -> str:
        """Make a new keyset the active one of `unit`; gives its id."""
        self._bank.add_keyset(KeysetRow(unit, fee_ppk, final_expiry, keyset_version))
        active = self._bank.keyring.active(unit)
        assert active is not None
        return active.public.id

    def settle(self, quote: str, *, paid: bool = True) -> None:
        """End a melt that stays pending, one way or the other."""
        self._bank.settle(quote, paid=paid)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            raise NotImplementedError("a play mint speaks HTTP only")
        method, path = str(scope["method"]), str(scope["path"])
        try:
            body = await read_body(receive, _BODY_MAX_BYTES)
        except BodyTooLarge:
            return await _answer(send, 413, {"detail": "the body is too large"})
        control = self._controls().get((method, path))
        if control is not None:
            return await _answer(send, *_guarded(lambda: control(scope, body)))
        name, handler, tail = _route(method, path)
        if handler is None:
            return await _answer(send, 404, {"detail": "Not Found"})
        self.calls[name] += 1
        return await self._serve(self.faults.take(name), handler, body, tail, send)

    async def _serve(
        self, fault: Fault | None, handler: Handler, body: bytes, tail: str, send: Send
    ) -> None:
        call = Call(body, tail, stays_pending=isinstance(fault, StaysPending))
        match fault:
            case DropBefore():
                return await drop(send)
            case Refuse(code, detail):
                return await _answer(send, 400, {"detail": detail, "code": code})
            case Fail(status):
                return await respond(send, status, b"no service", "text/plain")
            case ExecutesLate(seconds):
                await asyncio.sleep(seconds)
            case _:
                pass
        status, document = _guarded(lambda: handler(self._bank, call))
        match fault:
            case DropAfter():
                return await drop(send)
            case Garbage(text):
                return await respond(send, 200, text.encode())
            case AnswersLate(seconds):
                await asyncio.sleep(seconds)
            case _:
                pass
        return await _answer(send, status, document)

    def _controls(self) -> dict[tuple[str, str], Callable[[Scope, bytes], Document]]:
        """What only a play mint can do, for tests that run it in a process of its own."""
        return {
            ("POST", "/play/faults"): self._set_faults,
            ("POST", "/play/issue"): self._issue,
            ("POST", "/play/settle"): self._settle,
            ("POST", "/play/rotate"): self._rotate,
            ("GET", "/play/audit"): self._tell_audit,
        }

    def _set_faults(self, scope: Scope, body: bytes) -> Document:
        wanted = _read(body, _SetFaults)
        if wanted.always and wanted.faults:
            self.faults.always(wanted.call, wanted.faults[0])
        else:
            self.faults.next(wanted.call, *wanted.faults)
        return {}

    def _issue(self, scope: Scope, body: bytes) -> Document:
        wanted = _read(body, _Issue)
        url = self.url or "http://" + dict(scope["headers"])[b"host"].decode()
        return {"token": encode_token(self._bank.issue(wanted.amount, wanted.unit, url))}

    def _settle(self, scope: Scope, body: bytes) -> Document:
        wanted = _read(body, _Settle)
        self._bank.settle(wanted.quote, paid=wanted.paid)
        return {}

    def _rotate(self, scope: Scope, body: bytes) -> Document:
        row = _read(body, KeysetRow)
        self._bank.add_keyset(row)
        return {}

    def _tell_audit(self, scope: Scope, body: bytes) -> Document:
        audit = self._bank.audit()
        return {
            "issued": audit.issued,
            "redeemed": audit.redeemed,
            "outstanding": audit.outstanding,
            "spent_ys": sorted(y.hex() for y in audit.spent_ys),
            "calls": dict(self.calls),
        }


def _route(method: str, path: str) -> tuple[str, Handler | None, str]:
    found = ROUTES.get((method, path))
    tail = ""
    if found is None:
        stem, _, tail = path.rpartition("/")
        found = ROUTES.get((method, stem + "/")) if tail else None
    return (*found, tail) if found else ("", None, "")


def _guarded(handle: Callable[[], Document]) -> tuple[int, Document]:
    try:
        return 200, handle()
    except RailRejected as error:
        return 400, {"detail": str(error), "code": error.code}
    except InvalidInput as error:
        return 422, {"detail": str(error)}


def _read(body: bytes, shape: type[_T]) -> _T:
    return Call(body, "", stays_pending=False).read(shape)


async def _answer(send: Send, status: int, document: Document) -> None:
    await respond(send, status, msgspec.json.encode(document))
