"""One seed from its first step to its last check."""

from __future__ import annotations

import asyncio
import hashlib
import re
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import structlog

from farebox.books import RECORDS
from farebox.clock import Clock
from farebox.errors import FareboxError
from farebox.rails.cashu.records import LOCKED, LockedUse
from farebox.rails.evm.keys import keys_from
from farebox.signer import Signer
from farebox.wire.cashu import crypto
from tests.simulation.callers import Caller
from tests.simulation.card_checker import CardChecker
from tests.simulation.card_dialects import DIALECTS
from tests.simulation.card_payers import CardPayer
from tests.simulation.cards import CardMoods, ModelProvider
from tests.simulation.chain import ChainMoods, ModelChain, ModelWallet
from tests.simulation.chain_checker import ChainChecker
from tests.simulation.checker import Checker, PromiseBroken
from tests.simulation.depositors import Depositor
from tests.simulation.disk import Disk
from tests.simulation.evm import EvmMoods, ModelEvm
from tests.simulation.evm_checker import FLOAT_TOKENS, FLOAT_WEI, EvmChecker
from tests.simulation.evm_node import NODE as EVM_NODE
from tests.simulation.evm_node import ModelNode
from tests.simulation.evm_payers import EvmPayer
from tests.simulation.house import ROOT_KEY, House, outside_replaced
from tests.simulation.lightning import NODE, PAYEES, ModelLnd, Moods
from tests.simulation.loop import NothingLeft, SimulatedLoop, seeded
from tests.simulation.mint import HOME, WALLET, Others
from tests.simulation.nature import WorldClock, nature
from tests.simulation.network import Ask, Connection, Lost, Network, Reply
from tests.simulation.node_checker import NodeChecker
from tests.simulation.payers import BitcoinPayer
from tests.simulation.store import SimulatedStore
from tests.simulation.terms import MACAROON, MNEMONIC, settings_of
from tests.simulation.weather import (
    CardWeather,
    ChainWeather,
    DiskWeather,
    EvmWeather,
    NetworkWeather,
    NodeWeather,
    Weather,
    forecast,
)

#: How long the calm may take until nothing is open, and how often to look.
_CALM_S = 4_000
_LOOK_EVERY_S = 30
#: What a seed may take in all; none of them comes near it.
_STEPS_MAX = 3_000_000
_CLOCK_JUMP_S = 600


@dataclass(frozen=True, slots=True)
class Story:
    """What one seed came to. Two runs of one seed have the same digests."""

    seed: int
    steps: int
    seconds: float
    commits: int
    crashes: int
    trace_digest: str
    book_digest: str
    fault: str = ""


Telling = Callable[[str], None]


class World:
    """All that lives in one seed. Made inside its loop."""

    def __init__(
        self,
        seed: int,
        loop: SimulatedLoop,
        clock: WorldClock,
        weather: Weather,
        tell: Telling,
    ) -> None:
        chance = seeded(seed, "world")
        self._loop = loop
        self._chance = chance
        self._storm = weather
        self.weather = weather
        self._tell = tell
        self._seed = seed
        self._is_told = False
        self._digest = hashlib.sha256()
        self.broken: asyncio.Future[None] = loop.create_future()
        self.defects: list[str] = []
        self.crashes = 0
        self.outside = loop.new_process("outside")
        self.chance_of_disk = seeded(seed, "store")
        self.others = Others(clock, seeded(seed, "others"), fee_ppk=chance.choice((0, 0, 100)))
        self.network = Network(self.outside, seeded(seed, "network"), self.trace)
        self.network.hosts = {**self.others.mints, WALLET: self.others.wallet}
        self.disk = Disk(RECORDS, seeded(seed, "disk"))
        self.checker = Checker(self.disk, self.others, self._break, loop.time)
        self.checker.offline_msat = weather.offline_sat * 1_000
        terms = settings_of(chance, weather)
        self._may_cross = terms["ecash.foreign"] == "swap"
        #: Each house's machine has a clock of its own, which may jump; so has the database's.
        self.clocks = [WorldClock(loop) for _ in range(weather.houses)]
        self._database_clock = WorldClock(loop)
        shares = self._share if weather.houses > 1 else None
        self.houses = [
            House(loop, self.disk, own, terms, self.trace, name=f"house-{n}", shares=shares)
            for n, own in enumerate(self.clocks)
        ]
        kind: type[Caller] = Caller
        if weather.node is not None:
            kind = Depositor
        elif weather.chain is not None:
            kind = BitcoinPayer
        elif weather.evm is not None:
            kind = EvmPayer
        elif weather.cards is not None:
            kind = CardPayer
        self.callers = [
            kind(f"caller-{n}", self.ask, self.others, seeded(seed, f"caller-{n}"), self.trace)
            for n in range(weather.callers)
        ]
        self.node: ModelLnd | None = None
        self.chain: ModelChain | None = None
        self.evm: ModelEvm | None = None
        self.cards: ModelProvider | None = None
        self._add_rails(weather, clock)

    def _add_rails(self, weather: Weather, clock: WorldClock) -> None:
        seed = self._seed
        if weather.node is not None:
            self._add_node(weather.node, clock, seeded(seed, "node"))
        if weather.chain is not None:
            self._add_chain(weather.chain, clock, seeded(seed, "chain"))
        if weather.evm is not None:
            self._add_evm(weather.evm, clock, seeded(seed, "evm"))
        if weather.cards is not None:
            self._add_cards(weather.cards, seeded(seed, "provider"))

    def _add_node(self, drawn: NodeWeather, clock: WorldClock, chance: Random) -> None:
        moods = Moods(
            chance,
            fails=drawn.fails,
            hangs=drawn.hangs,
            hangs_s=drawn.hangs_s,
            costs=drawn.costs,
            held_in=drawn.held_in,
            hangs_up=drawn.hangs_up,
        )
        self.node = ModelLnd(clock, moods, self.outside.spawn, macaroon=MACAROON)
        self.network.hosts |= {NODE: self.node, PAYEES: self.node.address_book}
        self.checker.rail = NodeChecker(self.disk, self.node)
        market: dict[str, str] = {}
        for caller in self.callers:
            if isinstance(caller, Depositor):
                caller.node = self.node
                caller.meet(market, drawn.fills)

    def _add_chain(self, drawn: ChainWeather, clock: WorldClock, chance: Random) -> None:
        moods = ChainMoods(
            chance,
            leaves_out=drawn.leaves_out,
            reorganises=drawn.reorganises,
            returns=drawn.returns,
            double_spends=drawn.double_spends,
            forgets=drawn.forgets,
            lags=drawn.lags,
            price_moves=drawn.price_moves,
            block_s=drawn.block_s,
        )
        self.chain = ModelChain(clock, moods, self.trace)
        self.checker.rail = ChainChecker(self.disk, self.chain)
        market: dict[str, str] = {}
        for caller in self.callers:
            if isinstance(caller, BitcoinPayer):
                caller.chain = self.chain
                caller.meet(market, drawn.fills)

    def _add_evm(self, drawn: EvmWeather, clock: WorldClock, chance: Random) -> None:
        moods = EvmMoods(
            chance,
            leaves_out=drawn.leaves_out,
            reorganises=drawn.reorganises,
            double_spends=drawn.double_spends,
            forgets=drawn.forgets,
            lags=drawn.lags,
            fee_jumps=drawn.fee_jumps,
            copies=drawn.copies,
            blocks_payees=drawn.blocks_payees,
            block_s=drawn.block_s,
        )
        self.evm = ModelEvm(clock, moods, self.trace)
        self.evm.tip.state.has_disperse = drawn.is_at_home
        self.network.hosts[EVM_NODE] = ModelNode(self.evm)
        senders = keys_from(MNEMONIC, drawn.senders).addresses
        own = FLOAT_TOKENS if drawn.is_at_home else 0
        for sender in senders:
            self.evm.endow(sender, FLOAT_WEI, own)
        self.checker.rail = EvmChecker(self.disk, self.evm, senders, own)
        market: dict[str, str] = {}
        payers = [one for one in self.callers if isinstance(one, EvmPayer)]
        for caller in payers:
            caller.chain = self.evm
            caller.enrol(senders, payers, drawn.signs)
            caller.meet(market, drawn.fills)

    def _add_cards(self, drawn: CardWeather, chance: Random) -> None:
        moods = CardMoods(
            chance,
            refuses=drawn.refuses,
            loses_webhook=drawn.loses_webhook,
            repeats_webhook=drawn.repeats_webhook,
            declines=drawn.declines,
            hangs=drawn.hangs,
            fails=drawn.fails,
            disputes=drawn.disputes,
            dashboard=drawn.dashboard,
        )
        dialect = DIALECTS[drawn.provider]()
        self.cards = ModelProvider(dialect, moods, self.ask, self.outside.spawn, self.trace)
        self.network.hosts[dialect.host] = self.cards
        self.checker.rail = CardChecker(self.disk, self.cards)
        market: dict[str, str] = {}
        for caller in self.callers:
            if isinstance(caller, CardPayer):
                caller.enrol(self.cards, drawn.charges)
                caller.meet(market, drawn.fills)

    def wallet(self, clock: Clock) -> ModelWallet:
        """The house's wallet, in a process that has just started."""
        assert self.chain is not None

        def wire() -> NetworkWeather:
            return self.weather.chain.wire if self.weather.chain else NetworkWeather()

        return ModelWallet(self.chain, self.outside, wire, self.chain.moods.chance, clock)

    def _share(self) -> SimulatedStore:
        def weather() -> DiskWeather:
            return self.weather.disk

        clock, chance = self._database_clock, self.chance_of_disk
        return SimulatedStore(self.disk, clock, weather, chance, is_shared=True)

    def trace(self, line: str) -> None:
        """One line of the story."""
        if self._is_told:
            return
        told = f"{self._loop.time():12.6f} {self._loop.steps:8d}  {line}"
        self._digest.update(told.encode())
        self._tell(told)

    def _break(self, error: PromiseBroken) -> None:
        if not self.broken.done():
            self.broken.set_exception(error)

    def story(self, fault: str) -> Story:
        """What it came to. Nothing that is told afterwards is part of it."""
        self._is_told = True
        return Story(
            seed=self._seed,
            steps=self._loop.steps,
            seconds=self._loop.time(),
            commits=self.checker.checked,
            crashes=self.crashes,
            trace_digest=self._digest.hexdigest(),
            book_digest=self.disk.head.digest.hex(),
            fault=fault,
        )

    async def run(self) -> None:
        """Storm, calm, collection, rest."""
        self._set_weather(self._storm)
        self.outside.spawn(self.others.live(lambda: self.weather))
        storms = [self.outside.spawn(self._crash(house)) for house in self.houses]
        storms += [self.outside.spawn(self._jump(clock)) for clock in self.clocks]
        storms += [self.outside.spawn(self._freeze(house)) for house in self.houses]
        storms.append(self.outside.spawn(self._break_locks()))
        for what, weather, model in (
            ("the node", self._storm.node, self.node),
            ("the chain's node", self._storm.chain, self.chain),
            ("the EVM chain's node", self._storm.evm, self.evm),
            ("the card provider", self._storm.cards, self.cards),
        ):
            if model is not None and weather is not None and weather.goes_down:
                storms.append(self.outside.spawn(self._take_down(what, model.moods)))
        for model in (self.chain, self.evm, self.cards):
            if model is not None:
                self.outside.spawn(model.live())
        for caller in self.callers:
            caller.fails = self._storm.upstream_fails
            caller.may_cross = self._may_cross
            if self._storm.offline_sat:
                caller.lock_key = crypto.public_key(Signer(ROOT_KEY).derive("cashu/lock"))
        await asyncio.gather(*(self.outside.spawn(one.live(self._is_over)) for one in self.callers))
        for storm in storms:
            storm.cancel()
        self.trace("the storm is over")
        self._set_weather(self._storm.calm())
        for house in self.houses:
            if self._storm.crash_every_steps or self._storm.freezes:
                house.kill(loses_power=False)
            while not house.is_open:
                await house.start()
        for mint in self.others.mints.values():
            mint.settle_melts(lambda: True)
        if self.node is not None:
            self.node.end_all()
        for model in (self.chain, self.evm, self.cards):
            if model is not None:
                model.calm_down()
        await asyncio.gather(*(self.outside.spawn(one.collect()) for one in self.callers))
        await self._come_to_rest()
        # A top-up that nobody waited for, of a key that has expired meanwhile, may come last.
        await asyncio.gather(*(self.outside.spawn(one.empty_accounts()) for one in self.callers))
        await self._come_to_rest()
        self.trace("all has come to rest")
        self._check_rest()
        for house in self.houses:
            await house.stop()
        if self.checker.unfinished():  # begun by the house itself: whoever starts next ends it
            while not self.houses[0].is_open:
                await self.houses[0].start()
            await self._come_to_rest()
        self._check_rest()

    def _check_rest(self) -> None:
        stricken: dict[str, float] = {}
        for house in self.houses:
            stricken.update(house.stricken)
        self.checker.at_rest(self.callers, stricken, is_calm=self._storm.disk.is_faultless)

    async def _come_to_rest(self) -> None:
        end = self._loop.time() + _CALM_S
        while unfinished := self.checker.unfinished():
            if self._loop.time() > end:
                raise PromiseBroken(f"never at rest: {'; '.join(unfinished)}")
            await asyncio.sleep(_LOOK_EVERY_S)

    def _is_over(self) -> bool:
        return self._loop.time() >= self._storm.storm_s

    def _set_weather(self, weather: Weather) -> None:
        self.weather = weather
        self.network.weather = weather.mint
        if weather.node is not None:
            self.network.weathers[NODE] = weather.node.wire
        if weather.evm is not None:
            self.network.weathers[EVM_NODE] = weather.evm.wire
        if weather.cards is not None:
            self.network.weathers[DIALECTS[weather.cards.provider].host] = weather.cards.wire
        self.others.set_weather(weather)

    async def _crash(self, house: House) -> None:
        every, chance = self._storm.crash_every_steps, self._chance
        await house.start()
        while True:
            if not every:
                await asyncio.sleep(5)
            elif chance.random() < 0.1:
                await asyncio.sleep(chance.uniform(0, 20))
                await house.stop()
            else:
                await self._loop.steps_pass(int(chance.expovariate(1 / every)) + 1)
                self.crashes += house.is_open
                house.kill(loses_power=chance.random() < self._storm.power_loss)
            if not house.is_open:
                await asyncio.sleep(chance.expovariate(1 / 4))
                starting = self.outside.spawn(house.start())
                # Where crashes are frequent, it may be hit before it is up.
                await asyncio.wait([starting], timeout=chance.uniform(0, 60) if every else None)

    async def _jump(self, clock: WorldClock) -> None:
        while self._storm.clock_jumps:
            await asyncio.sleep(self._chance.uniform(5, 60))
            clock.ahead_s = self._chance.uniform(-_CLOCK_JUMP_S, _CLOCK_JUMP_S)
            self.trace(f"a clock is {clock.ahead_s:.0f} s ahead")

    async def _freeze(self, house: House) -> None:
        while self._storm.freezes:
            await asyncio.sleep(self._chance.expovariate(1 / 20))
            await house.freeze(self._chance.choice((0.5, 9, 12, 30)) * self._chance.random())

    async def _take_down(self, what: str, moods: Moods | ChainMoods | EvmMoods | CardMoods) -> None:
        while True:
            await asyncio.sleep(moods.chance.expovariate(1 / 40))
            self.trace(f"{what} goes down")
            moods.is_down = True
            await asyncio.sleep(moods.chance.uniform(0, 60))
            self.trace(f"{what} is up again")
            moods.is_down = False

    async def _break_locks(self) -> None:
        """The mint lets others spend what is locked to us, as much as the house can bear."""
        mint, broken_msat = self.others.mints[HOME], 0
        while self._storm.breaks_locks and not mint.fee_ppk:
            await asyncio.sleep(self._chance.expovariate(1 / 4))
            rows = self.disk.rows[LOCKED.kind].items()
            waiting = [(y, row.value) for y, row in rows if row.value.use is LockedUse.WAITING]
            revenue = self.disk.accounts.get("revenue")
            if not waiting or revenue is None:
                continue
            y, proof = self._chance.choice(waiting)
            if broken_msat + proof.amount * 1_000 <= revenue.available:
                broken_msat += proof.amount * 1_000
                self.trace(f"the mint lets others spend {proof.amount} sat that were locked to us")
                mint.let_others_spend(bytes.fromhex(y), proof.amount)

    async def ask(self, ask: Ask) -> Reply:
        """A caller's call to the house. Raises Lost."""
        weather, chance = self.weather.caller, self._chance
        loudly, is_slow = chance.random() < 0.5, chance.random() < self.weather.caller_leaves / 3
        connection = Connection(ask, loudly=loudly, is_slow=is_slow)
        await asyncio.sleep(weather.pause_s(chance))
        if chance.random() < weather.loses_call:
            raise Lost("the call was lost")
        house = chance.choice(self.houses) if len(self.houses) > 1 else self.houses[0]
        house.serve(ask, connection)
        patience_s = 300.0
        if chance.random() < self.weather.caller_leaves:
            patience_s = chance.expovariate(1)
        try:
            async with asyncio.timeout(patience_s):
                reply = await asyncio.shield(connection.done)
        except TimeoutError:
            connection.left()
            self.trace(f"a caller leaves {ask.method} {ask.target}")
            raise Lost("left") from None
        await asyncio.sleep(weather.pause_s(chance))
        if chance.random() < weather.loses_answer:
            self.trace(f"the answer is lost: {ask.method} {ask.target} {reply.status}")
            raise Lost("the answer was lost")
        self.trace(f"answered {ask.method} {ask.target}: {reply.status} {_gist(reply)}")
        return reply


def run(seed: int, tell: Telling = lambda _: None, weather: Weather | None = None) -> Story:
    """Live through one seed, in a world of its own or in one by a `weather` that is given.

    What is wrong is told in the story's `fault`.
    """
    weather = weather or forecast(seed)
    loop = SimulatedLoop(seeded(seed, "loop"), is_shuffled=weather.is_shuffled)
    clock = WorldClock(loop)
    asyncio.set_event_loop(loop)
    try:
        with nature(seed, clock):
            world = loop.run_until_complete(_made(seed, loop, clock, weather, tell))
            with _heard(world):
                fault = _lived(world, loop)
                story = world.story(fault)
                loop.bury()
            return story
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def _made(
    seed: int, loop: SimulatedLoop, clock: WorldClock, weather: Weather, tell: Telling
) -> World:
    return World(seed, loop, clock, weather, tell)


def _lived(world: World, loop: SimulatedLoop) -> str:
    """Run it to its end, and say what was wrong."""
    chance = world.chance_of_disk
    upstream, outside = world.others.upstream, world.outside
    with outside_replaced(
        world.disk,
        lambda: world.weather.disk,
        world.network,
        outside,
        upstream,
        chance,
        world.wallet,
    ):
        living = loop.create_task(world.run())
        try:
            loop.run_until_complete(_first(living, world.broken))
        except NothingLeft:
            return "nothing will ever happen again: somebody waits for what nobody does"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "; ".join(world.defects)


async def _first(living: asyncio.Task[None], broken: asyncio.Future[None]) -> None:
    await asyncio.wait([living, broken], return_when=asyncio.FIRST_COMPLETED)
    await (broken if broken.done() else living)


@contextmanager
def _heard(world: World) -> Iterator[None]:
    """Everything that the house logs is part of the story; a defect that it logs is a fault."""

    def hear(_: object, level: str, event: MutableMapping[str, Any]) -> str:
        error = sys.exc_info()[1] if event.pop("exc_info", None) else None
        said = " ".join(f"{name}={value}" for name, value in sorted(event.items()))
        world.trace(f"log {level} {said} {error!r}" if error else f"log {level} {said}")
        if error is not None and not isinstance(error, FareboxError):
            world.defects.append(f"the house logs a defect: {said}: {error!r}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[hear],
        wrapper_class=structlog.make_filtering_bound_logger(0),  # whatever was set before us
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _gist(reply: Reply) -> str:
    """What an answer says, in a word: the code of its problem, or what it charged."""
    found = re.search(rb'"code":"(\w+)"', reply.body)
    return found[1].decode() if found else ""
