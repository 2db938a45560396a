"""What `farebox doctor` finds, and that it says what to do."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from farebox.cli import checks
from farebox.clock import NS_PER_S, ManualClock, SystemClock
from farebox.ledger.service import Ledger
from farebox.ledger.standing import BOOK, BookState, Standing, change_state
from farebox.operating import Finding, Verdict
from farebox.operating.findings import disk_space, free_bytes
from farebox.pricing.parse import parse_rules
from farebox.rails.cashu import open_session
from farebox.settings import Settings, create_root_key, load_settings
from farebox.stores.sqlite import SqliteStore
from farebox.testing.asgi import serving
from farebox.testing.mint import PlayMint


def settings(data: Path, **more: object) -> Settings:
    return load_settings(None, {}, {"data_dir": str(data), **more})


def well(finding: Finding) -> bool:
    assert bool(finding.advice) == (finding.verdict is not Verdict.FINE)
    return finding.verdict is Verdict.FINE


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with open_session() as opened:
        yield opened


def test_nothing_to_sell_is_three_faults(tmp_path: Path) -> None:
    findings = checks.settings(settings(tmp_path), ())
    faults = [finding for finding in findings if finding.verdict is Verdict.FAILURE]
    assert len(faults) == 3
    assert all(finding.advice for finding in faults)


def test_dollars_need_a_rate(tmp_path: Path) -> None:
    table: dict[str, Any] = {"price": "1 USD"}
    rules = parse_rules([table])
    without = checks.settings(settings(tmp_path, price=[table]), rules)
    assert "settings: rates" in [finding.check for finding in without]
    rated = settings(tmp_path, price=[table], rates={"btc_usd": "97000"})
    assert "settings: rates" not in [finding.check for finding in checks.settings(rated, rules)]


def test_an_open_data_directory_is_a_warning(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o700)
    assert well(checks.data_directory(tmp_path))
    os.chmod(tmp_path, 0o755)
    finding = checks.data_directory(tmp_path)
    assert finding.verdict is Verdict.WARNING
    assert "chmod 700" in finding.advice
    assert checks.data_directory(tmp_path / "none").verdict is Verdict.WARNING


def test_a_book_without_its_key_is_a_failure_and_a_first_start_is_not(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert checks.needs_root_key(found, {})
    assert checks.root_key(found, {}).verdict is Verdict.WARNING
    assert found.database_path is not None
    found.database_path.touch()
    assert not checks.needs_root_key(found, {})
    assert checks.root_key(found, {}).verdict is Verdict.FAILURE
    key = create_root_key(tmp_path)
    assert well(checks.root_key(found, {}))
    key.chmod(0o644)
    assert "chmod 600" in checks.root_key(found, {}).advice
    assert not checks.needs_root_key(settings(tmp_path / "new"), {"FAREBOX_ROOT_KEY": "00" * 32})


async def test_a_book_that_may_not_be_served_is_a_failure(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert found.database_path is not None
    assert well(checks.book(found, is_served=False))
    store = SqliteStore(found.database_path, (BOOK,))
    closed = BookState(Standing.CLOSED, 1, "it is a copy")
    await change_state(Ledger(store, SystemClock()), closed)
    await store.close()
    finding = checks.book(found, is_served=False)
    assert finding.verdict is Verdict.FAILURE
    assert "is closed: it is a copy" in finding.found
    found.database_path.write_text("no book at all")
    assert checks.book(found, is_served=False).verdict is Verdict.FAILURE


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize(
    ("free", "verdict"),
    [(1 << 20, Verdict.FAILURE), (500 << 20, Verdict.WARNING), (1 << 40, Verdict.FINE)],
)
def test_a_full_disk_is_seen_coming(
    free: int, verdict: Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(1 << 41, 0, free))
    assert disk_space(free_bytes(tmp_path / "not" / "yet")).verdict is verdict


async def test_a_disk_that_cannot_sync_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert well(checks.durable_writes(tmp_path / "not" / "yet"))

    def failing(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    finding = checks.durable_writes(tmp_path)
    assert finding.verdict is Verdict.FAILURE
    assert "Input/output error" in finding.found


async def test_a_mint_that_answers_is_well_and_its_clock_is_compared(
    session: aiohttp.ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(PlayMint()) as url:
        (known,) = settings(tmp_path, mint=[{"url": url}]).mints
        assert all(map(well, await checks.mint(session, known)))
        skewed = ManualClock(SystemClock().now_ns() + 300 * NS_PER_S)
        monkeypatch.setattr(checks, "SystemClock", lambda: skewed)
        finding = await checks.clock(session, url)
    assert finding.verdict is Verdict.FAILURE
    assert "ahead of it" in finding.found
    assert "NTP" in finding.advice


async def test_a_unit_that_a_mint_does_not_issue_is_a_failure(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with serving(PlayMint()) as url:
        (known,) = settings(tmp_path, mint=[{"url": url, "units": ["sat", "msat"]}]).mints
        (finding,) = await checks.mint(session, known)
    assert finding.verdict is Verdict.FAILURE
    assert "msat" in finding.found


async def test_what_does_not_answer_is_named(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    nowhere = "http://127.0.0.1:9"
    (known,) = settings(tmp_path, mint=[{"url": nowhere}]).mints
    (mint,) = await checks.mint(session, known)
    upstream = await checks.upstream(session, nowhere, 1)
    assert (mint.verdict, upstream.verdict) == (Verdict.FAILURE, Verdict.FAILURE)
    assert nowhere in mint.check
    assert nowhere in upstream.check
