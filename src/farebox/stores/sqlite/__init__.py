"""A book in one SQLite file, owned by one process.

Promises: WAL with synchronous=FULL, one writer thread, group commit, gapless events, audit chain.
Never: two processes writing one book; a lock file says who owns it.
"""

from farebox.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
