//! What eviction asks of the file.

use async_trait::async_trait;
use gantry_model::{Digest, RepositoryName};
use rusqlite::{Connection, Row};

use super::{
    SqliteStore,
    commit::execute,
    failure::Stop,
    read::{all, one},
    row::{self, int},
};
use crate::{
    cache::{CacheIndex, CacheQuery, CacheSize, Cached, CachedRepository, Pin, Use, Within},
    error::StorageError,
};

/// Names between the bounds of a [`Within`], without those of a JSON list.
const WITHIN: &str = "r.name >= ?1 AND r.name < ?2 \
    AND r.name NOT IN (SELECT value FROM json_each(?3))";

/// A blob that a repository has by several origins, once.
const ONCE: &str = "NOT EXISTS (SELECT 1 FROM blob_links o \
    WHERE o.repository = b.repository AND o.digest = b.digest AND o.origin < b.origin)";

/// When a manifest was used: itself, an index that names it, or when it came.
const MANIFEST_USED: &str = "max(m.pushed_at_ms, \
    coalesce((SELECT used_at_ms FROM uses WHERE repository = m.repository AND digest = m.digest), 0), \
    coalesce((SELECT max(u.used_at_ms) FROM manifest_references i \
        JOIN uses u ON u.repository = i.repository AND u.digest = i.manifest \
        WHERE i.repository = m.repository AND i.digest = m.digest), 0))";

#[async_trait]
impl CacheIndex for SqliteStore {
    async fn record_uses(&self, uses: Vec<Use>) -> Result<(), StorageError> {
        let record = move |connection: &_| record_uses(connection, &uses);
        self.writer
            .run::<(), StorageError>("record uses", record)
            .await
    }

    async fn cache_size(
        &self,
        prefix: &RepositoryName,
        except: &[RepositoryName],
    ) -> Result<CacheSize, StorageError> {
        let (bounds, except) = (Within::Below(prefix.clone()).bounds(), json(except));
        let read = move |connection: &_| cache_size(connection, &bounds, &except);
        self.readers.read("measure the cache", read).await
    }

    async fn holding_repositories(
        &self,
        after: Option<&RepositoryName>,
        limit: usize,
    ) -> Result<Vec<CachedRepository>, StorageError> {
        let after = after.map(ToString::to_string).unwrap_or_default();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let read = move |connection: &_| all(connection, HOLDING, (after, limit), holding);
        self.readers.read("list the cache", read).await
    }

    async fn least_used_blobs(&self, query: &CacheQuery) -> Result<Vec<Cached>, StorageError> {
        let sql = format!(
            "SELECT r.name, b.digest, b.size, max( \
                coalesce((SELECT used_at_ms FROM uses WHERE repository = b.repository AND digest = b.digest), 0), \
                coalesce((SELECT max({MANIFEST_USED}) FROM manifest_references p \
                    JOIN manifests m ON m.repository = p.repository AND m.digest = p.manifest \
                    WHERE p.repository = b.repository AND p.digest = b.digest), 0)) AS used \
            FROM repositories r JOIN blob_links b ON b.repository = r.id \
            WHERE {WITHIN} AND {ONCE} AND used < ?4 ORDER BY used, b.size DESC, b.digest, r.name LIMIT ?5"
        );
        let query = query.clone();
        let read = move |connection: &_| least_used(connection, &sql, &query);
        self.readers.read("list unused blobs", read).await
    }

    async fn least_used_manifests(&self, query: &CacheQuery) -> Result<Vec<Cached>, StorageError> {
        let sql = format!(
            "SELECT r.name, m.digest, m.size, {MANIFEST_USED} AS used \
            FROM repositories r JOIN manifests m ON m.repository = r.id \
            WHERE {WITHIN} AND used < ?4 ORDER BY used, m.size DESC, m.digest, r.name LIMIT ?5"
        );
        let query = query.clone();
        let read = move |connection: &_| least_used(connection, &sql, &query);
        self.readers.read("list unused manifests", read).await
    }

    async fn is_held(&self, digest: &Digest) -> Result<bool, StorageError> {
        let digest = digest.clone();
        let read = move |connection: &_| is_held(connection, &digest);
        self.readers.read("look for holders", read).await
    }

    async fn unheld(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, StorageError> {
        let read = move |connection: &_| unheld(connection, digests);
        self.readers.read("look for holders", read).await
    }

    async fn began_ms(&self) -> Result<Option<u64>, StorageError> {
        let sql = "SELECT at_ms FROM tag_journal ORDER BY sequence LIMIT 1";
        let read = move |connection: &_| all(connection, sql, (), |row| row::unsigned(row, 0));
        let first = self.readers.read("look at the journal", read).await?;
        Ok(first.first().copied())
    }

    async fn pins(&self) -> Result<Vec<Pin>, StorageError> {
        let sql = "SELECT pattern, pinned_at_ms, pinned_by FROM pins ORDER BY pattern";
        let read = move |connection: &_| all(connection, sql, (), pin);
        self.readers.read("list pins", read).await
    }

    async fn pin(&self, pin: Pin) -> Result<bool, StorageError> {
        let sql = "INSERT INTO pins VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
        let insert = move |connection: &_| -> Result<bool, Stop<StorageError>> {
            let columns = (pin.pattern.as_str(), int(pin.at_ms)?, pin.by.as_str());
            Ok(execute(connection, sql, columns)? > 0)
        };
        self.writer.run("pin", insert).await
    }

    async fn unpin(&self, pattern: &str) -> Result<bool, StorageError> {
        let pattern = pattern.to_owned();
        let delete = move |connection: &_| -> Result<bool, Stop<StorageError>> {
            let sql = "DELETE FROM pins WHERE pattern = ?1";
            Ok(execute(connection, sql, [pattern.as_str()])? > 0)
        };
        self.writer.run("unpin", delete).await
    }
}

fn is_held(connection: &Connection, digest: &Digest) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM blob_links WHERE digest = ?1) \
        OR EXISTS (SELECT 1 FROM manifests WHERE digest = ?1)";
    let held = one(connection, sql, [digest.as_str()], |row| row.get(0))?;
    Ok(held.unwrap_or(true))
}

fn unheld(connection: &Connection, digests: Vec<Digest>) -> rusqlite::Result<Vec<Digest>> {
    let mut unheld = Vec::new();
    for digest in digests {
        if !is_held(connection, &digest)? {
            unheld.push(digest);
        }
    }
    Ok(unheld)
}

fn pin(row: &Row<'_>) -> rusqlite::Result<Pin> {
    Ok(Pin {
        pattern: row.get(0)?,
        at_ms: row::unsigned(row, 1)?,
        by: row.get(2)?,
    })
}

fn record_uses(connection: &Connection, uses: &[Use]) -> Result<(), Stop<StorageError>> {
    let sql = "INSERT INTO uses (repository, digest, used_at_ms) \
        SELECT id, ?2, ?3 FROM repositories WHERE name = ?1 \
        ON CONFLICT DO UPDATE SET used_at_ms = max(used_at_ms, excluded.used_at_ms)";
    for used in uses {
        let columns = (
            used.repository.as_str(),
            used.digest.as_str(),
            int(used.at_ms)?,
        );
        execute(connection, sql, columns)?;
    }
    Ok(())
}

fn cache_size(
    connection: &Connection,
    (from, to): &(String, String),
    except: &str,
) -> rusqlite::Result<CacheSize> {
    let sql = format!(
        "SELECT \
            (SELECT coalesce(sum(size), 0) FROM (SELECT b.digest, max(b.size) AS size FROM repositories r \
                JOIN blob_links b ON b.repository = r.id WHERE {WITHIN} GROUP BY b.digest)), \
            (SELECT count(DISTINCT b.digest) FROM repositories r \
                JOIN blob_links b ON b.repository = r.id WHERE {WITHIN}), \
            (SELECT count(*) FROM repositories r JOIN manifests m ON m.repository = r.id WHERE {WITHIN}), \
            (SELECT count(*) FROM repositories r WHERE {WITHIN} AND ( \
                EXISTS (SELECT 1 FROM manifests WHERE repository = r.id) \
                OR EXISTS (SELECT 1 FROM blob_links WHERE repository = r.id)))"
    );
    let keys = (from.as_str(), to.as_str(), except);
    let size = one(connection, &sql, keys, |row| {
        Ok(CacheSize {
            bytes: row::unsigned(row, 0)?,
            blobs: row::unsigned(row, 1)?,
            manifests: row::unsigned(row, 2)?,
            repositories: row::unsigned(row, 3)?,
        })
    })?;
    Ok(size.unwrap_or_default())
}

fn least_used(
    connection: &Connection,
    sql: &str,
    query: &CacheQuery,
) -> rusqlite::Result<Vec<Cached>> {
    let (from, to) = query.within.bounds();
    let keys = (
        from,
        to,
        json(&query.except),
        int(query.before_ms).unwrap_or(i64::MAX),
        i64::try_from(query.limit).unwrap_or(i64::MAX),
    );
    all(connection, sql, keys, cached)
}

/// Names hold nothing that JSON escapes.
fn json(names: &[RepositoryName]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    format!("[{}]", names.join(","))
}

/// Subqueries by repository: each is a range of an index.
const HOLDING: &str = "SELECT r.name, \
    (SELECT count(*) FROM tags WHERE repository = r.id), \
    (SELECT count(*) FROM manifests WHERE repository = r.id) AS manifest_count, \
    (SELECT count(DISTINCT digest) FROM blob_links WHERE repository = r.id) AS blob_count, \
    (SELECT coalesce(sum(size), 0) FROM blob_links b WHERE repository = r.id \
        AND NOT EXISTS (SELECT 1 FROM blob_links o \
            WHERE o.repository = b.repository AND o.digest = b.digest AND o.origin < b.origin)), \
    max(coalesce((SELECT max(used_at_ms) FROM uses WHERE repository = r.id), 0), \
        coalesce((SELECT max(pushed_at_ms) FROM manifests WHERE repository = r.id), 0)) \
    FROM repositories r WHERE r.name > ?1 AND manifest_count + blob_count > 0 ORDER BY r.name LIMIT ?2";

fn holding(row: &Row<'_>) -> rusqlite::Result<CachedRepository> {
    Ok(CachedRepository {
        repository: row::parsed(row, 0)?,
        tags: row::unsigned(row, 1)?,
        manifests: row::unsigned(row, 2)?,
        blobs: row::unsigned(row, 3)?,
        bytes: row::unsigned(row, 4)?,
        used_at_ms: row::unsigned(row, 5)?,
    })
}

fn cached(row: &Row<'_>) -> rusqlite::Result<Cached> {
    Ok(Cached {
        repository: row::parsed(row, 0)?,
        digest: row::parsed(row, 1)?,
        size: row::unsigned(row, 2)?,
        used_at_ms: row::unsigned(row, 3)?,
    })
}
