-- How a repository came to have content: each origin is an upstream's URL; 0 is what was pushed or mounted here. Content is read through a
-- repository by one origin only. What earlier versions stored has -1 until `origins.rs` decides, once, with the configuration.

CREATE TABLE origins (
    id  INTEGER PRIMARY KEY,
    url TEXT    NOT NULL UNIQUE
) STRICT;

INSERT INTO origins VALUES (0, '');

-- A row here: content with the origin -1 waits for its decision.
CREATE TABLE undecided_origins (
    only INTEGER PRIMARY KEY CHECK (only = 1)
) STRICT;

INSERT INTO undecided_origins SELECT 1 WHERE EXISTS (SELECT 1 FROM repositories);

ALTER TABLE repositories ADD COLUMN claimed INTEGER NOT NULL DEFAULT 0;

CREATE TABLE manifest_origins (
    repository INTEGER NOT NULL,
    digest     TEXT    NOT NULL,
    origin     INTEGER NOT NULL,
    PRIMARY KEY (repository, digest, origin),
    FOREIGN KEY (repository, digest) REFERENCES manifests (repository, digest) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

INSERT INTO manifest_origins SELECT repository, digest, -1 FROM manifests;

CREATE TABLE blob_links_by_origin (
    repository INTEGER NOT NULL REFERENCES repositories (id),
    digest     TEXT    NOT NULL,
    origin     INTEGER NOT NULL,
    size       INTEGER NOT NULL,
    PRIMARY KEY (repository, digest, origin)
) STRICT, WITHOUT ROWID;

INSERT INTO blob_links_by_origin SELECT repository, digest, -1, size FROM blob_links;
DROP TABLE blob_links;
ALTER TABLE blob_links_by_origin RENAME TO blob_links;

CREATE INDEX blob_links_by_digest ON blob_links (digest, origin);

-- Which principals uploaded or mounted a blob themselves.
CREATE TABLE blob_principals (
    repository INTEGER NOT NULL REFERENCES repositories (id),
    digest     TEXT    NOT NULL,
    principal  TEXT    NOT NULL,
    PRIMARY KEY (repository, digest, principal)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER blob_left_a_repository AFTER DELETE ON blob_links
WHEN NOT EXISTS (SELECT 1 FROM blob_links WHERE repository = old.repository AND digest = old.digest)
BEGIN
    DELETE FROM uses WHERE repository = old.repository AND digest = old.digest;
    DELETE FROM blob_principals WHERE repository = old.repository AND digest = old.digest;
END;
