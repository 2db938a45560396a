"""The real peer itself: without it the contract tests would prove nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from farebox.wire.cashu.token import decode_token
from tests.peers.nutshell import Nutshell

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
