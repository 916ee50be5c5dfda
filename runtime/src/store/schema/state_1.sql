CREATE TABLE job (
    id INTEGER PRIMARY KEY,
    state TEXT NOT NULL,
    over INTEGER NOT NULL,
    submitted INTEGER NOT NULL,
    changes INTEGER NOT NULL,
    json BLOB NOT NULL
) STRICT;
CREATE INDEX job_live ON job (id) WHERE over = 0;
CREATE INDEX job_state ON job (state);
CREATE TABLE change (
    job INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    json BLOB NOT NULL,
    PRIMARY KEY (job, seq)
) STRICT;
CREATE TABLE request (
    id TEXT PRIMARY KEY,
    fingerprint BLOB NOT NULL,
    job INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE node (
    name TEXT PRIMARY KEY,
    json BLOB NOT NULL
) STRICT, WITHOUT ROWID;
