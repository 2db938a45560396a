"""Those who pay: they ask, hang up, ask again, race themselves, and want every unit back.

A caller keeps its word in one thing only: what it was told (change, receipts, keys, refunds) it
writes down, and the checker holds the house to it.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import msgspec

from farebox.wire.cashu.locks import p2pk_secret
from farebox.wire.cashu.model import Token
from farebox.wire.cashu.token import decode_token, encode_token
from tests.simulation.mint import FAR, HOME, WALLET, Others
from tests.simulation.network import Ask, Lost, Reply

_TRIES_IN_STORM: Final = 4
_TRIES_IN_CALM: Final = 80
_PAUSE_S: Final = 5
_PAUSE_MAX_S: Final = 240
#: Problems that say: ask again.
_NOT_YET: Final = frozenset({"request_in_progress", "call_in_progress"})

Asking = Callable[[Ask], Awaitable[Reply]]
Act = Callable[[], Coroutine[Any, Any, None]]


@dataclass
class Told:
    """What callers were told, which must stay true whatever stops."""

    receipts: dict[str, dict[str, Any]] = field(default_factory=dict)
    operations: dict[str, int] = field(default_factory=dict)


class Caller:
    """One of them, with a purse."""

    def __init__(
        self, name: str, ask: Asking, others: Others, chance: Random, trace: Callable[[str], None]
    ) -> None:
        self.name = name
        self._ask = ask
        self._others = others
        self._chance = chance
        self._trace = trace
        self._names = 0
        self._unanswered: dict[Ask, None] = {}
        self._is_calm = False
        #: Every token ever had, by its text; the mint says which are still worth something.
        self.tokens: dict[str, Token] = {}
        #: Tokens that were handed in to pay for a request, and those handed in for an account.
        self.embedded: list[str] = []
        self.bearers: list[str] = []
        self.keys: list[str] = []
        self.requests: dict[str, str] = {}
        self.told = Told()
        self.may_cross = False
        #: The house's own key, where it credits money that is locked to it.
        self.lock_key = b""
        self.locked: dict[str, Token] = {}
        self.fails = 0.0

    # ── in the storm ─────────────────────────────────────────────────────────────────────────────

    def _acts(self) -> tuple[Act, ...]:
        """What this one does, the more often the more often it is named."""
        return (
            self._pay_inside,
            self._pay_inside,
            self._pay_by_key,
            self._pay_by_key,
            self._pay_as_bearer,
            self._create,
            self._top_up,
            self._refund,
            self._ask_for_change,
            self._spend_elsewhere,
        )

    async def live(self, until: Callable[[], bool]) -> None:
        """Do one thing after another, some of them at once."""
        acts = self._acts()
        while not until():
            act = self._chance.choice(acts)
            try:
                if self._chance.random() < 0.2:
                    both = act(), self._chance.choice(acts)()
                    for end in await asyncio.gather(*both, return_exceptions=True):
                        if isinstance(end, BaseException):
                            raise end
                else:
                    await act()
            except Lost:
                pass
            await asyncio.sleep(self._chance.expovariate(0.5))

    async def _pay_inside(self) -> None:
        token = self._money()
        self.embedded.append(token)
        ask = self._request((b"x-cashu", token.encode()))
        if self._chance.random() < 0.2:
            wish = self._chance.choice((b"credit", b"token"))
            ask = Ask(ask.method, ask.target, (*ask.headers, (b"x-farebox-change", wish)), ask.body)
        if self._chance.random() < 0.2:  # the same money twice at once
            await asyncio.gather(
                self._paid(token, ask), self._paid(token, ask), return_exceptions=True
            )
        else:
            await self._paid(token, ask)

    async def _paid(self, token: str, ask: Ask) -> None:
        self._note(await self._patiently(ask), token)

    async def _pay_by_key(self) -> None:
        if not self.keys:
            return await self._create()
        key = self._chance.choice(self.keys)
        # A request on a key has no name: to ask again would be to pay again.
        self._note(await self._ask(self._request(bearer(key))))
        return None

    async def _pay_as_bearer(self) -> None:
        token = self._old_or_new()
        self._note(await self._ask(self._request(bearer(token))))

    async def _create(self) -> None:
        token = self._money()
        self.bearers.append(token)
        body: dict[str, object] = {"initial_balance_token": token}
        if self._chance.random() < 0.2:
            body["refund_address"] = f"{self.name}@{WALLET}"
        if self._chance.random() < 0.3:
            body["key_expiry_time"] = self._others.now_s() + self._chance.randint(1, 200)
        reply = await self._patiently(post("/create", body))
        if reply.status in (200, 202):
            self.keys.append(read_json(reply)["api_key"])

    async def _top_up(self) -> None:
        opens = self._chance.choice([*self.keys, self._old_or_new()])
        token = self._money()
        self.bearers.append(token)
        await self._named(post("/topup", {"cashu_token": token}, bearer(opens), self._name()))

    async def _refund(self) -> None:
        opens = self._chance.choice([*self.keys, self._old_or_new()])
        body: dict[str, object] = {}
        if self._chance.random() < 0.6:
            body["amount_msat"] = self._chance.randint(1, 60) * 1_000
        if self._chance.random() < 0.3:
            body["destination"] = f"{self.name}@{WALLET}"
        await self._refunded(opens, body)

    async def _refunded(self, opens: str, body: dict[str, object]) -> Reply:
        return await self._named(post("/refund", body, bearer(opens), self._name()))

    async def _named(self, ask: Ask) -> Reply:
        """A call that may be repeated: it has a name, and one answer for ever."""
        self._unanswered[ask] = None
        if self._chance.random() < 0.1:
            again = asyncio.create_task(self._hear(ask))  # nobody waits for this one
            again.add_done_callback(lambda task: task.exception())
        reply = await self._hear(ask)
        self._unanswered.pop(ask, None)
        return reply

    async def _hear(self, ask: Ask) -> Reply:
        reply = await self._patiently(ask)
        if reply.status == 200 and ask.target == "/refund":
            told = read_json(reply)
            self.told.operations[told["operation"]] = told["amount_msat"]
            self._keep(told.get("token", ""))
        return reply

    async def _ask_for_change(self) -> None:
        if self.requests:
            token = self._chance.choice(list(self.requests))
            self._note(await self._change(token), token)

    async def _change(self, token: str) -> Reply:
        target = f"/v1/change/{self.requests[token]}"
        return await self._patiently(Ask("GET", target, ((b"x-cashu", token.encode()),)))

    async def _spend_elsewhere(self) -> None:
        """Use money at its mint that the house may have been given already."""
        if not self.tokens:
            return
        token = self.tokens[self._chance.choice(list(self.tokens))]
        mint = self._others.mints[token.mint.removeprefix("https://")]
        if token.amount > mint.mint_fee(token) and not any(map(mint.is_spent, token.proofs)):
            swapped = mint.swap(token)
            if swapped is not None:
                self._trace(f"{self.name} spends {token.amount} sat elsewhere")
                self._keep(encode_token(swapped))

    # ── in the calm ──────────────────────────────────────────────────────────────────────────────

    async def collect(self) -> None:
        """Ask for everything that is one's own, as patiently as needed."""
        self._is_calm = True
        for ask in list(self._unanswered):
            await self._named(ask)
        await asyncio.gather(*map(self._ask_again, dict.fromkeys(self.embedded)))
        await self.empty_accounts()

    async def _ask_again(self, token: str) -> None:
        again = Ask("POST", "/echo", ((b"x-cashu", token.encode()),))
        self._note(await self._patiently(again), token)
        if token in self.requests:
            self._note(await self._change(token), token)

    async def empty_accounts(self) -> None:
        """Take out what is on every account that one's keys and tokens open."""
        accounts = dict.fromkeys([*self.keys, *self.bearers, *self.embedded])
        await asyncio.gather(*map(self._empty, accounts))

    async def _empty(self, opens: str) -> None:
        for _ in range(8):
            told = await self._patiently(Ask("GET", "/info", (bearer(opens),)))
            if told.status != 200 and opens not in self.keys:
                return  # a token that was refused, or was spent elsewhere, opens nothing
            if told.status == 200 and read_json(told)["balance"] < 1_000:
                return
            reply = await self._refunded(opens, {})
            # A mint that has put its keys out of use a moment ago refuses once.
            if reply.status in (400, 402) and read_json(reply)["code"] != "mint_refused":
                return
        raise AssertionError(f"{self.name} cannot take out what is on {opens[:12]}: {reply}")

    # ── how ──────────────────────────────────────────────────────────────────────────────────────

    async def _patiently(self, ask: Ask) -> Reply:
        """Ask until there is a final answer; in the storm not for long. Raises Lost."""
        tries = _TRIES_IN_CALM if self._is_calm else self._chance.randint(1, _TRIES_IN_STORM)
        last: Reply | None = None
        pause_s: float = _PAUSE_S
        for _ in range(tries):
            try:
                last = await self._ask(ask)
            except Lost:
                last = None
            if last is not None and not self._is_passing(last):
                return last
            pause_s = min(pause_s * 1.5, _PAUSE_MAX_S)
            await asyncio.sleep(pause_s if self._is_calm else self._chance.uniform(0, 8))
        if self._is_calm:
            raise AssertionError(f"{self.name} is never told for good: {ask.target}: {last}")
        raise Lost

    def _is_passing(self, reply: Reply) -> bool:
        """Whether it says: ask again."""
        return _is_passing(reply)

    def _request(self, pays: tuple[bytes, bytes]) -> Ask:
        if self._chance.random() < 0.4:
            return Ask("POST", "/echo", (pays,), b"hello")
        body = msgspec.json.encode(
            {
                "model": "play-1",
                "max_tokens": self._chance.randint(1, 40),
                "stream": self._chance.random() < 0.6,
                "messages": [{"role": "user", "content": "Hi"}],
            }
        )
        play = self._play()
        headers = (pays, (b"content-type", b"application/json"))
        extra = ((b"x-play", play.encode()),) if play else ()
        receipt = ((b"x-farebox-stream-receipt", b"1"),) if self._chance.random() < 0.5 else ()
        return Ask("POST", "/v1/chat/completions", (*headers, *extra, *receipt), body)

    def _play(self) -> str:
        """How the upstream behaves this time."""
        slow = "slow=0.3," if self._chance.random() < 0.3 else ""
        if self._chance.random() >= self.fails:
            return slow
        return slow + self._chance.choice(
            ("status=500", "status=429", "drop", "garbage", "cut=2", "error=1", "nousage", "lie=9")
        )

    def _note(self, reply: Reply, token: str = "") -> None:
        """Write down what an answer tells."""
        self._keep(reply.header("x-cashu") if reply.header("x-cashu")[:5] == "cashu" else "")
        request = reply.header("x-farebox-request-id")
        receipt = reply.header("x-farebox-receipt")
        if b": farebox receipt=" in reply.body:
            receipt = reply.body.partition(b": farebox receipt=")[2].split()[0].decode()
        if reply.header("content-type").startswith("application/") and reply.is_whole:
            told = read_json(reply) if reply.body[:1] == b"{" else {}
            if "request_id" in told:
                request = told["request_id"]
                self._keep(told.get("token") or "")
        if receipt:
            facts = _read_receipt(receipt)
            change = reply.header("x-cashu")
            if change and decode_token(change).amount * 1_000 != facts["returned_msat"]:
                raise AssertionError(f"the change is not what its receipt says: {facts}")
            self.told.receipts[facts["request_id"]] = facts
        if request and token:
            self.requests[token] = request

    def _money(self) -> str:
        """A token to spend: change of one's own, or new from a mint."""
        if self.tokens and self._chance.random() < 0.3:
            return self._chance.choice(list(self.tokens))
        if self.locked and self._chance.random() < 0.15:
            return self._part()
        host = FAR if self.may_cross and self._chance.random() < 0.3 else HOME
        amount = self._chance.choice((8, 21, 64, 100, 250))
        mint = self._others.mints[host].mint
        is_locked = bool(self.lock_key) and host == HOME and self._chance.random() < 0.5
        token = mint.issue_with(self._lock, amount) if is_locked else mint.issue(amount)
        text = encode_token(token)
        self._trace(f"{self.name} gets {amount} sat at {host}{', locked' if is_locked else ''}")
        self._keep(text)
        if is_locked:
            self.locked[text] = token
        return text

    def _part(self) -> str:
        """Some of the proofs of a locked token: money that was spent, in a token never seen."""
        token = self._chance.choice(list(self.locked.values()))
        some = token.proofs[: self._chance.randint(1, len(token.proofs))]
        text = encode_token(Token(token.mint, token.unit, some))
        self._keep(text)
        return text

    def _lock(self) -> str:
        return p2pk_secret(secrets.token_hex(16), self.lock_key)

    def _old_or_new(self) -> str:
        if self.bearers and self._chance.random() < 0.6:
            return self._chance.choice(self.bearers)
        token = self._money()
        self.bearers.append(token)
        return token

    def _keep(self, text: str) -> None:
        if text:
            self.tokens.setdefault(text, decode_token(text))

    def _name(self) -> tuple[bytes, bytes]:
        self._names += 1
        return (b"idempotency-key", f"{self.name}-{self._names}".encode())


def bearer(secret: str) -> tuple[bytes, bytes]:
    return (b"authorization", b"Bearer " + secret.encode())


def post(target: str, body: object, *headers: tuple[bytes, bytes]) -> Ask:
    json = (b"content-type", b"application/json")
    return Ask("POST", target, (json, *headers), msgspec.json.encode(body))


def read_json(reply: Reply) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(reply.body)
    return found


def _is_passing(reply: Reply) -> bool:
    if not reply.is_whole or reply.status in (202, 429, 500, 502, 503, 504):
        return True
    return reply.status == 409 and read_json(reply).get("code") in _NOT_YET


def _read_receipt(text: str) -> dict[str, Any]:
    raw = text.partition(".")[0]
    facts: dict[str, Any] = msgspec.json.decode(
        base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4))
    )
    return facts
