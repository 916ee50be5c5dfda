-- How far each job has got, and how much is kept of it.
CREATE TABLE job (
    id INTEGER PRIMARY KEY,
    line_seq INTEGER NOT NULL,
    point_seq INTEGER NOT NULL,
    line_bytes INTEGER NOT NULL,
    point_bytes INTEGER NOT NULL
) STRICT;
-- How far each agent's events have been taken in.
CREATE TABLE applied (
    node TEXT NOT NULL,
    outbox TEXT NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (node, outbox)
) STRICT, WITHOUT ROWID;
-- Consecutive lines of a job, encoded together; `ranks` has bit (rank mod 63) set for every rank in it.
CREATE TABLE line_block (
    id INTEGER PRIMARY KEY,
    job INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    attempt_min INTEGER NOT NULL,
    attempt_max INTEGER NOT NULL,
    ranks INTEGER NOT NULL,
    last_time INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX line_block_by_seq ON line_block (job, last_seq);
-- Consecutive points of a job, likewise.
CREATE TABLE point_block (
    id INTEGER PRIMARY KEY,
    job INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    attempt_min INTEGER NOT NULL,
    attempt_max INTEGER NOT NULL,
    ranks INTEGER NOT NULL,
    step_min INTEGER NOT NULL,
    step_max INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX point_block_by_seq ON point_block (job, last_seq);
-- The names of a job's metrics, by the numbers that its points use.
CREATE TABLE name (
    job INTEGER NOT NULL,
    id INTEGER NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (job, id)
) STRICT, WITHOUT ROWID;
-- The latest value of each metric, and its highest step: a later step is new without a look at the points.
CREATE TABLE series (
    job INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    name INTEGER NOT NULL,
    rank INTEGER NOT NULL,
    step_max INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    last_step INTEGER NOT NULL,
    last_bits INTEGER NOT NULL,
    PRIMARY KEY (job, attempt, name, rank)
) STRICT, WITHOUT ROWID;
