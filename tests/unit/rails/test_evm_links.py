"""Addresses are read as wallets write them, and money never goes where a link does not say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.errors import InvalidCredential
from farebox.rails.evm.links import Link, payment_link, read_link

TO = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
TOKEN = "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359"


@given(st.sampled_from(["", TOKEN]), st.none() | st.integers(0, 2**256 - 1))
def test_what_a_deposit_shows_is_read_back(token: str, amount: int | None) -> None:
    link = Link(TO, token, amount)
    assert read_link(payment_link(link, 8_453), 8_453) == link


@pytest.mark.parametrize(
    ("text", "link"),
    [
        (f" {TO.lower()} ", Link(TO)),
        (f"eip155:10:{TO}", Link(TO)),
        (f"ethereum:{TO}", Link(TO)),
        (f"ethereum:pay-{TO}@10", Link(TO)),
        (f"ethereum:{TO}@10?value=2.014e18&gas=1", Link(TO, amount=2_014 * 10**15)),
        (f"ethereum:{TOKEN}/transfer?address={TO}&uint256=1e6", Link(TO, TOKEN, 10**6)),
    ],
)
def test_wallets_write_them_in_many_ways(text: str, link: Link) -> None:
    assert read_link(text, 10) == link


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x12",
        TO.replace("a", "A"),
        f"eip155:1:{TO}",
        f"ethereum:{TO}@1",
        f"ethereum:{TO}@0xa",
        f"ethereum:{TO}@10?value=-1",
        f"ethereum:{TO}@10?value=1.5",
        f"ethereum:{TO}@10?value=1e999",
        f"ethereum:{TOKEN}@10/transfer",
        f"ethereum:{TOKEN}@10/transfer?address=vitalik.eth",
        f"ethereum:{TOKEN}@10/approve?address={TO}&uint256=1",
        f"ethereum:{TO}@10?{'&'.join(['a=1'] * 20)}",
    ],
)
def test_what_cannot_be_understood_is_refused(text: str) -> None:
    with pytest.raises(InvalidCredential):
        read_link(text, 10)
