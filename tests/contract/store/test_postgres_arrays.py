"""Columns that are packed here are what PostgreSQL reads."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from farebox.stores.postgres.arrays import Insert, blobs, int4s, int8s, texts
from tests.peers.postgres import Postgres

COLUMNS = [
    (texts, "text", ["a", None, "", "ä€𝄞", '{"x",\\}', "NULL", "x" * 100_000]),
    (texts, "text", [None]),
    (blobs, "bytea", [b"", b"\x00\xff", bytes(range(256)) * 300]),
    (int4s, "int4", [0, 1, -1, 2**31 - 1, -(2**31)]),
    (int8s, "int8", [0, 1, -1, 2**63 - 1, -(2**63)]),
    (int8s, "int8", [7, None, -7]),
    *((pack, name, []) for pack, name in ((texts, "text"), (int4s, "int4"), (int8s, "int8"))),
]


@pytest.mark.parametrize(("pack", "name", "values"), COLUMNS)
def test_a_column_arrives_as_it_is(
    postgres: Postgres, pack: Callable[[Any], bytes], name: str, values: list[Any]
) -> None:
    with psycopg.connect(postgres.dsn) as db:
        sql = f"SELECT pg_typeof(%b)::text, %b::{name}[]"
        row = db.execute(sql.encode(), (pack(values), pack(values))).fetchone()
    types = {"text": "text[]", "bytea": "bytea[]", "int4": "integer[]", "int8": "bigint[]"}
    assert row == (types[name], values)


@pytest.mark.parametrize(
    ("pack", "value"), [(int4s, 2**31), (int8s, 2**63), (int8s, -(2**63) - 1), (texts, "\ud800")]
)
def test_what_has_no_room_is_an_error_and_not_another_value(
    pack: Callable[[Any], bytes], value: Any
) -> None:
    with pytest.raises((struct.error, UnicodeError)):
        pack([value])


def test_rows_become_a_parameter_for_each_column(postgres: Postgres) -> None:
    insert = Insert.into("made", ("int8", "text", "numeric"))
    rows = [(1, "a", str(2**126)), (2, "b", "0")]
    with psycopg.connect(postgres.dsn) as db:
        db.execute("CREATE TEMPORARY TABLE made (number int8, name text, amount numeric(39, 0))")
        db.execute(insert.sql.encode(), insert.values(rows))
        found = db.execute("SELECT number, name, amount::text FROM made ORDER BY number")
        assert found.fetchall() == rows
