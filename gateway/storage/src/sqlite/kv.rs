//! Plugins' own data, in a file of its own (WAL, `synchronous=NORMAL`): a plugin never waits for the registry's writer.

use std::path::Path;

use async_trait::async_trait;
use rusqlite::Connection;

use super::{
    commit::execute,
    connect::{Readers, open_writer},
    failure::in_open,
    migrations::KEY_VALUES,
    read::one,
    row::{int, unsigned},
    writer::Writer,
};
use crate::{
    error::StorageError,
    kv::{KeyValueStore, KvAdd, KvEntry, KvPut, KvWrite, MAX_SKEW_MS, weight, window_end},
};

/// Values in an SQLite file.
#[derive(Clone, Debug)]
pub struct SqliteKv {
    writer: Writer,
    readers: Readers,
}

impl SqliteKv {
    /// Opens the file, making it when it does not exist, and brings it to this version. Blocks: call it before serving.
    ///
    /// # Errors
    /// As [`super::SqliteStore::open`].
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let connection = open_writer(path, &KEY_VALUES)?;
        mend(&connection).map_err(in_open)?;
        Ok(Self {
            writer: Writer::start(connection)?,
            readers: Readers::new(path, &KEY_VALUES),
        })
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
        let (bucket, key) = (bucket.to_owned(), key.to_owned());
        let read = move |connection: &_| live_entry(connection, &bucket, &key, now_ms);
        self.readers.read("read a plugin's value", read).await
    }

    async fn put(&self, put: KvPut<'_>) -> Result<KvWrite, StorageError> {
        let entry = Put {
            room: Room {
                bucket: put.bucket.to_owned(),
                now_ms: put.now_ms,
                max_bytes: put.max_bytes,
            },
            key: put.key.to_owned(),
            value: put.value.to_owned(),
            expected: put.expected,
            expires_at_ms: put.expires_at_ms,
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

    async fn increment(&self, add: KvAdd<'_>) -> Result<Option<u64>, StorageError> {
        let room = Room {
            bucket: add.bucket.to_owned(),
            now_ms: add.now_ms,
            max_bytes: add.max_bytes,
        };
        let (key, by, window_ms) = (add.key.to_owned(), add.by, add.window_ms);
        let work = move |connection: &_| Ok(increment(connection, &room, &key, (by, window_ms))?);
        self.writer.run("add to a plugin's counter", work).await
    }

    async fn used_bytes(&self, bucket: &str) -> Result<u64, StorageError> {
        let bucket = bucket.to_owned();
        let read = move |connection: &_| used_bytes(connection, &bucket);
        self.readers.read("measure a plugin's bucket", read).await
    }
}

fn increment(
    connection: &Connection,
    room: &Room,
    key: &str,
    (by, window_ms): (u32, u32),
) -> rusqlite::Result<Option<u64>> {
    room.purge(connection, PURGED_BY_WRITE)?;
    let known = "SELECT 1 FROM counters WHERE bucket = ?1 AND key = ?2";
    let is_known = one(connection, known, (&room.bucket, key), |_row| Ok(()))?.is_some();
    if !is_known && !room.has(connection, (0, weight(key, &[])))? {
        return Ok(None);
    }
    let sql = "INSERT INTO counters (bucket, key, window_ms, ends_at_ms, total) \
        VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET \
        total = CASE WHEN window_ms = ?3 AND ends_at_ms BETWEEN ?4 AND ?6 THEN total + ?5 ELSE ?5 END, \
        ends_at_ms = CASE WHEN window_ms = ?3 AND ends_at_ms BETWEEN ?4 AND ?6 THEN ends_at_ms ELSE ?4 END, \
        window_ms = ?3 RETURNING total";
    let end = window_end(room.now_ms, window_ms);
    let latest = int(end.saturating_add(MAX_SKEW_MS))?;
    let columns = (&room.bucket, key, window_ms, int(end)?, by, latest);
    one(connection, sql, columns, |row| unsigned(row, 0))
}

/// What a row takes, as SQL of an entry and of a counter.
const ENTRY_WEIGHT: &str = "octet_length(key) + octet_length(value) + 64";
const COUNTER_WEIGHT: &str = "octet_length(key) + 64";

/// Puts right what the file says of its buckets' sizes, after damage. Reads every row's size, so it runs once, when the file is opened.
fn mend(connection: &Connection) -> rusqlite::Result<()> {
    execute(connection, "DELETE FROM usage", [])?;
    let sql = format!(
        "INSERT INTO usage SELECT bucket, sum(bytes) FROM (\
        SELECT bucket, {ENTRY_WEIGHT} AS bytes FROM entries UNION ALL \
        SELECT bucket, {COUNTER_WEIGHT} FROM counters) GROUP BY bucket"
    );
    execute(connection, &sql, [])?;
    Ok(())
}

fn used_bytes(connection: &Connection, bucket: &str) -> rusqlite::Result<u64> {
    let sql = "SELECT max(bytes, 0) FROM usage WHERE bucket = ?1";
    let used = one(connection, sql, [bucket], |row| unsigned(row, 0))?;
    Ok(used.unwrap_or_default())
}

/// Rows that every write deletes of what ended: more than it adds, so that it does not pile up.
const PURGED_BY_WRITE: u32 = 16;
/// Rows that a write deletes at a time while there is no room for it, and how often: enough for the greatest value, whatever ended.
const PURGED_FOR_ROOM: u32 = 512;
const PURGES_FOR_ROOM: usize = 8;

/// A bucket, and how much it may take.
struct Room {
    bucket: String,
    now_ms: u64,
    max_bytes: Option<u64>,
}

impl Room {
    /// Whether a row may grow from `old` to `new` bytes; deletes what ended while it may not.
    fn has(&self, connection: &Connection, (old, new): (u64, u64)) -> rusqlite::Result<bool> {
        let Some(max_bytes) = self.max_bytes.filter(|_| new > old) else {
            return Ok(true);
        };
        for _purge in 0..PURGES_FOR_ROOM {
            let others = used_bytes(connection, &self.bucket)?.saturating_sub(old);
            if others.saturating_add(new) <= max_bytes {
                return Ok(true);
            }
            if self.purge(connection, PURGED_FOR_ROOM)? == 0 {
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Deletes up to `limit` values and as many counters that ended. Returns how many.
    fn purge(&self, connection: &Connection, limit: u32) -> rusqlite::Result<usize> {
        let entries = "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries \
            WHERE bucket = ?1 AND expires_at_ms <= ?2 LIMIT ?3)";
        let counters = "DELETE FROM counters WHERE bucket = ?1 AND key IN (SELECT key FROM counters \
            WHERE bucket = ?1 AND ends_at_ms <= ?2 LIMIT ?3)";
        let columns = (&self.bucket, int(self.now_ms)?, limit);
        Ok(execute(connection, entries, columns)? + execute(connection, counters, columns)?)
    }
}

/// [`KvPut`], owned by the writer.
struct Put {
    room: Room,
    key: String,
    value: Vec<u8>,
    expected: Option<Option<u64>>,
    expires_at_ms: Option<u64>,
}

impl Put {
    fn perform(&self, connection: &Connection) -> rusqlite::Result<KvWrite> {
        let Room { bucket, now_ms, .. } = &self.room;
        self.room.purge(connection, PURGED_BY_WRITE)?;
        let ended = "DELETE FROM entries WHERE bucket = ?1 AND key = ?2 AND expires_at_ms <= ?3";
        execute(connection, ended, (bucket, &self.key, int(*now_ms)?))?;
        let current = live_entry(connection, bucket, &self.key, *now_ms)?;
        let version = current.as_ref().map(|entry| entry.version);
        if self.expected.is_some_and(|expected| expected != version) {
            return Ok(KvWrite::Lost);
        }
        let old = current.map_or(0, |entry| weight(&self.key, &entry.value));
        if !self
            .room
            .has(connection, (old, weight(&self.key, &self.value)))?
        {
            return Ok(KvWrite::Full);
        }
        self.write(connection).map(KvWrite::Written)
    }

    fn write(&self, connection: &Connection) -> rusqlite::Result<u64> {
        let sql = "UPDATE versions SET latest = latest + 1 RETURNING latest";
        let version = one(connection, sql, [], |row| unsigned(row, 0))?.unwrap_or_default();
        let sql = "INSERT INTO entries (bucket, key, value, version, expires_at_ms) \
            VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET value = excluded.value, \
            version = excluded.version, expires_at_ms = excluded.expires_at_ms";
        let columns = (
            &self.room.bucket,
            &self.key,
            &self.value,
            int(version)?,
            self.expires_at_ms.map(int).transpose()?,
        );
        execute(connection, sql, columns)?;
        Ok(version)
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
