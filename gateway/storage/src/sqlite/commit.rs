//! The changes to the metadata. Each runs in a savepoint of the writer's transaction: what returns an error changed nothing.

use std::collections::BTreeSet;

use gantry_model::{Digest, RepositoryName, Tag, TagState};
use rusqlite::{Connection, Params};

use super::{
    failure::Stop,
    outbox::{self, Bounds},
    read::{self, one},
    row::{int, named_word},
};
use crate::metadata::{Commit, CommitError, ContentOrigin, PushManifest, TagMove, TagRecord};

type Changed = Result<(), Stop<CommitError>>;

/// Performs one commit.
pub(super) fn apply(connection: &Connection, bounds: &Bounds, commit: &Commit) -> Changed {
    match commit {
        Commit::Telling { commit, events } => {
            apply(connection, bounds, commit)?;
            Ok(outbox::insert(connection, bounds, events)?)
        }
        Commit::PushManifest(push) => push_manifest(connection, push),
        Commit::LinkBlob {
            repository,
            origin,
            digest,
            size,
            upload,
            principal,
        } => {
            link_blob(connection, repository, origin, digest, *size)?;
            if let Some(principal) = principal {
                remember_principal(connection, repository, digest, principal)?;
            }
            if let Some(upload) = upload {
                end_upload(connection, &upload.to_string())?;
            }
            Ok(())
        }
        Commit::DeleteManifest {
            repository,
            digest,
            tags,
            at_ms,
            by,
        } => {
            let when = When { at_ms: *at_ms, by };
            delete_manifest(connection, repository, digest, tags, when)
        }
        Commit::DeleteTag {
            repository,
            tag,
            expected,
            at_ms,
            by,
        } => {
            let when = When { at_ms: *at_ms, by };
            delete_tag(connection, repository, tag, expected, when)
        }
        Commit::UnlinkBlob { repository, digest } => unlink_blob(connection, repository, digest),
        Commit::DeleteBlob { repository, digest } => delete_blob(connection, repository, digest),
        Commit::ReleaseRepository {
            repository,
            at_ms,
            by,
        } => {
            let when = When { at_ms: *at_ms, by };
            release_repository(connection, repository, when)
        }
        Commit::ConfirmTag {
            repository,
            tag,
            digest,
            checked_at_ms,
        } => confirm_tag(connection, repository, tag, digest, *checked_at_ms),
    }
}

/// When and by whom, for the journal.
#[derive(Clone, Copy)]
struct When<'a> {
    at_ms: u64,
    by: &'a str,
}

fn push_manifest(connection: &Connection, push: &PushManifest) -> Changed {
    let repository = &push.repository;
    let id = make_repository(connection, repository)?;
    for to in &push.tags {
        let current = read::tag(connection, repository, &to.tag)?;
        if !to.is_possible(current.as_ref(), &push.manifest.digest) {
            return Err(moved(to.tag.clone(), current));
        }
    }
    let origin = make_origin(connection, &push.origin)?;
    for digest in &push.required {
        if !holds(connection, id, origin, digest)? {
            let digest = digest.clone();
            return Err(Stop::Refused(CommitError::MissingReference { digest }));
        }
    }
    insert_manifest(connection, id, push)?;
    let sql = "INSERT INTO manifest_origins VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
    execute(connection, sql, (id, push.manifest.digest.as_str(), origin))?;
    if push.origin == ContentOrigin::Pushed {
        let sql = "UPDATE repositories SET claimed = 1 WHERE id = ?1 AND NOT claimed";
        execute(connection, sql, [id])?;
    }
    for to in &push.tags {
        point_tag(connection, id, push, to)?;
    }
    Ok(())
}

fn insert_manifest(connection: &Connection, id: i64, push: &PushManifest) -> Changed {
    let manifest = &push.manifest;
    let sql = "INSERT INTO manifests (repository, digest, media_type, size, artifact_type, subject, \
        annotations, pushed_at_ms, pushed_by) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) \
        ON CONFLICT DO NOTHING";
    let columns = (
        id,
        manifest.digest.as_str(),
        manifest.media_type.as_str(),
        int(manifest.size)?,
        manifest.artifact_type.as_deref(),
        manifest.subject.as_ref().map(Digest::as_str),
        &push.annotations,
        int(manifest.pushed_at_ms)?,
        &manifest.pushed_by,
    );
    if execute(connection, sql, columns)? == 0 {
        return Ok(());
    }
    for reference in &push.references {
        let sql = "INSERT INTO manifest_references (repository, manifest, digest, media_type, size, named) \
            VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING";
        let columns = (
            id,
            manifest.digest.as_str(),
            reference.digest.as_str(),
            reference.media_type.as_str(),
            int(reference.size)?,
            named_word(reference.named),
        );
        execute(connection, sql, columns)?;
    }
    Ok(())
}

/// Writes a tag that was compared already. A push may name one tag twice, so its record is read again.
fn point_tag(connection: &Connection, id: i64, push: &PushManifest, to: &TagMove) -> Changed {
    let current = read::tag(connection, &push.repository, &to.tag)?;
    let current = current.as_ref();
    let record = to.applied(&push.manifest, current);
    let TagState {
        digest,
        pushed_at_ms,
        pushed_by,
        immutable,
    } = &record.state;
    let sql = "INSERT INTO tags (repository, tag, digest, pushed_at_ms, pushed_by, immutable, checked_at_ms) \
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO UPDATE SET digest = excluded.digest, \
        pushed_at_ms = excluded.pushed_at_ms, pushed_by = excluded.pushed_by, \
        immutable = excluded.immutable, checked_at_ms = excluded.checked_at_ms";
    let columns = (
        id,
        to.tag.as_str(),
        digest.as_str(),
        int(*pushed_at_ms)?,
        pushed_by,
        immutable,
        int(record.checked_at_ms)?,
    );
    execute(connection, sql, columns)?;
    let before = current.map(|record| (&record.state.digest, record.state.immutable));
    if before == Some((digest, *immutable)) {
        return Ok(());
    }
    let when = When {
        at_ms: push.manifest.pushed_at_ms,
        by: &push.manifest.pushed_by,
    };
    journal(connection, &push.repository, Some(&record), current, when)
}

fn link_blob(
    connection: &Connection,
    repository: &RepositoryName,
    origin: &ContentOrigin,
    digest: &Digest,
    size: u64,
) -> Changed {
    let id = make_repository(connection, repository)?;
    let origin = make_origin(connection, origin)?;
    let sql = "INSERT INTO blob_links (repository, digest, origin, size) VALUES (?1, ?2, ?3, ?4) \
        ON CONFLICT DO NOTHING";
    execute(connection, sql, (id, digest.as_str(), origin, int(size)?))?;
    Ok(())
}

fn remember_principal(
    connection: &Connection,
    repository: &RepositoryName,
    digest: &Digest,
    principal: &str,
) -> Changed {
    let sql = "INSERT INTO blob_principals (repository, digest, principal) \
        SELECT id, ?2, ?3 FROM repositories WHERE name = ?1 ON CONFLICT DO NOTHING";
    let columns = (repository.as_str(), digest.as_str(), principal);
    execute(connection, sql, columns)?;
    Ok(())
}

/// Takes out what was pushed. What an upstream delivered stays, and so does a manifest that a cached tag names.
fn release_repository(
    connection: &Connection,
    repository: &RepositoryName,
    when: When<'_>,
) -> Changed {
    let claimed = read::repository(connection, repository)?.is_some_and(|it| it.claimed);
    let id = find_repository(connection, repository)?.filter(|_| claimed);
    let Some(id) = id else {
        return Err(Stop::Refused(CommitError::Absent));
    };
    let everything = gantry_model::Page::default();
    let mut pushed = read::tags(connection, repository, &everything)?;
    pushed.retain(|record| !record.is_cached());
    if let Some(kept) = pushed.iter().find(|record| record.state.immutable) {
        return Err(moved(kept.tag.clone(), Some(kept.clone())));
    }
    for record in &pushed {
        drop_tag(connection, (id, repository), record, when)?;
    }
    for sql in [
        "DELETE FROM manifest_origins WHERE repository = ?1 AND origin = 0",
        "DELETE FROM manifests WHERE repository = ?1 \
            AND NOT EXISTS (SELECT 1 FROM manifest_origins o \
                WHERE o.repository = manifests.repository AND o.digest = manifests.digest) \
            AND NOT EXISTS (SELECT 1 FROM tags t \
                WHERE t.repository = manifests.repository AND t.digest = manifests.digest)",
        "DELETE FROM blob_links WHERE repository = ?1 AND origin = 0",
        "DELETE FROM blob_principals WHERE repository = ?1",
        "UPDATE repositories SET claimed = 0, generation = generation + 1 WHERE id = ?1",
    ] {
        execute(connection, sql, [id])?;
    }
    Ok(())
}

fn delete_manifest(
    connection: &Connection,
    repository: &RepositoryName,
    digest: &Digest,
    tags: &[Tag],
    when: When<'_>,
) -> Changed {
    let Some(id) = find_repository(connection, repository)? else {
        return Err(Stop::Refused(CommitError::Absent));
    };
    let sql = "SELECT 1 FROM manifests WHERE repository = ?1 AND digest = ?2";
    if one(connection, sql, (id, digest.as_str()), |_row| Ok(()))?.is_none() {
        return Err(Stop::Refused(CommitError::Absent));
    }
    for tag in BTreeSet::from_iter(tags) {
        let current = read::tag(connection, repository, tag)?;
        match current {
            Some(record) if record.may_go(digest) => {
                drop_tag(connection, (id, repository), &record, when)?;
            }
            current => return Err(moved(tag.clone(), current)),
        }
    }
    let rest = gantry_model::Page {
        limit: Some(1),
        after: None,
    };
    let other = read::tags_of(connection, repository, digest, &rest)?;
    if let Some(other) = other.into_iter().next() {
        return Err(moved(other.tag.clone(), Some(other)));
    }
    let sql = "DELETE FROM manifests WHERE repository = ?1 AND digest = ?2";
    execute(connection, sql, (id, digest.as_str()))?;
    Ok(())
}

fn delete_tag(
    connection: &Connection,
    repository: &RepositoryName,
    tag: &Tag,
    expected: &Digest,
    when: When<'_>,
) -> Changed {
    let id = find_repository(connection, repository)?;
    let current = read::tag(connection, repository, tag)?;
    let (Some(id), Some(current)) = (id, current) else {
        return Err(Stop::Refused(CommitError::Absent));
    };
    if !current.may_go(expected) {
        return Err(moved(tag.clone(), Some(current)));
    }
    drop_tag(connection, (id, repository), &current, when)
}

fn drop_tag(
    connection: &Connection,
    (id, repository): (i64, &RepositoryName),
    current: &TagRecord,
    when: When<'_>,
) -> Changed {
    let sql = "DELETE FROM tags WHERE repository = ?1 AND tag = ?2";
    execute(connection, sql, (id, current.tag.as_str()))?;
    journal(connection, repository, None, Some(current), when)
}

fn unlink_blob(connection: &Connection, repository: &RepositoryName, digest: &Digest) -> Changed {
    let sql = "DELETE FROM blob_links \
        WHERE repository = (SELECT id FROM repositories WHERE name = ?1) AND digest = ?2";
    match execute(connection, sql, (repository.as_str(), digest.as_str()))? {
        0 => Err(Stop::Refused(CommitError::Absent)),
        _ => Ok(()),
    }
}

fn delete_blob(connection: &Connection, repository: &RepositoryName, digest: &Digest) -> Changed {
    let pushed = &ContentOrigin::Pushed;
    let parents = read::parents(connection, repository, pushed, digest)?;
    let has = read::blob(connection, repository, pushed, digest)?.is_some();
    if let Some((manifest, _)) = parents.into_iter().next().filter(|_| has) {
        return Err(Stop::Refused(CommitError::StillNamed { manifest }));
    }
    let mut deleted = 0;
    for sql in [
        "DELETE FROM blob_principals \
            WHERE repository = (SELECT id FROM repositories WHERE name = ?1) AND digest = ?2",
        "DELETE FROM blob_links \
            WHERE repository = (SELECT id FROM repositories WHERE name = ?1) AND digest = ?2 AND origin = 0",
    ] {
        deleted = execute(connection, sql, (repository.as_str(), digest.as_str()))?;
    }
    match deleted {
        0 => Err(Stop::Refused(CommitError::Absent)),
        _ => Ok(()),
    }
}

fn confirm_tag(
    connection: &Connection,
    repository: &RepositoryName,
    tag: &Tag,
    digest: &Digest,
    checked_at_ms: u64,
) -> Changed {
    let sql = "UPDATE tags SET checked_at_ms = max(checked_at_ms, ?4) \
        WHERE repository = (SELECT id FROM repositories WHERE name = ?1) AND tag = ?2 AND digest = ?3";
    let columns = (
        repository.as_str(),
        tag.as_str(),
        digest.as_str(),
        int(checked_at_ms)?,
    );
    execute(connection, sql, columns)?;
    Ok(())
}

/// Forgets an upload session.
pub(super) fn end_upload(connection: &Connection, upload: &str) -> rusqlite::Result<()> {
    let sql = "DELETE FROM uploads WHERE upload = ?1";
    execute(connection, sql, [upload]).map(|_rows| ())
}

/// Writes down a change of a tag; one of `now` and `before` is there.
fn journal(
    connection: &Connection,
    repository: &RepositoryName,
    now: Option<&TagRecord>,
    before: Option<&TagRecord>,
    when: When<'_>,
) -> Changed {
    let sql = "INSERT INTO tag_journal (repository, tag, digest, previous, immutable, at_ms, by) \
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let columns = (
        repository.as_str(),
        now.or(before).map(|record| record.tag.as_str()),
        now.map(|record| record.state.digest.as_str()),
        before.map(|record| record.state.digest.as_str()),
        now.is_some_and(|record| record.state.immutable),
        int(when.at_ms)?,
        when.by,
    );
    execute(connection, sql, columns)?;
    Ok(())
}

fn make_repository(connection: &Connection, name: &RepositoryName) -> rusqlite::Result<i64> {
    if let Some(id) = find_repository(connection, name)? {
        return Ok(id);
    }
    let sql = "INSERT INTO repositories (name) VALUES (?1)";
    execute(connection, sql, [name.as_str()])?;
    Ok(connection.last_insert_rowid())
}

fn find_repository(
    connection: &Connection,
    name: &RepositoryName,
) -> rusqlite::Result<Option<i64>> {
    let sql = "SELECT id FROM repositories WHERE name = ?1";
    one(connection, sql, [name.as_str()], |row| row.get(0))
}

pub(super) fn make_origin(
    connection: &Connection,
    origin: &ContentOrigin,
) -> rusqlite::Result<i64> {
    let find = "SELECT id FROM origins WHERE url = ?1";
    if let Some(id) = one(connection, find, [origin.as_str()], |row| row.get(0))? {
        return Ok(id);
    }
    let sql = "INSERT INTO origins (url) VALUES (?1)";
    execute(connection, sql, [origin.as_str()])?;
    Ok(connection.last_insert_rowid())
}

fn holds(connection: &Connection, id: i64, origin: i64, digest: &Digest) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM blob_links WHERE repository = ?1 AND digest = ?2 AND origin = ?3) \
        OR EXISTS (SELECT 1 FROM manifest_origins WHERE repository = ?1 AND digest = ?2 AND origin = ?3)";
    let held = one(connection, sql, (id, digest.as_str(), origin), |row| {
        row.get(0)
    })?;
    Ok(held.unwrap_or_default())
}

pub(super) fn execute(
    connection: &Connection,
    sql: &str,
    columns: impl Params,
) -> rusqlite::Result<usize> {
    connection.prepare_cached(sql)?.execute(columns)
}

fn moved(tag: Tag, current: Option<TagRecord>) -> Stop<CommitError> {
    let current = current.map(Box::new);
    Stop::Refused(CommitError::TagMoved { tag, current })
}
