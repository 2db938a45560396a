"""An Esplora (Blockstream's HTTP API, mempool.space's too), by the library's client."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import TypeVar

import bdkpython as bdk

from farebox.errors import RailRejected, RailUnavailable
from farebox.rails.bitcoin.chain import Block, ChainInfo, is_known
from farebox.rails.bitcoin.indexed import IndexedSource

T = TypeVar("T")
_AT_ONCE = 4
_KVB = 1_000
_BAD_REQUEST = 400


class Esplora(IndexedSource):
    """The API at `url`, such as https://host/api."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = bdk.EsploraClient(url.rstrip("/"), None)

    def __repr__(self) -> str:
        return f"Esplora({self._url})"

    def info(self) -> ChainInfo:
        """The first block's hash, and the tip."""
        genesis = self._ask(lambda client: client.get_block_hash(0))
        return ChainInfo("an Esplora", str(genesis), self.tip())

    def tip(self) -> Block:
        """The best height, and that block's hash."""
        height = self._ask(lambda client: client.get_height())
        return Block(height, str(self._ask(lambda client: client.get_block_hash(height))))

    def broadcast(self, raw: bytes) -> None:
        """`POST /tx`. Raises RailRejected."""
        try:
            self._ask(lambda client: client.broadcast(bdk.Transaction(raw)))
        except RailRejected as error:
            if not is_known(str(error)):
                raise

    def fee_rate(self, blocks: int) -> int | None:
        """The estimate for the most blocks that are not more than these."""
        told = self._ask(lambda client: client.get_fee_estimates())
        fitting = [within for within in told if within <= blocks]
        if not fitting:
            return None
        rate = int(Decimal(str(told[max(fitting)])) * _KVB)
        return rate if rate > 0 else None

    def close(self) -> None:
        """Nothing is kept open."""

    def _news(self, request: bdk.SyncRequest) -> bdk.Update:
        return self._ask(lambda client: client.sync(request, _AT_ONCE))

    def _ask(self, question: Callable[[bdk.EsploraClient], T]) -> T:
        try:
            return question(self._client)
        except bdk.EsploraError.HttpResponse as error:
            if error.status == _BAD_REQUEST:
                told = str(error.error_message)[:200]
                raise RailRejected(f"the server refused: {told}") from None
            raise RailUnavailable(f"the Esplora answered with status {error.status}") from None
        except bdk.EsploraError as error:
            raise RailUnavailable(f"the Esplora gave no answer: {type(error).__name__}") from None
