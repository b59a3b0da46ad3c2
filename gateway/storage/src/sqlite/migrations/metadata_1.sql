-- Text compares by bytes (BINARY), which is the order of every list. Digests are text: `sha256:…`.

CREATE TABLE repositories (
    id         INTEGER PRIMARY KEY,
    name       TEXT    NOT NULL UNIQUE,
    generation INTEGER NOT NULL DEFAULT 1
) STRICT;

-- With rowid: annotations may be long, and rows of a table without it lie in the inner pages of its tree.
CREATE TABLE manifests (
    repository    INTEGER NOT NULL REFERENCES repositories (id),
    digest        TEXT    NOT NULL,
    media_type    TEXT    NOT NULL,
    size          INTEGER NOT NULL,
    artifact_type TEXT,
    subject       TEXT,
    annotations   TEXT    NOT NULL,
    pushed_at_ms  INTEGER NOT NULL,
    pushed_by     TEXT    NOT NULL,
    UNIQUE (repository, digest)
) STRICT;

CREATE INDEX manifests_by_subject ON manifests (repository, subject, digest) WHERE subject IS NOT NULL;

-- A manifest may name the same content twice; what it says of it is kept once.
CREATE TABLE manifest_references (
    repository INTEGER NOT NULL,
    manifest   TEXT    NOT NULL,
    digest     TEXT    NOT NULL,
    media_type TEXT    NOT NULL,
    size       INTEGER NOT NULL,
    PRIMARY KEY (repository, manifest, digest, media_type, size),
    FOREIGN KEY (repository, manifest) REFERENCES manifests (repository, digest) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

CREATE INDEX manifest_references_by_digest ON manifest_references (repository, digest);

-- The foreign key keeps a tag from outliving its manifest.
CREATE TABLE tags (
    repository    INTEGER NOT NULL,
    tag           TEXT    NOT NULL,
    digest        TEXT    NOT NULL,
    pushed_at_ms  INTEGER NOT NULL,
    pushed_by     TEXT    NOT NULL,
    immutable     INTEGER NOT NULL,
    checked_at_ms INTEGER NOT NULL,
    PRIMARY KEY (repository, tag),
    FOREIGN KEY (repository, digest) REFERENCES manifests (repository, digest)
) STRICT, WITHOUT ROWID;

CREATE INDEX tags_by_digest ON tags (repository, digest);

CREATE TABLE blob_links (
    repository INTEGER NOT NULL REFERENCES repositories (id),
    digest     TEXT    NOT NULL,
    size       INTEGER NOT NULL,
    PRIMARY KEY (repository, digest)
) STRICT, WITHOUT ROWID;

-- The repository is named, not referenced: it is made by the first commit, after the session.
CREATE TABLE uploads (
    upload        TEXT    NOT NULL PRIMARY KEY,
    repository    TEXT    NOT NULL,
    principal     TEXT    NOT NULL,
    algorithm     TEXT    NOT NULL,
    started_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX uploads_by_start ON uploads (started_at_ms, upload);

-- Every change of a tag, written with the change. With the blobs it is what tags can be rebuilt from, so it names repositories by name.
-- digest NULL: the tag was deleted. digest = previous: it was only marked immutable.
CREATE TABLE tag_journal (
    sequence   INTEGER PRIMARY KEY AUTOINCREMENT,
    repository TEXT    NOT NULL,
    tag        TEXT    NOT NULL,
    digest     TEXT,
    previous   TEXT,
    immutable  INTEGER NOT NULL,
    at_ms      INTEGER NOT NULL,
    by         TEXT    NOT NULL
) STRICT;

CREATE TRIGGER tag_journal_is_not_changed BEFORE UPDATE ON tag_journal
BEGIN SELECT raise(ABORT, 'the tag journal is append-only'); END;

CREATE TRIGGER tag_journal_is_not_deleted BEFORE DELETE ON tag_journal
BEGIN SELECT raise(ABORT, 'the tag journal is append-only'); END;
