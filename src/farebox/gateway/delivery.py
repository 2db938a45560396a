"""Carrying an admitted request to its settlement, whoever leaves on the way.

| what happened                             | the caller gets                | charged            |
|-------------------------------------------|--------------------------------|--------------------|
| a short answer                            | it, with receipt and change    | its usage          |
| a stream                                  | each chunk; the end after the  | its usage          |
|                                           | settling commit                |                    |
| 3xx, 4xx, 5xx, no answer, none in time    | the answer, or a problem       | nothing            |
| a 200 that is an error and nothing else   | it                             | nothing            |
| the caller left before the answer began   |                                | nothing            |
| the caller left in the middle of it       |                                | what was delivered |
| the upstream broke off, or fell silent    | an error frame, a broken body  | what was metered   |
| the hold is used up, or the process stops | an error frame, a broken body  | what was metered   |
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Final, assert_never

import msgspec
import structlog

from farebox.errors import StoreError
from farebox.gateway import problems
from farebox.gateway.asgi import Send, declared_length, header, send_answer
from farebox.gateway.exchange import (
    Exchange,
    Patience,
    UpstreamDied,
    UpstreamFailed,
    UpstreamRefusedUs,
    UpstreamUnreachable,
)
from farebox.gateway.headers import for_caller
from farebox.gateway.metering import ANSWER_MAX_BYTES, AnswerMeter
from farebox.gateway.tally import RequestTally
from farebox.paywall.model import Admission, Answer, Ended, Headers, Settlement
from farebox.paywall.service import Paywall
from farebox.pricing.book import charge
from farebox.pricing.request import ApiProtocol, RequestFacts
from farebox.pricing.tokens import TokenCounter
from farebox.wire.subrav.frames import StreamFormat, payment_frame, stream_format

_log = structlog.get_logger("farebox.gateway")

#: How much of a stream may pass before it is looked at again whether the hold covers it.
_CHECK_BYTES: Final = 16 * 1024
_NO_BODY: Final = frozenset({204, 304})
#: The last events of the protocols: they wait for the settling commit.
_LAST_EVENTS: Final = (
    b"[DONE]",
    b"message_stop",
    b'"response.completed"',
    b'"response.incomplete"',
)


@dataclass(frozen=True, slots=True)
class Supervision:
    """How often what a stream cost so far is made durable."""

    checkpoint_s: float = 5
    checkpoint_msat: int = 100_000


class Call(msgspec.Struct, frozen=True, gc=False):
    """A request that was read and admitted."""

    method: str
    facts: RequestFacts
    body: bytes
    upstream_body: bytes
    #: Whether a chunk of usage that only we asked for is to be taken out.
    strip_usage_chunk: bool
    #: Whether the caller wants the receipt at the end of a stream.
    stream_receipt: bool
    patience: Patience


class Why(enum.Enum):
    """Why a forwarding was interrupted."""

    CALLER_LEFT = "the caller left"
    UPSTREAM_SLOW = "the upstream did not answer in time"
    UPSTREAM_SILENT = "the upstream fell silent"
    STOPPING = "the gateway is being stopped"


class Refused(msgspec.Struct, frozen=True, gc=False):
    """Nothing was delivered: nothing is charged, a problem is told."""

    answer: Answer


class Whole(msgspec.Struct, frozen=True, gc=False):
    """An answer that is complete and was not sent yet."""

    exchange: Exchange
    body: bytes
    ended: Ended


class Streamed(msgspec.Struct, frozen=True, gc=False):
    """All but the end of an answer was sent. `rest` leaves after the settling commit.

    `is_clean` is False where the body must not look complete.
    """

    ended: Ended
    rest: bytes
    is_clean: bool = True


class Gone(msgspec.Struct, frozen=True, gc=False):
    """There is nobody to answer any more."""

    ended: Ended


Outcome = Refused | Whole | Streamed | Gone


class Delivery:
    """One admitted request between its authorising and its settling commit."""

    def __init__(
        self,
        paywall: Paywall,
        admission: Admission,
        call: Call,
        counter: TokenCounter,
        supervision: Supervision,
        tally: RequestTally,
        send: Send,
    ) -> None:
        self._paywall = paywall
        self._admission = admission
        self._call = call
        self._supervision = supervision
        self._tally = tally
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._meter = AnswerMeter(admission.quote, call.facts, call.body, counter, self._loop.time)
        self._exchange: Exchange | None = None
        self._is_stream = False
        #: The stream that ends with what a channel is to sign next.
        self._frames: StreamFormat | None = None
        self._head_sent = False
        self._ends_event = True
        self._why: Why | None = None
        self._forwarding: asyncio.Task[None] | None = None
        self._progress_s = self._loop.time()
        self._sending = False
        self._next_check_bytes = _CHECK_BYTES
        self._next_checkpoint_s = self._progress_s + supervision.checkpoint_s
        self._checkpoint_msat = 0

    # ── interruptions ────────────────────────────────────────────────────────────────────────────

    def interrupt(self, why: Why) -> None:
        """End the forwarding now; what was delivered is settled. Without effect after it."""
        if self._why is None and self._forwarding is not None:
            self._why = why
            self._forwarding.cancel()

    def tick(self) -> None:
        """Look whether either side has been silent for too long."""
        if self._forwarding is None:
            return
        silent_s = self._loop.time() - self._progress_s
        patience = self._call.patience
        if self._exchange is None:
            if silent_s >= patience.first_byte_s:
                self.interrupt(Why.UPSTREAM_SLOW)
        elif silent_s >= patience.idle_s:
            # A caller who takes nothing for so long is as good as gone.
            self.interrupt(Why.CALLER_LEFT if self._sending else Why.UPSTREAM_SILENT)

    # ── the way ──────────────────────────────────────────────────────────────────────────────────

    async def run(self, opening: Awaitable[Exchange]) -> None:
        """Forward, settle, finish the answer. To be run in a task of its own."""
        self._progress_s = self._loop.time()
        self._forwarding = asyncio.current_task(self._loop)
        try:
            outcome = await self._forward(opening)
        except asyncio.CancelledError:
            if self._why is None or self._forwarding is None:
                raise
            self._forwarding.uncancel()
            outcome = self._interrupted(self._why)
        except OSError:  # how some servers say that the caller has left
            outcome = self._interrupted(Why.CALLER_LEFT)
        except Exception:  # a defect: the hold must be settled all the same
            _log.exception("request.failed", request=self._admission.request_id)
            outcome = self._broken()
        finally:
            self._forwarding = None
            if self._exchange is not None:
                self._exchange.close()
        await self._finish(outcome)

    async def _forward(self, opening: Awaitable[Exchange]) -> Outcome:
        try:
            exchange = await opening
        except UpstreamUnreachable:
            return Refused(problems.upstream_unreachable())
        except UpstreamFailed:
            return Refused(problems.upstream_failed())
        except UpstreamRefusedUs as refused:
            _log.warning("upstream.refused_us", status=refused.status)
            return Refused(problems.upstream_refused_us(refused.status))
        self._exchange = exchange
        asked_s, self._progress_s = self._progress_s, self._loop.time()
        self._tally.first_byte.add(self._progress_s - asked_s)
        kind = header(exchange.headers, b"content-type")
        self._is_stream = kind[:17].lower() == b"text/event-stream"
        fine = _serves(exchange)
        if self._admission.client_tx_ref and fine:
            self._frames = stream_format(kind.decode("latin-1"))
        if fine and self._meter.must_read and not _is_plain(exchange.headers):
            return Refused(
                problems.upstream_unreadable(
                    "The service behind this gateway answered in an encoding it was not asked for."
                )
            )
        self._meter.begin(
            exchange.headers,
            is_stream=self._is_stream,
            strip_usage_chunk=fine and self._call.strip_usage_chunk,
        )
        ended = Ended.COMPLETE if fine else Ended.REFUSED
        begun = b""
        if not fine or self._is_whole(exchange, kind):
            try:
                begun, complete = await self._read_whole(exchange)
            except UpstreamDied as died:
                _log.warning("upstream.broke_off", error=str(died))
                return Refused(problems.upstream_unreachable())
            if complete:
                return Whole(exchange, begun, ended)
        return await self._stream(exchange, begun, ended)

    def _is_whole(self, exchange: Exchange, kind: bytes) -> bool:
        """Whether an answer is one document that may be completed before it is sent on."""
        if self._is_stream or self._frames is not None:
            return False
        if header(exchange.headers, b"content-length"):
            return declared_length(exchange.headers) <= ANSWER_MAX_BYTES
        known = self._call.facts.protocol is not ApiProtocol.OTHER
        return known or exchange.has_ended or _is_json(kind)

    async def _read_whole(self, exchange: Exchange) -> tuple[bytes, bool]:
        """The answer, and whether that is all of it. Raises UpstreamDied."""
        body = await exchange.read()
        self._meter.feed(body)
        if exchange.has_ended:
            return body + self._meter.finish(), True
        pieces, size = [body], len(body)
        while piece := await exchange.read():
            self._progress_s = self._loop.time()
            self._meter.feed(piece)
            pieces.append(piece)
            size += len(piece)
            if size > ANSWER_MAX_BYTES:
                return b"".join(pieces), False
        return b"".join(pieces) + self._meter.finish(), True

    async def _stream(self, exchange: Exchange, begun: bytes, ended: Ended) -> Outcome:
        """Send on what arrives, but for the end."""
        await self._send_head(exchange, self._stream_length(exchange))
        held = begun
        try:
            while not exchange.has_ended and (chunk := await exchange.read()):
                self._progress_s = self._loop.time()
                out = held + self._meter.feed(chunk) if held else self._meter.feed(chunk)
                if self._is_last(exchange, out):
                    held = out
                else:
                    held = b""
                    await self._send_on(out)
                if self._is_check_due() and await self._is_used_up():
                    return self._cut(Ended.CUT, "hold_exhausted", _USED_UP)
        except UpstreamDied as died:
            _log.warning("upstream.broke_off", error=str(died))
            return self._cut(Ended.UPSTREAM_DIED, "upstream_died", _DIED, held)
        return Streamed(ended, held + self._meter.finish())

    def _is_last(self, exchange: Exchange, out: bytes) -> bool:
        if exchange.has_ended:
            return True
        if not self._is_stream or self._call.facts.protocol is ApiProtocol.OTHER:
            return False
        return len(out) < _CHECK_BYTES and any(mark in out for mark in _LAST_EVENTS)

    async def _send_on(self, chunk: bytes) -> None:
        if not chunk:
            return
        self._ends_event = chunk.endswith(b"\n\n")
        self._sending = True
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._sending = False
        self._progress_s = self._loop.time()

    def _is_check_due(self) -> bool:
        if self._admission.is_free or self._admission.quote.terms.is_fixed:
            return False
        return (
            self._meter.body_bytes >= self._next_check_bytes
            or self._progress_s >= self._next_checkpoint_s
        )

    async def _is_used_up(self) -> bool:
        """Whether the hold is; and make durable what it came to so far, now and then."""
        self._next_check_bytes = self._meter.body_bytes + _CHECK_BYTES
        usage = self._meter.usage()
        due = charge(self._admission.quote, usage)
        grown_msat = due.amount_msat - self._checkpoint_msat
        if due.capped:
            return True
        if self._progress_s >= self._next_checkpoint_s or (
            grown_msat >= self._supervision.checkpoint_msat
        ):
            self._next_checkpoint_s = self._progress_s + self._supervision.checkpoint_s
            if grown_msat:
                self._checkpoint_msat = due.amount_msat
                try:
                    return not await self._paywall.checkpoint(self._admission, usage)
                except StoreError:  # the settling commit is what counts; it says so louder
                    _log.warning("request.checkpoint_failed", request=self._admission.request_id)
        return False

    # ── how it ended ─────────────────────────────────────────────────────────────────────────────

    def _interrupted(self, why: Why) -> Outcome:
        match why:
            case Why.CALLER_LEFT:
                begun = self._exchange is not None and _serves(self._exchange)
                return Gone(Ended.CLIENT_LEFT if begun else Ended.REFUSED)
            case Why.UPSTREAM_SLOW | Why.UPSTREAM_SILENT:
                if not self._head_sent:
                    return Refused(problems.upstream_slow())
                return self._cut(Ended.UPSTREAM_DIED, "upstream_silent", _SILENT)
            case Why.STOPPING:
                if not self._head_sent:
                    return Refused(problems.stopping(held=True))
                return self._cut(Ended.CUT, "stopping", _STOPPING)
            case _:
                assert_never(why)

    def _broken(self) -> Outcome:
        if not self._head_sent:
            return Refused(problems.failed())
        return self._cut(Ended.UPSTREAM_DIED, "internal_error", _FAILED)

    def _cut(self, ended: Ended, code: str, message: str, held: bytes = b"") -> Streamed:
        """The end of an answer that is not whole: said in a frame where the protocol has them."""
        if not self._is_stream:
            return Streamed(ended, held, is_clean=False)
        error = {"message": message, "type": "payment_error", "code": code}
        frame = b"event: error\ndata: " + msgspec.json.encode({"type": "error", "error": error})
        gap = b"" if (held.endswith(b"\n\n") if held else self._ends_event) else b"\n\n"
        return Streamed(ended, held + gap + frame + b"\n\n")

    async def _finish(self, outcome: Outcome) -> None:
        match outcome:
            case Refused(answer):
                self._tally.failed.add(answer.code)
                settlement = await self._settle(Ended.REFUSED)
                extra = (*self._admission.headers, *_headers_of(settlement))
                told = Answer(answer.status, (*answer.headers, *extra), answer.body)
                await send_answer(self._send, told, method=self._call.method)
            case Whole(exchange, body, ended):
                await self._send_whole(exchange, body, await self._settle(ended))
            case Streamed(ended, rest, is_clean):
                settlement = await self._settle(ended)
                if is_clean and self._is_stream and self._call.stream_receipt and settlement:
                    gap = b"" if (rest or b"\n\n").endswith(b"\n\n") else b"\n\n"
                    rest += gap + settlement.comment
                if is_clean and self._frames is not None and settlement and settlement.proposal:
                    rest += payment_frame(self._frames, settlement.proposal)
                message = {"type": "http.response.body", "body": rest, "more_body": not is_clean}
                await self._send(message)
            case Gone(ended):
                await self._settle(ended)
            case _:
                assert_never(outcome)

    async def _settle(self, ended: Ended) -> Settlement | None:
        """The settlement; None where the books could not be written and recovery will do it.

        The answer goes out all the same: it was paid for, and the bill is remembered.
        """
        if self._meter.is_only_error:
            ended = Ended.REFUSED
        began_s = self._loop.time()
        try:
            return await self._paywall.settle(self._admission, self._meter.usage(), ended)
        except StoreError:
            _log.exception("request.unsettled", request=self._admission.request_id)
            return None
        finally:
            self._tally.settled(ended, self._loop.time() - began_s)

    async def _send_whole(
        self, exchange: Exchange, body: bytes, settlement: Settlement | None
    ) -> None:
        length: Headers = ((b"content-length", str(len(body)).encode()),)
        if self._call.method == "HEAD":
            told = header(exchange.headers, b"content-length")
            length = ((b"content-length", told),) if told else ()
        elif exchange.status in _NO_BODY:
            length = ()
        await self._send_head(exchange, (*length, *_headers_of(settlement)))
        await self._send({"type": "http.response.body", "body": body})

    async def _send_head(self, exchange: Exchange, more: Headers) -> None:
        headers = for_caller(exchange.headers)
        headers += self._admission.headers
        headers += more
        self._head_sent = True
        await self._send(
            {"type": "http.response.start", "status": exchange.status, "headers": headers}
        )

    def _stream_length(self, exchange: Exchange) -> Headers:
        """A length that was announced holds as long as we neither add nor take anything."""
        told = header(exchange.headers, b"content-length")
        grows = self._is_stream or self._frames is not None
        return ((b"content-length", told),) if told and not grows else ()


_USED_UP: Final = "The amount held for this request is used up; the stream ends here."
_DIED: Final = "The service behind this gateway broke off; what it delivered is charged."
_SILENT: Final = "The service behind this gateway fell silent; what it delivered is charged."
_STOPPING: Final = "The gateway is being stopped; what was delivered is charged."
_FAILED: Final = "The gateway failed; what was delivered is charged."


def _headers_of(settlement: Settlement | None) -> Headers:
    return () if settlement is None else settlement.headers


def _serves(exchange: Exchange) -> bool:
    """Whether an answer is what was paid for. A redirect only says where that might be had, and
    "not modified" that the caller has it."""
    return exchange.status < 300


def _is_json(kind: bytes) -> bool:
    """Whether it is one JSON document; `application/json-seq` and the like are streams of them."""
    return kind[:16].lower() == b"application/json" and kind[16:17] in (b"", b";", b" ")


def _is_plain(headers: Headers) -> bool:
    return header(headers, b"content-encoding").lower() in (b"", b"identity")
