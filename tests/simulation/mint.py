"""The machines of others: play mints with moods, a Lightning wallet, what the house sells."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from random import Random
from typing import Final
from urllib.parse import parse_qs

import msgspec

from farebox.clock import NS_PER_S
from farebox.ecash.mint import MeltQuoteState, MintQuoteState
from farebox.errors import RailRejected
from farebox.testing.asgi import Receive, Scope, Send, drop, respond
from farebox.testing.mint import PlayLightning, PlayMint, StaysPending
from farebox.testing.mint.bank import Bank
from farebox.testing.mint.books import Books, Change, SpentRow
from farebox.testing.upstream import PlayUpstream
from farebox.wire.cashu import crypto
from farebox.wire.cashu.model import BlindedMessage, Proof, Token
from tests.simulation.nature import WorldClock
from tests.simulation.weather import Weather

#: The mint that the house trusts, and the one at the far end of Lightning.
HOME: Final = "home.sim"
FAR: Final = "far.sim"
WALLET: Final = "wallet.sim"
#: What a mint may say to a call that it has not carried out, and may carry out the next time.
_PASSING: Final = (None, 0, 11000, 11002, 11004, 20005, 99999)
_NOT_NOW: Final = (408, 429, 500, 503)


class Mint:
    """A play mint in a mood: the real rules behind answers that put off."""

    def __init__(self, host: str, mint: PlayMint, fee_ppk: int, chance: Random) -> None:
        self.host = host
        self.fee_ppk = fee_ppk
        self.mint = mint
        self._chance = chance
        self.refuses = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if self.refuses and self._chance.random() < self.refuses:
            match self._chance.randrange(4):
                case 0:
                    return await drop(send)
                case 1:
                    return await respond(send, self._chance.choice(_NOT_NOW), b"no", "text/plain")
                case 2:
                    code = self._chance.choice(_PASSING)
                    body = msgspec.json.encode({"detail": "not now", "code": code})
                    return await respond(send, 400, body)
                case _ if scope["path"] == "/v1/melt/bolt11":
                    self.mint.faults.next("melt", StaysPending())
        return await self.mint(scope, receive, send)

    @property
    def books(self) -> Books:
        """All that it knows."""
        return self.bank._books

    @property
    def bank(self) -> Bank:
        """Its rules, for who needs no network: its own customers."""
        return self.mint._bank

    def settle_melts(self, paid: Callable[[], bool]) -> None:
        """End the payments that hang, one way or the other."""
        hanging = [
            one.quote
            for one in self.books.melt_quotes.values()
            if one.state is MeltQuoteState.PENDING
        ]
        for quote in hanging:
            try:
                self.bank.settle(quote, paid=paid())
            except RailRejected:  # paid in another way meanwhile
                self.bank.settle(quote, paid=False)

    def swap(self, token: Token) -> Token | None:
        """A customer makes new money of a token; None where it was spent."""
        made = []
        keyset = self.bank.keyring.active(token.unit)
        assert keyset is not None
        fee = self.mint_fee(token)
        amounts = _powers(token.amount - fee)
        for amount in amounts:
            secret, r = secrets.token_hex(32), secrets.token_bytes(32)
            made.append(
                (secret, r, BlindedMessage(amount, keyset.public.id, crypto.blind(secret, r)))
            )
        try:
            signatures = self.bank.swap(token.proofs, [output for _, _, output in made])
        except RailRejected:
            return None
        proofs = [
            Proof(
                signature.amount,
                keyset.public.id,
                secret,
                crypto.unblind(signature.C_, r, keyset.public.keys[signature.amount]),
            )
            for (secret, r, _), signature in zip(made, signatures, strict=True)
        ]
        return Token(token.mint, token.unit, tuple(proofs))

    def let_others_spend(self, y: bytes, amount: int) -> None:
        """Break the lock of a proof: whoever has its money now, it is gone."""
        if y not in self.books.spent:
            self.books.commit(Change(spent=(SpentRow(y, amount, "sat"),)))

    def mint_fee(self, token: Token) -> int:
        """What it takes for spending a token."""
        keysets = [self.bank.keyring.get(proof.keyset_id) for proof in token.proofs]
        return -(-sum(one.public.input_fee_ppk for one in keysets if one) // 1_000)

    def fee_of(self, count: int) -> int:
        """The most that it takes for spending so many proofs, whichever of its keys they are of."""
        ppk = max(row.input_fee_ppk for row in self.books.keysets)
        return -(-count * ppk // 1_000)

    def is_spent(self, proof: Proof) -> bool:
        """Whether it has taken a proof back."""
        return crypto.hash_to_curve(proof.secret) in self.books.spent


class Upstream:
    """What the house sells: a play upstream that counts which requests came through."""

    def __init__(self) -> None:
        self._app = PlayUpstream()
        self.seen: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        self.seen[dict(scope["headers"])[b"x-request-id"].decode()] += 1
        await self._app(scope, receive, send)


def _powers(amount: int) -> list[int]:
    return [1 << bit for bit in range(amount.bit_length()) if amount >> bit & 1]


class Others:
    """All of them together."""

    def __init__(self, clock: WorldClock, chance: Random, *, fee_ppk: int) -> None:
        lightning = PlayLightning(clock)
        self._clock = clock
        self._chance = chance
        self.upstream = Upstream()
        self.mints: Mapping[str, Mint] = {
            host: Mint(
                host,
                PlayMint(
                    url=f"https://{host}",
                    fee_ppk=fee,
                    lightning=lightning,
                    clock=clock,
                    invoices_pay_themselves=False,
                ),
                fee,
                chance,
            )
            for host, fee in ((HOME, fee_ppk), (FAR, 0))
        }

    def now_s(self) -> int:
        """Unix seconds."""
        return self._clock.now_ns() // NS_PER_S

    async def live(self, weather: Callable[[], Weather]) -> None:
        """What mints do by themselves: hanging payments end, keys are rotated."""
        while True:
            await asyncio.sleep(self._chance.uniform(1, 40))
            for mint in self.mints.values():
                mint.settle_melts(lambda: self._chance.random() < 0.5)
            if weather().rotates_keys and self._chance.random() < 0.2:
                self.mints[HOME].mint.rotate(fee_ppk=self._chance.choice((0, 100, 1_000)))

    def set_weather(self, weather: Weather) -> None:
        """How often they refuse from now on."""
        for mint in self.mints.values():
            mint.refuses = weather.mint_refuses

    async def wallet(self, scope: Scope, receive: Receive, send: Send) -> None:
        """LNURL-pay of a wallet that keeps its money at the far mint."""
        asked = parse_qs(scope["query_string"].decode())
        if "amount" not in asked:
            answer: dict[str, object] = {
                "tag": "payRequest",
                "callback": f"https://{WALLET}/pay",
                "minSendable": 1_000,
                "maxSendable": 1_000_000_000,
            }
        else:
            quote = self.mints[FAR].bank.mint_quote(int(asked["amount"][0]) // 1_000, "sat", None)
            answer = {"pr": quote.request, "routes": []}
        await respond(send, 200, msgspec.json.encode(answer))

    def paid_to_wallet(self) -> int:
        """What arrived there over Lightning, in sat."""
        quotes = self.mints[FAR].books.mint_quotes.values()
        return sum(quote.amount for quote in quotes if quote.state is MintQuoteState.PAID)
