"""An Electrum server (ElectrumX, electrs, Fulcrum), by the library's client."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import TypeVar

import bdkpython as bdk

from farebox.errors import RailRejected, RailUnavailable
from farebox.rails.bitcoin.chain import Block, ChainInfo, is_known
from farebox.rails.bitcoin.indexed import IndexedSource
from farebox.wire.bitcoin import block_hash

T = TypeVar("T")
_SAT = 100_000_000
_TIMEOUT_S = 30
_BATCH = 50


class Electrum(IndexedSource):
    """A server at `url`: tcp://host:port, or ssl:// where its certificate is one to trust."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: bdk.ElectrumClient | None = None

    def __repr__(self) -> str:
        return f"Electrum({self._url})"

    def info(self) -> ChainInfo:
        """`server.features`, and its tip."""
        features = self._ask(lambda client: client.server_features())
        name = features.server_version.strip()[:40] or "an Electrum server"
        return ChainInfo(name, str(features.genesis_hash), self.tip())

    def tip(self) -> Block:
        """`blockchain.headers.subscribe`."""
        told = self._ask(lambda client: client.block_headers_subscribe())
        header = told.header
        raw = header.version.to_bytes(4, "little", signed=True)
        raw += bytes(header.prev_blockhash.serialize()) + bytes(header.merkle_root.serialize())
        raw += b"".join(
            part.to_bytes(4, "little") for part in (header.time, header.bits, header.nonce)
        )
        return Block(told.height, block_hash(raw), header.time)

    def broadcast(self, raw: bytes) -> None:
        """`blockchain.transaction.broadcast`. Raises RailRejected."""
        try:
            self._ask(lambda client: client.transaction_broadcast(bdk.Transaction(raw)))
        except RailRejected as error:
            if not is_known(str(error)):
                raise

    def fee_rate(self, blocks: int) -> int | None:
        """`blockchain.estimatefee`."""
        try:
            told = self._ask(lambda client: client.estimate_fee(blocks))
        except RailRejected:  # its node cannot say
            return None
        rate = int(Decimal(str(told)) * _SAT)
        return rate if rate > 0 else None

    def close(self) -> None:
        """Its connection ends with the client."""
        self._client = None

    def _news(self, request: bdk.SyncRequest) -> bdk.Update:
        return self._ask(lambda client: client.sync(request, _BATCH, fetch_prev_txouts=True))

    def _ask(self, question: Callable[[bdk.ElectrumClient], T]) -> T:
        """Connected once; anew after anything but an answer."""
        try:
            if self._client is None:
                self._client = bdk.ElectrumClient(self._url, None, _TIMEOUT_S, 1)
            return question(self._client)
        except bdk.ElectrumError.Protocol as error:
            raise RailRejected(f"the server refused: {str(error)[:200]}") from None
        except (bdk.ElectrumError, bdk.CannotConnectError) as error:
            self._client = None
            raise RailUnavailable(
                f"the Electrum server gave no answer: {type(error).__name__}"
            ) from None
