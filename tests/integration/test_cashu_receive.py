"""Tokens in: credited once by one call to the mint, whatever is lost on the way."""

from __future__ import annotations

from pathlib import Path

from farebox.payments.service import Received
from farebox.testing.mint import PlayMint
from tests.integration.cashu_house import house_of, issue


async def test_a_token_is_credited_by_one_call_to_the_mint(tmp_path: Path) -> None:
    mint = PlayMint()
    async with house_of(tmp_path, mint) as house:
        await house.receive(issue(mint, 8))
        mint.calls.clear()

        received = await house.receive(issue(mint, 100))

        assert isinstance(received, Received)
        assert (received.amount_msat, received.fresh) == (100_000, True)
        assert dict(mint.calls) == {"swap": 1}
        assert await house.balance_sat() == 108
        await house.assert_whole(mint)
