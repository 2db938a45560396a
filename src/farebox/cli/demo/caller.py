"""The caller: a stranger's program that pays for what it asks, over plain HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from farebox.cli.receipts import RECEIPT, STREAM_RECEIPT, read_receipt, receipt_of_stream
from farebox.errors import InvalidInput

_CHAT: Mapping[str, object] = {
    "model": "play-1",
    "max_tokens": 40,
    "messages": [{"role": "user", "content": "What is money?"}],
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for a request, and what it cost by its receipt."""

    status: int
    body: bytes = field(repr=False)
    charged_msat: int = 0
    change: str = field(default="", repr=False)
    change_url: str = ""
    chunks: int = 1

    def document(self) -> dict[str, Any]:
        """The body as JSON."""
        return msgspec.json.decode(self.body, type=dict[str, Any])

    def words(self) -> int:
        """How many words a chat's answer has."""
        return len(str(self.document()["choices"][0]["message"]["content"]).split())


class Caller:
    """Talks to one gateway."""

    def __init__(self, gateway_url: str, session: aiohttp.ClientSession) -> None:
        self._url = gateway_url
        self._session = session

    async def get(self, path: str, pays: Mapping[str, str]) -> Answer:
        """A plain request. `pays` are the headers that carry the payment."""
        return await self._ask("GET", self._url + path, pays, None)

    async def chat(self, pays: Mapping[str, str], *, stream: bool = False) -> Answer:
        """A question to the model."""
        body = {**_CHAT, "stream": stream}
        return await self._ask("POST", f"{self._url}/v1/chat/completions", pays, body)

    async def post(self, path: str, pays: Mapping[str, str], body: object) -> dict[str, Any]:
        """A call of the wallet API. Raises InvalidInput with what it refused."""
        return _fine(await self._ask("POST", self._url + path, pays, body))

    async def change(self, answer: Answer, token: str) -> dict[str, Any]:
        """What became of a streamed request, told to whoever holds the token that paid."""
        told = await self._ask("GET", answer.change_url, {"X-Cashu": token}, None)
        return _fine(told)

    async def _ask(self, method: str, url: str, pays: Mapping[str, str], body: object) -> Answer:
        headers = {**pays, STREAM_RECEIPT: "1"}
        async with self._session.request(method, url, headers=headers, json=body) as answer:
            chunks = [chunk async for chunk in answer.content.iter_any()]
            whole = b"".join(chunks)
            receipt = read_receipt(answer.headers.get(RECEIPT) or receipt_of_stream(whole))
            return Answer(
                answer.status,
                whole,
                receipt.charged_msat if receipt else 0,
                answer.headers.get("X-Cashu", ""),
                _change_url(answer),
                whole.count(b"data: {") or 1,
            )


def _change_url(answer: aiohttp.ClientResponse) -> str:
    link = answer.links.get("payment-change")
    return "" if link is None else str(link["url"])


def _fine(answer: Answer) -> dict[str, Any]:
    if answer.status != 200:
        raise InvalidInput(f"the gateway answered {answer.status}: {answer.body.decode()[:300]}")
    return answer.document()
