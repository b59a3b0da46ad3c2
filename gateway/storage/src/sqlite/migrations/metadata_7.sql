-- Folders of other registries that were adopted, and what of each was left out: a repository, where its name is one, and NAME:TAG,
-- NAME@DIGEST, NAME/_layers/DIGEST or a path. A repeated adoption adds of these what has become whole, and nothing else.

CREATE TABLE adoptions (
    folder TEXT NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;

CREATE TABLE adoption_left_out (
    folder     TEXT NOT NULL REFERENCES adoptions (folder),
    repository TEXT,
    what       TEXT NOT NULL,
    PRIMARY KEY (folder, what)
) STRICT, WITHOUT ROWID;
