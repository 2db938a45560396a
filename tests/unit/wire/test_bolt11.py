"""Invoices: the examples of BOLT 11, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farebox.errors import InvalidCredential
from farebox.wire import bech32
from farebox.wire.bolt11 import decode_invoice

HASH = bytes.fromhex("0001020304050607080900010203040506070809000102030405060708090102")
DONATION = (
    "lnbc1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq5"
    "rqwzqfqqqsyqcyq5rqwzqfqypqdpl2pkx2ctnv5sxxmmwwd5kgetjypeh2ursdae8g6twvus8g6rfwvs8qun0dfjkxaq9qrsgq"
    "357wnc5r2ueh7ck6q93dj32dlqnls087fxdwk8qakdyafkq3yap9us6v52vjjsrvywa6rt52cm9r9zqt8r2t7mlcwspyetp5h2"
    "tztugp9lfyql"
)
COFFEE = (
    "lnbc2500u1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqc"
    "yq5rqwzqfqqqsyqcyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpu9qrsgquk0rl77nj30yxdy8j9vdx85fkpmdla2087n"
    "e0xh8nhedh8w27kyke0lp53ut353s06fv3qfegext0eh0ymjpf39tuven09sam30g4vgpfna3rh"
)


def invoice(prefix: str, *fields: tuple[int, bytes], timestamp: int = 1_700_000_000) -> str:
    """An invoice with an empty signature, which this decoder does not look at."""
    words = [timestamp >> 5 * (6 - i) & 31 for i in range(7)]
    for tag, value in fields:
        packed = bech32.to_words(value)
        words += [tag, len(packed) >> 5, len(packed) & 31, *packed]
    return from_words(prefix, [*words, *[0] * 104])


def from_words(prefix: str, words: list[int]) -> str:
    remainder = (
        bech32._polymod((*bech32._expanded(prefix), *words, *[0] * 6))
        ^ bech32.Checksum.BECH32.value
    )
    tail = [remainder >> 5 * (5 - i) & 31 for i in range(6)]
    return prefix + "1" + "".join(bech32._ALPHABET[word] for word in (*words, *tail))


def test_the_invoices_of_the_specification_are_read() -> None:
    donation, coffee = decode_invoice(DONATION), decode_invoice(COFFEE)
    assert (donation.amount_msat, donation.expiry_s) == (None, 3600)
    assert (coffee.amount_msat, coffee.expiry_s) == (250_000_000, 60)
    for one in (donation, coffee):
        assert one.payment_hash == HASH
        assert (one.network, one.created_at_s) == ("bc", 1496314658)
    assert coffee.expires_at_s == 1496314718


def test_case_and_uri_scheme_do_not_matter() -> None:
    assert decode_invoice(" LIGHTNING:" + COFFEE.upper()) == decode_invoice(COFFEE)


@pytest.mark.parametrize(
    ("prefix", "amount_msat"),
    [
        ("lnbc1", 10**11),
        ("lnbc20m", 2_000_000_000),
        ("lnbcrt10n", 1_000),
        ("lntb10p", 1),
        ("lntbs25u", 2_500_000),
        ("lnbc", None),
    ],
)
def test_amounts_are_exact_in_every_multiplier(prefix: str, amount_msat: int | None) -> None:
    assert decode_invoice(invoice(prefix, (1, HASH))).amount_msat == amount_msat


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lnbc",
        COFFEE[:-1] + "q",
        COFFEE[:60],
        COFFEE[:30].upper() + COFFEE[30:],
        "x" * 9_000,
        invoice("lnbc1p", (1, HASH)),
        invoice("lnbc01u", (1, HASH)),
        invoice("lnxx10u", (1, HASH)),
        invoice("lnbc10u"),
        invoice("lnbc10u", (1, HASH[:31])),
        from_words("lnbc", [0] * 20),
        from_words("lnbc", [*[0] * 7, 1, 31, 31, *[0] * 104]),
        from_words("lnbc", [*[0] * 7, 1, *[0] * 104]),
    ],
)
def test_malformed_invoices_are_refused(text: str) -> None:
    with pytest.raises(InvalidCredential):
        decode_invoice(text)


def test_the_first_payment_hash_counts() -> None:
    assert decode_invoice(invoice("lnbc", (1, HASH), (1, bytes(32)))).payment_hash == HASH


@given(st.text(max_size=100))
def test_noise_raises_nothing_but_invalid_credential(noise: str) -> None:
    for text in (noise, "lnbc1" + noise):
        with pytest.raises(InvalidCredential):
            decode_invoice(text)


@given(st.lists(st.integers(min_value=0, max_value=31), max_size=250))
def test_noise_behind_a_good_checksum_raises_nothing_else(words: list[int]) -> None:
    try:
        decode_invoice(from_words("lnbc", words))
    except InvalidCredential:
        return


@given(st.binary(max_size=60))
def test_bech32_words_and_bytes_are_inverse(raw: bytes) -> None:
    assert bech32.to_bytes(bech32.to_words(raw)) == raw
    for checksum in bech32.Checksum:
        text = bech32.encode("x", raw, checksum)
        assert bech32.to_bytes(bech32.decode(text, checksum, 200).words) == raw
