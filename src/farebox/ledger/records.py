"""Domain rows: what a room keeps beside the money. Declared as data, compiled by the stores."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True, eq=False)
class RecordType(Generic[T]):
    """One kind of row: its value type, and the fields it can be found by.

    `indexes` are tuples of field names of `type` (str, int or str-enum fields; a None is not
    found by). A query gives equal values for leading fields and may range over the next one.
    `resting` are values of indexed fields that nobody looks for, such as the state of what has
    ended: a row with one of them is in no index, so that indexes hold what is in work, not all
    there ever was.
    """

    kind: str
    type: type[T]
    indexes: tuple[tuple[str, ...], ...] = ()
    resting: frozenset[str] = frozenset()
    columns: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = dict.fromkeys(name for index in self.indexes for name in index)
        object.__setattr__(self, "columns", tuple(names))
        object.__setattr__(self, "encode", _ENCODER.encode)
        object.__setattr__(self, "decode", msgspec.json.Decoder(self.type).decode)

    def check_query(self, equal: Mapping[str, str | int], at_most: str | None) -> None:
        """Raise ValueError unless an index begins with the fields of `equal`, then `at_most`, and
        has rows with these values."""
        if not equal and at_most is None:
            return
        if not self.resting.isdisjoint(map(column_value, equal.values())):
            raise ValueError(f"no index of {self.kind} has rows with {dict(equal)}")
        for index in self.indexes:
            leading, rest = index[: len(equal)], index[len(equal) :]
            if set(leading) == set(equal) and at_most in (None, *rest[:1]):
                return
        raise ValueError(f"no index of {self.kind} begins with {[*equal, at_most or '']}")

    def columns_of(self, value: T) -> list[str | int | None]:
        """The indexed fields of a row as a store keeps them, in the order of `columns`."""
        fields = self.fields_of(value)
        if self.resting and not self.resting.isdisjoint(fields):
            return [None] * len(fields)
        return fields

    def fields_of(self, value: T) -> list[str | int | None]:
        """The same, whether the row rests or not: so it stands there when it was written before
        its record type said what rests."""
        return [
            found if type(found := getattr(value, name)) in _PLAIN else column_value(found)
            for name in self.columns
        ]

    def encode(self, value: T) -> bytes:
        """The stored form of a row."""
        raise AssertionError("replaced in __post_init__ by the compiled encoder")

    def decode(self, raw: bytes) -> T:
        """Undo `encode`."""
        raise AssertionError("replaced in __post_init__ by the compiled decoder")


_ENCODER = msgspec.json.Encoder()
_PLAIN = frozenset({str, int, type(None)})


def column_value(value: object) -> str | int | None:
    """An indexed field as a store keeps it. Raises TypeError for what cannot be indexed."""
    if isinstance(value, enum.Enum):
        return str(value.value)
    if value is None or isinstance(value, str | int):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be indexed")


class Row(msgspec.Struct, Generic[T], frozen=True):
    """A stored value and the version it was read at."""

    value: T
    version: int
