"""`farebox serve` as a process of its own, and what can be proved of it from outside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import urllib.error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol

from farebox.books import RECORDS
from farebox.cli.door import ask_server
from farebox.cli.requests import Balance, Recover, Request
from farebox.clock import SystemClock
from farebox.ecash.mint import MintQuoteState, ProofState
from farebox.ecash.plan import MintPlan
from farebox.ecash.saga import Done, advance_mint
from farebox.ledger.invariants import verify
from farebox.ledger.replay import Broken
from farebox.rails.cashu import HttpMint, open_session
from farebox.stores.audit import BookReader
from farebox.stores.sqlite.audit import SqliteAuditReader
from farebox.wire.cashu import crypto
from farebox.wire.cashu.amounts import split
from farebox.wire.cashu.model import Token
from farebox.wire.cashu.token import decode_token, encode_token
from farebox.wire.cashu.wallet_keys import WalletKeys
from tests.acceptance.world import Answered, Mint, Server, call, start_server
from tests.peers.nutshell import Nutshell
from tests.peers.process import OwnProcess, free_port

PRICE_SAT = 10
CHAT = {"model": "play-1", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}
#: What the gateway answers for an upstream that failed it.
_UPSTREAM_FAILED = (502, 504)
_TRIES_MAX = 900
_READY_S = 60
_PAUSE_S = 0.1


class Peer:
    """A play thing in a process of its own, which may be killed and started again."""

    def __init__(self, module: str, ready: str, folder: Path, *arguments: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._ready = self.url + ready
        self._log = folder / f"{module}.log"
        self._command = (module, "--port", str(port), *arguments)

    def start(self) -> None:
        self._process = OwnProcess(*self._command, log=self._log)
        self._process.wait_ready(self._ready, _READY_S)

    def kill(self) -> None:
        self._process.kill()


class Money(Protocol):
    """A mint as its callers know it."""

    def token(self, amount: int) -> str:
        """Fresh money."""
        ...

    def outstanding(self) -> int:
        """What the mint owes to all of us together."""
        ...

    def unspent(self, tokens: Sequence[str]) -> int:
        """What these are still worth, each proof once."""
        ...


class PlayMoney:
    """Of a play mint, reached as `url`."""

    def __init__(self, mint: Mint, url: str) -> None:
        self._mint = mint
        self._url = url
        self._before = self._owed()

    def token(self, amount: int) -> str:
        return encode_token(replace(decode_token(self._mint.token(amount)), mint=self._url))

    def outstanding(self) -> int:
        return self._owed() - self._before

    def unspent(self, tokens: Sequence[str]) -> int:
        spent = set(self._mint.audit()["spent_ys"])
        return sum(amount for y, amount in _proofs(tokens).items() if y.hex() not in spent)

    def _owed(self) -> int:
        return int(self._mint.audit()["outstanding"].get("sat", 0))


class NutshellMoney:
    """Of a real mint, which tells nobody what it owes: that is what was bought of it here."""

    def __init__(self, mint: Nutshell, url: str) -> None:
        self._mint = mint
        self._url = url
        self._bought = 0

    def token(self, amount: int) -> str:
        self._bought += amount
        return asyncio.run(self._buy(amount))

    def outstanding(self) -> int:
        return self._bought

    def unspent(self, tokens: Sequence[str]) -> int:
        return asyncio.run(self._worth(_proofs(tokens)))

    async def _buy(self, amount: int) -> str:
        async with open_session() as session:
            mint = HttpMint(self._mint.url, session, SystemClock())
            listed = await mint.keysets()
            keyset = await mint.keys(next(one.id for one in listed if one.active))
            quote = await mint.mint_quote(amount, "sat")
            for _ in range(_TRIES_MAX):
                if (await mint.mint_quote_state(quote.quote)).state is MintQuoteState.PAID:
                    break
                await asyncio.sleep(_PAUSE_S)
            amounts = tuple(split(amount, keyset.keys.keys()))
            plan = MintPlan(
                mint=self._url,
                unit="sat",
                keyset_id=keyset.id,
                first_counter=0,
                quote=quote.quote,
                amounts=amounts,
            )
            done = await advance_mint(plan, mint, WalletKeys(os.urandom(32)), asked_before=False)
            assert isinstance(done, Done), done
            return encode_token(Token(self._url, "sat", done.proofs))

    async def _worth(self, proofs: Mapping[bytes, int]) -> int:
        async with open_session() as session:
            mint = HttpMint(self._mint.url, session, SystemClock())
            states = await mint.check_state(list(proofs))
        worth = zip(states, proofs.values(), strict=True)
        return sum(amount for state, amount in worth if state is ProofState.UNSPENT)


def _proofs(tokens: Sequence[str]) -> dict[bytes, int]:
    return {
        crypto.hash_to_curve(proof.secret): proof.amount
        for token in map(decode_token, tokens)
        for proof in token.proofs
    }


@dataclass
class House:
    """A server that may be killed and started again, and the callers who hold `tokens`.

    `door` is where callers reach it, if not at its own address.
    """

    folder: Path
    flags: tuple[str, ...]
    money: Money
    server: Server | None = None
    door: str = ""
    tokens: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where callers reach it."""
        assert self.server is not None
        return self.door or self.server.url

    def start(self) -> Server:
        """Serve the book in the folder."""
        self.server = start_server([*self.flags, "--listen", "127.0.0.1:0"], self.folder)
        return self.server

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        assert self.server is not None
        self.server.process.kill()
        self.server.process.wait()

    def token(self, amount: int) -> str:
        """Money in a caller's hand."""
        token = self.money.token(amount)
        self.tokens.append(token)
        return token

    def ask(self, path: str, headers: Mapping[str, str], body: object = None) -> Answered | None:
        """One request; None where no answer came. Change in it is kept."""
        try:
            answer = call(self.url + path, headers, body)
        except (urllib.error.URLError, OSError, HTTPException):
            return None
        # This client takes an answer that was cut off within its head for a whole one.
        if answer.headers.get("content-length") != str(len(answer.body)):
            return None
        change = answer.headers.get("x-cashu", "")
        if change.startswith("cashu"):
            self.tokens.append(change)
        return answer

    def surely(self, path: str, headers: Mapping[str, str], body: object = None) -> Answered:
        """Ask again until the answer is final."""
        for _ in range(_TRIES_MAX):
            answer = self.ask(path, headers, body)
            unfinished = answer is None or answer.status in (202, 503)
            if answer is not None and answer.status == 409:
                unfinished = answer.json()["code"] != "payment_used"
            if answer is not None and not unfinished:
                return answer
            time.sleep(_PAUSE_S)
        raise AssertionError(f"never final: {answer}")

    def pays(self, token: str) -> int:
        """Have a token pay for a request, or find what it was charged; in msat."""
        headers = {"X-Cashu": token}
        answer = self.surely("/echo", headers)
        is_final = answer.status in (200, *_UPSTREAM_FAILED)
        assert is_final or answer.json()["code"] == "payment_used", answer
        found = answer.headers.get("x-farebox-request-id")
        request_id = found or answer.json()["request_id"]
        told = self.surely(f"/v1/change/{request_id}", headers).json()
        if told["token"] and told["token"] not in self.tokens:
            self.tokens.append(told["token"])
        return int(told["charged_msat"])

    def settled(self) -> dict[str, Any]:
        """Wait until nothing is held and nothing unfinished; what `farebox balance` says then."""
        for _ in range(_TRIES_MAX):
            unfinished = asyncio.run(self._asked(Recover()))["unfinished"]
            balance = asyncio.run(self._asked(Balance()))
            if not unfinished and not balance["held_msat"] and not balance["arriving_msat"]:
                return balance
            time.sleep(_PAUSE_S)
        raise AssertionError(f"never settled: {unfinished}, {balance}")

    async def held_msat(self) -> int:
        """What is held for requests that are under way."""
        return int((await self._asked(Balance()))["held_msat"])

    def prove(self) -> dict[str, Any]:
        """No unit was lost or made: the book verifies, and the mint owes what we and they hold."""
        balance = self.settled()
        with self.reader() as reader:
            verified = verify(reader)
        assert not isinstance(verified, Broken), str(verified)
        assert balance["covered"] is True
        assert balance["custody_msat"] == balance["liabilities_msat"]
        theirs_msat = self.money.unspent(self.tokens) * 1_000
        assert self.money.outstanding() * 1_000 == theirs_msat + balance["custody_msat"]
        return balance

    def reader(self) -> BookReader:
        """The book, for the audit."""
        return SqliteAuditReader(self.folder / "data" / "farebox.db", RECORDS)

    def stop(self) -> None:
        """End it, however it stands."""
        if self.server is not None:
            with contextlib.suppress(ProcessLookupError):
                self.server.process.kill()
            self.server.process.wait()

    async def _asked(self, request: Request) -> dict[str, Any]:
        told = await ask_server(self.folder / "data", request)
        assert told is not None, "no server is running"
        return told
