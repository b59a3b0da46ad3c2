-- When content was last given to somebody: a hint for eviction. It goes with what it is about.

CREATE TABLE uses (
    repository INTEGER NOT NULL REFERENCES repositories (id),
    digest     TEXT    NOT NULL,
    used_at_ms INTEGER NOT NULL,
    PRIMARY KEY (repository, digest)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER use_of_a_blob_goes AFTER DELETE ON blob_links
BEGIN DELETE FROM uses WHERE repository = old.repository AND digest = old.digest; END;

CREATE TRIGGER use_of_a_manifest_goes AFTER DELETE ON manifests
BEGIN DELETE FROM uses WHERE repository = old.repository AND digest = old.digest; END;

-- Whether anybody holds a digest, in any repository.
CREATE INDEX blob_links_by_digest ON blob_links (digest);
CREATE INDEX manifests_by_digest ON manifests (digest);
