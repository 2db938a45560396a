"""How one value is read: each `Kind` knows what it allows and turns raw input into a typed value.

Raw input is what TOML gives, or the text of an environment variable.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from farebox import money
from farebox.errors import InvalidAmount, InvalidSettings
from farebox.settings.secrets import Secret, read_secret_file

T = TypeVar("T")
E = TypeVar("E", bound=enum.Enum)

_FOUND_MAX_CHARS = 80
_LIST_MAX_ITEMS = 64
_MEMO_MAX_CHARS = 100
#: A token of little worth costs a small part of a bitcoin.
_PRICE_DECIMALS = 24
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]{0,8192}")
_USERINFO = re.compile(r"//[^/@\s]*@")


@dataclass(frozen=True, slots=True)
class Address:
    """A host (name or IP address) and a TCP port to listen on; port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Where:
    """The place of a value: its dotted key, and what references in it are resolved against."""

    key: str
    environ: Mapping[str, str]
    folder: Path

    def at(self, name: str) -> Where:
        """The place of a key in the table that stands here."""
        return Where(f"{self.key}.{name}" if self.key else name, self.environ, self.folder)

    def item(self, index: int) -> Where:
        """The place of an item in the list that stands here."""
        return Where(f"{self.key}[{index}]", self.environ, self.folder)

    def wrong(self, found: object, allowed: str) -> InvalidSettings:
        """The error for this place. What was found is cut short, passwords in URLs are left out."""
        return InvalidSettings(self.key, _presentable(found), allowed)


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One kind of value. `parse` raises ValueError or TypeError for what is not allowed."""

    allowed: str
    parse: Callable[[object, Where], T]
    #: Environment text is taken as it stands; otherwise it is first read as a TOML value.
    textual: bool = False
    #: What was found may be a secret and is never shown.
    hidden: bool = False

    def read(self, raw: object, where: Where) -> T:
        """The typed value. Raises InvalidSettings naming `where`."""
        try:
            return self.parse(raw, where)
        except (ValueError, TypeError, InvalidAmount):
            found = f"a {type(raw).__name__} (hidden)" if self.hidden else raw
            raise where.wrong(found, self.allowed) from None


def check_limits(table: str, found: object) -> None:
    """The least of a rail's table is no more than the most. Raises InvalidSettings."""
    for what in ("deposit", "payout"):
        least: int = getattr(found, f"{what}_min_msat")
        if least > getattr(found, f"{what}_max_msat"):
            raise InvalidSettings(f"{table}.{what}_min", f"{least} msat", f"at most {what}_max")


def _presentable(found: object) -> object:
    match found:
        case str():
            # The scissors come last: half a password is still too much.
            text = _USERINFO.sub("//…@", found)
            return text if len(text) <= _FOUND_MAX_CHARS else text[:_FOUND_MAX_CHARS] + "…"
        case list() | tuple():
            return f"a list of {len(found)}"
        case Mapping():
            return "a table"  # there may be a key to an upstream in it
        case _:
            return found


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise TypeError
    return raw


def integer(minimum: int, maximum: int) -> Kind[int]:
    """A whole number within bounds."""

    def parse(raw: object, _: Where) -> int:
        if not isinstance(raw, int) or isinstance(raw, bool) or not minimum <= raw <= maximum:
            raise ValueError
        return raw

    return Kind(f"a whole number from {minimum} to {maximum}", parse)


def seconds(maximum: int) -> Kind[float]:
    """A duration in seconds, more than zero."""

    def parse(raw: object, _: Where) -> float:
        # Comparing first keeps out what no float can hold: nan, inf, and endless integers.
        if not isinstance(raw, int | float) or isinstance(raw, bool) or not 0 < raw <= maximum:
            raise ValueError
        return float(raw)

    return Kind(f"seconds, more than 0 and at most {maximum}", parse)


def choice(options: type[E]) -> Kind[E]:
    """One of the values of an enum."""
    names = ", ".join(f'"{option.value}"' for option in options)
    return Kind(f"one of {names}", lambda raw, _: options(_text(raw)), textual=True)


def many(kind: Kind[T], *, least: int = 0) -> Kind[tuple[T, ...]]:
    """A list without repetitions; a single value stands for a list of one."""

    def parse(raw: object, where: Where) -> tuple[T, ...]:
        items = raw if isinstance(raw, list | tuple) else [raw]
        if not least <= len(items) <= _LIST_MAX_ITEMS:
            raise ValueError
        values = tuple(kind.read(item, where.item(i)) for i, item in enumerate(items))
        if any(value in values[:i] for i, value in enumerate(values)):
            raise ValueError
        return values

    return Kind(f"a list without repetitions, each {kind.allowed}", parse)


def _flag(raw: object, _: Where) -> bool:
    if not isinstance(raw, bool):
        raise TypeError
    return raw


def _address(raw: object, _: Where) -> Address:
    host, separator, port = _text(raw).rpartition(":")
    if not separator or not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65_535:
        raise ValueError
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not re.fullmatch(r"[0-9A-Za-z:._%-]+", bare) or (":" in bare and bare == host):
        raise ValueError
    return Address(bare, int(port))


def _url(raw: object, _: Where) -> str:
    text = _text(raw)
    parts = urlsplit(text)
    clean = text.isascii() and text.isprintable() and " " not in text and len(text) <= 2048
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    # Reading a port that is none raises ValueError.
    named = parts.hostname and (parts.port is None or parts.port > 0)
    if parts.scheme not in ("http", "https") or not named or not clean or not plain:
        raise ValueError
    return text.rstrip("/")


def _origin(raw: object, _: Where) -> str:
    text = _text(raw)
    if text != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[0-9a-z._:\[\]-]{1,255}", text):
        raise ValueError
    return text


def _feed_url(raw: object, _: Where) -> str:
    parts = urlsplit(_text(raw))
    if parts.scheme != "https" or not parts.hostname or parts.username or parts.password:
        raise ValueError
    return _text(raw)


def _path_prefix(raw: object, _: Where) -> str:
    if not re.fullmatch(r"(/[0-9A-Za-z._~!$&'()*+,;=:@%-]*)+", _text(raw)):
        raise ValueError
    return _text(raw)


def _path(raw: object, where: Where) -> Path:
    if not _text(raw) or "\0" in _text(raw):
        raise ValueError
    return where.folder / Path(_text(raw)).expanduser()


def _name(raw: object, _: Where) -> str:
    if not re.fullmatch("[a-z0-9][a-z0-9-]{0,31}", _text(raw)):
        raise ValueError
    return _text(raw)


def _word(raw: object, _: Where) -> str:
    if not re.fullmatch("[A-Za-z0-9._-]{1,128}", _text(raw)):
        raise ValueError
    return _text(raw)


def _destination(raw: object, _: Where) -> str:
    if not re.fullmatch("[A-Za-z0-9._+@:-]{3,2048}", _text(raw)):
        raise ValueError
    return _text(raw)


def _memo(raw: object, _: Where) -> str:
    if not _text(raw).isprintable() or len(_text(raw)) > _MEMO_MAX_CHARS:
        raise ValueError
    return _text(raw)


def _database(raw: object, _: Where) -> Secret:
    scheme, _colon, path = _text(raw).partition(":")
    if "\0" in path or not path or (scheme == "sqlite" and path.startswith("//")):
        raise ValueError
    if scheme not in {"sqlite", "postgresql", "postgres"}:
        raise ValueError
    return Secret(_text(raw))


def _amount_msat(raw: object, _: Where) -> int:
    number, _space, unit = _text(raw).partition(" ")
    return money.parse_decimal(number, {"sat": 3, "msat": 0}.get(unit, -1))


def _rate(raw: object, _: Where) -> str:
    if money.parse_decimal(_text(raw), money.USD.scale) == 0:
        raise ValueError
    return _text(raw)


def _fiat(raw: object, _: Where) -> int:
    return money.parse_decimal(_text(raw), 2)


def _price(raw: object, _: Where) -> str:
    if money.parse_decimal(_text(raw), _PRICE_DECIMALS) == 0:
        raise ValueError
    return _text(raw)


def _asset(raw: object, _: Where) -> str:
    if not re.fullmatch(r"[A-Z][A-Z0-9.-]{1,31}", _text(raw)) or raw == money.BTC.code:
        raise ValueError
    return _text(raw)


def _headers(raw: object, where: Where) -> Mapping[str, Secret]:
    if not isinstance(raw, Mapping) or len(raw) > _LIST_MAX_ITEMS:
        raise TypeError
    values: dict[str, Secret] = {}
    for name, value in raw.items():
        place = where.at(str(name))
        if not _HEADER_NAME.fullmatch(str(name)):
            raise place.wrong("such a name", "the name of an HTTP header")
        secret = SECRET.read(value, place)
        if not _HEADER_VALUE.fullmatch(secret.reveal()):
            raise place.wrong("a value (hidden)", "printable ASCII, at most 8192 characters")
        values[str(name)] = secret
    return values


def _secret(raw: object, where: Where) -> Secret:
    """A text, or a table that says where the text is: `env` or `file`, with an optional `prefix`.

    A prefix such as "Bearer " saves the operator from storing it with the key.
    """
    if isinstance(raw, str):
        return Secret(raw)
    if not isinstance(raw, Mapping) or not all(isinstance(value, str) for value in raw.values()):
        raise TypeError
    prefix = str(raw.get("prefix", ""))
    if set(raw) - {"prefix"} == {"env"}:
        if raw["env"] not in where.environ:
            raise where.wrong(f"no {raw['env']} in the environment", "a variable that is set")
        return Secret(prefix + where.environ[raw["env"]])
    if set(raw) - {"prefix"} == {"file"}:
        path = where.folder / Path(raw["file"]).expanduser()
        return Secret(prefix + read_secret_file(path, where.key).reveal())
    raise ValueError


FLAG = Kind("true or false", _flag)
ADDRESS = Kind("host:port, with an IPv6 host in [brackets]", _address, textual=True)
URL = Kind("an http:// or https:// URL without credentials, query or fragment", _url, textual=True)
ORIGIN = Kind(
    'an origin as browsers send it, such as "https://app.example.com", or "*"',
    _origin,
    textual=True,
)
FEED_URL = Kind("an https:// URL without credentials", _feed_url, textual=True)
PATH_PREFIX = Kind("a path that begins with /", _path_prefix, textual=True)
DIRECTORY = Kind("a directory", _path, textual=True)
FILE = Kind("a file", _path, textual=True)
NAME = Kind("lower-case letters, digits and hyphens, at most 32", _name, textual=True)
WORD = Kind("letters, digits, dots, hyphens, underscores; at most 128", _word, textual=True)
DESTINATION = Kind("a Lightning address or an LNURL", _destination, textual=True)
MEMO = Kind(f"printable text, at most {_MEMO_MAX_CHARS} characters", _memo, textual=True)
DATABASE = Kind(
    "sqlite:PATH, relative to the data directory, or postgresql://USER@HOST/NAME",
    _database,
    textual=True,
    hidden=True,
)
AMOUNT_MSAT = Kind('an amount such as "100000 sat" or "500 msat"', _amount_msat, textual=True)
FIAT = Kind('an amount of the currency as text, such as "5.00"', _fiat, textual=True)
RATE = Kind('a price in dollars as text, such as "97000.50"', _rate, textual=True)
PRICE = Kind('a price as text, such as "3500.25"', _price, textual=True)
ASSET = Kind(
    'the code of another asset than BTC, in capitals, such as "USDC"', _asset, textual=True
)
SECRET = Kind(
    'a text, { env = "NAME" } or { file = "path" }, with an optional prefix',
    _secret,
    textual=True,
    hidden=True,
)
HEADERS = Kind(
    'a table of headers, each a text, { env = "NAME" } or { file = "path" }', _headers, hidden=True
)
