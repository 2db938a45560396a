"""The story itself. Every number in it is measured, none is written here."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from farebox.books import open_audit
from farebox.bootstrap import Farebox
from farebox.cli.demo.caller import Caller
from farebox.cli.demo.narrator import Narrator
from farebox.cli.demo.purse import Purse
from farebox.cli.desk import carry_out
from farebox.cli.output import sat
from farebox.cli.requests import Balance
from farebox.clock import SystemClock
from farebox.ledger.invariants import Verified, verify
from farebox.money import sat_to_msat
from farebox.rails.cashu import open_session
from farebox.settings import Settings, load_settings
from farebox.signer import ROOT_BYTES
from farebox.testing.asgi import serving
from farebox.testing.mint import PlayMint
from farebox.testing.upstream import PlayUpstream
from farebox.wire.cashu.token import encode_token

_HOST = "127.0.0.1"
_FIXED_PATH = "/echo"
_PRICES = [
    {"path": _FIXED_PATH, "per_request": "10 sat"},
    {"path": "/v1/*", "per_input_token": "0.05 sat", "per_output_token": "0.25 sat"},
]


@dataclass(slots=True)
class Tally:
    """What was measured so far."""

    unpaid_status: int = 0
    paid_requests: int = 0
    streamed_requests: int = 0
    charged_msat: int = 0
    change_msat: int = 0
    refunded_msat: int = 0
    embedded_requests: int = 0
    mint_calls: int = 0
    books_balanced: bool = False
    custody_covers_liabilities: bool = False
    seconds: float = 0

    @property
    def is_balanced(self) -> bool:
        """Whether the story ended well."""
        return self.books_balanced and self.custody_covers_liabilities

    def facts(self) -> dict[str, object]:
        """What `--json` prints."""
        calls, requests = self.mint_calls, max(self.embedded_requests, 1)
        return {
            "unpaid_status": self.unpaid_status,
            "paid_requests": self.paid_requests,
            "streamed_requests": self.streamed_requests,
            "charged_msat": self.charged_msat,
            "change_msat": self.change_msat,
            "refunded_msat": self.refunded_msat,
            "mint_calls_per_paid_request": (
                round(calls / requests, 2) if calls % requests else calls // requests
            ),
            "books_balanced": self.books_balanced,
            "custody_covers_liabilities": self.custody_covers_liabilities,
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, slots=True)
class _World:
    """Everything that runs."""

    mint: PlayMint
    house: Farebox
    caller: Caller
    purse: Purse
    tally: Tally
    narrator: Narrator

    def token(self, amount_sat: int) -> str:
        """Play money out of the mint's tap."""
        return encode_token(self.mint.issue(amount_sat))

    @contextmanager
    def calls(self) -> Iterator[list[int]]:
        """How many calls reach the mint meanwhile; only the gateway is at work then."""
        before, counted = self.mint.calls.total(), [0]
        yield counted
        counted[0] = self.mint.calls.total() - before


async def tell(folder: Path, narrator: Narrator) -> Tally:
    """Run the whole story in `folder`."""
    began_s = asyncio.get_running_loop().time()
    async with _world(folder, narrator) as world:
        await _unpaid(world)
        await _fixed_price(world)
        await _metered(world)
        await _streamed(world)
        key = await _account(world)
        await _top_up_and_refund(world, key)
        await _verified(world)
    world.tally.seconds = asyncio.get_running_loop().time() - began_s
    return world.tally


@asynccontextmanager
async def _world(folder: Path, narrator: Narrator) -> AsyncIterator[_World]:
    mint, clock, port = PlayMint(), SystemClock(), _free_port()
    async with (
        serving(mint) as mint_url,
        serving(PlayUpstream()) as upstream_url,
        open_session() as session,
    ):
        mint.url = mint_url
        settings = load_settings(
            None,
            {},
            {
                "data_dir": str(folder),
                "gateway.listen": f"{_HOST}:{port}",
                "upstream": [{"urls": [upstream_url]}],
                "mint": [{"url": mint_url}],
                "price": _PRICES,
            },
        )
        async with (
            Farebox(settings, os.urandom(ROOT_BYTES)) as house,
            serving(house.app, host=_HOST, port=port) as url,
        ):
            # What a house asks the mint by itself would be counted as calls of a paid request.
            await house.worker.stop()
            caller, purse = Caller(url, session), Purse(mint_url, session, clock)
            yield _World(mint, house, caller, purse, Tally(), narrator)


def _free_port() -> int:
    """A port that was free a moment ago: links to change must name the gateway's own."""
    with socket.create_server((_HOST, 0)) as probe:
        return int(probe.getsockname()[1])


async def _unpaid(world: _World) -> None:
    world.narrator.step("A stranger asks, and does not pay", f"GET {_FIXED_PATH}")
    answer = await world.caller.get(_FIXED_PATH, {})
    world.tally.unpaid_status = answer.status
    terms = answer.document()
    world.narrator.saw(
        {
            "answer": f"{answer.status} {terms['title']}",
            "price": sat(terms["amount_msat"]),
            "mints taken": ", ".join(terms["accepted_mints"]),
        }
    )


async def _fixed_price(world: _World) -> None:
    paid_sat = 64
    world.narrator.step(
        "He pays inside the request, and too much", f"X-Cashu: a token of {paid_sat} sat"
    )
    token = world.token(paid_sat)
    with world.calls() as calls:
        answer = await world.caller.get(_FIXED_PATH, {"X-Cashu": token})
    change_sat = await world.purse.claim(answer.change)
    _count_embedded(world.tally, answer.charged_msat, sat_to_msat(change_sat), calls[0])
    world.narrator.saw(
        {
            "answer": answer.status,
            "charged": sat(answer.charged_msat),
            "change in the answer": f"{change_sat} sat, taken by its mint",
            "calls to the mint": calls[0],
        }
    )


async def _metered(world: _World) -> None:
    paid_sat = 100
    world.narrator.step(
        "He asks the model: what it costs shows afterwards", f"a token of {paid_sat} sat"
    )
    token = world.token(paid_sat)
    with world.calls() as calls:
        answer = await world.caller.chat({"X-Cashu": token})
    change_sat = await world.purse.claim(answer.change)
    _count_embedded(world.tally, answer.charged_msat, sat_to_msat(change_sat), calls[0])
    usage = answer.document()["usage"]
    left_msat = sat_to_msat(paid_sat - change_sat) - answer.charged_msat
    world.narrator.saw(
        {
            "tokens in and out": f"{usage['prompt_tokens']} and {usage['completion_tokens']}",
            "charged": sat(answer.charged_msat),
            "change": f"{change_sat} sat",
            "below a satoshi": f"{sat(left_msat)}, kept as his credit",
            "calls to the mint": calls[0],
        }
    )


async def _streamed(world: _World) -> None:
    paid_sat = 100
    world.narrator.step(
        "The same, streamed", "the headers leave before the cost is known: they link to the change"
    )
    token = world.token(paid_sat)
    with world.calls() as calls:
        answer = await world.caller.chat({"X-Cashu": token}, stream=True)
        told = await world.caller.change(answer, token)
    change_sat = await world.purse.claim(told["token"])
    world.tally.streamed_requests += 1
    _count_embedded(world.tally, answer.charged_msat, sat_to_msat(change_sat), calls[0])
    world.narrator.saw(
        {
            "answer": f"{answer.status}, in {answer.chunks} chunks",
            "charged": sat(answer.charged_msat),
            "change by its link": f"{change_sat} sat",
            "calls to the mint": calls[0],
        }
    )


async def _account(world: _World) -> dict[str, str]:
    paid_sat = 200
    world.narrator.step("He opens an account, for many requests", "POST /create, then a key")
    made = await world.caller.post("/create", {}, {"initial_balance_token": world.token(paid_sat)})
    pays = {"Authorization": f"Bearer {made['api_key']}"}
    with world.calls() as calls:
        answers = [await world.caller.chat(pays, stream=stream) for stream in (False, True, False)]
    for answer in answers:
        _count_paid(world.tally, answer.charged_msat)
    world.tally.streamed_requests += 1
    world.narrator.saw(
        {
            "key": f"{made['api_key'][:7]}…, shown this once",
            "balance": sat(made["balance"]),
            f"{len(answers)} questions": sat(sum(answer.charged_msat for answer in answers)),
            "calls to the mint": calls[0],
        }
    )
    return pays


async def _top_up_and_refund(world: _World, pays: dict[str, str]) -> None:
    topped_sat = 50
    world.narrator.step("He tops it up, and takes everything back", "POST /topup, POST /refund")
    topped = await world.caller.post("/topup", pays, {"cashu_token": world.token(topped_sat)})
    refund = await world.caller.post("/refund", pays, {})
    refunded_sat = await world.purse.claim(refund["token"])
    world.tally.refunded_msat += sat_to_msat(refunded_sat)
    info = (await world.caller.get("/info", pays)).document()
    world.narrator.saw(
        {
            "topped up": sat(topped["msats"]),
            "refunded": f"{refunded_sat} sat, taken by its mint",
            "left on the account": sat(info["balance"]),
        }
    )


async def _verified(world: _World) -> None:
    world.narrator.step("The books are verified, while the gateway runs", "farebox verify")
    result = await asyncio.to_thread(_verify, world.house.settings)
    balance = await carry_out(world.house, Balance())
    owed_msat, held_msat = balance["liabilities_msat"], balance["custody_msat"]
    # The mint's own word: what it owes, less what lies in the caller's purse, is what we hold.
    outside_msat = sat_to_msat(world.mint.audit().outstanding["sat"] - world.purse.sat)
    receipts_add_up = balance["revenue_msat"] == world.tally.charged_msat
    world.tally.books_balanced = isinstance(result, Verified) and receipts_add_up
    world.tally.custody_covers_liabilities = held_msat >= owed_msat and outside_msat == held_msat
    world.narrator.saw(
        {
            "verified": f"{result.seq} units" if isinstance(result, Verified) else result,
            "held at the mint": f"{sat(held_msat)}; by the mint's own count {sat(outside_msat)}",
            "owed to customers": sat(balance["customers_msat"]),
            "earned": sat(balance["revenue_msat"]),
            "caller's purse": f"{world.purse.sat} sat",
        }
    )


def _verify(settings: Settings) -> object:
    with open_audit(settings) as reader:
        result = verify(reader)
        return result[0] if isinstance(result, tuple) else result


def _count_paid(tally: Tally, charged_msat: int) -> None:
    tally.paid_requests += 1
    tally.charged_msat += charged_msat


def _count_embedded(tally: Tally, charged_msat: int, change_msat: int, mint_calls: int) -> None:
    _count_paid(tally, charged_msat)
    tally.change_msat += change_msat
    tally.embedded_requests += 1
    tally.mint_calls += mint_calls
