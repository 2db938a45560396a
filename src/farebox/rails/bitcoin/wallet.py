"""The wallet: one descriptor pair, one chain source, one thread that both live in.

bdk derives addresses, chooses coins, builds and signs. It is rebuilt from the descriptor, the
counter of given addresses and the chain; nothing that is kept nowhere else is in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import bdkpython as bdk

from farebox.errors import InvalidCredential
from farebox.rails.bitcoin.chain import Block, ChainInfo, ChainSource, Coin, View
from farebox.rails.bitcoin.keys import WalletKeys
from farebox.rails.web.breaker import Breaker
from farebox.wire.bitcoin import read_tx

T = TypeVar("T")
_EXTERNAL = bdk.KeychainKind.EXTERNAL
_KWU_PER_KVB = 4
_VBYTES_PER_KVB = 1_000


class NotEnough(Exception):
    """The coins that may be spent do not suffice."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A transaction of ours. `raw` is empty until it is signed; `psbt` is how others sign it."""

    txid: str
    inputs: tuple[str, ...]
    fee_sat: int
    raw: bytes = field(repr=False, default=b"")
    psbt: str = field(repr=False, default="")


class Wallet:
    """What `keys` can see and spend, as `source` tells it."""

    def __init__(
        self,
        keys: WalletKeys,
        source: Callable[[], ChainSource],
        breaker: Breaker,
    ) -> None:
        self.keys = keys
        self._make_source = source
        self._source: ChainSource | None = None
        self.breaker = breaker
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bitcoin")
        self._bdk = bdk.Wallet(
            keys.external, keys.change, keys.network, bdk.Persister.new_in_memory()
        )
        self.view: View | None = None
        self._syncing = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Wallet({self.keys!r})"

    async def close(self) -> None:
        """Let go of source and thread."""
        source = self._source
        if source is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, source.close)
        self._thread.shutdown(wait=False, cancel_futures=True)

    # ── addresses ────────────────────────────────────────────────────────────────────────────────

    def address(self, text: str) -> str:
        """An address as it is written here; QR codes have some in capitals.

        Raises InvalidCredential for no address of this chain.
        """
        return str(self._address(text))

    def script(self, address: str) -> bytes:
        """Its output script. Raises InvalidCredential for no address of this chain."""
        return bytes(self._script(address).to_bytes())

    def _script(self, address: str) -> bdk.Script:
        return self._address(address).script_pubkey()

    def _address(self, text: str) -> bdk.Address:
        try:
            return bdk.Address(text, self.keys.network)
        except bdk.AddressParseError:
            raise InvalidCredential(
                f"this is no address of the {self.keys.network_name} network"
            ) from None

    # ── the chain ────────────────────────────────────────────────────────────────────────────────

    async def info(self) -> ChainInfo:
        """Who the source is. Raises RailUnavailable."""
        return await self._call(lambda source: source.info())

    async def fee_rate(self, blocks: int) -> int | None:
        """Satoshi per 1,000 virtual bytes; None where nobody can say."""
        return await self._call(lambda source: source.fee_rate(blocks))

    async def broadcast(self, raw: bytes) -> None:
        """Send it. Raises RailRejected, RailUnavailable."""
        await self._call(lambda source: source.broadcast(raw))

    async def sync(self, given: Callable[[], Awaitable[tuple[int, int]]]) -> View:
        """The chain as it is now. `given` tells, asked after the tip is known, how many addresses
        were given out and the height where the wallet began.

        Raises RailUnavailable.
        """
        async with self._syncing:
            while True:
                tip = await self._call(lambda source: source.tip())
                # Whoever pays an address in a block up to the tip got it before.
                count, since = await given()
                work = partial(self._synced, tip=tip, count=count, since=since)
                self.view = await self._call(work) or self.view
                if self.view is not None:
                    return self.view

    def _synced(self, source: ChainSource, *, tip: Block, count: int, since: int) -> View | None:
        if count:
            self._bdk.reveal_addresses_to(_EXTERNAL, count - 1)
        fresh = source.sync(self._bdk, tip, since)
        if fresh is None:
            return None
        self._bdk = fresh
        return _view_of(fresh)

    # ── spending ─────────────────────────────────────────────────────────────────────────────────

    async def build(
        self, outputs: Sequence[tuple[str, int]], rate: int, spendable: Iterable[str]
    ) -> Draft:
        """Pay each address its satoshi out of the `spendable` outpoints, change to ourselves.

        Raises NotEnough. Nothing is sent; the chosen coins are not reserved here.
        """
        allowed = frozenset(spendable)

        def work() -> Draft:
            wallet = self._bdk
            rest = [
                one.outpoint for one in wallet.list_unspent() if _named(one.outpoint) not in allowed
            ]
            builder = bdk.TxBuilder().unspendable(rest).fee_rate(_rate(rate))
            for address, amount_sat in outputs:
                amount = bdk.Amount.from_sat(amount_sat)
                builder = builder.add_recipient(self._script(address), amount)
            try:
                return self._signed(builder.finish(wallet))
            except (
                bdk.CreateTxError.CoinSelection,
                bdk.CreateTxError.InsufficientFunds,
                bdk.CreateTxError.NoUtxosSelected,
            ):
                raise NotEnough from None

        return await self._work(work)

    async def bump(self, raw: bytes, rate: int, now_s: int) -> Draft:
        """The same payments once more, at a higher rate (BIP-125). Raises NotEnough."""

        def work() -> Draft:
            wallet, tx = self._bdk, bdk.Transaction(raw)
            if wallet.get_tx(tx.compute_txid()) is None:  # the pool may have dropped it
                seen = bdk.UnconfirmedTx(tx=tx, last_seen=now_s)
                wallet.apply_unconfirmed_txs([seen])
            try:
                return self._signed(
                    bdk.BumpFeeTxBuilder(tx.compute_txid(), _rate(rate)).finish(wallet)
                )
            except bdk.CreateTxError:  # with these coins, or not at all
                raise NotEnough from None

        return await self._work(work)

    async def child(self, raw: bytes, fee_sat: int, outpoint: str, rate: int) -> Draft:
        """Spend an output of `raw`, which paid `fee_sat`, to ourselves, at such a fee that both
        together pay `rate`. Raises NotEnough.
        """
        txid, _, place = outpoint.partition(":")
        spent = bdk.OutPoint(txid=bdk.Txid.from_string(txid), vout=int(place))

        def work() -> Draft:
            wallet, parent = self._bdk, bdk.Transaction(raw)
            to = wallet.next_unused_address(bdk.KeychainKind.INTERNAL).address.script_pubkey()
            builder = bdk.TxBuilder().add_utxo(spent).manually_selected_only().drain_to(to)
            try:
                alone = self._signed(builder.fee_rate(_rate(rate)).finish(wallet))
                lacking_sat = max(0, -(-rate * parent.vsize() // _VBYTES_PER_KVB) - fee_sat)
                whole = bdk.Amount.from_sat(alone.fee_sat + lacking_sat)
                return self._signed(builder.fee_absolute(whole).finish(wallet))
            except bdk.CreateTxError:
                raise NotEnough from None

        return await self._work(work)

    async def combined(self, psbt: str, signed: str) -> tuple[str, bytes]:
        """The id and bytes of the transaction of `psbt`, signed elsewhere as in `signed`.

        Raises InvalidCredential when that is another transaction or not wholly signed.
        """

        def work() -> tuple[str, bytes]:
            try:
                ours, theirs = bdk.Psbt(psbt), bdk.Psbt(signed)
                whole = ours.combine(theirs)
                done = whole.finalize()
                if not done.could_finalize:
                    raise InvalidCredential("it is not wholly signed")
                raw = bytes(done.psbt.extract_tx().serialize())
            except (bdk.PsbtParseError, bdk.PsbtError, bdk.ExtractTxError):
                raise InvalidCredential("this is not the PSBT that was exported") from None
            return read_tx(raw).txid, raw

        return await self._work(work)

    def _signed(self, psbt: bdk.Psbt) -> Draft:
        fee_sat = int(psbt.fee())
        is_signed = self.keys.can_sign and self._bdk.sign(psbt)
        built = psbt.extract_tx_unchecked_fee_rate()
        # Most drafts are prices that are asked: were each to take a change address with it, the one
        # that is sent at last would be too far for anybody to look.
        for output in built.output():
            place = self._bdk.derivation_of_spk(output.script_pubkey)
            if place is not None:
                self._bdk.unmark_used(place.keychain, place.index)
        tx = read_tx(bytes(built.serialize()))
        if is_signed:
            return Draft(tx.txid, tx.spends, fee_sat, raw=tx.raw)
        return Draft(tx.txid, tx.spends, fee_sat, psbt=str(psbt.serialize()))

    # ── the thread ───────────────────────────────────────────────────────────────────────────────

    async def _call(self, ask: Callable[[ChainSource], T]) -> T:
        """Ask the source, unless it is left alone for a while. Raises RailUnavailable."""

        def work() -> T:
            if self._source is None:
                self._source = self._make_source()
            return ask(self._source)

        with self.breaker.attempt():
            return await self._work(work)

    async def _work(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _view_of(wallet: bdk.Wallet) -> View:
    tip = wallet.latest_checkpoint()
    txs: dict[str, Block | None] = {}
    spends: dict[str, str] = {}
    for one in wallet.transactions():
        tx = read_tx(bytes(one.transaction.serialize()))
        txs[tx.txid] = _place(one.chain_position)
        spends.update(dict.fromkeys(tx.spends, tx.txid))
    coins = tuple(
        Coin(
            outpoint=_named(one.outpoint),
            amount_sat=one.txout.value.to_sat(),
            is_change=one.keychain is bdk.KeychainKind.INTERNAL,
            index=one.derivation_index,
            block=_place(one.chain_position),
            is_spent=one.is_spent,
        )
        for one in wallet.list_output()
    )
    return View(Block(tip.height, str(tip.hash)), coins, txs, spends)


def _place(position: bdk.ChainPosition) -> Block | None:
    if not position.is_CONFIRMED():
        return None
    at = position.confirmation_block_time
    return Block(at.block_id.height, str(at.block_id.hash), at.confirmation_time)


def _named(outpoint: bdk.OutPoint) -> str:
    return f"{outpoint.txid}:{outpoint.vout}"


def _rate(per_kvb: int) -> bdk.FeeRate:
    """Rounded up: a rate a little too low is not relayed."""
    return bdk.FeeRate.from_sat_per_kwu(-(-per_kvb // _KWU_PER_KVB))
