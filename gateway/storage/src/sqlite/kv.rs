//! Plugins' own data, in a file of its own (WAL, `synchronous=NORMAL`): a plugin never waits for the registry's writer.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use rusqlite::Connection;

use super::{
    commit::execute,
    connect::{Readers, open_writer},
    migrations::KEY_VALUES,
    read::one,
    row::{int, unsigned},
    writer::Writer,
};
use crate::{
    error::StorageError,
    kv::{KeyValueStore, KvEntry, KvPut, window_end},
};

/// Values in an SQLite file.
#[derive(Clone, Debug)]
pub struct SqliteKv {
    writer: Writer,
    readers: Readers,
    /// The latest `now_ms` anybody told: what expired by then weighs nothing, though it may not be deleted yet.
    latest_ms: Arc<AtomicU64>,
}

impl SqliteKv {
    /// Opens the file, making it when it does not exist, and brings it to this version. Blocks: call it before serving.
    ///
    /// # Errors
    /// As [`super::SqliteStore::open`].
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let connection = open_writer(path, &KEY_VALUES)?;
        Ok(Self {
            writer: Writer::start(connection)?,
            readers: Readers::new(path, &KEY_VALUES),
            latest_ms: Arc::default(),
        })
    }

    fn heard(&self, now_ms: u64) {
        self.latest_ms.fetch_max(now_ms, Ordering::Relaxed);
    }
}

#[async_trait]
impl KeyValueStore for SqliteKv {
    async fn get(
        &self,
        bucket: &str,
        key: &str,
        now_ms: u64,
    ) -> Result<Option<KvEntry>, StorageError> {
        self.heard(now_ms);
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        let read = move |connection: &_| live_entry(connection, &bucket, &key, now_ms);
        self.readers.read("read a plugin's value", read).await
    }

    async fn put(&self, put: KvPut<'_>) -> Result<Option<u64>, StorageError> {
        self.heard(put.now_ms);
        let entry = Put {
            bucket: put.bucket.to_owned(),
            key: put.key.to_owned(),
            value: put.value.to_owned(),
            expected: put.expected,
            expires_at_ms: put.expires_at_ms,
            now_ms: put.now_ms,
        };
        let write = move |connection: &_| Ok(entry.perform(connection)?);
        self.writer.run("write a plugin's value", write).await
    }

    async fn delete(&self, bucket: &str, key: &str) -> Result<bool, StorageError> {
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        let delete = move |connection: &_| {
            let keys = [&bucket, &key];
            let entries = "DELETE FROM entries WHERE bucket = ?1 AND key = ?2";
            let counters = "DELETE FROM counters WHERE bucket = ?1 AND key = ?2";
            let deleted =
                execute(connection, entries, keys)? + execute(connection, counters, keys)?;
            Ok(deleted > 0)
        };
        self.writer.run("delete a plugin's value", delete).await
    }

    async fn increment(
        &self,
        bucket: &str,
        key: &str,
        by: u32,
        window_ms: u32,
        now_ms: u64,
    ) -> Result<u64, StorageError> {
        self.heard(now_ms);
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        let add = move |connection: &_| {
            let sql = "INSERT INTO counters (bucket, key, window_ms, ends_at_ms, total) \
                VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET \
                total = CASE WHEN window_ms = ?3 AND ends_at_ms >= ?4 THEN total + ?5 ELSE ?5 END, \
                ends_at_ms = CASE WHEN window_ms = ?3 THEN max(ends_at_ms, ?4) ELSE ?4 END, \
                window_ms = ?3 RETURNING total";
            let end = int(window_end(now_ms, window_ms))?;
            let columns = (&bucket, &key, window_ms, end, by);
            let total = one(connection, sql, columns, |row| unsigned(row, 0))?;
            purge(connection, &bucket, now_ms)?;
            Ok(total.unwrap_or_default())
        };
        self.writer.run("add to a plugin's counter", add).await
    }

    async fn used_bytes(&self, bucket: &str) -> Result<u64, StorageError> {
        let bucket = bucket.to_owned();
        let now_ms = self.latest_ms.load(Ordering::Relaxed);
        let read = move |connection: &_| {
            let sql = "SELECT coalesce((SELECT bytes FROM usage WHERE bucket = ?1), 0) \
                - (SELECT coalesce(sum(octet_length(key) + octet_length(value)), 0) FROM entries \
                    WHERE bucket = ?1 AND expires_at_ms <= ?2) \
                - (SELECT coalesce(sum(octet_length(key) + 8), 0) FROM counters \
                    WHERE bucket = ?1 AND ends_at_ms <= ?2)";
            let keys = (&bucket, int(now_ms)?);
            let used = one(connection, sql, keys, |row| unsigned(row, 0))?;
            Ok(used.unwrap_or_default())
        };
        self.readers.read("measure a plugin's bucket", read).await
    }
}

/// [`KvPut`], owned by the writer.
struct Put {
    bucket: String,
    key: String,
    value: Vec<u8>,
    expected: Option<Option<u64>>,
    expires_at_ms: Option<u64>,
    now_ms: u64,
}

impl Put {
    fn perform(&self, connection: &Connection) -> rusqlite::Result<Option<u64>> {
        purge(connection, &self.bucket, self.now_ms)?;
        let current = live_entry(connection, &self.bucket, &self.key, self.now_ms)?;
        if let Some(expected) = self.expected
            && expected != current.map(|entry| entry.version)
        {
            return Ok(None);
        }
        let sql = "UPDATE versions SET latest = latest + 1 RETURNING latest";
        let version = one(connection, sql, [], |row| unsigned(row, 0))?.unwrap_or_default();
        let sql = "INSERT INTO entries (bucket, key, value, version, expires_at_ms) \
            VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET value = excluded.value, \
            version = excluded.version, expires_at_ms = excluded.expires_at_ms";
        let columns = (
            &self.bucket,
            &self.key,
            &self.value,
            int(version)?,
            self.expires_at_ms.map(int).transpose()?,
        );
        execute(connection, sql, columns)?;
        Ok(Some(version))
    }
}

fn live_entry(
    connection: &Connection,
    bucket: &str,
    key: &str,
    now_ms: u64,
) -> rusqlite::Result<Option<KvEntry>> {
    let sql = "SELECT value, version, expires_at_ms FROM entries \
        WHERE bucket = ?1 AND key = ?2 AND (expires_at_ms IS NULL OR expires_at_ms > ?3)";
    one(connection, sql, (bucket, key, int(now_ms)?), |row| {
        let expires: Option<i64> = row.get(2)?;
        Ok(KvEntry {
            value: row.get(0)?,
            version: unsigned(row, 1)?,
            expires_at_ms: expires.map(|_| unsigned(row, 2)).transpose()?,
        })
    })
}

/// Deletes some of what ended: more than one write adds, so it does not pile up.
fn purge(connection: &Connection, bucket: &str, now_ms: u64) -> rusqlite::Result<()> {
    let entries = "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries \
        WHERE bucket = ?1 AND expires_at_ms <= ?2 LIMIT 16)";
    let counters = "DELETE FROM counters WHERE bucket = ?1 AND key IN (SELECT key FROM counters \
        WHERE bucket = ?1 AND ends_at_ms <= ?2 LIMIT 16)";
    execute(connection, entries, (bucket, int(now_ms)?))?;
    execute(connection, counters, (bucket, int(now_ms)?))?;
    Ok(())
}
