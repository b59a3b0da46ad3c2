-- What an operator wants to stay in the mirrors' caches, whatever the configuration says.

CREATE TABLE pins (
    pattern      TEXT    NOT NULL PRIMARY KEY,
    pinned_at_ms INTEGER NOT NULL,
    pinned_by    TEXT    NOT NULL
) STRICT, WITHOUT ROWID;
