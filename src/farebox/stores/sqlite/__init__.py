"""A book in one SQLite file, owned by one process.

Promises: WAL, told when the disk has it, group commit, gapless events, audit chain.
Never: two processes writing one book; a lock file says who owns it.
"""

from farebox.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
