"""A disk that is full stops payments before they move money, and loses none of what moves then.

`farebox serve` in a process of its own: once with files that may not grow (as a quota is), once on
a file system with no room left. Its log is on the same disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from tests.acceptance.world import Answered, Mint
from tests.faults.served import CHAT, PRICE_SAT, House, PlayMoney
from tests.waiting import eventually

_CODES = {"store_unavailable", "books_unavailable"}


class Disk(Protocol):
    """Where the book is."""

    folder: Path

    def fill(self, house: House) -> None:
        """Leave no room."""
        ...

    def clear(self, house: House) -> None:
        """Leave room again."""
        ...


@dataclass
class Quota:
    """Files may not grow: every write beyond the limit fails."""

    folder: Path

    def fill(self, house: House) -> None:
        self._limit(house, 1 << 12)

    def clear(self, house: House) -> None:
        with contextlib.suppress(ProcessLookupError):  # it was killed, and its limit is gone
            self._limit(house, resource.RLIM_INFINITY)

    def _limit(self, house: House, soft_bytes: int) -> None:
        assert house.server is not None
        limits = (soft_bytes, resource.RLIM_INFINITY)
        resource.prlimit(house.server.process.pid, resource.RLIMIT_FSIZE, limits)


@dataclass
class Small:
    """A file system of a few MiB, filled by somebody else's file."""

    folder: Path

    def fill(self, _: House | None = None) -> None:
        with contextlib.suppress(OSError), (self.folder / "filler").open("ab", 0) as filler:
            for block in (1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while filler.write(b"x" * block) == block:
                        pass

    def clear(self, _: House | None = None) -> None:
        (self.folder / "filler").unlink()


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Small]:
    """A small file system there, for as long as it lasts."""
    tmpfs = ["mount", "-t", "tmpfs", "-o", f"size={size}", "farebox-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(tmpfs, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        yield Small(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(params=["quota", "small"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    if request.param == "quota":
        yield Quota(tmp_path)
        return
    with mounted(tmp_path, "4m") as small:
        yield small


@pytest.fixture
def house(disk: Disk, mint: Mint, upstream: str) -> Iterator[House]:
    flags = ("--upstream", upstream, "--mint", mint.url, "--price", f"{PRICE_SAT} sat")
    house = House(disk.folder, (*flags, "--data", "data"), PlayMoney(mint, mint.url))
    house.start()
    yield house
    house.stop()


def test_a_full_disk_takes_no_money_and_what_was_under_way_is_settled_when_there_is_room(
    disk: Disk, house: House
) -> None:
    body = {"initial_balance_token": house.token(100)}
    made = house.ask("/create", {}, body)
    assert made is not None
    key = {"Authorization": f"Bearer {made.json()['api_key']}"}
    slow = {**CHAT, "x-play": "slow=5"}
    embedded, waiting = house.token(64), [house.token(32) for _ in range(4)]
    with ThreadPoolExecutor(4) as callers:
        under_way = [
            callers.submit(house.ask, "/v1/chat/completions", pays, slow)
            for pays in (key, {"X-Cashu": embedded})
        ]
        # The token has been swapped, too.
        asyncio.run(eventually(house.held_msat, lambda held: held == 2 * PRICE_SAT * 1_000))
        disk.fill(house)
        try:
            _refused(house, key, waiting)
            _delivered(under_way)
        finally:
            disk.clear(house)
    for token in waiting:
        assert house.pays(token) == PRICE_SAT * 1_000
    asyncio.run(eventually(house.held_msat, lambda held: held == 0))
    assert house.pays(embedded) in (0, PRICE_SAT * 1_000)
    balance = house.prove()
    assert balance["revenue_msat"] == (len(waiting) + 2) * PRICE_SAT * 1_000
    assert house.server is not None
    assert house.server.stop() == 0
    assert "stopped: every request that was running is settled" in house.server.said()


def _refused(house: House, key: dict[str, str], tokens: list[str]) -> None:
    """Write until nothing can be written any more; from then on nothing is taken."""
    for _ in range(2_000):
        told = house.ask("/echo", key)
        if told is None or told.status != 200:
            break
    assert told is not None
    assert (told.status, told.json()["code"] in _CODES) == (503, True), told
    for token in tokens:
        told = house.ask("/echo", {"X-Cashu": token})
        assert told is not None
        assert (told.status, told.json()["code"] in _CODES) == (503, True), told


def _delivered(under_way: list[Future[Answered | None]]) -> None:
    """What was paid for before is delivered: the bill is remembered."""
    for one in under_way:
        answer = one.result()
        assert answer is not None
        assert answer.status == 200, answer


def test_a_server_that_is_killed_on_a_full_disk_loses_nothing(disk: Disk, house: House) -> None:
    tokens = [house.token(32) for _ in range(4)]
    assert house.pays(tokens[0]) == PRICE_SAT * 1_000
    disk.fill(house)
    asked = [house.ask("/echo", {"X-Cashu": token}) for token in tokens[1:]]
    house.kill()
    disk.clear(house)
    house.start()
    for token, told in zip(tokens[1:], asked, strict=True):
        assert told is not None
        assert told.status in (200, 503)
        assert house.pays(token) == PRICE_SAT * 1_000
    assert house.prove()["revenue_msat"] == 4 * PRICE_SAT * 1_000
