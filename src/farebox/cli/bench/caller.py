"""Who makes the requests of a run, pays for them, and counts what came of each."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from farebox.cli.bench.funds import Claims, Tokens
from farebox.cli.bench.openloop import Kind
from farebox.cli.bench.tally import OfKind, Tally
from farebox.cli.bench.target import Ask, NoAnswer, Reply, Target
from farebox.cli.receipts import RECEIPT, Receipt, read_receipt, receipt_of_stream
from farebox.errors import InvalidInput

#: What the gateway, or the service behind it, says in a stream that it has to end early.
_ERROR_FRAME = re.compile(rb'^event: error\ndata: .*?"code":"(\w+)"', re.MULTILINE)
_TOKENS_OUT = "no token was left"
_US_PER_S = 1_000_000


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request costs at most, by the gateway's own challenge."""

    maximum_msat: int
    amount: int
    unit: str


async def terms_of(gateway: Target, ask: Ask) -> Terms:
    """Ask without paying, for the terms. Raises InvalidInput where there are none."""
    try:
        reply = await gateway.ask(ask)
    except NoAnswer as error:
        raise InvalidInput(f"{gateway.url} cannot be asked: {error}") from None
    told = reply.document()
    if reply.status != 402 or "amount_msat" not in told:
        raise InvalidInput(
            f"{ask.method} {ask.target} asks for no payment (it answers {reply.says}): name a "
            "path that is sold"
        )
    return Terms(int(told["amount_msat"]), int(told.get("amount", 0)), str(told.get("unit", "")))


class Caller:
    """Makes one request after the other's due time; keeps what is owed back."""

    def __init__(
        self,
        gateway: Target,
        asks: Mapping[Kind, Ask],
        tokens: Tokens | None,
        claims: Claims,
        tally: Tally,
    ) -> None:
        self._gateway = gateway
        self._asks = asks
        self._tokens = tokens
        self._claims = claims
        self._tally = tally

    async def fire(self, kind: Kind, due_s: float) -> None:
        """Make a request of this kind, and count it from when it was due."""
        counted = self._tally.of(kind)
        ask, token = self._asks[kind], ""
        if kind is Kind.ECASH:
            assert self._tokens is not None
            try:
                token = await self._tokens.take()
            except InvalidInput:  # the play mint is gone
                token = ""
            if not token:
                counted.failed(_TOKENS_OUT, is_unknown=False)
                return
            ask = replace(ask, headers={**ask.headers, "x-cashu": token})
        try:
            reply = await self._gateway.ask(ask)
        except NoAnswer as error:
            self._claims.keep(token)
            counted.failed(str(error), is_unknown=True)
            return
        receipt = read_receipt(reply.headers.get(RECEIPT) or receipt_of_stream(reply.body))
        self._claims.keep(*_owed(reply, receipt, token))
        _count(counted, kind, reply, receipt, due_s)


def _count(
    counted: OfKind, kind: Kind, reply: Reply, receipt: Receipt | None, due_s: float
) -> None:
    if receipt is not None:
        counted.charged_msat += receipt.charged_msat
    broken = _ERROR_FRAME.search(reply.body) if kind is Kind.STREAM else None
    if reply.status >= 400:
        # A whole answer without a receipt is the gateway's own refusal, which charges nothing.
        counted.failed(reply.says, is_unknown=False)
    elif receipt is None:
        counted.failed(f"{reply.status} without a receipt", is_unknown=True)
    elif broken is not None:
        counted.failed(f"stream ended: {broken[1].decode()}", is_unknown=False)
    else:
        now_s = asyncio.get_running_loop().time()
        counted.whole.add(int((now_s - due_s) * _US_PER_S))
        if kind is Kind.STREAM:
            counted.first_byte.add(int((reply.first_byte_s - due_s) * _US_PER_S))


def _owed(reply: Reply, receipt: Receipt | None, token: str) -> list[str]:
    """What finds the money that comes back: the change itself, and the token where there is more
    on its account, or where nobody knows."""
    if not token:
        return []
    if receipt is None:  # of a refusal too, whose `X-Cashu` says what would be enough
        return [token]
    change = reply.headers.get("x-cashu", "")
    is_more = receipt.credited_msat or (receipt.returned_msat and not change)
    return [change, token] if is_more else [change]
