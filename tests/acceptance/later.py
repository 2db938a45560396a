"""The next version of the program, `python -m tests.acceptance.later`: one migration more."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from farebox.cli import main
from farebox.stores.migrations import Migration
from farebox.stores.postgres import schema as postgres
from farebox.stores.sqlite import schema as sqlite

LATER = "tests.acceptance.later"
#: The variable that names the directory of each store's SQL.
FOLDER = "LATER_MIGRATIONS"


def _read(store: str, known: Sequence[Migration]) -> Migration:
    sql = (Path(os.environ[FOLDER]) / f"{store}.sql").read_text()
    return Migration(len(known) + 1, "notes", sql)


if __name__ == "__main__":
    sqlite.MIGRATIONS = (*sqlite.MIGRATIONS, _read("sqlite", sqlite.MIGRATIONS))
    postgres.MIGRATIONS = (*postgres.MIGRATIONS, _read("postgres", postgres.MIGRATIONS))
    main()
