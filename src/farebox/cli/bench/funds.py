"""The money that a run spends: a key with enough on it, and tokens, one for each request.

Real money comes back: what is owed to whoever pays (change, a token whose answer was lost, a key
that was made here) is written to a file, line by line, before anything can go wrong with it. Play
money is thrown away.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

import msgspec

from farebox.cli.bench.target import Ask, NoAnswer, Target
from farebox.cli.output import sat
from farebox.errors import FareboxError, InvalidInput

#: Play tokens that are made ahead: the mint shall be at rest when the requests arrive.
_AHEAD_MAX = 10_000
_JSON = {"content-type": "application/json"}
_MSAT_PER_SAT = 1_000


class Claims:
    """Where what is owed to us is written; nowhere for play money."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file

    def keep(self, *secrets: str) -> None:
        """One line each, in the file before this returns."""
        if self._file is not None:
            self._file.writelines(secret + "\n" for secret in secrets if secret)
            self._file.flush()


@contextmanager
def open_claims(path: Path | None) -> Iterator[Claims]:
    """A file that only we can read, added to. Raises InvalidInput."""
    if path is None:
        yield Claims()
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror}") from None
    with os.fdopen(descriptor, "a") as file:
        yield Claims(file)


class Tokens(Protocol):
    """Where tokens come from."""

    async def take(self) -> str:
        """The next one; "" when there is none left."""
        ...


class GivenTokens:
    """Tokens from a file, or from standard input (`-`), one a line, as many as are needed.

    Raises InvalidInput where there are fewer.
    """

    def __init__(self, source: str, count: int) -> None:
        try:
            with nullcontext(sys.stdin) if source == "-" else open(source) as lines:
                given = filter(None, map(str.strip, lines))
                self._tokens = deque(islice(given, count))
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"cannot read {source}: {error}") from None
        if len(self._tokens) < count:
            raise InvalidInput(
                f"{source} has {len(self._tokens)} tokens for {count} requests with eCash: give "
                "more, or lower --rate, --seconds or the share of ecash"
            )

    async def take(self) -> str:
        """The next one."""
        return self._tokens.popleft() if self._tokens else ""


class PlayMint:
    """A mint of play money, which makes tokens out of nothing."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def token(self, amount_sat: int) -> str:
        """A token. Raises InvalidInput where the mint makes none."""
        body = msgspec.json.encode({"amount": amount_sat})
        try:
            reply = await self._target.ask(Ask("POST", "/play/issue", _JSON, body))
        except NoAnswer as error:
            raise InvalidInput(f"the play mint {self._target.url} is not there: {error}") from None
        token = reply.document().get("token")
        if reply.status != 200 or not isinstance(token, str):
            raise InvalidInput(
                f"{self._target.url} is no mint of play money (it answered {reply.says}): give "
                "tokens with --tokens"
            )
        return token


class PlayTokens:
    """Tokens of one amount from a play mint: 10,000 made ahead, more while the run goes on."""

    def __init__(self, mint: PlayMint, amount_sat: int) -> None:
        self._mint = mint
        self._amount_sat = amount_sat
        self._made: deque[str] = deque()

    async def make(self, count: int) -> None:
        """Make so many ahead."""
        for _ in range(min(count, _AHEAD_MAX)):
            self._made.append(await self._mint.token(self._amount_sat))

    async def take(self) -> str:
        """The next one."""
        return self._made.popleft() if self._made else await self._mint.token(self._amount_sat)


@dataclass(frozen=True, slots=True)
class Standing:
    """What the gateway tells of a key; `spent_msat` since it was made."""

    balance_msat: int
    reserved_msat: int
    spent_msat: int


class Account:
    """A key at the gateway."""

    def __init__(self, gateway: Target, key: str) -> None:
        self._gateway = gateway
        self.headers = {"authorization": f"Bearer {key}"}

    async def standing(self) -> Standing:
        """How it stands. Raises InvalidInput."""
        told = await _told(self._gateway, Ask("GET", "/info", self.headers), "the key")
        return Standing(int(told["balance"]), int(told["reserved"]), int(told["total_spent"]))

    async def check(self, needed_msat: int) -> None:
        """Raises InvalidInput where it may run dry."""
        balance_msat = (await self.standing()).balance_msat
        if balance_msat < needed_msat:
            raise InvalidInput(
                f"the key holds {sat(balance_msat)}, and this run may cost {sat(needed_msat)}: top "
                "it up with POST /topup, or lower --rate or --seconds"
            )


async def made_account(gateway: Target, token: str, claims: Claims) -> Account:
    """A new key with what a token is worth on it. Raises InvalidInput."""
    body = msgspec.json.encode({"initial_balance_token": token})
    told = await _told(gateway, Ask("POST", "/create", _JSON, body), "the token for a key")
    key = str(told["api_key"])
    claims.keep(key)
    return Account(gateway, key)


async def play_account(gateway: Target, mint: PlayMint, needed_msat: int) -> Account:
    """A new key with enough play money on it."""
    token = await mint.token(-(-needed_msat // _MSAT_PER_SAT))
    return await made_account(gateway, token, Claims())


async def _told(gateway: Target, ask: Ask, what: str) -> dict[str, Any]:
    try:
        reply = await gateway.ask(ask)
    except NoAnswer as error:
        raise FareboxError(f"the gateway did not answer about {what}: {error}") from None
    document = reply.document()
    if reply.status != 200:
        reason = document.get("detail", "it gives no reason")
        raise InvalidInput(f"the gateway refuses {what} ({reply.says}): {reason}")
    return document
