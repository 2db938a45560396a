"""What reads as an address that a rail could still pay when a key ends, and what does not."""

from __future__ import annotations

from typing import Any, cast

import pytest

from farebox.rails.bitcoin.keys import WalletKeys
from farebox.rails.bitcoin.paying import Paying
from farebox.rails.bitcoin.wallet import Wallet
from farebox.rails.web.lnurl import Lnurl

NOBODY = cast("Any", None)  # neither a network nor a book is asked
LNURL = (
    "LNURL1DP68GURN8GHJ7UM9WFMXJCM99E3K7MF0V9CXJ0M385EKVCENXC6R2C35XVUKXEFCV5MKVV34X5EKZD3EV56NYD3"
    "HXQURZEPEXEJXXEPNXSCRVWFNV9NXZCN9XQ6XYEFHVGCXXCMYXYMNSERXFQ5FNS"
)
INVOICE = "lnbc20u1p3y0x3hpp5743k2g0fsqqxj7n8qzuhns5gmkk4djeejk3wkp64ppevgekvc0jsdqcve5kzar2v9nr5"


@pytest.mark.parametrize(
    ("address", "can_pay"),
    [
        ("me@example.com", True),
        ("lightning:me@example.com", True),
        (LNURL, True),
        (LNURL[:-1], False),
        (INVOICE, False),  # it lapses long before
        ("me@", False),
        ("https://mint.example.com", False),
        ("bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu", False),
        ("me@example.com" * 1_000, False),
    ],
)
def test_over_lightning_what_lasts_is_an_address_or_an_lnurl(address: str, can_pay: bool) -> None:
    assert Lnurl(NOBODY).is_lasting(address) is can_pay


@pytest.mark.parametrize(
    ("address", "can_pay"),
    [
        ("bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu", True),
        ("bitcoin:bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu", True),
        ("bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyx", False),
        ("tb1qw508d6qejxtdg4y5r3zarvary0c5xw7kxpjzsx", False),
        ("me@example.com", False),
    ],
)
def test_on_the_chain_it_is_an_address_of_that_network(address: str, can_pay: bool) -> None:
    wallet = Wallet(WalletKeys("abandon " * 11 + "about", "bitcoin"), NOBODY, NOBODY)
    assert Paying(NOBODY, wallet, NOBODY, NOBODY).is_address(address) is can_pay
