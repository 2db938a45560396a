"""Books in a PostgreSQL database, written by any number of processes without a leader.

Promises: each batch under the book's advisory lock and in one transaction; gapless events and audit
chain whoever writes; a lost answer to COMMIT is asked for, not guessed.
Never: something remembered of the book from one batch to the next; a password shown.
"""

from farebox.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore"]
