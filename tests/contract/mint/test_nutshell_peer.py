"""The real peer itself: without it the contract tests would prove nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from farebox.testing.asgi import serving
from farebox.testing.mint import PlayMint
from farebox.wire.cashu.token import decode_token, encode_token
from tests.peers.nutshell import Nutshell, NutshellWallet

pytestmark = pytest.mark.peer


def test_the_real_wallet_hands_tokens_on_through_the_real_mint(
    nutshell: Nutshell, tmp_path: Path
) -> None:
    payer_home, payee_home = tmp_path / "payer", tmp_path / "payee"
    payer_home.mkdir()
    payee_home.mkdir()
    payer, payee = nutshell.wallet(payer_home), nutshell.wallet(payee_home)
    payer.invoice(1000)

    text = payer.send(100)
    payee.receive(text)

    token = decode_token(text)
    assert (token.mint, token.unit, token.amount) == (nutshell.url, "sat", 100)
    assert payer.balance_sat() == 900
    assert payee.balance_sat() == 100


@pytest.mark.parametrize("fee_ppk", [0, 100])
async def test_the_real_wallet_takes_the_play_mint_for_a_mint(
    nutshell: Nutshell, tmp_path: Path, fee_ppk: int
) -> None:
    play = PlayMint(fee_ppk=fee_ppk)
    async with serving(play) as url:
        play.url = url
        wallet = NutshellWallet(nutshell.wallet_command, url, tmp_path)

        await asyncio.to_thread(wallet.invoice, 100)
        await asyncio.to_thread(wallet.receive, encode_token(play.issue(64)))
        text = await asyncio.to_thread(wallet.send, 50)
        balance_sat = await asyncio.to_thread(wallet.balance_sat)

    # The wallet puts the fee of whoever receives on top of what it sends.
    sent = decode_token(text).amount
    assert 50 <= sent <= 51
    assert balance_sat + sent == play.audit().outstanding["sat"]
