-- Values of plugins. `usage` holds the bytes of keys and values of each bucket, kept by triggers, so that a quota costs one lookup.

CREATE TABLE entries (
    bucket        TEXT    NOT NULL,
    key           TEXT    NOT NULL,
    value         BLOB    NOT NULL,
    version       INTEGER NOT NULL,
    expires_at_ms INTEGER,
    PRIMARY KEY (bucket, key)
) STRICT;

CREATE INDEX entries_by_expiry ON entries (bucket, expires_at_ms) WHERE expires_at_ms IS NOT NULL;

-- A counter weighs its key and eight bytes.
CREATE TABLE counters (
    bucket     TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    window_ms  INTEGER NOT NULL,
    ends_at_ms INTEGER NOT NULL,
    total      INTEGER NOT NULL,
    PRIMARY KEY (bucket, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX counters_by_end ON counters (bucket, ends_at_ms);

-- Versions are never used twice, also not after a deletion.
CREATE TABLE versions (
    only   INTEGER PRIMARY KEY CHECK (only = 1),
    latest INTEGER NOT NULL
) STRICT;

INSERT INTO versions VALUES (1, 0);

CREATE TABLE usage (
    bucket TEXT    NOT NULL PRIMARY KEY,
    bytes  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER entry_made AFTER INSERT ON entries BEGIN
    INSERT INTO usage VALUES (new.bucket, octet_length(new.key) + octet_length(new.value))
    ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes;
END;

CREATE TRIGGER entry_changed AFTER UPDATE OF value ON entries BEGIN
    UPDATE usage SET bytes = bytes + octet_length(new.value) - octet_length(old.value) WHERE bucket = new.bucket;
END;

CREATE TRIGGER entry_gone AFTER DELETE ON entries BEGIN
    UPDATE usage SET bytes = bytes - octet_length(old.key) - octet_length(old.value) WHERE bucket = old.bucket;
END;

CREATE TRIGGER counter_made AFTER INSERT ON counters BEGIN
    INSERT INTO usage VALUES (new.bucket, octet_length(new.key) + 8)
    ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes;
END;

CREATE TRIGGER counter_gone AFTER DELETE ON counters BEGIN
    UPDATE usage SET bytes = bytes - octet_length(old.key) - 8 WHERE bucket = old.bucket;
END;
