"""A wallet that only watches: payments wait for a signature made elsewhere."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import bdkpython as bdk
import pytest
from typer.testing import CliRunner

from farebox.cli import app
from farebox.cli.desk import carry_out
from farebox.cli.door import open_door
from farebox.cli.requests import Sign, Unsigned
from farebox.errors import InvalidInput
from farebox.rails.bitcoin.keys import WalletKeys
from tests.integration.bitcoin_house import (
    WORDS,
    BitcoinHouse,
    bitcoin_house,
    bitcoin_settings,
)
from tests.peers.bitcoin import BitcoinChain
from tests.waiting import eventually

pytestmark = pytest.mark.peer
IN_SAT, OUT_SAT = 90_000, 20_000


def watched() -> str:
    """The public side of the wallet, as its signer would show it."""
    public = str(WalletKeys(WORDS, "regtest").external.as_public())
    return public.partition("#")[0].replace("/0/*", "/<0;1>/*")


def terms(chain: BitcoinChain, **more: object) -> dict[str, object]:
    since = chain.node.height() + 1
    return bitcoin_settings(chain, start_height=since, watch=watched(), **more)


def signed(psbt: str) -> bdk.Psbt:
    """What the wallet with the key makes of it."""
    keys, found = WalletKeys(WORDS, "regtest"), bdk.Psbt(psbt)
    wallet = bdk.Wallet(keys.external, keys.change, keys.network, bdk.Persister.new_in_memory())
    assert wallet.sign(found)
    return found


@pytest.fixture
async def house(tmp_path: Path, bitcoin: BitcoinChain) -> AsyncIterator[BitcoinHouse]:
    async with bitcoin_house(tmp_path, terms(bitcoin, bump_after_blocks=2)) as opened:
        yield opened


async def unsigned(house: BitcoinHouse, *, beside: str = "") -> dict[str, Any]:
    """The one that waits."""

    async def ask() -> list[dict[str, Any]]:
        facts = await carry_out(house.farebox, Unsigned())
        return [one for one in facts["unsigned"] if one["txid"] != beside]

    (found,) = await eventually(ask)
    return dict(found)


async def over(house: BitcoinHouse, chain: BitcoinChain) -> None:
    await asyncio.to_thread(chain.node.mine, 2)
    await house.passed(await asyncio.to_thread(chain.node.height))
    await house.settled()
    assert await house.wallet_sat() * 1_000 == await house.held_msat()


async def test_a_payment_waits_until_its_signed_form_comes_back(
    house: BitcoinHouse, bitcoin: BitcoinChain
) -> None:
    key, _ = await house.credited(bitcoin, IN_SAT)
    to = bitcoin.payer.address(41)
    await house.paid_out(key, to, OUT_SAT, "signed")
    waits = await unsigned(house)
    assert (waits["pays_sat"], waits["payments"]) == (OUT_SAT, 1)
    assert await asyncio.to_thread(bitcoin.node.pool) == []
    assert len(await house.farebox.operations.unfinished()) == 2
    with pytest.raises(InvalidInput, match="not wholly signed"):
        await carry_out(house.farebox, Sign(waits["id"], waits["psbt"]))
    with pytest.raises(InvalidInput, match="not the PSBT"):
        await carry_out(house.farebox, Sign(waits["id"], "AAAA"))
    text = str(signed(waits["psbt"]).serialize())
    await carry_out(house.farebox, Sign(waits["id"], text))
    assert await asyncio.to_thread(bitcoin.node.pool) == [waits["txid"]]
    with pytest.raises(InvalidInput, match="waits for a signature"):
        await carry_out(house.farebox, Sign(waits["id"], text))
    await over(house, bitcoin)
    assert (await house.told_of(key, to, OUT_SAT, "signed"))["txid"] == waits["txid"]


async def test_what_its_signer_has_sent_himself_counts_as_well(
    house: BitcoinHouse, bitcoin: BitcoinChain
) -> None:
    key, _ = await house.credited(bitcoin, IN_SAT)
    to = bitcoin.payer.address(42)
    await house.paid_out(key, to, OUT_SAT, "sent by hand")
    waits = await unsigned(house)
    raw = bytes(signed(waits["psbt"]).extract_tx().serialize())
    await asyncio.to_thread(bitcoin.payer.send, raw.hex())
    await over(house, bitcoin)
    assert (await house.told_of(key, to, OUT_SAT, "sent by hand"))["txid"] == waits["txid"]


async def test_a_dearer_form_of_what_is_stuck_waits_for_a_signature_too(
    house: BitcoinHouse, bitcoin: BitcoinChain
) -> None:
    key, _ = await house.credited(bitcoin, IN_SAT)
    await house.paid_out(key, bitcoin.payer.address(43), OUT_SAT, "stuck")
    first = await unsigned(house)
    await carry_out(house.farebox, Sign(first["id"], str(signed(first["psbt"]).serialize())))
    for _ in range(2):
        await asyncio.to_thread(bitcoin.node.mine_only)
    second = await unsigned(house, beside=first["txid"])
    assert second["replaces"] == [first["txid"]]
    assert second["fee_sat"] > first["fee_sat"]
    await carry_out(house.farebox, Sign(second["id"], str(signed(second["psbt"]).serialize())))
    assert await asyncio.to_thread(bitcoin.node.pool) == [second["txid"]]
    await over(house, bitcoin)


async def test_the_command_line_carries_it_out_and_in(
    house: BitcoinHouse, bitcoin: BitcoinChain, tmp_path: Path
) -> None:
    key, _ = await house.credited(bitcoin, IN_SAT)
    await house.paid_out(key, bitcoin.payer.address(44), OUT_SAT, "by files")
    waits = await unsigned(house)
    out, back = tmp_path / "out.psbt", tmp_path / "back.psbt"

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["psbt", *arguments, "--data", str(tmp_path)])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    def by_files() -> None:
        assert waits["id"] in run("list")
        assert "written" in run("export", waits["id"], "--to", str(out))
        text = base64.b64encode(out.read_bytes()).decode()
        back.write_bytes(base64.b64decode(str(signed(text).serialize())))
        assert "is sent" in run("import", waits["id"], str(back))
        assert "nothing waits" in run("list")

    async with open_door(tmp_path, lambda request: carry_out(house.farebox, request)):
        await asyncio.to_thread(by_files)
    assert await asyncio.to_thread(bitcoin.node.pool) == [waits["txid"]]
    await over(house, bitcoin)
