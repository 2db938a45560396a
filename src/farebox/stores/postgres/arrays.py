"""Columns of rows as arrays of PostgreSQL: a statement takes one parameter for each column.

psycopg makes an array value by value, each by a dumper that it looks up. A batch has thousands of
values, of types that are known: so they are packed here, a column at a time, in the binary format
of `array_send` (dimensions, flags, element type, length, lower bound; then length and bytes each).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import psycopg
from psycopg.adapt import Dumper
from psycopg.pq import Format

_length = struct.Struct("!i").pack
_head = struct.Struct("!iiIii").pack
_NULL = _length(-1)

#: Types of PostgreSQL and of their arrays, by number.
_TEXT, _TEXT_ARRAY = 25, 1009
_INT4, _INT4_ARRAY = 23, 1007
_INT8, _INT8_ARRAY = 20, 1016
_BYTEA, _BYTEA_ARRAY = 17, 1001


class _Array(bytes):
    """An array in its binary format."""


class _TextArray(_Array):
    pass


class _Int4Array(_Array):
    pass


class _Int8Array(_Array):
    pass


class _ByteaArray(_Array):
    pass


class _ArrayDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: _Array) -> _Array:
        return obj


def _register(array: type[_Array], number: int) -> None:
    dumper = type(f"{array.__name__}Dumper", (_ArrayDumper,), {"oid": number})
    psycopg.adapters.register_dumper(array, dumper)


_register(_TextArray, _TEXT_ARRAY)
_register(_Int4Array, _INT4_ARRAY)
_register(_Int8Array, _INT8_ARRAY)
_register(_ByteaArray, _BYTEA_ARRAY)


def texts(values: Iterable[str | None]) -> _Array:
    """A text[]. Raises UnicodeError."""
    return _TextArray(_packed(_TEXT, [None if one is None else one.encode() for one in values]))


def blobs(values: Iterable[bytes | None]) -> _Array:
    """A bytea[]."""
    return _ByteaArray(_packed(_BYTEA, list(values)))


def int4s(values: Sequence[int]) -> _Array:
    """An int4[]. Raises struct.error for a value that has no room."""
    body = struct.pack(f"!{'ii' * len(values)}", *_each_with(4, values))
    return _Int4Array(_head(1, 0, _INT4, len(values), 1) + body)


def int8s(values: Sequence[int | None]) -> _Array:
    """An int8[]. Raises struct.error for a value that has no room."""
    if None in values:
        items = [None if one is None else struct.pack("!q", one) for one in values]
        return _Int8Array(_packed(_INT8, items))
    body = struct.pack(f"!{'iq' * len(values)}", *_each_with(8, values))
    return _Int8Array(_head(1, 0, _INT8, len(values), 1) + body)


def _each_with(size: int, values: Iterable[Any]) -> Iterable[Any]:
    return chain.from_iterable(zip(repeat(size), values, strict=False))


def _packed(element: int, items: Sequence[bytes | None]) -> bytes:
    parts = [_head(1, None in items, element, len(items), 1)]
    for item in items:
        if item is None:
            parts.append(_NULL)
        else:
            parts += (_length(len(item)), item)
    return b"".join(parts)


_PACK: dict[str, Callable[[Any], _Array]] = {
    "text": texts,
    "numeric": texts,  # as decimal text
    "bytea": blobs,
    "int4": int4s,
    "int8": int8s,
}


class Insert(NamedTuple):
    """A statement that inserts any number of rows, and the types of their columns."""

    sql: str
    types: Sequence[str]

    @classmethod
    def into(cls, table: str, types: Sequence[str], otherwise: str = "") -> Insert:
        """`otherwise`: what the statement says of rows that are there already."""
        arrays = ", ".join(
            "%b::text[]::numeric[]" if one == "numeric" else f"%b::{one}[]" for one in types
        )
        return cls(f"INSERT INTO {table} SELECT * FROM unnest({arrays}) {otherwise}", types)

    def values(self, rows: Iterable[tuple[Any, ...]]) -> list[_Array]:
        """The parameters for one or more rows."""
        columns = zip(*rows, strict=True)
        return [_PACK[name](column) for name, column in zip(self.types, columns, strict=True)]
