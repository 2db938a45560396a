"""The settings of the Bitcoin rail: `[bitcoin]`."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from farebox.errors import InvalidSettings
from farebox.settings.fields import limit, optional, setting
from farebox.settings.secrets import Secret
from farebox.settings.values import (
    AMOUNT_MSAT,
    FILE,
    NAME,
    SECRET,
    WORD,
    Kind,
    Where,
    check_limits,
    choice,
    integer,
    many,
    seconds,
)

_URL_MAX_CHARS = 2_048
_PEERS_MAX = 8
_DEPTH = re.compile(r"([0-9]{1,3}) from ([0-9]{1,16}) sat")
_DAY_S = 86_400


class BitcoinSource(enum.Enum):
    """Where the chain is asked."""

    CORE = "core"
    ELECTRUM = "electrum"
    ESPLORA = "esplora"
    FILTERS = "filters"


_WEB = ("http", "https")
_SCHEMES = {
    BitcoinSource.CORE: _WEB,
    BitcoinSource.ELECTRUM: ("tcp", "ssl"),
    BitcoinSource.ESPLORA: _WEB,
    BitcoinSource.FILTERS: ("p2p",),
}


class BitcoinNetwork(enum.Enum):
    """A chain."""

    BITCOIN = "bitcoin"
    TESTNET = "testnet"
    TESTNET4 = "testnet4"
    SIGNET = "signet"
    REGTEST = "regtest"


def _url(raw: object, _: Where) -> str:
    if not isinstance(raw, str) or len(raw) > _URL_MAX_CHARS:
        raise TypeError
    if not re.fullmatch(r"(https?|tcp|ssl|p2p)://[^\s@?#]+", raw):
        raise ValueError
    return raw


def _depth(raw: object, _: Where) -> tuple[int, int]:
    found = _DEPTH.fullmatch(raw) if isinstance(raw, str) else None
    if found is None or int(found[1]) < 1:
        raise ValueError
    return int(found[2]), int(found[1])


def _block_hash(raw: object, _: Where) -> str:
    if not isinstance(raw, str) or not re.fullmatch(r"[0-9a-f]{64}", raw):
        raise ValueError
    return raw


_SOURCE_URL = Kind(
    "an http://, https://, tcp://, ssl:// or p2p:// address without credentials",
    _url,
    textual=True,
)
_DEPTHS = many(Kind('confirmations by value, such as "3 from 100000 sat"', _depth), least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BitcoinSettings:
    """A Bitcoin wallet of yours. Without a `url` there is none."""

    source: BitcoinSource = setting(
        choice(BitcoinSource),
        "Where the chain is asked: a node of yours (Bitcoin Core or btcd) by Core's RPC, an "
        "Electrum server, or an Esplora; those two learn all your addresses. Or nodes that serve "
        "compact filters and learn none.",
        "core",
    )
    url: str | None = optional(
        _SOURCE_URL,
        "Its address; of nodes that serve filters p2p://host:port,host:port. Left out, the chain "
        "is not used. Needs `pip install 'farebox[bitcoin]'`.",
        "http://127.0.0.1:8332",
    )
    login: Secret | None = optional(
        SECRET,
        "A node's RPC user and password, as user:password.",
        {"file": "bitcoin.login"},
    )
    certificate: Path | None = optional(
        FILE, "A node's own TLS certificate, where no authority vouches for it.", "rpc.cert"
    )
    key: Secret | None = optional(
        SECRET,
        "The wallet, so that it signs by itself: a mnemonic, or a descriptor with private keys "
        "that ends in /<0;1>/*.",
        {"file": "bitcoin.key"},
    )
    watch: str | None = optional(
        Kind("an extended public key or a descriptor", lambda raw, _: _public(raw), textual=True),
        "The wallet, so that you sign elsewhere: an extended public key, or a descriptor that ends "
        "in /<0;1>/*. Payments out then wait for your signature.",
        "wpkh([d34db33f/84h/0h/0h]xpub.../<0;1>/*)",
    )
    network: BitcoinNetwork = setting(
        choice(BitcoinNetwork), "The chain; addresses of another one are refused.", "bitcoin"
    )
    start_height: int | None = optional(
        integer(0, 100_000_000),
        "The block from which on the wallet may have been paid. Left out, a few before its first "
        "start; needed for a wallet that is older.",
        850_000,
    )
    start_hash: str | None = optional(
        Kind("the hash of a block, 64 hexadecimal digits", _block_hash, textual=True),
        "The block before `start_height`, for filters on the bitcoin network: no filter up to it "
        "is asked for.",
        "00000000000000000000" + "ab" * 22,
    )
    name: str = setting(
        NAME, "What this wallet is called in the books. A new wallet gets a new name.", "main"
    )
    ceiling_msat: int = setting(
        AMOUNT_MSAT,
        "The most we are ready to hold in this wallet; no deposit is asked for beyond.",
        "100000000 sat",
        key="ceiling",
    )
    deposit_min_msat: int = limit("deposit_min", "5000 sat")
    deposit_max_msat: int = limit("deposit_max", "10000000 sat")
    payout_min_msat: int = limit("payout_min", "5000 sat")
    payout_max_msat: int = limit("payout_max", "10000000 sat")
    deposit_expiry_s: int = setting(
        integer(60, 30 * _DAY_S), "How long an address is waited at.", _DAY_S
    )
    confirmations: tuple[tuple[int, int], ...] = setting(
        _DEPTHS,
        "How deep an output must be to be credited, by its value.",
        ["1 from 0 sat", "3 from 100000 sat", "6 from 10000000 sat"],
    )
    payout_confirmations: int = setting(
        integer(1, 100), "How deep a payment out must be to be over.", 3
    )
    batch_window_s: int = setting(
        integer(0, _DAY_S), "How long a payment out waits for others to leave with.", 30
    )
    batch_most: int = setting(integer(1, 500), "With so many it leaves at once.", 100)
    fee_blocks: int = setting(
        integer(1, 144), "Fees are such that a payment is in a block within so many.", 6
    )
    fee_rate: int = setting(
        integer(1, 10_000), "Satoshi per virtual byte where the source has no estimate.", 5
    )
    fee_rate_max: int = setting(
        integer(1, 100_000),
        "The most satoshi per virtual byte that are paid; above it payments wait.",
        200,
    )
    bump_after_blocks: int = setting(
        integer(1, 1_000), "After so many blocks a payment that is in none is sent dearer.", 3
    )
    allowed: tuple[str, ...] = setting(
        many(WORD), "Only these addresses are paid. Left empty, everybody is.", []
    )
    round_s: float = setting(seconds(3_600), "How often the chain is looked at.", 10)


def check_bitcoin(found: BitcoinSettings) -> None:
    """What belongs together is there. Raises InvalidSettings."""
    if found.url is None:
        return
    if (found.key is None) == (found.watch is None):
        raise InvalidSettings("bitcoin.key", "neither or both", "bitcoin.key or bitcoin.watch")
    schemes = _SCHEMES[found.source]
    if found.url.partition("://")[0] not in schemes:
        allowed = f"for {found.source.value}: {' or '.join(f'{one}://…' for one in schemes)}"
        raise InvalidSettings("bitcoin.url", found.url, allowed)
    if found.source is BitcoinSource.FILTERS:
        _check_filters(found, found.url)
    if found.source is BitcoinSource.CORE and found.login is None:
        raise InvalidSettings("bitcoin.login", "nothing", "user:password of the node at its url")
    check_limits("bitcoin", found)
    if found.confirmations[0][0] != 0 or list(found.confirmations) != sorted(found.confirmations):
        raise InvalidSettings("bitcoin.confirmations", "no rise", "a list that rises from 0 sat")


def peers_of(url: str) -> list[tuple[str, int]]:
    """Host and port of each node of p2p://host:port,host:port. Raises InvalidSettings."""
    found = []
    for one in url.partition("://")[2].split(","):
        try:
            where = urlsplit(f"//{one}")
            host, port = where.hostname, where.port
        except ValueError:
            host, port = None, None
        if not host or not port or where.path:
            raise InvalidSettings("bitcoin.url", url, "p2p://host:port, more of them after a comma")
        found.append((host, port))
    if len(found) > _PEERS_MAX or len(set(found)) < len(found):
        raise InvalidSettings("bitcoin.url", url, f"each node once, {_PEERS_MAX} at most")
    return found


def _check_filters(found: BitcoinSettings, url: str) -> None:
    peers_of(url)
    is_dated = found.start_hash is not None and bool(found.start_height)
    if found.network is BitcoinNetwork.BITCOIN and not is_dated:
        allowed = "bitcoin.start_height and the hash of the block before it"
        raise InvalidSettings("bitcoin.start_hash", found.start_hash or "nothing", allowed)


def _public(raw: object) -> str:
    if not isinstance(raw, str) or not raw.isascii() or re.search("[xtyzuv]prv", raw):
        raise ValueError  # a private key belongs into `key`
    return raw
