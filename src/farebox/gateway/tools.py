"""Tools of an MCP server that are paid for through channels, as payment-kit's clients expect them.

    server = MCPServer("shop", middleware=[PaidTools(service)])
    app = ChannelEndpoints(server.streamable_http_app(), service)

A call brings `__nuwa_auth` and `__nuwa_payment` among its arguments, which its tool never sees. The
result, be it the tool's or a refusal, carries the payment as one more content item. Rules price a
tool as a POST to `/tool/<name>`; what was used, a tool tells under `__usage` in its structured
content or its `_meta`. A call that fails costs nothing, and one that is cancelled neither: nothing
of it is delivered. The MCP SDK is not imported here: whoever has none needs none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from farebox.channels.model import PaymentProcessingResult
from farebox.channels.processor import Admission
from farebox.errors import InvalidCredential, RailError, StoreError
from farebox.gateway.channel_questions import NotFound, Question, ask
from farebox.gateway.channels import answer_of, metadata_of, refusal, refusal_of
from farebox.ids import new_id
from farebox.paywall.channel_service import Caller, ChannelService, Refused, ToolAsked
from farebox.wire.subrav import documents, mcp
from farebox.wire.subrav.model import ErrorCode
from farebox.wire.subrav.payload import ResponsePayload

if TYPE_CHECKING:
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext

_T = TypeVar("_T")
_Result = dict[str, Any]

_HEALTH: Final = "nuwa.health"
_DISCOVERY: Final = "nuwa.discovery"
_QUESTIONS: Final = {
    "nuwa.recovery": Question.RECOVERY,
    "nuwa.commit": Question.COMMIT,
    "nuwa.subrav.query": Question.SUB_RAV,
    "nuwa.admin.status": Question.STATUS,
    "nuwa.admin.claimTrigger": Question.CLAIM,
}
_BUILT_IN: Final = {
    _HEALTH: "Whether payments can be taken.",
    _DISCOVERY: "Who is paid, and in what.",
    "nuwa.recovery": "A payer's channel, and what it is asked to sign next.",
    "nuwa.commit": "Pay for the last call without making another: {subRav}.",
    "nuwa.subrav.query": "The newest voucher, to whoever signed it: {nonce}.",
    "nuwa.admin.status": "How claims and payments went, for admins.",
    "nuwa.admin.claimTrigger": "Claim all vouchers of a channel now, for admins: {channelId}.",
}
#: payment-kit's client calls it so, and its server the other.
_COMMITTED: Final = "signedSubRav"
_TRY_AGAIN: Final = "The payment could not be processed; try again."


class PaidTools:
    """Middleware of an MCP server (`mcp` 2.2 and newer): its tools are sold, all else is free."""

    def __init__(self, service: ChannelService) -> None:
        assert service.processor is not None, "a service with rules of its own has a processor"
        self._service = service
        self._processor = service.processor

    async def __call__(
        self, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        """Serve one message; a tool's call is paid for first."""
        params = ctx.params or {}
        if ctx.method == "tools/list":
            return _listed(_plain(await call_next(ctx)), is_first=params.get("cursor") is None)
        name, arguments = params.get("name"), params.get("arguments")
        if ctx.method != "tools/call" or not isinstance(name, str):
            return await call_next(ctx)
        if not isinstance(arguments, Mapping | None):
            return await call_next(ctx)  # to be refused by the SDK
        try:
            call = mcp.take_arguments(arguments or {})
        except InvalidCredential as error:
            return _refused(refusal(ErrorCode.INVALID_PAYMENT, str(error), new_id("tx")))
        reference = new_id("tx") if call.payment is None else call.payment.client_tx_ref
        try:
            caller = await self._identify(name, call)
            if name in _BUILT_IN:
                return await self._built_in(name, call, caller, reference)
            if isinstance(caller, Refused):
                return _refused(refusal(caller.code, caller.message, reference))
            facts = {"method": "POST", "path": f"/tool/{name}"}
            admitted = await self._processor.admit(
                metadata_of(f"MCP:tool/{name}", facts, call.payment, caller, reference),
                None if call.payment is None else call.payment.signed_sub_rav,
            )
        except (StoreError, RailError):
            return _refused(refusal(ErrorCode.INTERNAL_SERVER_ERROR, _TRY_AGAIN, reference))
        if isinstance(admitted, PaymentProcessingResult):
            is_stranger = call.payment is None and caller is None
            return _refused(refusal_of(admitted, reference, is_stranger=is_stranger))
        inner = replace(ctx, params={**params, "arguments": call.arguments})
        return await self._sell(inner, call_next, admitted, reference)

    async def _identify(self, tool: str, call: mcp.ToolCall) -> Caller | Refused | None:
        if call.auth is None:
            return None
        reference = None if call.payment is None else call.payment.client_tx_ref
        return await self._service.identify(call.auth, ToolAsked(tool, reference))

    async def _sell(
        self,
        ctx: ServerRequestContext[Any, Any],
        call_next: CallNext,
        admission: Admission,
        reference: str,
    ) -> HandlerResult:
        try:
            result = _plain(await call_next(ctx))
            if not _is_delivered(result):
                return result
            usage = _take_usage(result)
            if not await self._processor.is_within(admission, usage):
                why = f"The call costs more than {admission.cap}, which is allowed or covered."
                return _refused(refusal(ErrorCode.BILLING_MAX_AMOUNT_EXCEEDED, why, reference))
            paid = await _through(self._processor.settle(admission, usage))
        except StoreError:  # what it cost is not known to be stored: nothing of it is delivered
            return _refused(refusal(ErrorCode.INTERNAL_SERVER_ERROR, _TRY_AGAIN, reference))
        finally:
            # Whoever cancels the call must not leave its sub-channel's turn taken.
            await _through(self._processor.release(admission))
        told = answer_of(paid, reference)
        if told is not None:
            result["content"] = [*result["content"], mcp.payment_item(told)]
        return result

    async def _built_in(
        self, name: str, call: mcp.ToolCall, caller: Caller | Refused | None, reference: str
    ) -> _Result:
        """One of payment-kit's own tools. A voucher that comes with it is taken."""
        service = self._service
        signed = None if call.payment is None else call.payment.signed_sub_rav
        if signed is not None:
            taken = await service.payee.confirm_signed_proposal(signed)
            if not taken.is_valid:
                assert taken.error_code is not None
                return _refused(refusal(taken.error_code, taken.error or "", reference))
        if name == _HEALTH:
            return _told(documents.health("healthy", service.now))
        if name == _DISCOVERY:
            return _told(service.info.document())
        told = dict(call.arguments)
        if _COMMITTED in told:
            told.setdefault("subRav", told[_COMMITTED])
        answer = await ask(service, _QUESTIONS[name], caller, told)
        if isinstance(answer, Refused):
            return _refused(refusal(answer.code, answer.message, reference))
        if isinstance(answer, NotFound):
            return {"content": [_text(answer.message)], "isError": True, "resultType": "complete"}
        return _told(answer)


async def _through(work: Coroutine[Any, Any, _T]) -> _T:
    """Finish what settles a call whoever cancels it, and only then be cancelled."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _plain(result: HandlerResult) -> _Result:
    """A result as JSON has it; middleware within ours may answer with one of the SDK's models."""
    if result is None or isinstance(result, dict):
        return result or {}
    return result.model_dump(by_alias=True, mode="json", exclude_none=True)


def _is_delivered(result: _Result) -> bool:
    """Whether a result is a tool's: not an error, nor a question back to the caller."""
    return "content" in result and not result.get("isError")


def _take_usage(result: _Result) -> int:
    """What a tool said that it used, taken out of its result; 0 where it said nothing."""
    usage = 0
    for place in ("structuredContent", "_meta"):
        held = result.get(place)
        if isinstance(held, dict) and mcp.USAGE_KEY in held:
            kept = {key: value for key, value in held.items() if key != mcp.USAGE_KEY}
            told = held[mcp.USAGE_KEY]
            usage = told if type(told) is int and told > 0 else usage
            result[place] = kept
    return usage


def _listed(result: _Result, *, is_first: bool) -> _Result:
    """A list of tools whose schemas admit the payment, with payment-kit's own tools."""
    tools = [_paid(tool) for tool in result.get("tools", [])]
    if is_first:
        tools += [
            _paid({"name": name, "description": does, "inputSchema": {"type": "object"}})
            for name, does in _BUILT_IN.items()
        ]
    return {**result, "tools": tools}


def _paid(tool: Mapping[str, Any]) -> _Result:
    schema = dict(tool["inputSchema"])
    schema["properties"] = {**schema.get("properties", {}), **mcp.argument_schemas()}
    return {**tool, "inputSchema": schema}


def _told(document: object) -> _Result:
    text = msgspec.json.encode(document).decode()
    return {"content": [_text(text)], "isError": False, "resultType": "complete"}


def _refused(told: ResponsePayload) -> _Result:
    """A refusal, for payers and for everybody else. It is marked as an error: a client that checks
    results against a tool's schema would not take it for one otherwise."""
    assert told.error is not None
    content = [_text(f"{told.error.code}: {told.error.message}"), mcp.payment_item(told)]
    return {"content": content, "isError": True, "resultType": "complete"}


def _text(text: str) -> _Result:
    return {"type": "text", "text": text}
