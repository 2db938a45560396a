"""The price page over HTTP, against a local server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from fractions import Fraction

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from farebox.clock import NS_PER_S, ManualClock
from farebox.errors import InvalidSettings, RailError, RailRejected, RailUnavailable
from farebox.pricing.rates import Observation
from farebox.rails.rates.http import HttpRateSource

Answer = Callable[[], web.StreamResponse]


class Page:
    """A price page that answers as told, and the source that reads it."""

    def __init__(self, port: int, session: aiohttp.ClientSession) -> None:
        self.clock = ManualClock()
        self.answer: Answer = web.Response
        self._port = port
        self._session = session

    async def observe(self, pointer: str) -> Observation:
        address = f"http://127.0.0.1:{self._port}/ticker?pair=a#{pointer}"
        source = HttpRateSource(
            address, self._session, self.clock, timeout_s=0.1 if self.answer is slow else 60
        )
        assert source.name == "127.0.0.1"
        return await source.observe()


@pytest_asyncio.fixture
async def page() -> AsyncIterator[Page]:
    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.query_string == "pair=a"
        await asyncio.sleep(0)
        if subject.answer is slow:
            await asyncio.sleep(60)
        return subject.answer()

    app = web.Application()
    app.router.add_get("/ticker", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession() as session:
        subject = Page(port, session)
        yield subject
    await runner.cleanup()


def slow() -> web.StreamResponse:
    return web.Response(text="{}")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ('{"data":{"amount":"97000.50"}}', "/data/amount"),
        ('{"bpi":[1,{"a/b":97000.50}]}', "/bpi/1/a~1b"),
        ('{"last":"97,000.50"}', "/last"),
    ],
)
async def test_a_price_is_read_digit_by_digit(page: Page, body: str, pointer: str) -> None:
    page.answer = lambda: web.Response(text=body)
    seen = await page.observe(pointer)
    assert seen == Observation(Fraction(10**13, 9700050), page.clock.now_ns())


async def test_a_cached_answer_is_as_old_as_it_says(page: Page) -> None:
    page.answer = lambda: web.Response(text='{"p":1}', headers={"Age": "120"})
    assert (await page.observe("/p")).as_of_ns == page.clock.now_ns() - 120 * NS_PER_S


@pytest.mark.parametrize(
    "body",
    [
        '{"p":0}',
        '{"p":-1}',
        '{"p":"x"}',
        '{"p":true}',
        '{"p":null}',
        "{}",
        "[]",
        "no",
        "",
        '{"p":1e999}',
        '{"p":1e-999999999}',
        '{"p":"NaN"}',
        '{"p":' + "9" * 90 + "}",
    ],
)
async def test_what_is_no_price_is_rejected(page: Page, body: str) -> None:
    page.answer = lambda: web.Response(text=body)
    with pytest.raises(RailRejected):
        await page.observe("/p")


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.Response(status=500),
        lambda: web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}),
        lambda: web.Response(body=b" " * 300_000),
        slow,
    ],
)
async def test_a_page_that_misbehaves_is_unavailable(page: Page, answer: Answer) -> None:
    page.answer = answer
    with pytest.raises(RailUnavailable):
        await page.observe("/p")


async def test_a_page_that_is_not_there_is_unavailable() -> None:
    async with aiohttp.ClientSession() as session:
        source = HttpRateSource("http://127.0.0.1:1/#/p", session, ManualClock())
        with pytest.raises(RailError):
            await source.observe()


@pytest.mark.parametrize("address", ["https://example.com/", "ftp://a/#/p", "https://a/#p", ""])
async def test_an_address_without_a_pointer_is_refused(address: str) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(InvalidSettings):
            HttpRateSource(address, session, ManualClock())
