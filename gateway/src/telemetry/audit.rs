//! The audit file: every decision as one JSON line, whatever the log's level is.
//!
//! Owns the file. It is opened for appending and each line is one write, so lines never mix. A file that was moved away, as logrotate
//! does, is opened anew within a second: no signal is needed. Lines are written before the request is answered; one that cannot be is
//! counted and told to the log.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::json::Lines;

/// How often it is looked whether the file is still where it was.
const LOOK_EVERY: Duration = Duration::from_secs(1);

static ERRORS: AtomicU64 = AtomicU64::new(0);

/// Lines that could not be written since the process started.
pub(super) fn errors() -> u64 {
    ERRORS.load(Ordering::Relaxed)
}

/// Where audit lines go besides the log.
#[derive(Debug)]
pub enum AuditSink {
    /// Standard output.
    Stdout,
    /// A file.
    File(AuditFile),
}

/// A file that audit lines are appended to.
#[derive(Debug)]
pub struct AuditFile {
    path: PathBuf,
    /// Held while a line is written, which keeps lines in order.
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    looked: Instant,
}

impl AuditSink {
    /// Opens the file for appending, making it (readable by its owner and group) when it does not exist.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::File(AuditFile {
            path: path.to_owned(),
            open: Mutex::new(Open {
                file: open(path)?,
                looked: Instant::now(),
            }),
        }))
    }
}

fn open(path: &Path) -> io::Result<File> {
    let nonblock = crate::files::NONBLOCK;
    let mut options = File::options();
    options.create(true).append(true).mode(0o640);
    // A pipe without a reader is an error now, and no wait for one.
    drop(options.clone().custom_flags(nonblock).open(path)?);
    options.open(path)
}

impl AuditFile {
    fn append(&self, line: &[u8]) -> io::Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.looked.elapsed() >= LOOK_EVERY {
            open.looked = Instant::now();
            if !self.is_in_place(&open.file) {
                open.file = self::open(&self.path)?;
            }
        }
        open.file.write_all(line)
    }

    fn is_in_place(&self, file: &File) -> bool {
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let held = file.metadata().map(identity).ok();
        held.is_some() && fs::metadata(&self.path).map(identity).ok() == held
    }
}

impl Lines for AuditSink {
    fn write(&self, line: &[u8]) {
        let written = match self {
            Self::Stdout => io::stdout().lock().write_all(line),
            Self::File(file) => file.append(line),
        };
        if let Err(error) = written {
            ERRORS.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%error, "an audit line could not be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_moved_away_is_opened_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let sink = AuditSink::open(&path).unwrap();
        sink.write(b"one\n");
        let moved = folder.path().join("audit.jsonl.1");
        fs::rename(&path, &moved).unwrap();
        if let AuditSink::File(file) = &sink {
            let long_ago = Instant::now().checked_sub(LOOK_EVERY).unwrap();
            file.open.lock().unwrap().looked = long_ago;
        }
        sink.write(b"two\n");
        assert_eq!(fs::read_to_string(&moved).unwrap(), "one\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o007, 0);
    }
}
