"""Spans for OpenTelemetry: a request, what it waits for, operations, calls to mints.

    request ─┬─ authorise ─── operation ─── call
             ├─ forward
             └─ settle

Only this module knows OpenTelemetry, and it is imported only where traces are wanted: it puts
itself around a few functions of one house, and nothing else pays for it. A caller's trace is
neither continued nor passed on, for callers are strangers; the upstream is told ours. A span names
an exception and never quotes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final, ParamSpec, TypeVar

import aiohttp
from opentelemetry.context import attach, detach
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from farebox.gateway.carrier import Carrier
from farebox.gateway.exchange import Exchange, Outgoing
from farebox.gateway.upstream import Upstream, Upstreams
from farebox.payments.model import Operation
from farebox.payments.operations import Operations
from farebox.paywall.model import Admission, Answer, Ended, Settlement
from farebox.paywall.service import Paywall
from farebox.pricing.request import RequestFacts

P = ParamSpec("P")
R = TypeVar("R")

_Facts = Mapping[str, str | int]
_TRACE_HEADERS: Final = frozenset({b"traceparent", b"tracestate"})
_propagator = TraceContextTextMapPropagator()


def exporting(endpoint: str) -> TracerProvider:
    """A provider whose spans are sent by OTLP over HTTP, in batches, by a thread of its own."""
    provider = TracerProvider(resource=Resource.create({"service.name": "farebox"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


class Tracing:
    """Traces one house, or several."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("farebox")

    def follow(
        self, carrier: Carrier, paywall: Paywall, operations: Operations, upstreams: Upstreams
    ) -> None:
        """Put spans around what these do from now on."""
        carry = self._around("request", carrier.carry, _nothing, _nothing)
        authorise = self._around("authorise", paywall.authorise, _asked, _decided)
        settle = self._around("settle", paywall.settle, _ending, _settled)
        advance = self._around("operation", operations.advance, _named, _advanced)
        for owner, name, spanned in (
            (carrier, "carry", carry),
            (paywall, "authorise", authorise),
            (paywall, "settle", settle),
            (operations, "advance", advance),
            (upstreams, "open", self._forwarding(upstreams.open)),
        ):
            setattr(owner, name, spanned)

    def calls(self) -> aiohttp.TraceConfig:
        """For a session: a span for each call that is made with it."""
        config = aiohttp.TraceConfig()

        async def begin(
            _: aiohttp.ClientSession, call: SimpleNamespace, asked: aiohttp.TraceRequestStartParams
        ) -> None:
            facts = {"http.request.method": asked.method, "server.address": asked.url.host or ""}
            call.span = self._tracer.start_span("call", kind=SpanKind.CLIENT, attributes=facts)
            # What else is in the address may be a secret: a quote's id lets its money be taken.
            call.span.set_attribute("farebox.call", asked.url.path.partition("/v1/")[2][:10])

        async def end(
            _: aiohttp.ClientSession, call: SimpleNamespace, got: aiohttp.TraceRequestEndParams
        ) -> None:
            call.span.set_attribute("http.response.status_code", got.response.status)
            call.span.end()

        async def fail(
            _: aiohttp.ClientSession,
            call: SimpleNamespace,
            met: aiohttp.TraceRequestExceptionParams,
        ) -> None:
            _failed(call.span, met.exception)
            call.span.end()

        config.on_request_start.append(begin)
        config.on_request_end.append(end)
        config.on_request_exception.append(fail)
        config.freeze()
        return config

    async def close(self) -> None:
        """Send what is left."""
        await asyncio.to_thread(self._provider.shutdown)

    def _around(
        self,
        name: str,
        call: Callable[P, Awaitable[R]],
        before: Callable[P, _Facts],
        after: Callable[[R], _Facts],
    ) -> Callable[P, Coroutine[Any, Any, R]]:
        async def spanned(*args: P.args, **named: P.kwargs) -> R:
            with self._span(name, before(*args, **named)) as span:
                result = await call(*args, **named)
                span.set_attributes(after(result))
                return result

        return spanned

    def _forwarding(
        self, opening: Callable[[Upstream, Outgoing], Awaitable[Exchange]]
    ) -> Callable[[Upstream, Outgoing], Coroutine[Any, Any, Exchange]]:
        async def forward(upstream: Upstream, outgoing: Outgoing) -> Exchange:
            facts = {"http.request.method": outgoing.method, "farebox.upstream": upstream.path}
            with self._span("forward", facts, SpanKind.CLIENT) as span:
                ours: dict[str, str] = {}
                _propagator.inject(ours)
                headers = [one for one in outgoing.headers if one[0] not in _TRACE_HEADERS]
                headers += [(name.encode(), value.encode()) for name, value in ours.items()]
                outgoing.headers[:] = headers
                exchange = await opening(upstream, outgoing)
                span.set_attribute("http.response.status_code", exchange.status)
                return exchange

        return forward

    @contextmanager
    def _span(self, name: str, facts: _Facts, kind: SpanKind = SpanKind.INTERNAL) -> Iterator[Span]:
        span = self._tracer.start_span(name, kind=kind, attributes=facts)
        token = attach(set_span_in_context(span))
        try:
            yield span
        except BaseException as error:
            _failed(span, error)
            raise
        finally:
            detach(token)
            span.end()


def _failed(span: Span, error: BaseException) -> None:
    span.set_status(StatusCode.ERROR, type(error).__name__)


def _nothing(*_: object) -> _Facts:
    return {}


def _asked(_: object, facts: RequestFacts, *__: object) -> _Facts:
    return {"http.request.method": facts.method, "url.path": facts.path[:200]}


def _decided(decided: Admission | Answer) -> _Facts:
    if isinstance(decided, Admission):
        return {"farebox.outcome": "admitted", "farebox.request_id": decided.request_id}
    outcome = "challenged" if decided.status == 402 else "refused"
    return {"farebox.outcome": outcome, "farebox.code": decided.code}


def _ending(admission: Admission, _: object, ended: Ended) -> _Facts:
    return {"farebox.request_id": admission.request_id, "farebox.ended": ended.value}


def _settled(settlement: Settlement) -> _Facts:
    return {"farebox.charged_msat": settlement.charged_msat}


def _named(operation_id: str, **_: object) -> _Facts:
    return {"farebox.operation_id": operation_id}


def _advanced(operation: Operation) -> _Facts:
    return {"farebox.operation_kind": operation.kind, "farebox.state": operation.state.value}
