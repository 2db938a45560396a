"""`farebox serve` as a process of its own, and what can be proved of it from outside."""

from __future__ import annotations

import asyncio
import contextlib
import time
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from farebox.bootstrap import RECORDS
from farebox.cli.desk import Balance, Recover, Request
from farebox.cli.door import ask_server
from farebox.ledger.invariants import verify
from farebox.ledger.replay import Broken
from farebox.stores.sqlite.audit import SqliteAuditReader
from farebox.wire.cashu import crypto
from farebox.wire.cashu.token import decode_token
from tests.acceptance.world import Answered, Mint, Server, call, start_server

PRICE_SAT = 10
CHAT = {"model": "play-1", "max_tokens": 10, "messages": [{"role": "user", "content": "Hi"}]}
_TRIES_MAX = 300
_PAUSE_S = 0.1


@dataclass
class House:
    """A server that may be killed and started again, and the callers who hold `tokens`."""

    folder: Path
    flags: tuple[str, ...]
    mint: Mint
    server: Server | None = None
    tokens: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._owed_before = self._outstanding()

    @property
    def url(self) -> str:
        """Where it is now."""
        assert self.server is not None
        return self.server.url

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
        token = self.mint.token(amount)
        self.tokens.append(token)
        return token

    def ask(self, path: str, headers: Mapping[str, str], body: object = None) -> Answered | None:
        """One request; None where no answer came. Change in it is kept."""
        try:
            answer = call(self.url + path, headers, body)
        except (urllib.error.URLError, OSError, HTTPException):
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
        assert answer.status == 200 or answer.json()["code"] == "payment_used", answer
        found = answer.headers.get("x-farebox-request-id")
        request_id = found or answer.json()["request_id"]
        told = self.surely(f"/v1/change/{request_id}", headers).json()
        if told["token"] and told["token"] not in self.tokens:
            self.tokens.append(told["token"])
        return int(told["charged_msat"])

    def settled(self) -> dict[str, Any]:
        """Wait until nothing is held and nothing unfinished; what `farebox balance` says then."""
        for _ in range(_TRIES_MAX):
            unfinished = self._asked(Recover())["unfinished"]
            balance = self._asked(Balance())
            if not unfinished and not balance["held_msat"] and not balance["arriving_msat"]:
                return balance
            time.sleep(_PAUSE_S)
        raise AssertionError(f"never settled: {unfinished}, {balance}")

    def prove(self) -> dict[str, Any]:
        """No unit was lost or made: the book verifies, and the mint owes what we and they hold."""
        balance = self.settled()
        with SqliteAuditReader(self.folder / "data" / "farebox.db", RECORDS) as reader:
            verified = verify(reader)
        assert not isinstance(verified, Broken), str(verified)
        assert balance["covered"] is True
        assert balance["custody_msat"] == balance["liabilities_msat"]
        spent = set(self.mint.audit()["spent_ys"])
        theirs = {
            crypto.hash_to_curve(proof.secret).hex(): proof.amount
            for token in map(decode_token, self.tokens)
            for proof in token.proofs
        }
        unspent = sum(amount for y, amount in theirs.items() if y not in spent)
        owed = self._outstanding() - self._owed_before
        assert owed * 1_000 == unspent * 1_000 + balance["custody_msat"]
        return balance

    def stop(self) -> None:
        """End it, however it stands."""
        if self.server is not None:
            with contextlib.suppress(ProcessLookupError):
                self.server.process.kill()
            self.server.process.wait()

    def _outstanding(self) -> int:
        return int(self.mint.audit()["outstanding"].get("sat", 0))

    def _asked(self, request: Request) -> dict[str, Any]:
        told = asyncio.run(ask_server(self.folder / "data", request))
        assert told is not None, "no server is running"
        return told
