"""How settings are declared: each field of a section carries its kind, description and default.

From the same declaration a section is read, its errors are worded, and the example is written.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from farebox.errors import InvalidSettings
from farebox.settings.values import AMOUNT_MSAT, Kind, Where

T = TypeVar("T")

_TABLES_MAX = 256
_NOWHERE = Where("", {}, Path())


@dataclass(frozen=True, slots=True)
class Setting:
    """One value of a section."""

    kind: Kind[Any]
    doc: str
    #: The default as one would write it in the file; an example when there is no default.
    shown: object
    is_default: bool
    required: bool


@dataclass(frozen=True, slots=True)
class Section:
    """A table with settings of its own: `[name]`, or many of them: `[[name]]`."""

    type: type[Any]
    doc: str
    repeated: bool


@dataclass(frozen=True, slots=True)
class RawTables:
    """Tables that another room reads: `[[name]]`."""

    doc: str
    example: Mapping[str, object]


Declaration = Setting | Section | RawTables


def setting(kind: Kind[T], doc: str, default: object, *, key: str = "") -> T:
    """Declare a setting with a default, given as one would write it in the file."""
    declared = Setting(kind, doc, default, is_default=True, required=False)
    value = kind.read(default, _NOWHERE)
    # A factory, since a default may be a mapping, which dataclasses refuse to share.
    return _field(declared, key, default_factory=lambda: value)


#: The limits that a rail in bitcoin has, in words.
_LIMITS = {
    "deposit_min": "The least a deposit may be.",
    "deposit_max": "The most a deposit may be.",
    "payout_min": "The least that is paid out at once.",
    "payout_max": "The most that is paid out at once.",
}


def limit(name: str, default: str) -> int:
    """Declare one of these; `check_limits` holds them against each other."""
    return setting(AMOUNT_MSAT, _LIMITS[name], default, key=name)


def optional(kind: Kind[T], doc: str, example: object) -> T | None:
    """Declare a setting that may be left out."""
    declared = Setting(kind, doc, example, is_default=False, required=False)
    return _field(declared, "", default=None)


def required(kind: Kind[T], doc: str, example: object) -> T:
    """Declare a setting that must be given."""
    declared = Setting(kind, doc, example, is_default=False, required=True)
    return _field(declared, "")


def section(of: type[T], doc: str) -> T:
    """Declare a table `[name]`; left out, it has its defaults."""
    return _field(Section(of, doc, repeated=False), "", default_factory=of)


def sections(of: type[T], doc: str, *, key: str) -> tuple[T, ...]:
    """Declare tables `[[key]]`, none by default."""
    return _field(Section(of, doc, repeated=True), key, default=())


def raw_tables(
    doc: str, *, key: str, example: Mapping[str, object]
) -> tuple[Mapping[str, object], ...]:
    """Declare tables `[[key]]` that are handed on as they are."""
    return _field(RawTables(doc, example), key, default=())


def _field(declared: Declaration, key: str, **defaults: Any) -> T:  # type: ignore[type-var]
    # The checker sees the value a field will hold, as it does with `dataclasses.field`.
    field: T = dataclasses.field(metadata={"declared": declared, "key": key}, **defaults)
    return field


def declarations(of: type[Any]) -> dict[str, tuple[str, Declaration]]:
    """What a section type declares: the key in the file to (the field's name, its declaration)."""
    return {
        field.metadata["key"] or field.name: (field.name, field.metadata["declared"])
        for field in dataclasses.fields(of)
    }


def read_section(of: type[T], raw: object, where: Where) -> T:
    """Read a table into its section type. Raises InvalidSettings naming the first wrong key."""
    if not isinstance(raw, Mapping):
        raise where.wrong(raw, "a table")
    known = declarations(of)
    for key in raw:
        if key not in known:
            raise unknown(where.at(str(key)).key, str(key), known)
    values: dict[str, object] = {}
    for key, (name, declared) in known.items():
        if key in raw:
            values[name] = _read(declared, raw[key], where.at(key))
        elif isinstance(declared, Setting) and declared.required:
            raise where.at(key).wrong("nothing", declared.kind.allowed)
    return of(**values)


def unknown(dotted: str, key: str, known: Iterable[str]) -> InvalidSettings:
    """The error for a key nobody declared, with the nearest one that is."""
    names = sorted(known)
    near = difflib.get_close_matches(key[:128].lower(), names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(names)}"
    return InvalidSettings(dotted[:256], "an unknown key", hint)


def _read(declared: Declaration, raw: object, where: Where) -> object:
    match declared:
        case Setting(kind=kind):
            return kind.read(raw, where)
        case Section(repeated=False):
            return read_section(declared.type, raw, where)
        case Section():
            tables = _tables(raw, where)
            return tuple(
                read_section(declared.type, table, where.item(i)) for i, table in enumerate(tables)
            )
        case RawTables():
            return tuple(_tables(raw, where))


def _tables(raw: object, where: Where) -> list[Mapping[str, object]]:
    if not isinstance(raw, list | tuple) or len(raw) > _TABLES_MAX:
        raise where.wrong(raw, f"at most {_TABLES_MAX} tables, each [[{where.key}]]")
    for i, table in enumerate(raw):
        if not isinstance(table, Mapping):
            raise where.item(i).wrong(table, "a table")
    return list(raw)
