"""What one seed makes the world like: how often things go wrong, how long they take.

Each seed draws a world of its own, since faults that are always all there hide one another: in
some the disk is perfect and the network terrible, in others the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from tests.simulation.loop import seeded


@dataclass(frozen=True, slots=True)
class DiskWeather:
    """Probabilities for each commit, but for `cannot_read`, which is for each read."""

    busy: float = 0
    fails: float = 0
    loses_answer: float = 0
    stays_in_doubt: float = 0
    cannot_read: float = 0
    #: Reads wait like commits do, as where the database is another machine.
    is_remote: bool = False
    commit_s: float = 0.002
    batch_max: int = 1_000

    def calm(self) -> DiskWeather:
        """The same disk without its faults."""
        return replace(self, busy=0, fails=0, loses_answer=0, stays_in_doubt=0, cannot_read=0)

    @property
    def is_faultless(self) -> bool:
        """Whether it does all that it is told, and says so."""
        return not (self.busy or self.fails or self.loses_answer or self.cannot_read)

    def pause_s(self, chance: Random) -> float:
        """How long the disk takes this time: mostly short, now and then not."""
        return chance.expovariate(1 / self.commit_s)


@dataclass(frozen=True, slots=True)
class NetworkWeather:
    """Probabilities for each call between two machines."""

    loses_call: float = 0
    loses_answer: float = 0
    repeats_call: float = 0
    delays_call: float = 0
    breaks_answer: float = 0
    latency_s: float = 0.05

    def pause_s(self, chance: Random) -> float:
        """How long one way takes this time."""
        return chance.expovariate(1 / self.latency_s)


@dataclass(frozen=True, slots=True)
class NodeWeather:
    """How a Lightning node and the network beyond it behave; see `lightning.Moods`."""

    fails: float = 0
    hangs: float = 0
    hangs_s: float = 0
    costs: float = 0
    held_in: float = 0
    #: Whether the node is away for a while, now and then.
    goes_down: bool = False
    #: How often it ends a call before the payment has ended, as a proxy does that waits no longer.
    hangs_up: float = 0
    #: The wire to it.
    wire: NetworkWeather = NetworkWeather()
    #: How often a caller sees to it that there is something to pay out.
    fills: float = 0

    def calm(self) -> NodeWeather:
        """The same node once nothing fails any more."""
        return NodeWeather(costs=self.costs, wire=NetworkWeather(latency_s=self.wire.latency_s))


@dataclass(frozen=True, slots=True)
class ChainWeather:
    """How a chain and the house's node on it behave; see `chain.ChainMoods`."""

    block_s: float = 10
    leaves_out: float = 0
    reorganises: float = 0
    returns: float = 0
    double_spends: float = 0
    forgets: float = 0
    lags: float = 0
    #: How often the price of room in a block moves.
    price_moves: float = 0
    goes_down: bool = False
    #: How often a caller sees to it that there is something to pay out.
    fills: float = 0
    wire: NetworkWeather = NetworkWeather()

    def calm(self) -> ChainWeather:
        """The same chain once it only grows."""
        return ChainWeather(wire=NetworkWeather(latency_s=self.wire.latency_s))


@dataclass(frozen=True, slots=True)
class EvmWeather:
    """How an EVM chain and the house's node of it behave; see `evm.EvmMoods`."""

    block_s: float = 10
    leaves_out: float = 0
    reorganises: float = 0
    double_spends: float = 0
    forgets: float = 0
    lags: float = 0
    fee_jumps: float = 0
    goes_down: bool = False
    #: How often a caller sees to it that there is something to pay out.
    fills: float = 0
    #: How often a caller pays by signature: claims a payment, or signs a transfer.
    signs: float = 0
    #: How often strangers send first what the house sends for a payer, and a token blocks a payee.
    copies: float = 0
    blocks_payees: float = 0
    #: How long payments wait to leave together, and from how many addresses they leave.
    batch_wait_s: int = 0
    senders: int = 1
    #: Whether the contract that pays many is there already, and senders have tokens to pay with
    #: before any deposit was swept.
    is_at_home: bool = False
    wire: NetworkWeather = NetworkWeather()

    def calm(self) -> EvmWeather:
        """The same chain once it only grows."""
        return EvmWeather(
            batch_wait_s=self.batch_wait_s,
            senders=self.senders,
            wire=NetworkWeather(latency_s=self.wire.latency_s),
        )


@dataclass(frozen=True, slots=True)
class CardWeather:
    """How a card provider, those who pay there and its webhooks behave; see `cards.CardMoods`."""

    #: Which one it is: see `card_dialects.DIALECTS`.
    provider: str = "stripe"
    refuses: float = 0
    loses_webhook: float = 0
    repeats_webhook: float = 0
    declines: float = 0
    hangs: float = 0
    fails: float = 0
    disputes: float = 0
    dashboard: float = 0
    goes_down: bool = False
    #: How often a caller sees to it that there is something to give back.
    fills: float = 0
    #: How often a caller has a stored card charged rather than that.
    charges: float = 0
    wire: NetworkWeather = NetworkWeather()

    def calm(self) -> CardWeather:
        """The same provider once nothing new happens there."""
        wire = NetworkWeather(latency_s=self.wire.latency_s)
        return CardWeather(provider=self.provider, fails=self.fails, wire=wire)


@dataclass(frozen=True, slots=True)
class Weather:
    """One seed's world."""

    disk: DiskWeather
    mint: NetworkWeather
    caller: NetworkWeather
    #: How often a mint refuses, fails, or lets a payment hang, for each call.
    mint_refuses: float
    #: How often an upstream does something else than answer.
    upstream_fails: float
    #: How often a caller does something else than wait for its answer.
    caller_leaves: float
    #: Seconds of storm, and steps between two crashes (0: none).
    storm_s: float
    crash_every_steps: int
    power_loss: float
    clock_jumps: bool
    rotates_keys: bool
    is_shuffled: bool
    callers: int
    #: Processes on one book, and whether they stand still now and then; one has it to itself.
    houses: int = 1
    freezes: bool = False
    #: How much in proofs locked to our key is credited before its swap, and whether the mint lets
    #: others spend those.
    offline_sat: int = 0
    breaks_locks: bool = False
    #: A Lightning node, in those worlds that have one.
    node: NodeWeather | None = None
    #: A chain, in those worlds that have one.
    chain: ChainWeather | None = None
    #: An EVM chain, in those worlds that have one.
    evm: EvmWeather | None = None
    #: A card provider, in those worlds that have one.
    cards: CardWeather | None = None

    def calm(self) -> Weather:
        """The same world once every fault has stopped."""
        return replace(
            self,
            disk=self.disk.calm(),
            mint=NetworkWeather(latency_s=self.mint.latency_s),
            caller=NetworkWeather(latency_s=self.caller.latency_s),
            mint_refuses=0,
            upstream_fails=0,
            caller_leaves=0,
            node=None if self.node is None else self.node.calm(),
            chain=None if self.chain is None else self.chain.calm(),
            evm=None if self.evm is None else self.evm.calm(),
            cards=None if self.cards is None else self.cards.calm(),
        )


def forecast(seed: int) -> Weather:
    """Draw a seed's world; what came later to the simulation draws from a chance of its own."""
    drawn = _forecast(seeded(seed, "weather"))
    more, rails, chains, evms, cards = (
        seeded(seed, what) for what in ("houses", "rails", "chains", "evms", "cards")
    )
    houses = more.choice((1, 1, 2, 3))
    offline_sat = more.choice((0, 0, 100, 400, 2_000))
    # Where the disk fails, many a request ends as if its process had, and nobody can tell.
    spares_disk = houses > 1 and more.random() < 0.6
    node = _node(rails) if rails.random() < 0.5 else None
    chain = _chain(chains) if node is None and chains.random() < 0.5 else None
    has_rail = node is not None or chain is not None
    evm = _evm(evms) if not has_rail and evms.random() < 0.5 else None
    return replace(
        drawn,
        disk=drawn.disk.calm() if spares_disk else drawn.disk,
        # On one book of several it is the database's machine that would lose power.
        power_loss=drawn.power_loss if houses == 1 else 0,
        houses=houses,
        freezes=houses > 1 and more.random() < 0.6,
        offline_sat=offline_sat,
        breaks_locks=offline_sat > 0 and not drawn.rotates_keys and more.random() < 0.5,
        node=node,
        chain=chain,
        evm=evm,
        cards=_cards(cards) if not has_rail and evm is None and cards.random() < 0.7 else None,
    )


def _forecast(chance: Random) -> Weather:
    return Weather(
        disk=_disk(chance),
        mint=_network(chance),
        caller=_network(chance),
        mint_refuses=_often(chance),
        upstream_fails=_often(chance),
        caller_leaves=_often(chance),
        storm_s=chance.choice((20, 60, 120, 400)),
        crash_every_steps=chance.choice((0, 60, 200, 600, 2_000)),
        power_loss=chance.choice((0, 0.5, 1)),
        clock_jumps=chance.random() < 0.3,
        rotates_keys=chance.random() < 0.3,
        is_shuffled=chance.random() < 0.5,
        callers=chance.choice((1, 2, 4, 6)),
    )


def _disk(chance: Random) -> DiskWeather:
    return DiskWeather(
        busy=_seldom(chance),
        fails=_seldom(chance),
        loses_answer=_seldom(chance),
        stays_in_doubt=chance.choice((0, 0.5, 0.9)),
        cannot_read=_seldom(chance) / 5,
        is_remote=chance.random() < 0.4,
        commit_s=chance.choice((0.0005, 0.002, 0.02, 0.3)),
        batch_max=chance.choice((1, 4, 1_000)),
    )


def _network(chance: Random) -> NetworkWeather:
    return NetworkWeather(
        loses_call=_often(chance),
        loses_answer=_often(chance),
        repeats_call=_often(chance),
        delays_call=_seldom(chance),
        breaks_answer=_seldom(chance),
        latency_s=chance.choice((0.001, 0.03, 0.4)),
    )


def _node(chance: Random) -> NodeWeather:
    return NodeWeather(
        fails=_often(chance),
        hangs=_often(chance),
        hangs_s=chance.choice((5, 60, 900)),
        costs=chance.choice((0, 0.3, 1)),
        held_in=_often(chance),
        goes_down=chance.random() < 0.3,
        hangs_up=_often(chance),
        # Payments that take long, on a wire that brings a call late, are what is hard for a rail.
        wire=replace(_network(chance), delays_call=chance.choice((0, 0.05, 0.3))),
        fills=chance.choice((0, 0.5, 0.9)),
    )


def _chain(chance: Random) -> ChainWeather:
    return ChainWeather(
        block_s=chance.choice((5, 15, 40)),
        leaves_out=_often(chance),
        reorganises=chance.choice((0, 0.1, 0.3)),
        returns=chance.choice((0, 0.1, 0.3)),
        double_spends=chance.choice((0, 0.3, 0.6)),
        forgets=_often(chance),
        lags=chance.choice((0, 0.1, 0.5)),
        price_moves=chance.choice((0, 0.1, 0.5)),
        goes_down=chance.random() < 0.3,
        fills=chance.choice((0, 0.5, 0.9)),
        wire=_network(chance),
    )


def _evm(chance: Random) -> EvmWeather:
    return EvmWeather(
        block_s=chance.choice((5, 15, 40)),
        leaves_out=_often(chance),
        reorganises=chance.choice((0, 0.1, 0.3)),
        double_spends=chance.choice((0, 0.3, 0.6)),
        forgets=_often(chance),
        lags=chance.choice((0, 0.1, 0.5)),
        fee_jumps=chance.choice((0, 0.1, 0.5)),
        goes_down=chance.random() < 0.3,
        fills=chance.choice((0, 0.5, 0.9)),
        wire=_network(chance),
        signs=chance.choice((0, 0.5, 0.9)),
        copies=chance.choice((0, 0.3)),
        blocks_payees=chance.choice((0, 0.2)),
        batch_wait_s=chance.choice((0, 0, 10)),
        senders=chance.choice((1, 1, 2)),
        is_at_home=chance.random() < 0.5,
    )


def _cards(chance: Random) -> CardWeather:
    return CardWeather(
        refuses=_often(chance),
        loses_webhook=chance.choice((0, 0.3, 1)),
        repeats_webhook=_often(chance),
        hangs=chance.choice((0, 0.3, 0.6)),
        fails=chance.choice((0, 0.3, 0.6)),
        disputes=_often(chance),
        dashboard=_often(chance),
        goes_down=chance.random() < 0.3,
        fills=chance.choice((0, 0.5, 0.9)),
        wire=_network(chance),
        provider=chance.choice(("stripe", "paypal")),
        declines=_often(chance),
        charges=chance.choice((0, 0.5, 0.9)),
    )


def _seldom(chance: Random) -> float:
    return chance.choice((0, 0, 0.01, 0.05))


def _often(chance: Random) -> float:
    return chance.choice((0, 0, 0.03, 0.1, 0.3))
