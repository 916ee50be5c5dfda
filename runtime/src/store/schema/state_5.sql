-- What happened: who did what to what. Rows are only added, and dropped by age.
CREATE TABLE event (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    time INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    text TEXT NOT NULL
) STRICT;
CREATE INDEX event_by_target ON event (target, seq);
