//! Brings a file to this version's tables, one numbered step at a time, and refuses files it does not know.
//!
//! The number of steps taken is the file's `user_version`. A published step is never edited: a change is a new step.

use rusqlite::{Connection, TransactionBehavior};

use super::failure::{Failed, in_open};
use crate::error::{Kind, StorageError};

/// What a kind of file holds.
#[derive(Debug)]
pub(super) struct Schema {
    /// Tells our files from anybody else's (the file header's application id).
    pub(super) application_id: i32,
    /// The steps, oldest first.
    pub(super) steps: &'static [&'static str],
    /// `FULL`: a commit that was answered survives a power cut. `NORMAL`: it survives the death of the process.
    pub(super) synchronous: &'static str,
}

/// Facts about repositories.
pub(super) const METADATA: Schema = Schema {
    application_id: i32::from_be_bytes(*b"Gmet"),
    steps: &[
        include_str!("migrations/metadata_1.sql"),
        include_str!("migrations/metadata_2.sql"),
        include_str!("migrations/metadata_3.sql"),
        include_str!("migrations/metadata_4.sql"),
        include_str!("migrations/metadata_5.sql"),
        include_str!("migrations/metadata_6.sql"),
        include_str!("migrations/metadata_7.sql"),
    ],
    synchronous: "FULL",
};

/// Plugins' own data.
pub(super) const KEY_VALUES: Schema = Schema {
    application_id: i32::from_be_bytes(*b"Gkva"),
    steps: &[
        include_str!("migrations/kv_1.sql"),
        include_str!("migrations/kv_2.sql"),
    ],
    synchronous: "NORMAL",
};

/// Takes the steps that are missing, all or none.
pub(super) fn migrate(connection: &mut Connection, schema: &Schema) -> Result<(), StorageError> {
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(in_open)?;
    let version: u32 = number(&transaction, "user_version")?;
    let application_id: i32 = number(&transaction, "application_id")?;
    let is_empty = version == 0 && application_id == 0 && is_empty(&transaction)?;
    if !is_empty && application_id != schema.application_id {
        let reason = Failed(format!("its application id is {application_id}"));
        return Err(StorageError::new(Kind::Internal, FOREIGN, reason));
    }
    let known = u32::try_from(schema.steps.len()).unwrap_or(u32::MAX);
    if version > known {
        let reason = Failed(format!("it has version {version}, known is {known}"));
        return Err(StorageError::new(Kind::Internal, NEWER, reason));
    }
    for step in schema.steps.iter().skip(version as usize) {
        transaction.execute_batch(step).map_err(in_open)?;
    }
    transaction
        .pragma_update(None, "user_version", known)
        .and_then(|()| transaction.pragma_update(None, "application_id", schema.application_id))
        .and_then(|()| transaction.commit())
        .map_err(in_open)
}

fn number<T: rusqlite::types::FromSql>(
    connection: &Connection,
    pragma: &str,
) -> Result<T, StorageError> {
    connection
        .pragma_query_value(None, pragma, |row| row.get(0))
        .map_err(in_open)
}

fn is_empty(connection: &Connection) -> Result<bool, StorageError> {
    connection
        .query_row(
            "SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)",
            [],
            |row| row.get(0),
        )
        .map_err(in_open)
}

const FOREIGN: &str = "open the database: the file belongs to another program or holds other data";
const NEWER: &str = "open the database: the file was written by a newer version of this program";
