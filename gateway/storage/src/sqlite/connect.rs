//! Opens connections to a file: one that writes, several that read.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};

use super::{
    failure::{Failed, failed, in_open},
    migrations::{Schema, migrate},
};
use crate::{
    blocking::{Blocking, lock},
    error::{Kind, StorageError},
};

const OPEN: &str = "open the database";

/// Makes the file when it does not exist, and brings it to this version. Blocks.
pub(super) fn open_writer(path: &Path, schema: &Schema) -> Result<Connection, StorageError> {
    let size = make_file(path).map_err(|error| StorageError::file(OPEN, path, error))?;
    let mut connection = connect(path, schema)?;
    if size <= MAX_CHECKED_BYTES {
        check(&connection)?;
    }
    migrate(&mut connection, schema)?;
    Ok(connection)
}

fn connect(path: &Path, schema: &Schema) -> Result<Connection, StorageError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(in_open)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(in_open)?;
    let mode: String = connection
        .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
        .map_err(in_open)?;
    if mode != "wal" {
        let reason = Failed(format!("the file system allows journal mode {mode} only"));
        return Err(StorageError::new(Kind::Internal, OPEN, reason));
    }
    connection
        .pragma_update(None, "synchronous", schema.synchronous)
        .and_then(|()| connection.pragma_update(None, "foreign_keys", true))
        .and_then(|()| connection.pragma_update(None, "journal_size_limit", MAX_IDLE_WAL_BYTES))
        .and_then(|()| connection.pragma_update(None, "temp_store", "MEMORY"))
        .and_then(|()| connection.pragma_update(None, "cache_size", -CACHE_KIB))
        .map_err(in_open)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// Makes the file readable for its owner only (SQLite gives its companions the same mode), with its folder. Returns its length.
fn make_file(path: &Path) -> io::Result<u64> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    match options.open(path) {
        Ok(_new) => File::open(folder)?.sync_all().map(|()| 0),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            fs::metadata(path).map(|metadata| metadata.len())
        }
        Err(error) => Err(error),
    }
}

/// Finds damaged pages before anybody is answered from them.
fn check(connection: &Connection) -> Result<(), StorageError> {
    let found: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(in_open)?;
    if found == "ok" {
        Ok(())
    } else {
        let attempt = "open the database: the file is damaged";
        Err(StorageError::new(Kind::Corrupt, attempt, Failed(found)))
    }
}

/// Connections that read, each used by one thread at a time.
#[derive(Clone, Debug)]
pub(super) struct Readers {
    blocking: Blocking,
    pool: Arc<ReaderPool>,
}

#[derive(Debug)]
struct ReaderPool {
    path: PathBuf,
    schema: &'static Schema,
    /// Those nobody uses now.
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(super) fn new(path: &Path, schema: &'static Schema) -> Self {
        let pool = ReaderPool {
            path: path.to_owned(),
            schema,
            idle: Mutex::default(),
        };
        Self {
            blocking: Blocking::new(READERS),
            pool: Arc::new(pool),
        }
    }

    /// Reads, off the executor.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        attempt: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StorageError> {
        let pool = Arc::clone(&self.pool);
        let read = move || {
            let idle = lock(&pool.idle).pop();
            let connection = idle.map_or_else(|| pool.connect(), Ok)?;
            let result = work(&connection).map_err(|error| failed(attempt, error));
            lock(&pool.idle).push(connection);
            result
        };
        self.blocking.run(attempt, read).await
    }
}

impl ReaderPool {
    fn connect(&self) -> Result<Connection, StorageError> {
        let connection = connect(&self.path, self.schema)?;
        connection
            .pragma_update(None, "query_only", true)
            .map_err(in_open)?;
        Ok(connection)
    }
}

/// Another process (a backup, a shell) may hold the file's lock for so long.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Checking a file of this size takes about a second; a larger one is checked by whoever doubts it.
const MAX_CHECKED_BYTES: u64 = 256 << 20;
/// A log that a burst made longer is cut back to this.
const MAX_IDLE_WAL_BYTES: i64 = 64 << 20;
const CACHE_KIB: i64 = 16 << 10;
/// More than the crate has.
const STATEMENTS: usize = 64;
const READERS: usize = 8;
