"""The paywall inside somebody's own app: each example is run as it stands."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fastapi import FastAPI, HTTPException
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import RedirectResponse, StreamingResponse

from farebox.bootstrap import Farebox
from farebox.errors import InvalidSettings
from farebox.gateway import Paywall, price
from farebox.gateway.middleware import PriceWithoutPaywall
from farebox.paywall.model import REQUEST, Ended
from farebox.settings import load_settings
from farebox.testing.asgi import App, serving
from farebox.testing.mint import PlayMint
from farebox.wire.cashu.token import decode_token, encode_token
from tests.waiting import WAIT_S, eventually


class Shop:
    """An app with a paywall, a mint of play money, and a caller."""

    def __init__(self, url: str, caller: aiohttp.ClientSession, mint: PlayMint) -> None:
        self.url = url
        self.caller = caller
        self.mint = mint

    def token(self, sat: int) -> dict[str, str]:
        return {"X-Cashu": encode_token(self.mint.issue(sat))}

    def get(self, path: str, headers: dict[str, str] | None = None) -> Any:
        return self.caller.get(self.url + path, headers=headers)


@asynccontextmanager
async def example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Shop]:
    mint = PlayMint()
    async with serving(mint) as mint_url, aiohttp.ClientSession() as caller:
        mint.url = mint_url
        monkeypatch.setenv("FAREBOX_MINT__0__URL", mint_url)
        monkeypatch.setenv("FAREBOX_DATA_DIR", str(tmp_path / "data"))
        monkeypatch.setenv("FAREBOX_ROOT_KEY", "ab" * 32)
        sys.modules.pop(f"examples.{name}", None)
        app = importlib.import_module(f"examples.{name}").app
        async with serving(app) as url:
            yield Shop(url, caller, mint)


@asynccontextmanager
async def shop(app: FastAPI, tmp_path: Path) -> AsyncIterator[tuple[Shop, Farebox]]:
    mint = PlayMint()
    async with serving(mint) as mint_url, aiohttp.ClientSession() as caller:
        mint.url = mint_url
        overrides: dict[str, Any] = {"data_dir": str(tmp_path), "mint": [{"url": mint_url}]}
        farebox = Farebox(load_settings(None, {}, overrides), b"k" * 32)
        app.add_middleware(Paywall, farebox=farebox)
        async with serving(app) as url:
            yield Shop(url, caller, mint), farebox


@pytest.mark.parametrize("name", ["fastapi_app", "starlette_app", "litestar_app"])
async def test_an_example_sells_its_endpoint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with example(name, tmp_path, monkeypatch) as it:
        async with it.get("/") as free:
            assert free.status == 200
        async with it.get("/square/7") as unpaid:
            assert unpaid.status == 402
            assert unpaid.headers["x-cashu"].startswith("creqA")
        async with it.get("/square/7", it.token(32)) as paid:
            assert paid.links["payment-change"]["url"].origin() == paid.url.origin()
            assert (paid.status, await paid.json()) == (200, {"square": 49})
            assert decode_token(paid.headers["x-cashu"]).amount == 22
            assert paid.headers["x-farebox-receipt"]
        async with it.get("/square/seven", it.token(32)) as refused:
            assert refused.status in (404, 422)
            assert "x-cashu" not in refused.headers  # nothing was taken: it is still theirs
        async with it.get("/info", {"Authorization": "Bearer sk-none"}) as wallet:
            assert wallet.status == 401


async def test_a_stream_is_charged_by_what_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with example("fastapi_app", tmp_path, monkeypatch) as it:
        async with it.caller.get(
            it.url + "/v1/wallet/create",
            params={"initial_balance_token": it.token(4096)["X-Cashu"]},
        ) as made:
            key = (await made.json())["api_key"]
        auth = {"Authorization": f"Bearer {key}"}
        async with it.get("/story?words=3", auth) as told:
            body = await told.read()
        assert (told.status, body) == (200, b"word 0\nword 1\nword 2\n")
        async with it.get("/info", auth) as info:
            assert (await info.json())["total_spent"] == 2_000 + 5 * len(body)


async def test_a_key_pays_and_a_failing_endpoint_costs_nothing(tmp_path: Path) -> None:
    app = FastAPI()

    @app.get("/broken")
    @price("10 sat")
    async def broken() -> str:
        raise RuntimeError("oh")

    async with shop(app, tmp_path) as (it, farebox):
        async with it.get("/broken", it.token(16)) as answer:
            assert answer.status == 500
            assert (await answer.json())["code"] == "upstream_failed"
            assert decode_token(answer.headers["x-cashu"]).amount == 16
        assert await _ended(farebox) == [Ended.REFUSED]


async def test_an_endpoint_that_only_points_elsewhere_costs_nothing(tmp_path: Path) -> None:
    app = FastAPI()

    @app.get("/moved")
    @price("10 sat")
    async def moved() -> RedirectResponse:
        return RedirectResponse("/elsewhere")

    async with shop(app, tmp_path) as (it, farebox):
        url = f"{it.url}/moved"
        async with it.caller.get(url, headers=it.token(16), allow_redirects=False) as answer:
            assert (answer.status, answer.headers["location"]) == (307, "/elsewhere")
            assert decode_token(answer.headers["x-cashu"]).amount == 16
        assert await _ended(farebox) == [Ended.REFUSED]


async def test_a_caller_who_leaves_cancels_the_endpoint_and_pays_what_it_gave(
    tmp_path: Path,
) -> None:
    app = FastAPI()
    cancelled = asyncio.Event()

    @app.get("/pour")
    @price("10 msat / 1k bytes")
    async def pour() -> StreamingResponse:
        async def tell() -> AsyncIterator[bytes]:
            try:
                for _ in range(3):
                    yield b"x" * 1000
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        return StreamingResponse(tell())

    async with shop(app, tmp_path) as (it, farebox):
        money = it.token(1024)
        answer = await it.get("/pour", money)
        await answer.content.readany()
        answer.close()
        await asyncio.wait_for(cancelled.wait(), WAIT_S)
        await eventually(lambda: _ended(farebox), lambda ended: ended == [Ended.CLIENT_LEFT])
        rows = await farebox.store.find(REQUEST, {})
        assert 0 < rows[0][1].value.charged_msat <= 30


async def test_the_same_named_request_is_charged_once(tmp_path: Path) -> None:
    app = FastAPI()
    ran: list[str] = []

    @app.post("/say")
    @price("10 sat")
    async def say(words: dict[str, str]) -> str:
        ran.append(words["say"])
        return words["say"]

    async with shop(app, tmp_path) as (it, _):
        body = {"initial_balance_token": it.token(64)["X-Cashu"]}
        async with it.caller.post(f"{it.url}/create", json=body) as made:
            auth = {"Authorization": f"Bearer {(await made.json())['api_key']}"}
        named = {**auth, "Idempotency-Key": "one"}
        for words, status in (("a", 200), ("a", 409), ("b", 422)):
            async with it.caller.post(f"{it.url}/say", json={"say": words}, headers=named) as told:
                assert told.status == status
        async with it.get("/info", auth) as info:
            assert (await info.json())["total_spent"] == 10_000
        assert ran == ["a"]


@pytest.mark.parametrize("status", [401, 402, 407])
async def test_what_an_endpoint_asks_of_its_own_users_reaches_them(
    tmp_path: Path, status: int
) -> None:
    app = FastAPI()

    @app.get("/mine")
    @price("10 sat")
    async def mine() -> str:
        raise HTTPException(status, "log in first")

    async with shop(app, tmp_path) as (it, _), it.get("/mine", it.token(16)) as answer:
        assert (answer.status, await answer.json()) == (status, {"detail": "log in first"})
        assert decode_token(answer.headers["x-cashu"]).amount == 16


async def test_a_compressed_answer_is_sold_by_the_byte_at_any_path(tmp_path: Path) -> None:
    app = FastAPI()
    app.add_middleware(GZipMiddleware, minimum_size=1)

    @app.post("/v1/chat/completions")
    @price("1 sat / 1k bytes", max_bytes=4000)
    async def chat() -> dict[str, str]:
        return {"text": "x" * 2000}

    async with shop(app, tmp_path) as (it, _):
        url = f"{it.url}/v1/chat/completions"
        async with it.caller.post(url, headers=it.token(16)) as answer:
            assert (answer.status, len((await answer.json())["text"])) == (200, 2000)


async def test_a_price_without_a_paywall_sells_nothing_and_gives_nothing_away() -> None:
    @price("10 sat")
    async def endpoint() -> str:
        return "precious"

    with pytest.raises(PriceWithoutPaywall):
        await endpoint()


def test_a_price_by_token_is_refused_where_nothing_counts_them() -> None:
    with pytest.raises(InvalidSettings):
        price("1 sat / output token")


async def test_without_a_lifespan_the_first_request_opens_the_house(tmp_path: Path) -> None:
    app = FastAPI()

    @app.get("/x")
    @price("1 sat")
    async def endpoint() -> str:
        return "x"

    overrides: dict[str, Any] = {"data_dir": str(tmp_path), "mint": [{"url": "http://127.0.0.1:9"}]}
    paywall = Paywall(app, farebox=Farebox(load_settings(None, {}, overrides), b"k" * 32))

    async def without_lifespan(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] != "lifespan"
        await paywall(scope, receive, send)

    bare: App = without_lifespan
    async with serving(bare) as url, aiohttp.ClientSession() as caller:
        async with caller.get(url + "/x", headers={"Authorization": "Bearer sk-no"}) as answer:
            assert answer.status == 401
        await paywall.close()


async def _ended(farebox: Farebox) -> list[str]:
    return [row.value.ended for _, row in await farebox.store.find(REQUEST, {})]
