//! Opens connections to a file: one that writes, several that read.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _},
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
    folder::{make_root, sync_folder},
};

const OPEN: &str = "open the database";
const DAMAGED: &str = "open the database: the file is damaged";

/// Makes the file when it does not exist, and brings it to this version. Blocks.
pub(super) fn open_writer(path: &Path, schema: &Schema) -> Result<Connection, StorageError> {
    let size = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(path, schema)?,
        Err(error) => return Err(StorageError::file(OPEN, path, error)),
    };
    refuse_damaged(path, size)?;
    let mut connection = connect(path, schema)?;
    if size <= MAX_CHECKED_BYTES {
        check(&connection)?;
    }
    migrate(&mut connection, schema)?;
    Ok(connection)
}

/// Makes the database under another name and then puts it in its place, so that an empty file is never one that a crash left. Its length.
fn make(path: &Path, schema: &Schema) -> Result<u64, StorageError> {
    let log = beside(path, "-wal");
    if log.exists() {
        let reason = format!(
            "its log {} is there and the database is not: put the database back beside it, or move the log away to begin anew",
            log.display()
        );
        return Err(damaged(reason));
    }
    let new = beside(path, ".new");
    let at = |error| StorageError::file(OPEN, path, error);
    for leftover in [&new, &beside(&new, "-wal"), &beside(&new, "-shm")] {
        match fs::remove_file(leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
            _ => {}
        }
    }
    make_file(&new).map_err(at)?;
    let mut connection = connect(&new, schema)?;
    migrate(&mut connection, schema)?;
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(()))
        .map_err(in_open)?;
    connection
        .close()
        .map_err(|(_connection, error)| in_open(error))?;
    let place = || {
        fs::File::open(&new)?.sync_all()?;
        fs::rename(&new, path)?;
        sync_folder(folder_of(path))?;
        fs::metadata(path).map(|metadata| metadata.len())
    };
    place().map_err(at)
}

/// Refuses what SQLite would take for a new database, or for a log without content, and then throw away.
fn refuse_damaged(path: &Path, size: u64) -> Result<(), StorageError> {
    if size == 0 {
        let reason = "it is empty: restore it, or remove it to begin anew";
        return Err(damaged(reason.to_owned()));
    }
    let log = beside(path, "-wal");
    let head = match fs::File::open(&log) {
        Ok(mut file) => {
            let mut head = [0_u8; 4];
            file.read_exact(&mut head).ok().map(|()| head)
        }
        Err(_absent) => None,
    };
    // The format's two magic numbers; the last bit is the byte order of checksums.
    match head {
        Some(head) if u32::from_be_bytes(head) & !1 != 0x377f_0682 => Err(damaged(format!(
            "its log {} is overwritten: restore it, or move it away and lose what was written since it was last taken over",
            log.display()
        ))),
        _ => Ok(()),
    }
}

fn damaged(reason: String) -> StorageError {
    StorageError::new(Kind::Corrupt, DAMAGED, Failed(reason))
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
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

/// Makes the file readable for its user and group only (SQLite gives its companions the same mode), with its folder.
fn make_file(path: &Path) -> io::Result<()> {
    make_root(folder_of(path))?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o640);
    options.open(path).map(drop)
}

/// Finds damaged pages before anybody is answered from them.
fn check(connection: &Connection) -> Result<(), StorageError> {
    let found: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(in_open)?;
    if found == "ok" {
        Ok(())
    } else {
        Err(damaged(found))
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
