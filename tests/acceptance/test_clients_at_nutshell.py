"""Strangers' own software, unmodified, paying through the gateway with a real mint's money."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from farebox.testing.asgi import serving
from farebox.testing.upstream import PlayUpstream
from tests.peers.nutshell import Nutshell, NutshellWallet

pytestmark = [pytest.mark.peer, pytest.mark.slow]

_STARTED_TIMEOUT_S = 60


@contextmanager
def gateway(upstream: str, mint: str, data_dir: Path) -> Iterator[str]:
    """`farebox serve` as an operator starts it; its address."""
    command = [sys.executable, "-m", "farebox", "serve", "--upstream", upstream, "--mint", mint]
    command += ["--price", "0.2 sat / output token", "--listen", "127.0.0.1:0"]
    command += ["--data", str(data_dir), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            announced = process.stdout.readline()
            assert announced, "the gateway did not start; its words are above"
            yield json.loads(announced)["url"]
        finally:
            process.terminate()
            process.wait(_STARTED_TIMEOUT_S)


@pytest.fixture
async def paid_service(nutshell_with_fees: Nutshell, tmp_path: Path) -> AsyncIterator[str]:
    async with serving(PlayUpstream()) as upstream:
        started = gateway(upstream, nutshell_with_fees.url, tmp_path / "farebox")
        url = await asyncio.to_thread(started.__enter__)
        yield url
        await asyncio.to_thread(started.__exit__, None, None, None)


@pytest.fixture
async def wallet(nutshell_with_fees: Nutshell, tmp_path: Path) -> NutshellWallet:
    directory = tmp_path / "wallet"
    directory.mkdir()
    purse = nutshell_with_fees.wallet(directory)
    await asyncio.to_thread(purse.invoice, 1_000)
    return purse


async def chat(url: str, key: str) -> int:
    """One plain and one streamed chat with the unmodified SDK; the tokens that came back."""
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        question: list[ChatCompletionMessageParam] = [
            {"role": "user", "content": "What does it cost?"}
        ]
        whole = await client.chat.completions.create(
            model="play-small",
            messages=question,
            max_tokens=20,
        )
        assert whole.choices[0].message.content
        assert whole.usage is not None
        stream = await client.chat.completions.create(
            model="play-small",
            messages=question,
            max_tokens=20,
            stream=True,
        )
        pieces = [chunk.choices[0].delta.content async for chunk in stream]
        assert "".join(piece or "" for piece in pieces)
        return whole.usage.completion_tokens


async def info(url: str, key: str) -> dict[str, int]:
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.get(f"{url}/info", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
        found: dict[str, int] = answer.json()
        return found


async def test_the_openai_sdk_chats_with_an_account_key_and_the_wallet_takes_the_refund(
    paid_service: str, wallet: NutshellWallet
) -> None:
    token = await asyncio.to_thread(wallet.send, 200)
    before = await asyncio.to_thread(wallet.balance_sat)
    async with httpx.AsyncClient(timeout=60) as client:
        created = await client.post(f"{paid_service}/create", json={"initial_balance_token": token})
        assert created.status_code == 200, created.text
        key = created.json()["api_key"]
        tokens = await chat(paid_service, key)
        after = await info(paid_service, key)
        assert created.json()["balance"] - after["balance"] == 2 * tokens * 200
        assert (after["reserved"], after["total_requests"]) == (0, 2)
        refund = await client.post(
            f"{paid_service}/refund", headers={"Authorization": f"Bearer {key}"}
        )
        assert refund.status_code == 200, refund.text
    await asyncio.to_thread(wallet.receive, refund.json()["token"])
    gained = await asyncio.to_thread(wallet.balance_sat) - before
    assert int(refund.json()["sats"]) - 2 <= gained <= int(refund.json()["sats"])


async def test_the_openai_sdk_chats_with_a_token_as_its_key(
    paid_service: str, wallet: NutshellWallet
) -> None:
    token = await asyncio.to_thread(wallet.send, 100)
    tokens = await chat(paid_service, token)
    assert (await info(paid_service, token))["total_spent"] == 2 * tokens * 200


async def test_the_wallet_pays_inside_a_request_and_takes_the_change(
    paid_service: str, wallet: NutshellWallet
) -> None:
    body = {"model": "play-small", "max_tokens": 20, "messages": []}
    async with httpx.AsyncClient(timeout=60) as client:
        unpaid = await client.post(f"{paid_service}/v1/chat/completions", json=body)
        assert unpaid.status_code == 402
        token = await asyncio.to_thread(wallet.send, unpaid.json()["amount"] + 50)
        before = await asyncio.to_thread(wallet.balance_sat)
        paid = await client.post(
            f"{paid_service}/v1/chat/completions", json=body, headers={"X-Cashu": token}
        )
        assert paid.status_code == 200, paid.text
    await asyncio.to_thread(wallet.receive, paid.headers["X-Cashu"])
    gained = await asyncio.to_thread(wallet.balance_sat) - before
    assert 48 <= gained <= 50 + unpaid.json()["amount"]
