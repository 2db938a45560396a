-- The tables of the books. Those of record types follow from their declarations (schema.py).

-- Room in each page: the account that everybody pays is updated where it stands.
CREATE TABLE IF NOT EXISTS accounts (
    book INTEGER NOT NULL, id TEXT COLLATE "C" NOT NULL, asset TEXT COLLATE "C" NOT NULL, kind TEXT COLLATE "C" NOT NULL,
    debits_pending NUMERIC(39, 0) NOT NULL, debits_posted NUMERIC(39, 0) NOT NULL,
    credits_pending NUMERIC(39, 0) NOT NULL, credits_posted NUMERIC(39, 0) NOT NULL, ceiling NUMERIC(39, 0),
    PRIMARY KEY (book, id)
) WITH (fillfactor = 70);

CREATE TABLE IF NOT EXISTS units (
    book INTEGER NOT NULL, seq BIGINT NOT NULL, id TEXT COLLATE "C" NOT NULL, at BIGINT NOT NULL,
    body BYTEA NOT NULL, digest BYTEA NOT NULL,
    PRIMARY KEY (book, seq)
);
CREATE UNIQUE INDEX IF NOT EXISTS units_id ON units (book, id);

CREATE TABLE IF NOT EXISTS holds (
    book INTEGER NOT NULL, id TEXT COLLATE "C" NOT NULL, debit TEXT COLLATE "C" NOT NULL, credit TEXT COLLATE "C" NOT NULL,
    amount NUMERIC(39, 0) NOT NULL, code TEXT COLLATE "C" NOT NULL, expires_at BIGINT NOT NULL, state TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (book, id)
);
CREATE INDEX IF NOT EXISTS holds_due ON holds (book, expires_at)
    WHERE state = 'open' AND expires_at > 0;
CREATE INDEX IF NOT EXISTS holds_debit ON holds (book, debit, expires_at)
    WHERE state = 'open' AND expires_at > 0;
CREATE INDEX IF NOT EXISTS holds_credit ON holds (book, credit, expires_at)
    WHERE state = 'open' AND expires_at > 0;

CREATE TABLE IF NOT EXISTS events (
    book INTEGER NOT NULL, number BIGINT NOT NULL, seq BIGINT NOT NULL, at BIGINT NOT NULL,
    name TEXT COLLATE "C" NOT NULL, subject TEXT COLLATE "C" NOT NULL, data BYTEA NOT NULL,
    PRIMARY KEY (book, number)
);
CREATE INDEX IF NOT EXISTS events_subject ON events (book, subject, number);
