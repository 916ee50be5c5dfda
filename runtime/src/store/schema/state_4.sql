-- Sweeps: what was asked, and what has become of them.
CREATE TABLE sweep (
    id INTEGER PRIMARY KEY,
    over INTEGER NOT NULL,
    asked BLOB NOT NULL,
    json BLOB NOT NULL
) STRICT;
CREATE INDEX sweep_live ON sweep (id) WHERE over = 0;
-- Their trials; `changed` is the sweep's number of a trial's last change.
CREATE TABLE trial (
    sweep INTEGER NOT NULL,
    number INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    over INTEGER NOT NULL,
    json BLOB NOT NULL,
    PRIMARY KEY (sweep, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX trial_changed ON trial (sweep, changed);
CREATE INDEX trial_live ON trial (sweep) WHERE over = 0;
-- The logs of their studies: each row is a list of records, `first` the number of its first one.
CREATE TABLE study_log (
    sweep INTEGER NOT NULL,
    first INTEGER NOT NULL,
    json BLOB NOT NULL,
    PRIMARY KEY (sweep, first)
) STRICT, WITHOUT ROWID;
