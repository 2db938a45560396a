"""Pages in browsers: an origin that the operator names may call and read, others may not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from farebox.errors import InvalidSettings
from farebox.gateway.cors import Cors
from farebox.settings import load_settings
from farebox.testing.asgi import serving
from tests.integration.gateway_house import Behaviour, Door, events, open_door, say

PAGE = "https://app.example.com"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,x-cashu",
}


@asynccontextmanager
async def open_to(
    path: Path, *origins: str, upstream: Behaviour | None = None
) -> AsyncIterator[tuple[Door, aiohttp.ClientSession, str]]:
    async with open_door(path, upstream=upstream) as (door, caller):
        async with serving(Cors(door.gateway, origins)) as url:
            yield door, caller, url


async def test_a_preflight_is_never_asked_to_pay(tmp_path: Path) -> None:
    async with open_to(tmp_path, PAGE) as (door, caller, url):
        async with caller.options(f"{url}/v1/chat/completions", headers=PREFLIGHT) as answer:
            assert (answer.status, await answer.read()) == (204, b"")
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert "POST" in answer.headers["access-control-allow-methods"]
            assert answer.headers["access-control-allow-headers"] == "authorization,x-cashu"
            assert "access-control-allow-credentials" not in answer.headers
        assert door.upstream.asked == []


async def test_a_page_reads_terms_receipt_and_change(tmp_path: Path) -> None:
    async with open_to(tmp_path, PAGE) as (_, caller, url):
        for money, status in ({}, 402), ({"X-Cashu": "coin:a:25000"}, 200):
            async with caller.get(url, headers={"Origin": PAGE, **money}) as answer:
                assert answer.status == status
                assert answer.headers["access-control-allow-origin"] == PAGE
                assert answer.headers["vary"] == "Origin"
                exposed = answer.headers["access-control-expose-headers"].lower().split(", ")
                told = {name.lower() for name in answer.headers}
                ours = {name for name in told if name.startswith("x-")} | {"x-cashu"}
                assert ours <= told & set(exposed)
        assert {"link", "x-farebox-receipt", "x-payment-channel-data"} <= set(exposed)


async def test_a_page_reads_a_stream(tmp_path: Path) -> None:
    upstream = Behaviour()
    upstream.answer = events(b"data: 1\n\n", b"data: [DONE]\n\n")
    async with open_to(tmp_path, "*", upstream=upstream) as (door, caller, url):
        async with caller.get(url, headers=door.auth | {"Origin": PAGE}) as answer:
            assert answer.headers["access-control-allow-origin"] == "*"
            assert await answer.read() == b"data: 1\n\ndata: [DONE]\n\n"


async def test_other_origins_are_allowed_nothing(tmp_path: Path) -> None:
    async with open_to(tmp_path, PAGE) as (door, caller, url):
        for origin in ("https://evil.example", f"{PAGE}.evil.example", "null", PAGE.upper()):
            async with caller.options(url, headers=PREFLIGHT | {"Origin": origin}) as answer:
                assert "access-control-allow-origin" not in answer.headers
            async with caller.get(url, headers=door.auth | {"Origin": origin}) as answer:
                assert "access-control-allow-origin" not in answer.headers
                assert answer.headers["vary"] == "Origin"


async def test_what_the_service_says_of_origins_is_replaced(tmp_path: Path) -> None:
    upstream = Behaviour()
    says = (b"access-control-allow-origin", b"https://other.example")
    upstream.answer = say({}, 200, says, (b"access-control-allow-credentials", b"true"))
    async with open_to(tmp_path, PAGE, upstream=upstream) as (door, caller, url):
        async with caller.get(url, headers=door.auth | {"Origin": PAGE}) as answer:
            assert answer.headers.getall("access-control-allow-origin") == [PAGE]
            assert "access-control-allow-credentials" not in answer.headers


def test_no_page_may_call_unless_the_operator_says_so() -> None:
    assert load_settings(None, {}, {}).gateway.cors_origins == ()


@pytest.mark.parametrize(
    "wrong", ["app.example.com", f"{PAGE}/", f"{PAGE}/app", "HTTPS://A.EXAMPLE"]
)
def test_what_is_no_origin_is_refused_by_name(wrong: str) -> None:
    with pytest.raises(InvalidSettings, match=r"gateway\.cors_origins.*as browsers send it"):
        load_settings(None, {}, {"gateway.cors_origins": [PAGE, wrong]})


def test_origins_are_read_as_they_stand() -> None:
    origins = [PAGE, "http://localhost:5173", "http://[::1]:3000", "chrome-extension://abcdef"]
    read = load_settings(None, {}, {"gateway.cors_origins": origins}).gateway.cors_origins
    assert list(read) == origins
