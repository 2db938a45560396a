"""A payer's calls of tools that are sold over the Model Context Protocol."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from farebox.channels.codecs import McpPaymentCodec
from farebox.channels.payer import (
    PaymentChannelPayerClient,
    SignSubRAVOptions,
    ValidatedResponse,
)
from farebox.ids import new_id
from farebox.wire.subrav import mcp
from farebox.wire.subrav.didauth import MCP_OPERATION

#: An MCP session's own `call_tool(name, arguments)`, whose result has `content`.
CallTool = Callable[[str, dict[str, Any]], Awaitable[Any]]
_CODEC = McpPaymentCodec()


@dataclass(frozen=True, slots=True)
class PaidToolResult:
    """What a tool answered, and what was checked of its payment. None: the call was free.

    Where `payment` has an error, nothing was served.
    """

    result: Any
    payment: ValidatedResponse | None


async def call_paid_tool(
    call_tool: CallTool,
    payer: PaymentChannelPayerClient,
    name: str,
    arguments: Mapping[str, Any],
    *,
    max_amount: int | None = None,
) -> PaidToolResult:
    """Call a tool and pay for the call before it; once more where the payee asks for that first.

    Raises SigningRefused for what may not be signed, InvalidCredential for what cannot be read, and
    whatever `call_tool` raises: the next call then pays for the lost answer, within the limits.
    """
    told = await _call(call_tool, payer, name, arguments, max_amount)
    if told.payment is not None and told.payment.is_retry_wanted:
        told = await _call(call_tool, payer, name, arguments, max_amount)
    return told


async def _call(
    call_tool: CallTool,
    payer: PaymentChannelPayerClient,
    name: str,
    arguments: Mapping[str, Any],
    max_amount: int | None,
) -> PaidToolResult:
    reference = new_id("tx")
    auth = await payer.authorize(MCP_OPERATION, {"tool": name, "clientTxRef": reference})
    options = SignSubRAVOptions(client_tx_ref=reference, max_amount=max_amount)
    payment = await payer.sign_and_encode(None, _CODEC, options)
    given = mcp.give_arguments(arguments, auth, _CODEC.payload(payment))
    result = await call_tool(name, given)
    told = mcp.find_payment_item([_plain(item) for item in result.content])
    if told is None:
        await payer.answered_free(reference)
        return PaidToolResult(result, None)
    checked = await payer.decode_and_validate(_CODEC.encode_response(told), _CODEC)
    return PaidToolResult(result, checked)


def _plain(item: Any) -> Any:
    """A content item as JSON has it; the SDK's are models."""
    dump = getattr(item, "model_dump", None)
    return item if dump is None else dump(by_alias=True, mode="json")
