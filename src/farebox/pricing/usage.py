"""What an answer used: as the upstream reports it, or as we count it.

Reports are claims by somebody who may err or lie: a number that is negative, absurd or no whole
number counts as not reported, and so do the zeros of a report on no prompt at all; a part larger
than its whole is dropped, and the quote's maximum bounds the rest. In our figures cached tokens
are always part of the input and reasoning tokens always part of the output, whatever the protocol
does.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import msgspec

from farebox.pricing.model import UnitSource
from farebox.pricing.request import ApiProtocol
from farebox.pricing.terms import MICROS_PER_UNIT
from farebox.pricing.tokens import TokenCounter, prompt_texts, prompt_token_ids

#: More than this in one answer is no honest report.
TOKENS_MAX: Final = 10**9
UNITS_MAX: Final = 10**12
_PARTS_MAX: Final = 10_000
_DECIMALS_MAX: Final = 40


class UsageSource(enum.StrEnum):
    """Where the token figures come from. `counted` is by a tokenizer, `estimated` by size."""

    REPORTED = "reported"
    COUNTED = "counted"
    ESTIMATED = "estimated"


class Usage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was used. `input_tokens` include cached ones, `output_tokens` include reasoning.

    Add what only the carrier of the request knows with `msgspec.structs.replace`: `duration_ns`,
    `body_bytes` (of the answer), `micro_units` (see `read_units`).
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    duration_ns: int = 0
    body_bytes: int = 0
    micro_units: int = 0
    source: UsageSource = UsageSource.REPORTED

    @property
    def estimated(self) -> bool:
        """Whether the receipt must say that this is an estimate."""
        return self.source is UsageSource.ESTIMATED


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The credible part of an upstream's report; None is not reported."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


NO_REPORT: Final = Report()


def read_report(protocol: ApiProtocol, usage: object) -> Report:
    """Read the `usage` object of an answer or a stream event. Never raises."""
    if not isinstance(usage, dict) or protocol is ApiProtocol.OTHER:
        return NO_REPORT
    report = _READERS[protocol](usage)
    if report.input_tokens == 0:  # nothing answers no prompt: who says so has not counted
        output_tokens = report.output_tokens or None
        return msgspec.structs.replace(report, input_tokens=None, output_tokens=output_tokens)
    return report


def read_usage(protocol: ApiProtocol, answer: bytes) -> Usage | None:
    """The usage that an unstreamed answer reports, or None if it isn't credibly there."""
    report = read_report(protocol, _member(decoded(answer), "usage"))
    if report.input_tokens is None or report.output_tokens is None:
        return None
    return settled(report, 0, 0, UsageSource.REPORTED)


def measure_answer(
    protocol: ApiProtocol, request: bytes, answer: bytes, counter: TokenCounter
) -> Usage:
    """The usage of an unstreamed answer: reported, and counted where it is not."""
    document = decoded(answer)
    report = read_report(protocol, _member(document, "usage"))
    usage = complete(report, request, answer_texts(protocol, document), counter, protocol)
    return msgspec.structs.replace(usage, body_bytes=len(answer))


def complete(
    report: Report,
    request: bytes,
    texts: Iterator[str],
    counter: TokenCounter,
    protocol: ApiProtocol,
) -> Usage:
    """Fill what a report leaves out by counting the request's and the answer's texts."""
    missing = report.input_tokens is None or report.output_tokens is None
    if not missing or protocol is ApiProtocol.OTHER:
        return settled(report, 0, 0, UsageSource.REPORTED)
    counted_input = count_prompt(request, counter) if report.input_tokens is None else 0
    counted_output = sum(map(counter.count, texts)) if report.output_tokens is None else 0
    source = UsageSource.ESTIMATED if counter.is_estimate else UsageSource.COUNTED
    return settled(report, counted_input, counted_output, source)


def settled(report: Report, counted_input: int, counted_output: int, source: UsageSource) -> Usage:
    """A report as usage, with our own counts where it says nothing."""
    input_tokens = counted_input if report.input_tokens is None else report.input_tokens
    output_tokens = counted_output if report.output_tokens is None else report.output_tokens
    cached, reasoning = report.cached_tokens or 0, report.reasoning_tokens or 0
    return Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        # A part cannot exceed its whole: such a report is no ground for a discount.
        cached_tokens=cached if cached <= input_tokens else 0,
        reasoning_tokens=reasoning if reasoning <= output_tokens else 0,
        source=source,
    )


def count_prompt(request: bytes, counter: TokenCounter) -> int:
    """Count the tokens of the texts in a request's body, and those that it names by number."""
    document = decoded(request)
    return sum(map(counter.count, prompt_texts(document))) + prompt_token_ids(document)


def read_units(source: UnitSource, headers: Mapping[str, str], answer: bytes) -> int | None:
    """The units an upstream reports, in millionths; None if it credibly reports none.

    `headers` has lower-case names. More than six decimals, a sign or an exponent is not credible.
    """
    if source.header is not None:
        return _micro_units(headers.get(source.header.lower()))
    try:
        value = _decode_exactly(answer)
    except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError):
        return None
    for token in (source.field or "").split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name[:9]) < len(value):
            value = value[int(name[:9])]
        else:
            return None
    return _micro_units(value)


def answer_texts(protocol: ApiProtocol, document: object) -> Iterator[str]:
    """The texts a model wrote, in a decoded answer."""
    if not isinstance(document, dict):
        return
    if protocol in (ApiProtocol.CHAT, ApiProtocol.COMPLETIONS):
        for choice in _dicts(document.get("choices")):
            yield from _strings(choice, ("text",))
            yield from message_texts(choice.get("message"))
    elif protocol is ApiProtocol.RESPONSES:
        for item in _dicts(document.get("output")):
            yield from _strings(item, ("arguments", "input"))
            for part in (*_dicts(item.get("content")), *_dicts(item.get("summary"))):
                yield from _strings(part, ("text", "refusal"))
    elif protocol is ApiProtocol.MESSAGES:
        for block in _dicts(document.get("content")):
            yield from _strings(block, ("text", "thinking", "name"))
            if isinstance(block.get("input"), dict):
                yield _as_text(block["input"])


def is_error(document: object) -> bool:
    """Whether a decoded answer, or an event of one, says that something went wrong."""
    if not isinstance(document, dict):
        return False
    within = document.get("response")  # where a responses stream says that it failed
    return bool(
        document.get("error")
        or document.get("type") == "error"
        or (isinstance(within, dict) and within.get("error"))
    )


def message_texts(message: object) -> Iterator[str]:
    """The texts in a chat message, or in the delta of one."""
    if not isinstance(message, dict):
        return
    yield from _strings(message, ("content", "refusal"))
    # Two names for one text; some upstreams send both.
    yield from list(_strings(message, ("reasoning_content", "reasoning")))[:1]
    calls = _dicts(message.get("tool_calls"))
    for call in (*(inner.get("function") for inner in calls), message.get("function_call")):
        if isinstance(call, dict):
            yield from _strings(call, ("name", "arguments"))


def _whole(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= TOKENS_MAX else None


def _detail(usage: dict[str, Any], group: str, name: str) -> int | None:
    details = usage.get(group)
    return _whole(details.get(name)) if isinstance(details, dict) else None


def _read_openai(usage: dict[str, Any]) -> Report:
    """Chat and completions. `cached_tokens` are within `prompt_tokens`."""
    prompt = _whole(usage.get("prompt_tokens"))
    completion = _whole(usage.get("completion_tokens"))
    reasoning = _detail(usage, "completion_tokens_details", "reasoning_tokens")
    total = _whole(usage.get("total_tokens"))
    if prompt is not None and completion is not None and total is not None:
        # OpenAI counts reasoning within the completion. Some that follow its protocol put it
        # beside, or tell it in the total alone: leaving it out would give the reasoning away.
        beside = max(total - prompt - completion, 0)
        reasoning = beside if reasoning is None else reasoning
        completion += beside
    return Report(
        input_tokens=prompt,
        output_tokens=completion,
        cached_tokens=_detail(usage, "prompt_tokens_details", "cached_tokens"),
        reasoning_tokens=reasoning,
    )


def _read_responses(usage: dict[str, Any]) -> Report:
    """Cached and reasoning tokens are within the input and the output."""
    return Report(
        input_tokens=_whole(usage.get("input_tokens")),
        output_tokens=_whole(usage.get("output_tokens")),
        cached_tokens=_detail(usage, "input_tokens_details", "cached_tokens"),
        reasoning_tokens=_detail(usage, "output_tokens_details", "reasoning_tokens"),
    )


def _read_embeddings(usage: dict[str, Any]) -> Report:
    """There is no output; some upstreams report the total alone."""
    prompt = _whole(usage.get("prompt_tokens"))
    total = _whole(usage.get("total_tokens"))
    return Report(input_tokens=total if prompt is None else prompt, output_tokens=0)


def _read_messages(usage: dict[str, Any]) -> Report:
    """Anthropic: tokens read from and written to the cache are *beside* `input_tokens`.

    Written ones are charged as plain input. Thinking is within the output, and not told apart.
    """
    plain = _whole(usage.get("input_tokens"))
    cached = _whole(usage.get("cache_read_input_tokens"))
    written = _whole(usage.get("cache_creation_input_tokens"))
    return Report(
        input_tokens=None if plain is None else plain + (cached or 0) + (written or 0),
        output_tokens=_whole(usage.get("output_tokens")),
        cached_tokens=None if plain is None else cached,
    )


_READERS: Final = {
    ApiProtocol.CHAT: _read_openai,
    ApiProtocol.COMPLETIONS: _read_openai,
    ApiProtocol.RESPONSES: _read_responses,
    ApiProtocol.EMBEDDINGS: _read_embeddings,
    ApiProtocol.MESSAGES: _read_messages,
}

_decode = msgspec.json.Decoder().decode
_decode_exactly = msgspec.json.Decoder(float_hook=Decimal).decode


def decoded(body: bytes) -> object:
    """A JSON document as servers really write it; None where it is none. Never raises.

    Half an emoji and an infinite logarithm are no JSON, and yet Python and JavaScript write them:
    who could bring a model to say one would pay for nothing.
    """
    try:
        return _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _as_text(value: object) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except ValueError:  # half an emoji
        return json.dumps(value)


def _member(document: object, name: str) -> object:
    return document.get(name) if isinstance(document, dict) else None


def _dicts(value: object) -> list[dict[str, Any]]:
    listed = value[:_PARTS_MAX] if isinstance(value, list) else []
    return [item for item in listed if isinstance(item, dict)]


def _strings(holder: dict[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        value = holder.get(name)
        if isinstance(value, str) and value:
            yield value


def _micro_units(value: object) -> int | None:
    if isinstance(value, str):
        text = value.strip()
        if not 0 < len(text) <= 40 or not text.isascii() or text.strip("0123456789.") != "":
            return None
        try:
            value = Decimal(text)
        except ArithmeticError:
            return None
    if type(value) is int:
        value = Decimal(value) if 0 <= value <= UNITS_MAX else None
    if not isinstance(value, Decimal) or not value.is_finite() or not 0 <= value <= UNITS_MAX:
        return None
    # Checked before it is expanded: a report of 1e-999999999 must cost us nothing.
    if int(value.as_tuple().exponent) < -_DECIMALS_MAX:
        return None
    micros = Fraction(value) * MICROS_PER_UNIT
    return micros.numerator if micros.denominator == 1 else None
