"""A model of a Bitcoin chain and its pool, and the house's wallet on it.

The wallet stands where `farebox.rails.bitcoin.wallet.Wallet` does, which lives in a thread and in a
library of its own: the rail's addresses, arrivals, batches and payments are the real ones. Blocks
are found, left for longer branches and come back; the pool forgets, what is unconfirmed is
replaced. Whoever looks does so over a wire that loses calls and answers, at a node that may lag.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final, TypeVar

import msgspec

from farebox.clock import NS_PER_S, Clock
from farebox.errors import InvalidCredential, RailRejected, RailUnavailable
from farebox.rails.bitcoin.chain import GENESIS, Block, ChainInfo, Coin, View
from farebox.rails.bitcoin.wallet import Draft, NotEnough
from farebox.rails.web import Breaker
from tests.simulation.loop import Process
from tests.simulation.weather import NetworkWeather

T = TypeVar("T")

NETWORK: Final = "regtest"
_ADDRESS: Final = "bcrt1"
_OURS: Final = "bcrt1house"
_CHANGE: Final = "bcrt1change"
_SCRIPT_BYTES: Final = 22
#: Around, for each input and for each output, virtual bytes.
_VBYTES: Final = (11, 68, 31)
_DUST_SAT: Final = 546
_LEAST_RATE: Final = 1_000
_PRICES: Final = (1_000, 2_000, 4_000, 8_000)
_TIMEOUT_S: Final = 30
_OLD_BLOCKS: Final = 6
_OPERATORS: Final = 1_000_000_000
_FLOAT_SAT: Final = (100_000, 100_000, 300_000)
_CALM_BLOCK_S: Final = 10
#: What no transaction of the model brought forth, and anybody may spend who has thought of it.
_THIEF: Final = "bcrt1thief"
_ELSEWHERE: Final = "elsewhere"


class Tx(msgspec.Struct, frozen=True):
    """A transaction. `spends` are outpoints, `outputs` addresses with their satoshi."""

    spends: tuple[str, ...]
    outputs: tuple[tuple[str, int], ...]
    fee_sat: int

    @property
    def raw(self) -> bytes:
        """As it is sent."""
        return msgspec.json.encode(self)

    @property
    def txid(self) -> str:
        """What names it."""
        return hashlib.sha256(self.raw).hexdigest()

    @property
    def vbytes(self) -> int:
        """What its fee is for."""
        around, each_in, each_out = _VBYTES
        return around + each_in * len(self.spends) + each_out * len(self.outputs)

    @property
    def rate(self) -> int:
        """Satoshi per 1,000 virtual bytes."""
        return self.fee_sat * 1_000 // self.vbytes


@dataclass(frozen=True, slots=True)
class Mined:
    """A block with what it confirms."""

    block: Block
    txids: tuple[str, ...]


@dataclass
class ChainMoods:
    """How the chain behaves; the defaults mine whatever there is."""

    chance: Random = field(default_factory=lambda: Random(0))
    #: How often a block leaves out a transaction, is left for a longer branch, is come back to.
    leaves_out: float = 0
    reorganises: float = 0
    returns: float = 0
    #: How often what a branch had is left out of the longer one, or spent otherwise there.
    double_spends: float = 0
    #: How often the pool forgets, for each block.
    forgets: float = 0
    #: How often the house's node stays where it is, for each block.
    lags: float = 0
    #: How often the price of room in a block moves, for each block.
    price_moves: float = 0
    block_s: float = 20
    reorganised_most: int = 2
    is_down: bool = False

    def happens(self, probability: float) -> bool:
        """Whether it does this time."""
        return probability > 0 and self.chance.random() < probability


class ModelChain:
    """The best chain, the pool beside it, and what was ever seen."""

    def __init__(self, clock: Clock, moods: ChainMoods, trace: Callable[[str], None]) -> None:
        self.moods = ChainMoods(moods.chance)
        self._clock = clock
        self._trace = trace
        self._mined = [Mined(Block(0, GENESIS[NETWORK]), ())]
        self._left: tuple[Mined, ...] = ()
        self._thought = 0
        self.txs: dict[str, Tx] = {}
        self.pool: dict[str, None] = {}
        #: Of what is in the best chain, its block.
        self.blocks: dict[str, Block] = {}
        #: How deep an output ever was, by its outpoint's transaction.
        self.deepest: dict[str, int] = {}
        self.rate = 2 * _LEAST_RATE
        self._seen: View | None = None
        #: The operator's own, at an address that was given to nobody: what fees are paid from
        #: where customers' money alone would not do.
        self.float_sat = sum(_FLOAT_SAT)
        own = [(f"{_OURS}{_OPERATORS + number}", each) for number, each in enumerate(_FLOAT_SAT)]
        self.accept(self.pay(own, _DUST_SAT))
        for _ in range(_OLD_BLOCKS):  # so deep that no branch leaves them
            self.mine()
        self.moods = moods

    # ── what others do ───────────────────────────────────────────────────────────────────────────

    @property
    def tip(self) -> Block:
        """The best block."""
        return self._mined[-1].block

    def pay(self, outputs: Sequence[tuple[str, int]], fee_sat: int, spends: str = "") -> Tx:
        """Somebody's payment, out of coins from elsewhere; those of `spends` once more."""
        if not spends:
            self._thought += 1
            spends = f"{_ELSEWHERE}:{self._thought}"
        return Tx((spends,), tuple(outputs), fee_sat)

    def accept(self, tx: Tx) -> str:
        """Take a transaction into the pool, in place of cheaper ones; "" or why not."""
        txid = tx.txid
        if txid in self.pool or txid in self.blocks:
            return ""
        if tx.rate < _LEAST_RATE:
            return "min relay fee not met"
        rivals = set()
        for outpoint in tx.spends:
            if not self._exists(outpoint):
                return "bad-txns-inputs-missingorspent"
            spender = self.spender(outpoint)
            if spender in self.blocks:
                return "bad-txns-inputs-missingorspent"
            if spender:
                rivals.add(spender)
        behind = self._behind(rivals)
        if tx.fee_sat <= sum(self.txs[one].fee_sat for one in behind):
            if behind:
                return "insufficient fee, rejecting replacement"
        elif any(tx.rate <= self.txs[one].rate for one in rivals):
            return "insufficient fee, rejecting replacement"
        for one in behind:
            del self.pool[one]
        self.txs[txid] = tx
        self.pool[txid] = None
        return ""

    def spender(self, outpoint: str) -> str:
        """Who spends an output, in the chain or the pool; "" for nobody."""
        for txid in (*self.blocks, *self.pool):
            if outpoint in self.txs[txid].spends:
                return txid
        return ""

    def _exists(self, outpoint: str) -> bool:
        txid, _, index = outpoint.partition(":")
        if txid == _ELSEWHERE:
            return True
        is_there = txid in self.blocks or txid in self.pool
        return is_there and int(index) < len(self.txs[txid].outputs)

    def _behind(self, rivals: Iterable[str]) -> list[str]:
        """Those of the pool and what spends their outputs."""
        found = list(dict.fromkeys(sorted(rivals)))
        for txid in found:
            for other in self.pool:
                spends = {one.partition(":")[0] for one in self.txs[other].spends}
                if txid in spends and other not in found:
                    found.append(other)
        return found

    # ── blocks ───────────────────────────────────────────────────────────────────────────────────

    def mine(self) -> Block:
        """Find a block, with what of the pool pays enough."""
        chance, taken = self.moods.chance, []
        for txid in list(self.pool):
            parents = [one.partition(":")[0] for one in self.txs[txid].spends]
            waits = any(one in self.pool and one not in taken for one in parents)
            if waits or self.txs[txid].rate < self.rate // 2:
                continue
            if not self.moods.happens(self.moods.leaves_out):
                taken.append(txid)
        block = Block(
            self.tip.height + 1,
            hashlib.sha256(f"{self.tip.hash} {chance.random()}".encode()).hexdigest(),
            self._clock.now_ns() // NS_PER_S,
        )
        self._connect(Mined(block, tuple(taken)))
        return block

    def reorganise(self, depth: int) -> None:
        """Leave some blocks for a longer branch, found with what the pool has then."""
        self._left = self._disconnect(min(depth, len(self._mined) - 1))
        self._trace(f"the chain leaves {depth} blocks")
        held_back = []
        for txid in (one for mined in self._left for one in mined.txids if one in self.pool):
            if not self.moods.happens(self.moods.double_spends):
                continue
            tx = self.txs[txid]
            if self.moods.happens(0.5) and tx.spends[0].startswith(_ELSEWHERE):
                self._trace(f"{txid[:8]} is spent otherwise")
                self.accept(self.pay([(_THIEF, 5_000)], 2 * tx.fee_sat + 2_000, tx.spends[0]))
            else:
                held_back += self._behind([txid])
        for one in held_back:
            self.pool.pop(one, None)
        for _ in range(depth + 1):
            self.mine()
        for one in held_back:
            self.accept(self.txs[one])

    def return_to_left(self) -> None:
        """The branch that was left grows longer: its very blocks count again."""
        left, self._left = self._left, ()
        if not left or left[0].block.height > self.tip.height:
            return
        away = self.tip.height - left[0].block.height + 1
        if away > self.moods.reorganised_most + 1 or self._mined[-away - 1].block.height < 1:
            return
        self._trace("the chain comes back")
        self._disconnect(away)
        for mined in left:
            self._connect(mined)
        while self.tip.height < left[0].block.height + away:
            self.mine()

    def _disconnect(self, count: int) -> tuple[Mined, ...]:
        gone = tuple(self._mined[len(self._mined) - count :])
        del self._mined[len(self._mined) - count :]
        pooled, self.pool = self.pool, {}
        for mined in gone:
            for txid in mined.txids:
                del self.blocks[txid]
        for txid in (*(one for mined in gone for one in mined.txids), *pooled):
            self.accept(self.txs[txid])
        return gone

    def _connect(self, mined: Mined) -> None:
        self._mined.append(mined)
        for txid in mined.txids:
            for outpoint in self.txs[txid].spends:
                rival = self.spender(outpoint)
                if rival and rival != txid:
                    for one in self._behind([rival]):
                        del self.pool[one]
            self.pool.pop(txid, None)
            self.blocks[txid] = mined.block
        for txid, block in self.blocks.items():
            depth = self.tip.height - block.height + 1
            self.deepest[txid] = max(depth, self.deepest.get(txid, 0))

    async def live(self) -> None:
        """Find blocks for ever."""
        while True:
            await asyncio.sleep(self.moods.chance.expovariate(1 / self.moods.block_s))
            self.step()

    def step(self) -> None:
        """What happens around one block."""
        moods = self.moods
        if moods.happens(moods.forgets) and self.pool:
            for one in self._behind([moods.chance.choice(list(self.pool))]):
                self._trace(f"the pool forgets {one[:8]}")
                del self.pool[one]
        if moods.happens(moods.price_moves):
            self.rate = moods.chance.choice(_PRICES)
        if moods.happens(moods.returns):
            self.return_to_left()
        if moods.happens(moods.reorganises):
            self.reorganise(moods.chance.randint(1, moods.reorganised_most))
        else:
            self.mine()
        if not moods.happens(moods.lags):
            self._seen = None

    def calm_down(self) -> None:
        """From now on it only grows, and there is room for all."""
        self.moods = ChainMoods(self.moods.chance, block_s=_CALM_BLOCK_S)
        self.rate = _LEAST_RATE

    # ── what is seen of it ───────────────────────────────────────────────────────────────────────

    def received_sat(self, address: str) -> int:
        """What stands in the best chain for an address."""
        return sum(
            amount for txid in self.blocks for to, amount in self.txs[txid].outputs if to == address
        )

    def held_sat(self) -> int:
        """What the house has, in the chain and the pool."""
        return sum(coin.amount_sat for coin in self.view().coins if not coin.is_spent)

    def seen(self) -> View:
        """The chain as the house's node knows it: as it is, or as it was some blocks ago."""
        if self._seen is None or not self.moods.lags:
            self._seen = self.view()
        return self._seen

    def view(self) -> View:
        """What concerns the house."""
        txs: dict[str, Block | None] = {}
        spends: dict[str, str] = {}
        coins: dict[str, Coin] = {}
        for txid in (*self.blocks, *self.pool):
            tx, block = self.txs[txid], self.blocks.get(txid)
            is_ours = False
            for outpoint in tx.spends:
                if outpoint in coins or outpoint.partition(":")[0] in txs:
                    spends[outpoint], is_ours = txid, True
            for number, (address, amount_sat) in enumerate(tx.outputs):
                if address.startswith((_OURS, _CHANGE)):
                    is_change = address.startswith(_CHANGE)
                    index = int(address.removeprefix(_CHANGE if is_change else _OURS))
                    name = f"{txid}:{number}"
                    coins[name] = Coin(name, amount_sat, is_change, index, block, is_spent=False)
                    is_ours = True
            if is_ours:
                txs[txid] = block
        told = [replace(one, is_spent=one.outpoint in spends) for one in coins.values()]
        return View(self.tip, tuple(told), txs, spends)


class ModelKeys:
    """Addresses that tell their place."""

    network_name = NETWORK
    can_sign = True
    checksum = "model"

    def address(self, index: int) -> str:
        """The address at a place."""
        return f"{_OURS}{index}"


class ModelWallet:
    """The house's wallet in one of its processes."""

    def __init__(
        self,
        chain: ModelChain,
        outside: Process,
        weather: Callable[[], NetworkWeather],
        chance: Random,
        clock: Clock,
    ) -> None:
        """The wire to the node is as `weather` says; what is on it is `outside` the house."""
        self._chain = chain
        self._outside = outside
        self._weather = weather
        self._chance = chance
        self._syncing = asyncio.Lock()
        self.keys = ModelKeys()
        self.breaker = Breaker(clock, who="the chain")
        self.view: View | None = None

    async def close(self) -> None:
        """Nothing is kept open."""

    def address(self, text: str) -> str:
        """An address as it is written here. Raises InvalidCredential."""
        return self.script(text).decode().rstrip()

    def script(self, address: str) -> bytes:
        """Its output script. Raises InvalidCredential."""
        if not address.startswith(_ADDRESS):
            raise InvalidCredential("this is no address of the model's network")
        return address.encode().ljust(_SCRIPT_BYTES)

    async def info(self) -> ChainInfo:
        """Who the node is. Raises RailUnavailable."""
        return await self._call(lambda: ChainInfo("a model", GENESIS[NETWORK], self._chain.tip))

    async def fee_rate(self, _: int) -> int | None:
        """Satoshi per 1,000 virtual bytes. Raises RailUnavailable."""
        return await self._call(lambda: self._chain.rate)

    async def broadcast(self, raw: bytes) -> None:
        """Raises RailRejected, RailUnavailable."""
        tx = msgspec.json.decode(raw, type=Tx)
        no = await self._call(lambda: self._chain.accept(tx))
        if no:
            raise RailRejected(f"the node refused: {no}")

    async def sync(self, given: Callable[[], Awaitable[tuple[int, int]]]) -> View:
        """What concerns the addresses that were given out. Raises RailUnavailable."""
        async with self._syncing:
            await self._call(lambda: self._chain.tip)
            await given()
            self.view = await self._call(self._chain.seen)
            return self.view

    async def build(
        self, outputs: Sequence[tuple[str, int]], rate: int, spendable: Iterable[str]
    ) -> Draft:
        """Pay out of the `spendable` coins. Raises NotEnough."""
        allowed = set(spendable)
        coins = [one for one in self._unspent() if one.outpoint in allowed]
        return self._drawn(outputs, rate, [], coins)

    async def bump(self, raw: bytes, rate: int, _: int) -> Draft:
        """The same payments once more, at a higher rate. Raises NotEnough."""
        tx = msgspec.json.decode(raw, type=Tx)
        known = {one.outpoint: one for one in (self.view.coins if self.view else ())}
        if any(one not in known for one in tx.spends):
            raise NotEnough
        spent = [known[one] for one in tx.spends]
        more = [one for one in self._unspent() if one.block is not None]
        kept = [one for one in tx.outputs if not one[0].startswith(_CHANGE)]
        return self._drawn(kept, rate, spent, more)

    def _unspent(self) -> list[Coin]:
        coins = self.view.coins if self.view else ()
        return sorted((one for one in coins if not one.is_spent), key=lambda one: one.outpoint)

    def _drawn(
        self, outputs: Sequence[tuple[str, int]], rate: int, first: list[Coin], rest: list[Coin]
    ) -> Draft:
        wanted, chosen, rest = sum(amount for _, amount in outputs), list(first), list(rest)
        change = f"{_CHANGE}{self._chance.randrange(1 << 30)}"
        while True:
            spends = tuple(one.outpoint for one in chosen)
            with_change = Tx(spends, (*outputs, (change, 0)), 0)
            fee_sat = -(-rate * with_change.vbytes // 1_000)
            left = sum(one.amount_sat for one in chosen) - wanted - fee_sat
            if chosen and left >= 0:
                break
            if not rest:
                raise NotEnough
            chosen.append(rest.pop(0))
        more = ((change, left),) if left >= _DUST_SAT else ()
        tx = Tx(spends, (*outputs, *more), fee_sat + (0 if more else left))
        return Draft(tx.txid, spends, tx.fee_sat, raw=tx.raw)

    async def _call(self, ask: Callable[[], T]) -> T:
        """Over the wire, whatever becomes of the caller. Raises RailUnavailable."""
        with self.breaker.attempt():
            answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            self._outside.spawn(self._carry(ask, answer))
            try:
                async with asyncio.timeout(_TIMEOUT_S):
                    return await answer
            except TimeoutError:
                raise RailUnavailable("the node did not answer in time") from None

    async def _carry(self, ask: Callable[[], T], answer: asyncio.Future[T]) -> None:
        weather, chance, moods = self._weather(), self._chance, self._chain.moods
        await asyncio.sleep(weather.pause_s(chance))
        if moods.is_down or chance.random() < weather.loses_call:
            return self._lose(answer)
        if chance.random() < weather.delays_call:
            await asyncio.sleep(chance.uniform(1, 2 * _TIMEOUT_S))
        told = ask()
        await asyncio.sleep(weather.pause_s(chance))
        if chance.random() < weather.loses_answer:
            return self._lose(answer)
        if not answer.done():
            answer.set_result(told)
        return None

    def _lose(self, answer: asyncio.Future[T]) -> None:
        if self._chance.random() < 0.5 and not answer.done():
            answer.set_exception(RailUnavailable("the node gave no answer"))
