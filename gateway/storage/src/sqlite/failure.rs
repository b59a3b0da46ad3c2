//! What an error of SQLite means to a caller.

use std::sync::Arc;

use rusqlite::{Error, ErrorCode, ffi};

use crate::error::{Kind, StorageError};

/// A reason in words, for the log.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Failed(pub(super) String);

/// Work on the database stopped: the store refuses it for a reason of its own, or SQLite failed.
#[derive(Debug)]
pub(super) enum Stop<E> {
    Refused(E),
    Sql(Error),
}

impl<E> From<Error> for Stop<E> {
    fn from(error: Error) -> Self {
        Self::Sql(error)
    }
}

/// What the caller can do about an error.
pub(super) fn kind(error: &Error) -> Kind {
    match error {
        Error::SqliteFailure(failure, _) if failure.extended_code == ffi::SQLITE_IOERR_SHMSIZE => {
            Kind::Full
        }
        Error::SqliteFailure(failure, _) => match failure.code {
            ErrorCode::DiskFull => Kind::Full,
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Kind::Corrupt,
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::SystemIoFailure
            | ErrorCode::CannotOpen
            | ErrorCode::ReadOnly
            | ErrorCode::PermissionDenied
            | ErrorCode::OutOfMemory
            | ErrorCode::FileLockingProtocolFailed => Kind::Unavailable,
            _ => Kind::Internal,
        },
        Error::FromSqlConversionFailure(..)
        | Error::IntegralValueOutOfRange(..)
        | Error::InvalidColumnType(..) => Kind::Corrupt,
        _ => Kind::Internal,
    }
}

/// One attempt failed.
pub(super) fn failed(attempt: &'static str, error: Error) -> StorageError {
    StorageError::new(kind(&error), attempt, error)
}

/// For `map_err` while a file is opened.
pub(super) fn in_open(error: Error) -> StorageError {
    let attempt = match kind(&error) {
        Kind::Corrupt => "open the database: the file is damaged or is no database",
        _ => "open the database",
    };
    failed(attempt, error)
}

/// Several attempts failed for one reason.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    kind: Kind,
    source: Arc<Error>,
}

impl Shared {
    /// For a transaction that did not begin or did not commit: unless the reason is a lasting one, another try may work.
    pub(super) fn of_transaction(error: Error) -> Self {
        let kind = match kind(&error) {
            lasting @ (Kind::Full | Kind::Corrupt) => lasting,
            Kind::Unavailable | Kind::Internal => Kind::Unavailable,
        };
        Self {
            kind,
            source: Arc::new(error),
        }
    }

    pub(super) fn told(&self, attempt: &'static str) -> StorageError {
        StorageError::new(self.kind, attempt, Arc::clone(&self.source))
    }
}
