//! Converts between columns and the model's words. A column that does not parse is damage.

use std::{error::Error as StdError, str::FromStr};

use gantry_model::{MediaType, Page, TagState};
use rusqlite::{Error, Row, types::Type};

use super::failure::Failed;
use crate::metadata::{
    ManifestRecord, Named, ReferenceRecord, ReferrerRecord, TagRecord, UploadRecord,
};

/// A text column as one of the model's words.
pub(super) fn parsed<T>(row: &Row<'_>, index: usize) -> rusqlite::Result<T>
where
    T: FromStr,
    T::Err: StdError + Send + Sync + 'static,
{
    parse(index, row.get_ref(index)?.as_str()?)
}

fn parse<T>(index: usize, text: &str) -> rusqlite::Result<T>
where
    T: FromStr,
    T::Err: StdError + Send + Sync + 'static,
{
    text.parse().map_err(|error| {
        Error::FromSqlConversionFailure(index, Type::Text, Box::<T::Err>::new(error))
    })
}

/// A number column that was written by [`int`].
pub(super) fn unsigned(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    let number: i64 = row.get(index)?;
    u64::try_from(number).map_err(|_negative| Error::IntegralValueOutOfRange(index, number))
}

/// A number as SQLite stores it.
pub(super) fn int(number: u64) -> rusqlite::Result<i64> {
    i64::try_from(number).map_err(|error| Error::ToSqlConversionFailure(Box::new(error)))
}

pub(super) fn tag(row: &Row<'_>) -> rusqlite::Result<TagRecord> {
    Ok(TagRecord {
        tag: parsed(row, 0)?,
        state: TagState {
            digest: parsed(row, 1)?,
            pushed_at_ms: unsigned(row, 2)?,
            pushed_by: row.get(3)?,
            immutable: row.get(4)?,
        },
        checked_at_ms: unsigned(row, 5)?,
    })
}

pub(super) fn manifest(row: &Row<'_>) -> rusqlite::Result<ManifestRecord> {
    let subject: Option<String> = row.get(4)?;
    Ok(ManifestRecord {
        digest: parsed(row, 0)?,
        media_type: parsed(row, 1)?,
        size: unsigned(row, 2)?,
        artifact_type: row.get(3)?,
        subject: subject.map(|text| parse(4, &text)).transpose()?,
        pushed_at_ms: unsigned(row, 5)?,
        pushed_by: row.get(6)?,
    })
}

pub(super) fn referrer(row: &Row<'_>) -> rusqlite::Result<ReferrerRecord> {
    Ok(ReferrerRecord {
        manifest: manifest(row)?,
        annotations: row.get(7)?,
    })
}

pub(super) fn reference(row: &Row<'_>) -> rusqlite::Result<ReferenceRecord> {
    Ok(ReferenceRecord {
        digest: parsed(row, 1)?,
        media_type: MediaType::as_written(row.get_ref(2)?.as_str()?),
        size: unsigned(row, 3)?,
        named: named(row, 4)?,
    })
}

/// The word for it in the database.
pub(super) fn named_word(named: Named) -> &'static str {
    match named {
        Named::Blob => "blob",
        Named::Child => "child",
        Named::Elsewhere => "elsewhere",
        Named::Mention => "mention",
    }
}

fn named(row: &Row<'_>, column: usize) -> rusqlite::Result<Named> {
    let word: String = row.get(column)?;
    let all = [Named::Blob, Named::Child, Named::Elsewhere, Named::Mention];
    all.into_iter()
        .find(|named| named_word(*named) == word)
        .ok_or_else(|| {
            let unknown = Failed(format!("`{word}` is no way to name content"));
            Error::FromSqlConversionFailure(column, Type::Text, Box::new(unknown))
        })
}

pub(super) fn upload(row: &Row<'_>) -> rusqlite::Result<UploadRecord> {
    Ok(UploadRecord {
        upload: parsed(row, 0)?,
        repository: parsed(row, 1)?,
        principal: row.get(2)?,
        algorithm: parsed(row, 3)?,
        started_at_ms: unsigned(row, 4)?,
    })
}

/// A page as the values of `> after` and `LIMIT`: no entry is empty, and a negative limit is none.
pub(super) fn page(page: &Page) -> (String, i64) {
    let after = page.after.clone().unwrap_or_default();
    let limit = page
        .limit
        .map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
    (after, limit)
}
