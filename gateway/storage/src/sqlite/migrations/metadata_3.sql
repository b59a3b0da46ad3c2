-- Events that wait for their receivers, written by the transaction they tell of. An event is kept while a delivery of it is.
-- rank 0: told without a commit, the first to go when space is short.
CREATE TABLE events (
    sequence   INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE,
    rank       INTEGER NOT NULL,
    kind       TEXT    NOT NULL,
    at_ms      INTEGER NOT NULL,
    repository TEXT    NOT NULL,
    digest     TEXT,
    tag        TEXT,
    actor      TEXT    NOT NULL,
    payload    TEXT    NOT NULL,
    bytes      INTEGER NOT NULL
) STRICT;

CREATE INDEX events_by_rank ON events (rank, sequence);

-- Who gets the events that are written now.
CREATE TABLE event_sinks (
    name TEXT NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;

CREATE TABLE deliveries (
    sink            TEXT    NOT NULL,
    sequence        INTEGER NOT NULL REFERENCES events (sequence) ON DELETE CASCADE,
    repository      TEXT    NOT NULL,
    dead            INTEGER NOT NULL DEFAULT 0,
    attempts        INTEGER NOT NULL DEFAULT 0,
    attempted_at_ms INTEGER,
    error           TEXT,
    PRIMARY KEY (sink, sequence)
) STRICT, WITHOUT ROWID;

CREATE INDEX deliveries_by_event ON deliveries (sequence);
CREATE INDEX deliveries_waiting ON deliveries (sink, repository, sequence) WHERE dead = 0;

-- One row per sink and repository for which something waits: when the first of it is due. So taking costs what is taken, however
-- much waits.
CREATE TABLE delivery_lanes (
    sink       TEXT    NOT NULL,
    repository TEXT    NOT NULL,
    due_at_ms  INTEGER NOT NULL,
    PRIMARY KEY (sink, repository)
) STRICT, WITHOUT ROWID;

CREATE INDEX delivery_lanes_by_due ON delivery_lanes (sink, due_at_ms);

CREATE TABLE event_usage (
    only   INTEGER PRIMARY KEY CHECK (only = 1),
    events INTEGER NOT NULL,
    bytes  INTEGER NOT NULL
) STRICT;

INSERT INTO event_usage VALUES (1, 0, 0);

CREATE TRIGGER event_made AFTER INSERT ON events BEGIN
    UPDATE event_usage SET events = events + 1, bytes = bytes + new.bytes;
END;

CREATE TRIGGER event_gone AFTER DELETE ON events BEGIN
    UPDATE event_usage SET events = events - 1, bytes = bytes - old.bytes;
END;

CREATE TRIGGER delivery_gone AFTER DELETE ON deliveries BEGIN
    DELETE FROM events WHERE sequence = old.sequence
        AND NOT EXISTS (SELECT 1 FROM deliveries WHERE sequence = old.sequence);
    DELETE FROM delivery_lanes WHERE sink = old.sink AND repository = old.repository
        AND NOT EXISTS (SELECT 1 FROM deliveries WHERE sink = old.sink AND repository = old.repository AND dead = 0);
END;

CREATE TRIGGER delivery_died AFTER UPDATE OF dead ON deliveries WHEN new.dead = 1 BEGIN
    DELETE FROM delivery_lanes WHERE sink = new.sink AND repository = new.repository
        AND NOT EXISTS (SELECT 1 FROM deliveries WHERE sink = new.sink AND repository = new.repository AND dead = 0);
END;

-- A dead letter that is to be tried again is due at once.
CREATE TRIGGER delivery_revived AFTER UPDATE OF dead ON deliveries WHEN new.dead = 0 BEGIN
    INSERT INTO delivery_lanes VALUES (new.sink, new.repository, 0) ON CONFLICT DO NOTHING;
END;
