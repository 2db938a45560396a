"""Spans of a traced house; and that one without traces knows nothing of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from farebox.bootstrap import Farebox
from farebox.operating.traces import Tracing
from farebox.settings import load_settings
from farebox.testing.asgi import serving
from farebox.testing.mint import Fail, PlayMint
from farebox.wire.cashu.token import encode_token
from tests.integration.gateway_house import Behaviour


class Traced:
    """A house whose spans stay in memory, with what its upstream was sent."""

    def __init__(self, mint: PlayMint, upstream: Behaviour) -> None:
        self.mint = mint
        self.upstream = upstream
        self._spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self.tracing = Tracing(provider)

    def spans(self) -> dict[str, ReadableSpan]:
        """The last span of each name."""
        return {span.name: span for span in self._spans.get_finished_spans()}


def facts(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


async def ask(tmp_path: Path, token: str, house: Traced, **headers: str) -> httpx.Response:
    async with serving(house.mint) as mint_url, serving(house.upstream) as upstream_url:
        house.mint.url = mint_url
        settings = {
            "data_dir": str(tmp_path),
            "mint": [{"url": mint_url}],
            "upstream": [{"urls": [upstream_url]}],
            "price": [{"per_request": "10 sat"}],
        }
        given = load_settings(None, {}, settings)
        async with (
            Farebox(given, b"k" * 32, tracing=house.tracing) as farebox,
            serving(farebox.app) as url,
            httpx.AsyncClient(timeout=60) as client,
        ):
            paying = {"X-Cashu": token or encode_token(house.mint.issue(64)), **headers}
            return await client.get(f"{url}/hello", headers=paying)


async def test_a_paid_request_is_one_trace_that_the_upstream_is_told(tmp_path: Path) -> None:
    house = Traced(PlayMint(), Behaviour())
    strangers = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = await ask(tmp_path, "", house, traceparent=strangers, tracestate="a=b")
    assert answer.status_code == 200
    spans = house.spans()
    request = spans["request"]
    assert request.parent is None
    tree = {"authorise": "request", "operation": "authorise", "forward": "request"}
    for child, parent in (tree | {"settle": "request"}).items():
        parent_of = spans[child].parent
        assert parent_of is not None
        assert parent_of.span_id == spans[parent].context.span_id
        assert spans[child].context.trace_id == request.context.trace_id
    assert facts(spans["authorise"])["farebox.outcome"] == "admitted"
    assert facts(spans["operation"])["farebox.state"] == "succeeded"
    assert facts(spans["settle"])["farebox.charged_msat"] == 10_000
    assert facts(spans["forward"])["http.response.status_code"] == 200
    assert facts(spans["call"])["http.response.status_code"] == 200
    [asked] = house.upstream.asked
    told = asked.header("traceparent")
    assert told is not None
    trace, span = (f"{spans['forward'].context.trace_id:032x}", spans["forward"].context.span_id)
    assert told.split("-")[1:3] == [trace, f"{span:016x}"]
    assert asked.header("tracestate") is None


async def test_a_refusal_and_a_failing_mint_are_seen_and_no_secret_is(tmp_path: Path) -> None:
    house = Traced(PlayMint(), Behaviour())
    house.mint.faults.always("swap", Fail(500))
    token = house.mint.issue(64)
    answer = await ask(tmp_path, "", house)
    assert answer.status_code == 503
    spans = house.spans()
    assert facts(spans["authorise"])["farebox.code"] == "payment_pending"
    assert "forward" not in spans
    everything = "".join(span.to_json() for span in house.spans().values())
    for proof in token.proofs:
        assert proof.secret not in everything
    assert "cashu" not in everything.replace("cashu.", "")


async def test_a_call_that_breaks_off_is_named_and_not_quoted(tmp_path: Path) -> None:
    house = Traced(PlayMint(), Behaviour())
    token = encode_token(house.mint.issue(64))
    async with serving(house.mint) as url:
        house.mint.url = url  # and gone before the house opens
    answer = await ask(tmp_path, token, house)
    assert answer.status_code in (400, 503)
    for span in house.spans().values():
        assert not span.events, "an exception's own words may hold what was sent"
        if span.status.status_code is StatusCode.ERROR:
            assert (span.status.description or "").isidentifier()


async def test_spans_are_sent_where_the_settings_say(tmp_path: Path) -> None:
    collector = Behaviour()
    async with serving(collector) as url:
        settings = {"data_dir": str(tmp_path), "traces.endpoint": f"{url}/v1/traces"}
        async with Farebox(load_settings(None, {}, settings), b"k" * 32) as house:
            with pytest.raises(KeyError):
                await house.operations.advance("op_nobody")
    [sent] = collector.asked
    assert (sent.method, sent.path) == ("POST", "/v1/traces")
    assert b"op_nobody" in sent.body
    assert b"service.name" in sent.body


def test_a_house_without_traces_imports_nothing_of_them(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from farebox.bootstrap import Farebox\n"
        "from farebox.settings import load_settings\n"
        "async def main():\n"
        "    async with Farebox(load_settings(None, {}, {'data_dir': sys.argv[1]}), b'k' * 32):\n"
        "        pass\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
