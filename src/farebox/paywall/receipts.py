"""Signs receipts: one signature for all that are due in a turn of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec

from farebox.signer import Signer
from farebox.wire import receipt


class Receipts:
    """Requests that one commit settled are receipted together; a lone one waits for nobody."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._due: list[tuple[bytes, asyncio.Future[str]]] = []

    async def sign(self, facts: Mapping[str, object]) -> str:
        """The receipt that says `facts`, as `farebox.wire.receipt` describes it."""
        loop = asyncio.get_running_loop()
        signed: asyncio.Future[str] = loop.create_future()
        if not self._due:
            loop.call_soon(self._sign)
        self._due.append((msgspec.json.encode(facts), signed))
        return await signed

    def _sign(self) -> None:
        due, self._due = self._due, []
        documents = [document for document, _ in due]
        root, paths = receipt.tree(documents)
        told = receipt.encode(documents, self._signer.sign(root), paths)
        for (_, signed), text in zip(due, told, strict=True):
            if not signed.done():  # else its caller has given up
                signed.set_result(text)
