"""Reading settings: the file, over it the environment, over that what the command line says."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from farebox.errors import InvalidSettings
from farebox.settings.bitcoin import check_bitcoin
from farebox.settings.cards import check_cards
from farebox.settings.fields import RawTables, Section, Setting, declarations, read_section, unknown
from farebox.settings.model import LightningSettings, MintSettings, Settings, UpstreamSettings
from farebox.settings.secrets import read_secret_file
from farebox.settings.values import DIRECTORY, FILE, Kind, Where, check_limits

PREFIX = "FAREBOX_"
DEFAULT_FILE = Path("farebox.toml")

_FILE_MAX_BYTES = 1024 * 1024
_PATH_MAX_STEPS = 8

#: Variables of ours that are no settings: the file's place, the root key, what `bench` pays with,
#: the test suite's.
_OTHER_VARIABLES = re.compile(
    r"FAREBOX_(SETTINGS|ROOT_KEY|ROOT_KEY_FILE|BENCH_(KEY|TOKEN)|REQUIRE_PEERS|TEST_[A-Z0-9_]+)"
)
#: Kubernetes sets these in every container beside a service that is called "farebox".
_SERVICE_LINKS = re.compile(r"FAREBOX_(SERVICE_(HOST|PORT)|PORT)(_[A-Z0-9_]+)?")

#: The one setting that deployments give by itself.
_SHORT_NAMES = {
    "FAREBOX_DATABASE": "FAREBOX_DATABASE__URL",
    "FAREBOX_DATABASE_FILE": "FAREBOX_DATABASE__URL_FILE",
}
_PASSWORD = re.compile(r"//[^/@]*:[^/]*@|password=")

#: Settings that hold a secret of a rail.
_SECRET_SETTINGS = (
    ("lightning", "key"),
    ("lightning", "invoice_key"),
    ("bitcoin", "key"),
    ("bitcoin", "login"),
    ("paypal", "client_secret"),
    ("evm", "key"),
    ("evm", "deposit_key"),
    ("stripe", "key"),
    ("stripe", "webhook_secret"),
)

#: These carry keys, whatever the upstream: not to be written into the settings file.
_SECRET_HEADERS = re.compile(r"authorization|cookie|.*(key|token|secret)", re.IGNORECASE)


def find_settings(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The settings file: the one asked for, else FAREBOX_SETTINGS, else ./farebox.toml if it is."""
    if path is not None:
        return path
    if environ.get("FAREBOX_SETTINGS"):
        return Path(environ["FAREBOX_SETTINGS"])
    return DEFAULT_FILE if DEFAULT_FILE.exists() else None


def load_settings(
    path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, object]
) -> Settings:
    """Read and check all settings.

    `environ` may set any of them as FAREBOX_SECTION__KEY (tables by their position:
    FAREBOX_MINT__0__CEILING), text also as FAREBOX_SECTION__KEY_FILE;
    FAREBOX_DATABASE is FAREBOX_DATABASE__URL. `overrides` maps dotted keys
    ("gateway.listen") to values as the file would have them, and wins. Paths in the file start at
    the file, others at the working directory. Raises InvalidSettings for the first thing wrong.
    """
    folder = (path.parent if path else Path()).absolute()
    tree = _read_file(path) if path else {}
    _refuse_plain_secrets(tree)
    for name, text in sorted(environ.items()):
        if name.startswith(PREFIX) and not _is_other(name):
            _apply_variable(tree, name, text)
    for dotted, value in overrides.items():
        _put(tree, dotted.split("."), _from_here(_kind_at(dotted.split("."), dotted), value))
    tree.setdefault("data_dir", "farebox-data")
    settings = read_section(Settings, tree, Where("", environ, folder))
    _check_unique(settings)
    _check_lightning(settings.lightning)
    check_bitcoin(settings.bitcoin)
    check_cards("stripe", settings.stripe)
    check_cards("paypal", settings.paypal)
    return settings


def _read_file(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_MAX_BYTES + 1)
    except OSError as error:
        found = f"{path} ({error.strerror})"
        raise InvalidSettings(
            "(file)", found, "a readable file; `farebox init` makes one"
        ) from None
    if len(content) > _FILE_MAX_BYTES:
        raise InvalidSettings("(file)", f"{path}, too large", f"at most {_FILE_MAX_BYTES} bytes")
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidSettings("(file)", f"{path}: {error}", "TOML") from None


def _is_other(name: str) -> bool:
    return bool(_OTHER_VARIABLES.fullmatch(name) or _SERVICE_LINKS.fullmatch(name))


def _refuse_plain_secrets(tree: Mapping[str, object]) -> None:
    """Settings files are copied, mailed and committed; keys belong elsewhere."""
    database = tree.get("database")
    url = database.get("url") if isinstance(database, dict) else None
    if isinstance(url, str) and _PASSWORD.search(url):
        raise InvalidSettings(
            "database.url",
            "a password in the settings file (hidden)",
            "an address without one; FAREBOX_DATABASE or FAREBOX_DATABASE_FILE may have it",
        )
    for table, name in _SECRET_SETTINGS:
        rails = tree.get(table)
        for rail in rails if isinstance(rails, list) else [rails]:
            if isinstance(rail, dict) and isinstance(rail.get(name), str):
                raise InvalidSettings(
                    f"{table}.{name}",
                    "a secret in the settings file (hidden)",
                    '{ env = "NAME" } or { file = "path" }',
                )
    tables = tree.get("upstream")
    for i, upstream in enumerate(tables if isinstance(tables, list) else []):
        headers = upstream.get("headers") if isinstance(upstream, dict) else None
        for name, value in headers.items() if isinstance(headers, dict) else ():
            if isinstance(value, str) and _SECRET_HEADERS.fullmatch(name):
                raise InvalidSettings(
                    f"upstream[{i}].headers.{name}",
                    "a secret in the settings file (hidden)",
                    '{ env = "NAME" } or { file = "path" }',
                )


def _apply_variable(tree: dict[str, object], name: str, text: str) -> None:
    steps = _SHORT_NAMES.get(name, name).removeprefix(PREFIX).lower().split("__")
    if len(steps) > _PATH_MAX_STEPS:
        raise InvalidSettings(name, f"{len(steps)} steps", f"at most {_PATH_MAX_STEPS}")
    try:
        kind = _kind_at(steps, name)
    except InvalidSettings:
        if not steps[-1].endswith("_file"):
            raise
        steps[-1] = steps[-1].removesuffix("_file")
        kind = _kind_at(steps, name)
        text = read_secret_file(Path(text), name).reveal()
    value = text if kind is not None and kind.textual else _toml_value(text)
    _put(tree, steps, _from_here(kind, value))


def _kind_at(steps: list[str], name: str) -> Kind[object] | None:
    """The kind of the value at a path; None for a whole table, or inside one that is free.

    Raises InvalidSettings naming `name` when no such setting is declared.
    """
    section: type[object] = Settings
    rest = iter(steps)
    for step in rest:
        known = declarations(section)
        if step not in known:
            raise unknown(name, step, known)
        match known[step][1]:
            case Setting(kind=kind):
                return None if next(rest, None) is not None else kind
            case RawTables():
                return None
            case Section(type=section, repeated=True):
                next(rest, None)  # the position
            case Section(type=section):
                pass
    return None


def _toml_value(text: str) -> object:
    """Environment text as a TOML value (a number, true, a list); what is none stays text."""
    try:
        tree = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    # A line break in the text could have smuggled in a second key.
    return tree["value"] if len(tree) == 1 else text


def _from_here(kind: Kind[object] | None, value: object) -> object:
    """Paths that were not written in the file start at the working directory."""
    if kind in (DIRECTORY, FILE) and isinstance(value, str):
        return str(Path(value).absolute())
    return value


def _put(tree: dict[str, object], steps: list[str], value: object) -> None:
    """Set the value at a path, making tables on the way. What is in the way is replaced."""
    step, *rest = steps
    if not rest:
        tree[step] = value
    elif re.fullmatch("[0-9]{1,4}", rest[0]):
        items = tree.get(step)
        tree[step] = _put_item(items if isinstance(items, list) else [], rest, value)
    else:
        table = tree.get(step)
        tree[step] = table = table if isinstance(table, dict) else {}
        _put(table, rest, value)


def _put_item(items: list[object], steps: list[str], value: object) -> list[object]:
    """Set the value at a path that begins with a position; one past the end means the next."""
    position, *rest = steps
    found = items[int(position)] if int(position) < len(items) else {}
    table = found if isinstance(found, dict) else {}
    if rest:
        _put(table, rest, value)
    items[int(position) : int(position) + 1] = [table if rest else value]
    return items


def _check_lightning(lightning: LightningSettings) -> None:
    if lightning.url is not None and lightning.key is None:
        raise InvalidSettings("lightning.key", "nothing", "the key to the node at lightning.url")
    check_limits("lightning", lightning)


def _check_unique(settings: Settings) -> None:
    def check(key: str, values: Iterator[str]) -> None:
        seen: set[str] = set()
        for value in values:
            if value in seen:
                raise InvalidSettings(key, f"{value} twice", "each once")
            seen.add(value)

    upstreams: tuple[UpstreamSettings, ...] = settings.upstreams
    mints: tuple[MintSettings, ...] = settings.mints
    check("upstream.path", (upstream.path for upstream in upstreams))
    check("rate.asset", (one.asset for one in settings.asset_rates))
    check("mint.url", (mint.url for mint in mints))
    check("evm.name", (chain.name for chain in settings.evm))
    for chain in settings.evm:
        check(f"evm.{chain.name}.asset", (one.asset for one in chain.assets))
