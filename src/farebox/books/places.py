"""Where a book is, by the settings: the same questions to either store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from farebox.books.root_key import ROOT_SEAL
from farebox.channels import RECORDS as CHANNEL_RECORDS
from farebox.clock import Clock
from farebox.errors import InvalidSettings, StoreOutdated
from farebox.identity import RECORDS as IDENTITY_RECORDS
from farebox.ledger.processes import PROCESS
from farebox.ledger.records import RecordType
from farebox.ledger.standing import BOOK
from farebox.ledger.store import Store
from farebox.payments.capital import OURS
from farebox.payments.cards.records import RECORDS as CARD_RECORDS
from farebox.payments.conversions import CONVERSION
from farebox.payments.deposits import DEPOSIT, DEPOSIT_REQUEST
from farebox.payments.links import WITHDRAW_LINK
from farebox.payments.maturity import MATURING
from farebox.payments.model import OPERATION
from farebox.payments.totals import TOTALS
from farebox.paywall.model import REQUEST
from farebox.paywall.named import NAMED
from farebox.rails.bitcoin import RECORDS as BITCOIN_RECORDS
from farebox.rails.cashu import RECORDS as CASHU_RECORDS
from farebox.rails.evm.records import RECORDS as EVM_RECORDS
from farebox.rails.lightning import RECORDS as LIGHTNING_RECORDS
from farebox.settings import Settings
from farebox.stores.audit import BookReader
from farebox.stores.migrations import Migrated
from farebox.stores.sqlite import SqliteStore
from farebox.stores.sqlite import schema as sqlite_schema
from farebox.stores.sqlite.audit import SqliteAuditReader
from farebox.tally import Commits
from farebox.worker import DUTY, WATCH_CURSOR

#: Every kind of row a book holds beside the money.
RECORDS: tuple[RecordType[Any], ...] = (
    BOOK,
    CONVERSION,
    DEPOSIT,
    DEPOSIT_REQUEST,
    DUTY,
    MATURING,
    NAMED,
    OPERATION,
    OURS,
    PROCESS,
    REQUEST,
    ROOT_SEAL,
    TOTALS,
    WATCH_CURSOR,
    WITHDRAW_LINK,
    *IDENTITY_RECORDS,
    *BITCOIN_RECORDS,
    *CARD_RECORDS,
    *CASHU_RECORDS,
    *CHANNEL_RECORDS,
    *EVM_RECORDS,
    *LIGHTNING_RECORDS,
)


async def open_store(settings: Settings, clock: Clock, commits: Commits) -> Store:
    """The book, in a file or in PostgreSQL. Raises StoreError, InvalidSettings."""
    path = settings.database_path
    if path is not None:
        return SqliteStore(path, RECORDS, clock=clock, commits=commits)
    with postgres_driver():
        from farebox.stores.postgres import PostgresStore
    return await PostgresStore.open(postgres_address(settings), RECORDS, commits=commits)


def open_audit(settings: Settings) -> BookReader:
    """A snapshot of the book for `farebox.ledger.invariants`; blocking.

    Raises StoreError, InvalidSettings.
    """
    path = settings.database_path
    if path is not None:
        return SqliteAuditReader(path, RECORDS)
    with postgres_driver():
        from farebox.stores.postgres.audit import PostgresAuditReader
    return PostgresAuditReader(postgres_address(settings), RECORDS)


def book_place(settings: Settings) -> str:
    """Where the book is, for people to read; never a password."""
    path = settings.database_path
    if path is not None:
        return str(path)
    with postgres_driver():
        from farebox.stores.postgres.connection import place
    return place(postgres_address(settings))


def migrate(settings: Settings, *, look: bool = False) -> Migrated:
    """Bring the book's schema to this program's, also beside running servers; blocking.

    With `look` it is only said what would be applied. Raises StoreError.
    """
    path = settings.database_path
    if path is not None:
        return sqlite_schema.migrate(path, look=look)
    with postgres_driver():
        from farebox.stores.postgres import schema as postgres_schema
    return postgres_schema.migrate(postgres_address(settings), look=look)


def require_schema(settings: Settings) -> None:
    """Refuse a book of another version's schema, whose rows this one would not all know; blocking.

    Raises StoreOutdated with the way out, StoreError.
    """
    if migrate(settings, look=True).applied:  # which refuses what is newer
        raise StoreOutdated("the book has an older schema: run `farebox migrate`")


@contextmanager
def postgres_driver() -> Iterator[None]:
    """Around an import of the store: it may not be installed. Raises InvalidSettings."""
    try:
        yield
    except ImportError:
        found = "PostgreSQL, for which the driver is missing"
        raise InvalidSettings("database.url", found, "pip install 'farebox[postgres]'") from None


def postgres_address(settings: Settings) -> str:
    """The connection string: a secret."""
    dsn = settings.database.postgres
    assert dsn is not None
    return dsn.reveal()
