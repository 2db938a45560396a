"""Schema migrations: ordered files of SQL, applied forward only, each in one transaction.

`<store>/migrations/NNNN_name.sql`; what was applied stands in the database's table `migrations`.
A file that was released is never changed. While it is applied the previous version serves on, so
a file only *expands*: new tables and indexes, new columns at the end that may stay empty. What
nothing uses any more is taken away by a file of a later version (*contract*), when no process of
the version that used it can be left.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files

import msgspec

from farebox.errors import StoreOutdated

_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")

#: How a store remembers what was applied.
APPLIED = "SELECT number FROM migrations ORDER BY number"


class Migration(msgspec.Struct, frozen=True):
    """One file: its number, from 1 on without a gap, its name and what it says."""

    number: int
    name: str
    sql: str

    def __str__(self) -> str:
        return f"{self.number:04d} {self.name}"


class Migrated(msgspec.Struct, frozen=True):
    """What was, or with a mere look would be, applied, and the schema's number after it."""

    applied: tuple[Migration, ...]
    number: int


def shipped(package: str) -> tuple[Migration, ...]:
    """The migrations that came with this program, in order."""
    found = []
    for file in files(package).joinpath("migrations").iterdir():
        match = _NAME.fullmatch(file.name)
        if match is not None:
            found.append(Migration(int(match[1]), match[2], file.read_text(encoding="utf-8")))
    found.sort(key=lambda one: one.number)
    assert [one.number for one in found] == list(range(1, len(found) + 1)), "a gap in migrations"
    return tuple(found)


def pending(known: Sequence[Migration], applied: int) -> tuple[Migration, ...]:
    """What is to be applied to a database that has the first `applied` migrations.

    Raises StoreOutdated when it has more than this program knows.
    """
    if applied > len(known):
        raise StoreOutdated(
            f"the database has schema {applied}, this program knows {len(known)}: "
            "run a newer farebox"
        )
    return tuple(known[applied:])


def require_current(known: Sequence[Migration], applied: int) -> None:
    """Raises StoreOutdated unless the database is as this program needs it."""
    if pending(known, applied):
        raise StoreOutdated(
            f"the database has schema {applied}, this program needs {len(known)}: "
            "run `farebox migrate` (the previous version may serve on meanwhile)"
        )
