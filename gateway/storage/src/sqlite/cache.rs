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
    cache::{CacheIndex, CacheQuery, CacheSize, Cached, Use},
    error::StorageError,
};

/// Names below a prefix: `/` is followed by `0` in the order of bytes, and no name holds anything between. Without those of a JSON list.
const BELOW: &str = "r.name > ?1 || '/' AND r.name < ?1 || '0' \
    AND r.name NOT IN (SELECT value FROM json_each(?2))";

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
        let (prefix, except) = (prefix.clone(), json(except));
        let read = move |connection: &_| cache_size(connection, &prefix, &except);
        self.readers.read("measure the cache", read).await
    }

    async fn least_used_blobs(&self, query: &CacheQuery) -> Result<Vec<Cached>, StorageError> {
        let sql = format!(
            "SELECT r.name, b.digest, b.size, max( \
                coalesce((SELECT used_at_ms FROM uses WHERE repository = b.repository AND digest = b.digest), 0), \
                coalesce((SELECT max({MANIFEST_USED}) FROM manifest_references p \
                    JOIN manifests m ON m.repository = p.repository AND m.digest = p.manifest \
                    WHERE p.repository = b.repository AND p.digest = b.digest), 0)) AS used \
            FROM repositories r JOIN blob_links b ON b.repository = r.id \
            WHERE {BELOW} AND used < ?3 ORDER BY used, b.size DESC, b.digest, r.name LIMIT ?4"
        );
        let query = query.clone();
        let read = move |connection: &_| least_used(connection, &sql, &query);
        self.readers.read("list unused blobs", read).await
    }

    async fn least_used_manifests(&self, query: &CacheQuery) -> Result<Vec<Cached>, StorageError> {
        let sql = format!(
            "SELECT r.name, m.digest, m.size, {MANIFEST_USED} AS used \
            FROM repositories r JOIN manifests m ON m.repository = r.id \
            WHERE {BELOW} AND used < ?3 ORDER BY used, m.size DESC, m.digest, r.name LIMIT ?4"
        );
        let query = query.clone();
        let read = move |connection: &_| least_used(connection, &sql, &query);
        self.readers.read("list unused manifests", read).await
    }

    async fn is_held(&self, digest: &Digest) -> Result<bool, StorageError> {
        let digest = digest.clone();
        let read = move |connection: &_| {
            let sql = "SELECT EXISTS (SELECT 1 FROM blob_links WHERE digest = ?1) \
                OR EXISTS (SELECT 1 FROM manifests WHERE digest = ?1)";
            let held = one(connection, sql, [digest.as_str()], |row| row.get(0))?;
            Ok(held.unwrap_or(true))
        };
        self.readers.read("look for holders", read).await
    }
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
    prefix: &RepositoryName,
    except: &str,
) -> rusqlite::Result<CacheSize> {
    let sql = format!(
        "SELECT \
            (SELECT coalesce(sum(size), 0) FROM (SELECT b.digest, max(b.size) AS size FROM repositories r \
                JOIN blob_links b ON b.repository = r.id WHERE {BELOW} GROUP BY b.digest)), \
            (SELECT count(DISTINCT b.digest) FROM repositories r \
                JOIN blob_links b ON b.repository = r.id WHERE {BELOW}), \
            (SELECT count(*) FROM repositories r JOIN manifests m ON m.repository = r.id WHERE {BELOW}), \
            (SELECT count(*) FROM repositories r WHERE {BELOW} AND ( \
                EXISTS (SELECT 1 FROM manifests WHERE repository = r.id) \
                OR EXISTS (SELECT 1 FROM blob_links WHERE repository = r.id)))"
    );
    let size = one(connection, &sql, [prefix.as_str(), except], |row| {
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
    let keys = (
        query.prefix.as_str(),
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

fn cached(row: &Row<'_>) -> rusqlite::Result<Cached> {
    Ok(Cached {
        repository: row::parsed(row, 0)?,
        digest: row::parsed(row, 1)?,
        size: row::unsigned(row, 2)?,
        used_at_ms: row::unsigned(row, 3)?,
    })
}
