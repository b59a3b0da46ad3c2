//! The questions to the metadata: one statement each, prepared once per connection.

use gantry_model::{Digest, Page, RepositoryName, Tag, UploadId};
use rusqlite::{Connection, OptionalExtension as _, Params, Row};

use super::row;
use crate::metadata::{
    ContentOrigin, ManifestRecord, ReferenceRecord, ReferrerRecord, RepositoryRecord, TagRecord,
    UploadRecord,
};

pub(super) fn repository(
    connection: &Connection,
    name: &RepositoryName,
) -> rusqlite::Result<Option<RepositoryRecord>> {
    let sql = "SELECT generation, claimed FROM repositories WHERE name = ?1";
    one(connection, sql, [name.as_str()], |row| {
        Ok(RepositoryRecord {
            generation: row::unsigned(row, 0)?,
            claimed: row.get(1)?,
        })
    })
}

pub(super) fn repositories(
    connection: &Connection,
    page: &Page,
) -> rusqlite::Result<Vec<RepositoryName>> {
    let sql = "SELECT name FROM repositories WHERE name > ?1 \
        AND EXISTS (SELECT 1 FROM manifests WHERE repository = repositories.id) \
        ORDER BY name LIMIT ?2";
    all(connection, sql, row::page(page), |row| row::parsed(row, 0))
}

/// Whether anything was ever stored.
pub(super) fn has_repositories(connection: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM repositories)";
    let has = one(connection, sql, [], |row| row.get(0))?;
    Ok(has.unwrap_or_default())
}

pub(super) fn manifest(
    connection: &Connection,
    repository: &RepositoryName,
    origin: &ContentOrigin,
    digest: &Digest,
) -> rusqlite::Result<Option<ManifestRecord>> {
    let sql = "SELECT digest, media_type, size, artifact_type, subject, pushed_at_ms, pushed_by \
        FROM manifests WHERE repository = (SELECT id FROM repositories WHERE name = ?1) AND digest = ?2 \
        AND EXISTS (SELECT 1 FROM manifest_origins o WHERE o.repository = manifests.repository \
            AND o.digest = manifests.digest AND o.origin = (SELECT id FROM origins WHERE url = ?3))";
    let keys = [repository.as_str(), digest.as_str(), origin.as_str()];
    one(connection, sql, keys, row::manifest)
}

pub(super) fn tag(
    connection: &Connection,
    repository: &RepositoryName,
    tag: &Tag,
) -> rusqlite::Result<Option<TagRecord>> {
    let sql = "SELECT tag, digest, pushed_at_ms, pushed_by, immutable, checked_at_ms \
        FROM tags WHERE repository = (SELECT id FROM repositories WHERE name = ?1) AND tag = ?2";
    one(
        connection,
        sql,
        [repository.as_str(), tag.as_str()],
        row::tag,
    )
}

pub(super) fn tags(
    connection: &Connection,
    repository: &RepositoryName,
    page: &Page,
) -> rusqlite::Result<Vec<TagRecord>> {
    let sql = "SELECT tag, digest, pushed_at_ms, pushed_by, immutable, checked_at_ms \
        FROM tags WHERE repository = (SELECT id FROM repositories WHERE name = ?1) AND tag > ?2 \
        ORDER BY tag LIMIT ?3";
    let (after, limit) = row::page(page);
    let keys = (repository.as_str(), after, limit);
    all(connection, sql, keys, row::tag)
}

pub(super) fn tags_of(
    connection: &Connection,
    repository: &RepositoryName,
    digest: &Digest,
    page: &Page,
) -> rusqlite::Result<Vec<TagRecord>> {
    let sql = "SELECT tag, digest, pushed_at_ms, pushed_by, immutable, checked_at_ms \
        FROM tags INDEXED BY tags_by_digest \
        WHERE repository = (SELECT id FROM repositories WHERE name = ?1) AND digest = ?2 AND tag > ?3 \
        ORDER BY tag LIMIT ?4";
    let (after, limit) = row::page(page);
    let keys = (repository.as_str(), digest.as_str(), after, limit);
    all(connection, sql, keys, row::tag)
}

pub(super) fn referrers(
    connection: &Connection,
    repository: &RepositoryName,
    origin: &ContentOrigin,
    subject: &Digest,
) -> rusqlite::Result<Vec<ReferrerRecord>> {
    let sql = "SELECT digest, media_type, size, artifact_type, subject, pushed_at_ms, pushed_by, annotations \
        FROM manifests WHERE repository = (SELECT id FROM repositories WHERE name = ?1) AND subject = ?2 \
        AND EXISTS (SELECT 1 FROM manifest_origins o WHERE o.repository = manifests.repository \
            AND o.digest = manifests.digest AND o.origin = (SELECT id FROM origins WHERE url = ?3)) \
        ORDER BY digest";
    let keys = [repository.as_str(), subject.as_str(), origin.as_str()];
    all(connection, sql, keys, row::referrer)
}

pub(super) fn referrer(
    connection: &Connection,
    repository: &RepositoryName,
    origin: &ContentOrigin,
    digest: &Digest,
) -> rusqlite::Result<Option<ReferrerRecord>> {
    let sql = "SELECT digest, media_type, size, artifact_type, subject, pushed_at_ms, pushed_by, annotations \
        FROM manifests WHERE repository = (SELECT id FROM repositories WHERE name = ?1) AND digest = ?2 \
        AND EXISTS (SELECT 1 FROM manifest_origins o WHERE o.repository = manifests.repository \
            AND o.digest = manifests.digest AND o.origin = (SELECT id FROM origins WHERE url = ?3))";
    let keys = [repository.as_str(), digest.as_str(), origin.as_str()];
    one(connection, sql, keys, row::referrer)
}

pub(super) fn referrers_after(
    connection: &Connection,
    (repository, origin): &(RepositoryName, ContentOrigin),
    subject: &Digest,
    after: &str,
    max_bytes: usize,
) -> rusqlite::Result<Vec<ReferrerRecord>> {
    let sql = "SELECT digest, media_type, size, artifact_type, subject, pushed_at_ms, pushed_by, annotations \
        FROM manifests WHERE repository = (SELECT id FROM repositories WHERE name = ?1) AND subject = ?2 AND digest > ?3 \
        AND EXISTS (SELECT 1 FROM manifest_origins o WHERE o.repository = manifests.repository \
            AND o.digest = manifests.digest AND o.origin = (SELECT id FROM origins WHERE url = ?4)) \
        ORDER BY digest";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([
        repository.as_str(),
        subject.as_str(),
        after,
        origin.as_str(),
    ])?;
    let (mut found, mut bytes) = (Vec::new(), 0_usize);
    while bytes < max_bytes
        && let Some(row) = rows.next()?
    {
        let referrer = row::referrer(row)?;
        bytes = bytes
            .saturating_add(referrer.annotations.len())
            .saturating_add(ROW_BYTES);
        found.push(referrer);
    }
    Ok(found)
}

/// What a manifest's row costs beside its annotations.
const ROW_BYTES: usize = 512;

pub(super) fn blob(
    connection: &Connection,
    repository: &RepositoryName,
    origin: &ContentOrigin,
    digest: &Digest,
) -> rusqlite::Result<Option<u64>> {
    let sql = "SELECT size FROM blob_links \
        WHERE repository = (SELECT id FROM repositories WHERE name = ?1) AND digest = ?2 \
        AND origin = (SELECT id FROM origins WHERE url = ?3)";
    let keys = [repository.as_str(), digest.as_str(), origin.as_str()];
    one(connection, sql, keys, |row| row::unsigned(row, 0))
}

pub(super) fn delivered(
    connection: &Connection,
    origin: &ContentOrigin,
    digest: &Digest,
) -> rusqlite::Result<Option<u64>> {
    let sql = "SELECT size FROM blob_links INDEXED BY blob_links_by_digest \
        WHERE digest = ?1 AND origin = (SELECT id FROM origins WHERE url = ?2) LIMIT 1";
    let keys = [digest.as_str(), origin.as_str()];
    one(connection, sql, keys, |row| row::unsigned(row, 0))
}

pub(super) fn has_pushed(
    connection: &Connection,
    repository: &RepositoryName,
    digest: &Digest,
    principal: &str,
) -> rusqlite::Result<bool> {
    let sql = "SELECT 1 FROM blob_principals \
        WHERE repository = (SELECT id FROM repositories WHERE name = ?1) AND digest = ?2 AND principal = ?3";
    let keys = [repository.as_str(), digest.as_str(), principal];
    Ok(one(connection, sql, keys, |_row| Ok(()))?.is_some())
}

pub(super) fn parents(
    connection: &Connection,
    repository: &RepositoryName,
    origin: &ContentOrigin,
    digest: &Digest,
) -> rusqlite::Result<Vec<(Digest, ReferenceRecord)>> {
    let sql = "SELECT manifest, digest, media_type, size, named FROM manifest_references \
        WHERE repository = (SELECT id FROM repositories WHERE name = ?1) AND digest = ?2 \
        AND EXISTS (SELECT 1 FROM manifest_origins o WHERE o.repository = manifest_references.repository \
            AND o.digest = manifest_references.manifest AND o.origin = (SELECT id FROM origins WHERE url = ?3)) \
        ORDER BY manifest, media_type, size";
    let keys = [repository.as_str(), digest.as_str(), origin.as_str()];
    all(connection, sql, keys, |row| {
        Ok((row::parsed(row, 0)?, row::reference(row)?))
    })
}

pub(super) fn upload(
    connection: &Connection,
    upload: UploadId,
) -> rusqlite::Result<Option<UploadRecord>> {
    let sql = "SELECT upload, repository, principal, algorithm, started_at_ms \
        FROM uploads WHERE upload = ?1";
    one(connection, sql, [upload.to_string()], row::upload)
}

pub(super) fn stale_uploads(
    connection: &Connection,
    before_ms: i64,
    limit: i64,
) -> rusqlite::Result<Vec<UploadRecord>> {
    let sql = "SELECT upload, repository, principal, algorithm, started_at_ms \
        FROM uploads WHERE started_at_ms < ?1 ORDER BY started_at_ms, upload LIMIT ?2";
    all(connection, sql, [before_ms, limit], row::upload)
}

/// The row there is at most.
pub(super) fn one<T>(
    connection: &Connection,
    sql: &str,
    keys: impl Params,
    convert: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Option<T>> {
    connection
        .prepare_cached(sql)?
        .query_row(keys, convert)
        .optional()
}

pub(super) fn all<T>(
    connection: &Connection,
    sql: &str,
    keys: impl Params,
    convert: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Vec<T>> {
    connection
        .prepare_cached(sql)?
        .query_map(keys, convert)?
        .collect()
}
