"""A wallet that the settings name is whole, or refused with what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from farebox.errors import InvalidSettings
from farebox.settings import load_settings
from farebox.settings.bitcoin import peers_of

WORDS = "abandon " * 11 + "about"
WATCH = "wpkh([d34db33f/84h/0h/0h]xpub/<0;1>/*)"


def settings(**bitcoin: object) -> dict[str, object]:
    return {"bitcoin": {"url": "http://127.0.0.1:8332", "login": "a:b", **bitcoin}}


@pytest.mark.parametrize(
    ("bitcoin", "wrong"),
    [
        ({}, "bitcoin.key"),
        ({"key": WORDS, "watch": WATCH}, "bitcoin.key"),
        ({"watch": "xprv9s21"}, "bitcoin.watch"),
        ({"key": WORDS, "source": "electrum"}, "bitcoin.url"),
        ({"key": WORDS, "url": "tcp://host:1"}, "bitcoin.url"),
        ({"key": WORDS, "url": "http://user:secret@host"}, "bitcoin.url"),
        ({"key": WORDS, "source": "blocks"}, "bitcoin.source"),
        ({"key": WORDS, "source": "filters"}, "bitcoin.url"),
        ({"key": WORDS, "source": "filters", "url": "p2p://host"}, "bitcoin.url"),
        ({"key": WORDS, "source": "filters", "url": "p2p://a:1,a:1"}, "bitcoin.url"),
        ({"key": WORDS, "source": "filters", "url": "p2p://a:1/b"}, "bitcoin.url"),
        ({"key": WORDS, "source": "filters", "url": "p2p://a:1"}, "bitcoin.start_hash"),
        ({"key": WORDS, "start_hash": "0x12"}, "bitcoin.start_hash"),
        ({"key": WORDS, "payout_min": "2 sat", "payout_max": "1 sat"}, "bitcoin.payout_min"),
        ({"key": WORDS, "confirmations": ["3 from 5 sat"]}, "bitcoin.confirmations"),
        ({"key": WORDS, "confirmations": ["0 from 0 sat"]}, "bitcoin.confirmations"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(bitcoin: dict[str, object], wrong: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        load_settings(None, {}, settings(**bitcoin))
    assert wrong in str(refused.value)
    assert "abandon" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("core", "https://node:8332"),
        ("electrum", "ssl://host:50002"),
        ("electrum", "tcp://host:50001"),
        ("esplora", "https://host/api"),
        ("filters", "p2p://host:8333,[::1]:18444"),
    ],
)
def test_each_source_has_its_own_kind_of_address(source: str, url: str) -> None:
    terms = settings(source=source, url=url, watch=WATCH, start_height=9, start_hash="ab" * 32)
    found = load_settings(None, {}, terms).bitcoin
    assert (found.source.value, found.url) == (source, url)


def test_nodes_that_serve_filters_are_named_in_one_address() -> None:
    assert peers_of("p2p://host:8333,[::1]:18444") == [("host", 8333), ("::1", 18444)]


def test_a_key_in_the_settings_file_itself_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "farebox.toml"
    file.write_text(f'[bitcoin]\nurl = "http://127.0.0.1:1"\nkey = "{WORDS}"\n')
    with pytest.raises(InvalidSettings) as refused:
        load_settings(file, {}, {})
    assert "abandon" not in str(refused.value)
