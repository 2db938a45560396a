"""One run: terms asked, money gathered, requests made, and what was charged compared."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from farebox.cli.bench.caller import Caller, Terms, terms_of
from farebox.cli.bench.funds import (
    Account,
    Claims,
    GivenTokens,
    PlayMint,
    PlayTokens,
    Tokens,
    made_account,
    open_claims,
    play_account,
)
from farebox.cli.bench.openloop import Arrivals, Kind, OpenLoop
from farebox.cli.bench.progress import watched
from farebox.cli.bench.report import Charges, Report
from farebox.cli.bench.tally import Tally
from farebox.cli.bench.target import Ask, Target
from farebox.cli.door import ask_server
from farebox.cli.receipts import STREAM_RECEIPT
from farebox.cli.requests import Balance, Facts
from farebox.errors import FareboxError, InvalidInput

_STREAM_HEADERS = {STREAM_RECEIPT: "1"}
#: Play tokens are worth this many times the price, so that change is given as well.
_OVERPAID = 2
#: Requests whose callers gave up are settled meanwhile.
_SETTLED_LOOKS = 100
_SETTLED_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Money:
    """Where the money comes from, as the operator said."""

    key: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    tokens: str = ""
    play_mint: str = ""
    claims: Path | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A run as it was asked for. `book` is where the running server keeps its book; None leaves
    the book alone."""

    url: str
    arrivals: Arrivals
    in_flight_max: int
    plain: Ask
    stream: Ask
    money: Money
    book: Path | None

    def ask(self, kind: Kind) -> Ask:
        """What is asked, before it is paid for."""
        return self.stream if kind is Kind.STREAM else self.plain


async def run(wanted: Wanted, say: Callable[[str], None]) -> Report:
    """Raises InvalidInput, before anything is paid for, where something is missing."""
    _check_money(wanted.money, wanted.arrivals.mix)
    async with AsyncExitStack() as open_:
        gateway = await open_.enter_async_context(Target(wanted.url))
        play_mint = None
        if wanted.money.play_mint:
            target = await open_.enter_async_context(Target(wanted.money.play_mint))
            play_mint = PlayMint(target)
        terms = {kind: await terms_of(gateway, wanted.ask(kind)) for kind in wanted.arrivals.mix}
        earned_before_msat = await _earned_msat(wanted.book) if wanted.book else 0
        claims = open_.enter_context(open_claims(wanted.money.claims))
        say("gathering the money …")
        tokens = await _tokens(wanted, play_mint, terms)
        account = await _account(wanted, gateway, play_mint, terms, claims)
        spent_before_msat = (await account.standing()).spent_msat if account else 0
        tally = Tally()
        asks = {kind: _paid(wanted.ask(kind), kind, account) for kind in wanted.arrivals.mix}
        caller = Caller(gateway, asks, tokens, claims, tally)
        loop = OpenLoop(wanted.arrivals, caller.fire, wanted.in_flight_max)
        with stopped_by_signal(loop, say), watched(loop, wanted.arrivals, tally):
            await loop.run()
        spent_msat = earned_msat = None
        problem = ""
        try:
            if account:
                spent_msat = await _spent_msat(account) - spent_before_msat
            if wanted.book:
                earned_msat = await _earned_msat(wanted.book) - earned_before_msat
        except FareboxError as error:  # it did not survive the load: what was measured is told
            problem = str(error)
    maximum_msat = {kind: one.maximum_msat for kind, one in terms.items()}
    charges = Charges.of(
        tally, maximum_msat, key_msat=spent_msat, books_msat=earned_msat, problem=problem
    )
    return Report(wanted.arrivals, loop.seconds, loop.started, loop.unstarted, tally, charges)


def _paid(ask: Ask, kind: Kind, account: Account | None) -> Ask:
    if kind is Kind.ECASH:
        return ask
    assert account is not None  # the mix has a kind that needs one
    more = _STREAM_HEADERS if kind is Kind.STREAM else {}
    return Ask(ask.method, ask.target, {**ask.headers, **account.headers, **more}, ask.body)


# ── money ────────────────────────────────────────────────────────────────────────────────────────


def _check_money(money: Money, mix: Mapping[Kind, int]) -> None:
    needs_key = Kind.KEY in mix or Kind.STREAM in mix
    if needs_key and not (money.key or money.token or money.play_mint):
        raise InvalidInput(
            "requests on a key need one with money on it: give --key, or --token to make one of, "
            "or --play-mint"
        )
    if Kind.ECASH in mix and not (money.tokens or money.play_mint):
        raise InvalidInput(
            "requests with eCash need a token each: give --tokens FILE (- for standard input), or "
            "--play-mint"
        )
    is_real = (needs_key and money.token and not money.key) or (Kind.ECASH in mix and money.tokens)
    if is_real and money.claims is None:
        raise InvalidInput(
            "tokens come back as change, or as a key: give --change FILE, where that is written"
        )


async def _account(
    wanted: Wanted,
    gateway: Target,
    play_mint: PlayMint | None,
    terms: Mapping[Kind, Terms],
    claims: Claims,
) -> Account | None:
    on_key = [kind for kind in wanted.arrivals.mix if kind is not Kind.ECASH]
    if not on_key:
        return None
    needed_msat = sum(wanted.arrivals.of(kind) * terms[kind].maximum_msat for kind in on_key)
    money = wanted.money
    if money.key:
        account = Account(gateway, money.key)
    elif money.token:
        account = await made_account(gateway, money.token, claims)
    else:
        assert play_mint is not None  # as `_check_money` has seen
        account = await play_account(gateway, play_mint, needed_msat)
    await account.check(needed_msat)
    return account


async def _tokens(
    wanted: Wanted, play_mint: PlayMint | None, terms: Mapping[Kind, Terms]
) -> Tokens | None:
    count = wanted.arrivals.of(Kind.ECASH) if Kind.ECASH in wanted.arrivals.mix else 0
    if not count:
        return None
    if wanted.money.tokens:
        return GivenTokens(wanted.money.tokens, count)
    price = terms[Kind.ECASH]
    if price.unit != "sat":
        raise InvalidInput("a play mint's tokens are in sat, which this gateway does not take")
    assert play_mint is not None  # as `_check_money` has seen
    made = PlayTokens(play_mint, price.amount * _OVERPAID)
    await made.make(count)
    return made


# ── what was charged ─────────────────────────────────────────────────────────────────────────────


async def _earned_msat(book: Path) -> int:
    """What the running server has earned so far, by its book, once no request is held any more.

    Nothing may be withdrawn between two of these.
    """
    told = await _balance(book)
    for _ in range(_SETTLED_LOOKS):
        if not told["held_msat"]:
            break
        await asyncio.sleep(_SETTLED_PAUSE_S)
        told = await _balance(book)
    return int(told["revenue_msat"])


async def _balance(book: Path) -> Facts:
    told = await ask_server(book, Balance())
    if told is None:
        raise InvalidInput(
            f"no server is running on the book in {book}: name its directory with --data, or leave "
            "the book alone with --no-verify"
        )
    return told


async def _spent_msat(account: Account) -> int:
    standing = await account.standing()
    for _ in range(_SETTLED_LOOKS):
        if not standing.reserved_msat:
            break
        await asyncio.sleep(_SETTLED_PAUSE_S)
        standing = await account.standing()
    return standing.spent_msat


# ── stopping ─────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def stopped_by_signal(loop: OpenLoop, say: Callable[[str], None]) -> Iterator[None]:
    """The first Ctrl-C starts nothing more; the second one leaves at once, with no report."""
    running = asyncio.get_running_loop()

    def stop() -> None:
        running.remove_signal_handler(signal.SIGINT)
        say("stopping: what was asked is waited for; the same signal again leaves at once")
        loop.stop()

    running.add_signal_handler(signal.SIGINT, stop)
    try:
        yield
    finally:
        running.remove_signal_handler(signal.SIGINT)
