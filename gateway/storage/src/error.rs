//! A store failed: what the caller can do about it, and what was attempted.

use std::path::{Path, PathBuf};

/// What the caller can do about it; also the metric label.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// The space or quota is used up; freeing space makes it work again.
    Full,
    /// Not now; trying again may work.
    Unavailable,
    /// What was read is not what was written.
    Corrupt,
    /// A bug or an environment nobody foresaw.
    Internal,
}

/// A source of any type.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A store failed. `Display` names the attempt, never the source; never a path (paths go to the log with the source).
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt}")]
pub struct StorageError {
    kind: Kind,
    attempt: &'static str,
    #[source]
    source: Option<BoxError>,
}

impl StorageError {
    /// An error of a known kind.
    pub fn new(kind: Kind, attempt: &'static str, source: impl Into<BoxError>) -> Self {
        Self {
            kind,
            attempt,
            source: Some(source.into()),
        }
    }

    /// An I/O error; ENOSPC, EDQUOT and EFBIG are [`Kind::Full`], everything else [`Kind::Unavailable`].
    #[must_use]
    pub fn io(attempt: &'static str, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match source.kind() {
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => Kind::Full,
            _ => Kind::Unavailable,
        };
        Self {
            kind,
            attempt,
            source: Some(Box::new(source)),
        }
    }

    /// As [`StorageError::io`], of a file: its path is told by the source, for the log, and never by `Display`.
    #[must_use]
    pub fn file(attempt: &'static str, path: &Path, source: std::io::Error) -> Self {
        let path = path.to_owned();
        Self {
            kind: Self::io(attempt, source.kind().into()).kind,
            attempt,
            source: Some(Box::new(FileError { path, source })),
        }
    }

    /// What was read is not what was written.
    #[must_use]
    pub fn corrupt(attempt: &'static str) -> Self {
        Self {
            kind: Kind::Corrupt,
            attempt,
            source: None,
        }
    }

    /// The I/O error of [`StorageError::file`], with its file.
    pub(crate) fn into_file_error(self) -> Result<(PathBuf, std::io::Error), Self> {
        let Self {
            kind,
            attempt,
            source,
        } = self;
        match source.map(<dyn std::error::Error + Send + Sync>::downcast::<FileError>) {
            Some(Ok(file)) => Ok((file.path, file.source)),
            other => Err(Self {
                kind,
                attempt,
                source: other.and_then(Result::err),
            }),
        }
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// An I/O error with the file it happened to; for the log only.
#[derive(Debug, thiserror::Error)]
#[error("{}", path.display())]
struct FileError {
    path: PathBuf,
    source: std::io::Error,
}
