"""Writing settings: the commented file that `farebox init` leaves, and the example in the docs.

Prose lines begin with "# ", settings at their default with "#": take the "#" away to change one.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from farebox.settings.fields import Declaration, RawTables, Section, Setting, declarations
from farebox.settings.model import Settings

_COLUMNS = 96

_PREFACE = """\
Farebox settings. Every setting is shown with its default; take the # away in front of one to
change it, and in front of a [[table]] to use it.

The environment may set each as well, and wins: FAREBOX_GATEWAY__LISTEN for listen in [gateway],
FAREBOX_MINT__0__CEILING for the first [[mint]]; a name with _FILE at its end names a file
with the value. Secrets are not written here: the root key comes from FAREBOX_ROOT_KEY,
FAREBOX_ROOT_KEY_FILE or root.key in the data directory, keys of upstreams from the environment
or from files that only their owner may read (chmod 600).
"""


def render_default_settings() -> str:
    """The settings file with nothing decided yet."""
    return render_settings({})


def render_settings(chosen: Mapping[str, object]) -> str:
    """The settings file with some values decided, the rest commented out.

    `chosen` is the tree the file shall be read as: {"gateway": {"listen": …}, "mint": [{…}]}.
    """
    lines = ["# " + line if line else "#" for line in _PREFACE.splitlines()]
    lines += _settings(Settings, chosen)
    for key, (_, declared) in declarations(Settings).items():
        lines += _table(key, declared, chosen.get(key))
    return "\n".join(lines) + "\n"


def _table(key: str, declared: Declaration, chosen: object) -> Iterator[str]:
    match declared:
        case Section(repeated=False):
            yield from ("", *_prose(declared.doc), f"[{key}]")
            yield from _settings(declared.type, chosen if isinstance(chosen, Mapping) else {})
        case Section():
            tables = chosen if isinstance(chosen, Sequence) and chosen else [None]
            for table in tables:
                yield from ("", *_prose(declared.doc), f"{'#' * (table is None)}[[{key}]]")
                yield from _settings(declared.type, table or {})
                yield from _within(key, declared.type, table or {})
        case RawTables():
            tables = chosen if isinstance(chosen, Sequence) and chosen else [None]
            for table in tables:
                mark = "#" * (table is None)
                yield from ("", *_prose(declared.doc), f"{mark}[[{key}]]")
                for name, value in (table or declared.example).items():
                    yield f"{mark}{name} = {_value(value)}"
        case Setting():
            pass


def _within(key: str, of: type[object], chosen: Mapping[str, object]) -> Iterator[str]:
    """The tables inside of a table."""
    for inner, (_, declared) in declarations(of).items():
        if isinstance(declared, Section):
            yield from _table(f"{key}.{inner}", declared, chosen.get(inner))


def _settings(of: type[object], chosen: Mapping[str, object]) -> Iterator[str]:
    for key, (_, declared) in declarations(of).items():
        if not isinstance(declared, Setting):
            continue
        yield ""
        yield from _prose(f"{declared.doc} Allowed: {declared.kind.allowed}.")
        if key in chosen:
            yield f"{key} = {_value(chosen[key])}"
        else:
            yield f"#{key} = {_value(declared.shown)}"


def _prose(text: str) -> list[str]:
    return ["# " + line for line in textwrap.wrap(text, _COLUMNS)]


def _value(value: object) -> str:
    """A value as TOML; the settings hold nothing but these types."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case str():
            # JSON's escapes are TOML's, but for DEL, which only TOML wants escaped.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case Mapping():
            pairs = ", ".join(f"{_key(str(k))} = {_value(v)}" for k, v in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
        case Sequence():
            return f"[{', '.join(_value(item) for item in value)}]"
        case _:
            raise TypeError(f"no TOML for a {type(value).__name__}")


def _key(name: str) -> str:
    plain = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if plain else json.dumps(name)
