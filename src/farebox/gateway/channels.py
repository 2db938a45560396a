"""Payment channels in front of an ASGI app, as payment-kit's clients expect them.

    app = ChannelPaywall(app, ChannelService(processor, payee, info, rooch.channel_id))

A request brings `X-Payment-Channel-Data` and says who asks in `Authorization: DIDAuthV1 …`; the
answer carries what to sign next, in the same header, or in a frame before the end of a stream. The
app tells what it used with `report_usage`, before its answer begins, or in a stream before its end.

An answer of 400 and above costs nothing. A caller who hangs up pays for what was delivered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from farebox.channels.model import PaymentProcessingResult, RequestMetadata
from farebox.channels.processor import Admission, PaymentProcessor
from farebox.errors import InvalidCredential, RailError, StoreError
from farebox.gateway.asgi import App, Message, Receive, Scope, Send
from farebox.gateway.channel_endpoints import authenticate, send_endpoint
from farebox.ids import new_id
from farebox.paywall.channel_service import Caller, ChannelService, Refused
from farebox.wire.subrav.documents import failure
from farebox.wire.subrav.frames import StreamFormat, payment_frame, stream_format
from farebox.wire.subrav.model import ErrorCode, http_status
from farebox.wire.subrav.payload import (
    HEADER_NAME,
    PaymentError,
    RequestPayload,
    ResponsePayload,
    parse_request_header,
)

_PAYMENT_HEADER = HEADER_NAME.lower().encode()
_EXPOSE = (b"access-control-expose-headers", HEADER_NAME.encode())
_USAGE = "farebox.channel_usage"


def report_usage(scope: Scope, units: int) -> None:
    """Say what a request used: tokens, units, or its final cost in 10^-12 USD, as its rule has it.

    Called from the app with its own `scope`; the last call counts.
    """
    scope[_USAGE][0] = units


class ChannelPaywall:
    """ASGI middleware that is paid for through channels. Everything but HTTP passes untouched."""

    def __init__(self, app: App, service: ChannelService) -> None:
        assert service.processor is not None, "a service with rules of its own has a processor"
        self._app = app
        self._service = service
        self._processor = service.processor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, its payment first."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not await send_endpoint(self._service, scope, receive, send):
            await self._sell(scope, receive, send)

    async def _sell(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            payload = _payment(scope)
        except InvalidCredential as error:
            await _refuse(send, refusal(ErrorCode.INVALID_PAYMENT, str(error), new_id("tx")))
            return
        reference = payload.client_tx_ref if payload is not None else new_id("tx")
        caller = await authenticate(self._service, scope)
        if isinstance(caller, Refused):
            await _refuse(send, refusal(caller.code, caller.message, reference))
            return
        signed = None if payload is None else payload.signed_sub_rav
        facts = {"method": scope["method"], "path": scope["path"]}
        operation = f"{scope['method']}:{scope['path']}"
        request = metadata_of(operation, facts, payload, caller, reference)
        try:
            admitted = await self._processor.admit(request, signed)
        except (StoreError, RailError):
            why = "The payment could not be processed; try again."
            await _refuse(send, refusal(ErrorCode.INTERNAL_SERVER_ERROR, why, reference))
            return
        if isinstance(admitted, PaymentProcessingResult):
            is_stranger = payload is None and caller is None
            await _refuse(send, refusal_of(admitted, reference, is_stranger=is_stranger))
            return
        scope[_USAGE] = [0]
        sale = _Sale(self._processor, admitted, scope[_USAGE], reference, send)
        try:
            await self._app(scope, receive, sale.send)
        finally:
            # Shielded: whoever cancels the request must not leave its sub-channel's turn taken.
            await asyncio.shield(sale.close())


@dataclass(slots=True)
class _Sale:
    """An admitted request's answer on its way out."""

    processor: PaymentProcessor
    admission: Admission
    usage: list[int]
    reference: str
    out: Send
    form: StreamFormat | None = None
    started: bool = False
    is_cut: bool = False

    async def send(self, message: Message) -> None:
        """What the app sends, with the payment put in where it belongs.

        Nothing more once it costs more than its payer allows.
        """
        if self.is_cut:
            return
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self.form is not None and not message.get("more_body"):
            await self._end(self.form, message.get("body", b""))
        elif self.form is not None and not await self._is_within():
            self.is_cut = True
            await self._end(self.form, b"")
        else:
            await self.out(message)

    async def close(self) -> None:
        """Settle what the app left open: what was delivered is paid for, nothing else."""
        if self.started:
            await self._settle(self.usage[0])
        else:
            await self._release()

    async def _start(self, message: Message) -> None:
        headers = [*message.get("headers", []), _EXPOSE]
        content_type = next((v for k, v in headers if k.lower() == b"content-type"), b"")
        if message["status"] >= 300:  # nothing was served, as in `delivery`
            await self._release()
        else:
            self.form = stream_format(content_type.decode("latin-1"))
            if self.form is None and not await self._is_within():
                self.is_cut = True
                await self._withhold()
                return
            if self.form is None:
                header = await self._settle(self.usage[0])
                if header is not None:
                    headers.append((_PAYMENT_HEADER, header.encode()))
            else:  # its length is not known before its frame is
                headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
        self.started = True
        await self.out({**message, "headers": headers})

    async def _end(self, form: StreamFormat, body: bytes) -> None:
        header = await self._settle(self.usage[0])
        frame = b"" if header is None else payment_frame(form, header)
        await self.out({"type": "http.response.body", "body": body + frame})

    async def _withhold(self) -> None:
        """The answer costs more than is allowed or covered: it is neither given nor charged."""
        await self._release()
        self.started = True
        why = f"The answer costs more than {self.admission.cap}, which is allowed or covered."
        await _refuse(self.out, refusal(ErrorCode.BILLING_MAX_AMOUNT_EXCEEDED, why, self.reference))

    async def _is_within(self) -> bool:
        return await self.processor.is_within(self.admission, self.usage[0])

    async def _settle(self, usage: int) -> str | None:
        """Commit the charge; the header that tells it. Once: later calls have nothing to tell."""
        if self.admission.is_over:
            return None
        told = answer_of(await self.processor.settle(self.admission, usage), self.reference)
        return None if told is None else told.header()

    async def _release(self) -> None:
        await self.processor.release(self.admission)


def _payment(scope: Scope) -> RequestPayload | None:
    values = [value for name, value in scope["headers"] if name.lower() == _PAYMENT_HEADER]
    if len(values) > 1:
        raise InvalidCredential("the request holds two payments")
    return parse_request_header(values[0].decode("latin-1")) if values else None


def metadata_of(
    operation: str,
    facts: Mapping[str, object],
    payment: RequestPayload | None,
    caller: Caller | None,
    reference: str,
) -> RequestMetadata:
    """A request as the processor prices it. An admin asks, and does not pay."""
    payer = None if caller is None or caller.is_admin else caller
    return RequestMetadata(
        operation=operation,
        channel_id=None if payer is None else payer.channel_id,
        vm_id_fragment=None if payer is None else payer.fragment,
        payer_did=None if payer is None else payer.did,
        is_admin=caller is not None and caller.is_admin,
        once="" if caller is None else caller.once,
        client_tx_ref=reference,
        max_amount=None if payment is None else payment.max_amount,
        facts=facts,
    )


def answer_of(result: PaymentProcessingResult, reference: str) -> ResponsePayload | None:
    """What the payer of a served request is told; None: there is nothing to sign."""
    if result.unsigned_sub_rav is None:
        return None
    return ResponsePayload(
        client_tx_ref=reference,
        service_tx_ref=result.service_tx_ref,
        sub_rav=result.unsigned_sub_rav,
        cost=result.cost,
        cost_usd=result.cost_pico_usd,
    )


def refusal(code: ErrorCode, message: str, reference: str) -> ResponsePayload:
    """A refusal with nothing to sign."""
    return ResponsePayload(client_tx_ref=reference, error=PaymentError(code, message))


def refusal_of(
    result: PaymentProcessingResult, reference: str, *, is_stranger: bool
) -> ResponsePayload:
    """The refusal of a request. A replay is one, too: its answer is gone, and to serve the request
    again would be a second one unpaid. What the first one cost is asked for instead."""
    code, message = result.error_code, result.error or ""
    if result.is_replay:
        code, message = ErrorCode.PAYMENT_REQUIRED, "This voucher was taken; sign the next one."
    elif is_stranger and code is ErrorCode.CHANNEL_CONTEXT_MISSING:
        code = ErrorCode.PAYMENT_REQUIRED
    assert code is not None
    error = PaymentError(code, message, result.error_details)
    return ResponsePayload(client_tx_ref=reference, sub_rav=result.unsigned_sub_rav, error=error)


async def _refuse(send: Send, told: ResponsePayload) -> None:
    error = told.error
    assert error is not None
    status = http_status(ErrorCode(error.code))
    headers = [(_PAYMENT_HEADER, told.header().encode())]
    await _answer(send, status, failure(error.code, error.message, status), headers)


async def _answer(
    send: Send, status: int, document: Any, headers: list[tuple[bytes, bytes]]
) -> None:
    body = msgspec.json.encode(document)
    told = [
        (b"content-type", b"application/json; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        _EXPOSE,
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": body})
