"""Requests paid by an embedded Cashu token against bare swaps at the same mint, in one run.

One Nutshell process, without input fees, serves three lanes that take turns, so that a slow minute
of the machine hits all of them. Each takes as many tokens of 64 sat, one proof each, made before
the clock starts, over as many concurrent workers:

- bare: a minimal client swaps each token to the standard split of its amount, which is one output,
  and unblinds it: the least that receiving a token can cost;
- bare, cut: the same client asks for the outputs that a payee needs who keeps 10 sat and gives back
  the rest from the same swap;
- gateway: a request at a fixed price of 10 sat is paid with `X-Cashu`, and its answer brings the
  change;
- gateway, locked: the same with tokens locked to the gateway's key, which it takes without a call
  to the mint and swaps in batches later, in part while the other lanes run; change is credit.

No process is pinned: mint, client, gateway and upstream share the cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import aiohttp
import msgspec

from benchmarks.servers import Server, stopping
from farebox.clock import SystemClock
from farebox.ecash.mint import MintQuoteState
from farebox.ecash.outputs import Flaw, Output, prepare, unblind_all
from farebox.rails.cashu.http_mint import HttpMint, open_session
from farebox.wire.cashu import crypto
from farebox.wire.cashu.amounts import split
from farebox.wire.cashu.locks import p2pk_secret
from farebox.wire.cashu.model import BlindSignature, Keyset, Proof, Token
from farebox.wire.cashu.request import decode_request
from farebox.wire.cashu.token import decode_token, encode_token
from farebox.wire.cashu.wallet_keys import OutputSecret, WalletKeys
from tests.peers.install import PEERS, PeerUnavailable
from tests.peers.nutshell import Nutshell

ROUNDS = 5
TOKENS = 40
CONCURRENCY = 4
TOKEN_SAT = 64
PRICE_SAT = 10
_QUOTE_TRIES = 100
_BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Say something short."}]}
_Job = Callable[[Proof], Awaitable[None]]


class Figures(msgspec.Struct, frozen=True):
    """Medians over the rounds. Ratios: the gateway's rate to a bare one."""

    rounds: int
    tokens_per_round: int
    concurrency: int
    bare_swaps_per_s: float
    bare_cut_swaps_per_s: float
    gateway_per_s: float
    ratio: float
    ratio_to_cut: float
    gateway_cpu_ms: float
    gateway_locked_per_s: float
    ratio_locked: float


class Client:
    """A wallet with no books: it swaps, unblinds, and forgets."""

    def __init__(self, mint: HttpMint, keyset: Keyset) -> None:
        self._mint = mint
        self._keyset = keyset
        self._keys = WalletKeys(os.urandom(64))
        self._counter = itertools.count()

    async def minted(self, count: int) -> tuple[Proof, ...]:
        """So many proofs of a token's amount, for an invoice that pays itself."""
        quote = await self._mint.mint_quote(count * TOKEN_SAT, "sat")
        for _ in range(_QUOTE_TRIES):
            if (await self._mint.mint_quote_state(quote.quote)).state is MintQuoteState.PAID:
                break
            await asyncio.sleep(0.05)
        outputs = self._outputs([TOKEN_SAT] * count)
        messages = [output.message for output in outputs]
        return self._proofs(outputs, await self._mint.mint_tokens(quote.quote, messages, None))

    async def locked(self, proofs: Sequence[Proof], key: bytes) -> tuple[Proof, ...]:
        """As many proofs, each locked to a key."""
        outputs = []
        for output in self._outputs([proof.amount for proof in proofs]):
            secret = OutputSecret(p2pk_secret(output.derived.secret, key), output.derived.r)
            blinded = crypto.blind(secret.secret, secret.r)
            outputs.append(Output(replace(output.message, B_=blinded), secret))
        messages = [output.message for output in outputs]
        return self._proofs(outputs, await self._mint.swap(proofs, messages))

    async def swap(self, proof: Proof) -> None:
        """Receive a proof."""
        await self._swap(proof, split(TOKEN_SAT, self._keyset.keys))

    async def swap_cut(self, proof: Proof) -> None:
        """Receive a proof so that the price and the rest can go their ways."""
        parts = (PRICE_SAT, TOKEN_SAT - PRICE_SAT)
        await self._swap(
            proof, sorted(one for part in parts for one in split(part, self._keyset.keys))
        )

    async def _swap(self, proof: Proof, amounts: Sequence[int]) -> None:
        outputs = self._outputs(amounts)
        messages = [output.message for output in outputs]
        self._proofs(outputs, await self._mint.swap([proof], messages))

    def _outputs(self, amounts: Sequence[int]) -> tuple[Output, ...]:
        return tuple(
            prepare(self._keys, self._keyset.id, next(self._counter), [amount])[0]
            for amount in amounts
        )

    def _proofs(
        self, outputs: Sequence[Output], signatures: Sequence[BlindSignature]
    ) -> tuple[Proof, ...]:
        proofs = unblind_all(outputs, signatures, self._keyset)
        if isinstance(proofs, Flaw):
            raise RuntimeError(proofs.reason)
        return proofs


class Payer:
    """Asks the gateway, with a token in each request."""

    def __init__(self, gateway: Server, session: aiohttp.ClientSession, mint_url: str) -> None:
        self._url = f"http://127.0.0.1:{gateway.port}/v1/chat/completions"
        self._session = session
        self._mint_url = mint_url

    async def lock_key(self) -> bytes:
        """The key that the gateway wants tokens to be locked to, from its challenge."""
        async with self._session.post(self._url, json=_BODY) as answer:
            wanted = decode_request(answer.headers["X-Cashu"])
        if wanted.lock is None:
            raise RuntimeError("the gateway asks for no lock")
        return bytes.fromhex(wanted.lock.data)

    async def pay(self, proof: Proof) -> None:
        """One request; its answer must be good and bring the change."""
        change = decode_token((await self._paid(proof))["X-Cashu"])
        if change.amount != TOKEN_SAT - PRICE_SAT:
            raise RuntimeError(f"the change was {change.amount} sat")

    async def pay_locked(self, proof: Proof) -> None:
        """One request with a locked token; its answer must be good, its change is credit."""
        if "X-Cashu" in await self._paid(proof):
            raise RuntimeError("the token was swapped at once")

    async def _paid(self, proof: Proof) -> Mapping[str, str]:
        token = encode_token(Token(self._mint_url, "sat", (proof,)))
        headers = {"X-Cashu": token}
        async with self._session.post(self._url, json=_BODY, headers=headers) as answer:
            said = await answer.text()
            if answer.status != 200:
                raise RuntimeError(f"answered {answer.status}: {said[:600]}")
            return answer.headers


async def _per_s(job: _Job, proofs: Sequence[Proof]) -> float:
    """How many of these a second, by `CONCURRENCY` workers."""
    left = iter(proofs)

    async def work() -> None:
        for proof in left:
            await job(proof)

    started_at = time.perf_counter()
    async with asyncio.TaskGroup() as workers:
        for _ in range(CONCURRENCY):
            workers.create_task(work())
    return len(proofs) / (time.perf_counter() - started_at)


@contextlib.asynccontextmanager
async def _nutshell() -> AsyncIterator[str]:
    """The URL of a fresh mint. Raises PeerUnavailable."""
    if not (PEERS / "nutshell" / "installed").exists():
        raise PeerUnavailable("the Nutshell mint is not installed; `make peers` installs it")
    with tempfile.TemporaryDirectory() as folder:
        mint = Nutshell(Path(folder))
        try:
            await asyncio.to_thread(mint.start)
            yield mint.url
        finally:
            await asyncio.to_thread(mint.stop)


@contextlib.asynccontextmanager
async def _gateway(mint_url: str, data: Path) -> AsyncIterator[Server]:
    """A gateway in front of an upstream that answers at once; it takes tokens of the mint."""
    with stopping() as these:
        upstream = these.started(Server("load", None, "PORT", "0"))
        url, price = f"http://127.0.0.1:{upstream.port}", f"{PRICE_SAT} sat"
        arguments = (url, "PORT", these.folder(data), price, mint_url)
        gateway = these.started(Server("paid_gateway", None, *arguments))
        await asyncio.to_thread(gateway.line, "ready")
        for server in (upstream, gateway):
            await server.ready()
        yield gateway


async def measure(data: Path) -> Figures:
    """Alternate rounds through the lanes; the first of each only warms up.

    Raises PeerUnavailable where there is no mint to ask.
    """
    async with (
        _nutshell() as mint_url,
        _gateway(mint_url, data) as gateway,
        open_session() as session,
    ):
        mint = HttpMint(mint_url, session, SystemClock())
        active = next(one for one in await mint.keysets() if one.active and one.unit == "sat")
        client = Client(mint, await mint.keys(active.id))
        payer = Payer(gateway, session, mint_url)
        lock_key = await payer.lock_key()
        lanes = (client.swap, client.swap_cut, payer.pay_locked, payer.pay)
        rates: list[list[float]] = [[] for _ in lanes]
        cpus_ms = []
        for number in range(ROUNDS + 1):
            for lane, kept in zip(lanes, rates, strict=True):
                proofs = await client.minted(TOKENS)
                if lane == payer.pay_locked:
                    proofs = await client.locked(proofs, lock_key)
                before_s = gateway.cpu_s()
                per_s = await _per_s(lane, proofs)
                if number > 0:
                    kept.append(per_s)
            if number > 0:  # the gateway's is the last lane
                cpus_ms.append((gateway.cpu_s() - before_s) / TOKENS * 1e3)
    bare, cut, locked, paid = (statistics.median(kept) for kept in rates)
    return _figures(bare, cut, locked, paid, statistics.median(cpus_ms))


def _figures(bare: float, cut: float, locked: float, paid: float, cpu_ms: float) -> Figures:
    return Figures(
        rounds=ROUNDS,
        tokens_per_round=TOKENS,
        concurrency=CONCURRENCY,
        bare_swaps_per_s=round(bare, 1),
        bare_cut_swaps_per_s=round(cut, 1),
        gateway_per_s=round(paid, 1),
        ratio=round(paid / bare, 2),
        ratio_to_cut=round(paid / cut, 2),
        gateway_cpu_ms=round(cpu_ms, 2),
        gateway_locked_per_s=round(locked, 1),
        ratio_locked=round(locked / bare, 2),
    )
