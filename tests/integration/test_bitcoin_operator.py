"""What an operator is told of his chain, and what goes on while it cannot be asked."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from farebox.cli import checks
from farebox.operating import Finding, Verdict
from farebox.rails.bitcoin import peers
from farebox.settings import load_settings
from tests.integration.bitcoin_house import bitcoin_house, bitcoin_settings
from tests.peers.bitcoin import PASSWORD, BitcoinChain
from tests.waiting import eventually

pytestmark = pytest.mark.peer


async def examined(chain: BitcoinChain, folder: Path, **terms: object) -> Finding:
    found = {"data_dir": str(folder), "bitcoin": bitcoin_settings(chain, **terms)}
    (finding,) = await checks.bitcoin(load_settings(None, {}, found))
    return finding


async def test_the_doctor_tells_what_is_wrong_with_the_chain(
    tmp_path: Path, bitcoin: BitcoinChain, dead_port: int
) -> None:
    fine = await examined(bitcoin, tmp_path)
    assert fine.verdict is not Verdict.FAILURE
    assert f"block {bitcoin.node.height()}" in fine.found
    assert "signs" in fine.found
    other = await examined(bitcoin, tmp_path, network="signet")
    assert other.verdict is Verdict.FAILURE
    assert "another chain" in other.found
    locked = await examined(bitcoin, tmp_path, login="regtest:wrong-password")
    assert locked.verdict is Verdict.FAILURE
    assert "does not let us in" in locked.found
    away = await examined(bitcoin, tmp_path, url=f"http://127.0.0.1:{dead_port}")
    assert away.verdict is Verdict.FAILURE
    mistaken = await examined(bitcoin, tmp_path, key="no words of a wallet")
    assert mistaken.verdict is Verdict.FAILURE
    for one in (fine, other, locked, away, mistaken):
        assert PASSWORD not in f"{one.found} {one.advice}"
        assert "no words" not in f"{one.found} {one.advice}"


async def test_the_doctor_tells_what_is_wrong_with_nodes_that_serve_filters(
    tmp_path: Path, bitcoin: BitcoinChain, dead_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "_TIMEOUT_S", 60)
    here, nowhere = bitcoin.node.peer_url, f"127.0.0.1:{dead_port}"
    for url in (here, f"{here},{nowhere},localhost:{here.rpartition(':')[2]}"):
        fine = await examined(bitcoin, tmp_path, source="filters", url=url)
        assert fine.verdict is not Verdict.FAILURE, fine
        assert f"btcd:0.24.2/, block {bitcoin.node.height()}" in fine.found
    for terms, why in (
        ({"url": f"{here},{nowhere}"}, nowhere),
        ({"url": here, "network": "signet"}, "another network"),
    ):
        wrong = await examined(bitcoin, tmp_path, source="filters", **terms)
        assert wrong.verdict is Verdict.FAILURE
        assert why in wrong.found
    assert not os.listdir(tmp_path)  # asking writes nothing down


async def test_a_chain_that_cannot_be_asked_stops_itself_only(
    tmp_path: Path, bitcoin: BitcoinChain, dead_port: int
) -> None:
    terms = bitcoin_settings(bitcoin, url=f"http://127.0.0.1:{dead_port}")
    async with bitcoin_house(tmp_path, terms) as house:
        asked = await house.asked(50_000_000)  # an address needs no chain
        assert (await house.told(asked))["state"] == "awaiting"

        async def told() -> dict[str, object]:
            methods = (await house.get("/v1/methods"))["methods"]
            return next(one for one in methods if one["method"] == "bitcoin")

        await eventually(told, lambda found: found["works"] is False)
    async with bitcoin_house(tmp_path, {**terms, "url": bitcoin.node.url}) as house:
        await asyncio.to_thread(bitcoin.payer.pay, asked["pay"], 50_000)
        await asyncio.to_thread(bitcoin.node.mine)
        await house.until(asked, "credited")
