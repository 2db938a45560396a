-- The tables of a book. Those of record types follow from their declarations (schema.py).

CREATE TABLE IF NOT EXISTS accounts (
    book INTEGER NOT NULL, id TEXT NOT NULL, asset TEXT NOT NULL, kind TEXT NOT NULL,
    debits_pending TEXT NOT NULL, debits_posted TEXT NOT NULL,
    credits_pending TEXT NOT NULL, credits_posted TEXT NOT NULL, ceiling TEXT,
    PRIMARY KEY (book, id)
) STRICT, WITHOUT ROWID;

-- A file holds one book, so a number alone is the key: rows that are only ever appended fill their
-- pages in the order of the table's own rowid, and no page of an index is written for it.
CREATE TABLE IF NOT EXISTS units (
    book INTEGER NOT NULL, seq INTEGER PRIMARY KEY, id TEXT NOT NULL, at INTEGER NOT NULL,
    body BLOB NOT NULL, digest BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS units_id ON units (book, id);

CREATE TABLE IF NOT EXISTS holds (
    book INTEGER NOT NULL, id TEXT NOT NULL, debit TEXT NOT NULL, credit TEXT NOT NULL,
    amount TEXT NOT NULL, code TEXT NOT NULL, expires_at INTEGER NOT NULL, state TEXT NOT NULL,
    PRIMARY KEY (book, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS holds_due ON holds (book, expires_at)
    WHERE state = 'open' AND expires_at > 0;
CREATE INDEX IF NOT EXISTS holds_debit ON holds (book, debit, expires_at)
    WHERE state = 'open' AND expires_at > 0;
CREATE INDEX IF NOT EXISTS holds_credit ON holds (book, credit, expires_at)
    WHERE state = 'open' AND expires_at > 0;

CREATE TABLE IF NOT EXISTS events (
    book INTEGER NOT NULL, number INTEGER PRIMARY KEY, seq INTEGER NOT NULL, at INTEGER NOT NULL,
    name TEXT NOT NULL, subject TEXT NOT NULL, data BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS events_subject ON events (book, subject, number);
