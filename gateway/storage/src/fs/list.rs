//! Lists the published blobs of the folder, shelf by shelf.
//!
//! Where another registry keeps repositories beside them, nothing is listed: what those link to is not known here.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use gantry_model::{Algorithm, Digest};

use super::layout::Layout;
use crate::StoredBlob;

/// See [`crate::BlobStore::published`]. Blocks.
pub(super) fn published(
    layout: &Layout,
    after: Option<&Digest>,
    limit: usize,
) -> io::Result<Vec<StoredBlob>> {
    let mut found = Vec::new();
    if has_entries(&layout.repositories())? {
        return Ok(found);
    }
    // In the order of their names, which digests begin with.
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let folder = layout.algorithm(algorithm);
        for shelf in sorted_names(&folder)? {
            let first = format!("{}:{shelf}", algorithm.as_str());
            let passed = after.is_some_and(|after| {
                let after = after.as_str();
                !after.starts_with(&first) && after > first.as_str()
            });
            if passed {
                continue;
            }
            list_shelf(layout, algorithm, &folder.join(&shelf), after, &mut found)?;
            if found.len() >= limit {
                found.truncate(limit);
                return Ok(found);
            }
        }
    }
    Ok(found)
}

fn list_shelf(
    layout: &Layout,
    algorithm: Algorithm,
    shelf: &Path,
    after: Option<&Digest>,
    found: &mut Vec<StoredBlob>,
) -> io::Result<()> {
    for name in sorted_names(shelf)? {
        let Ok(digest) = format!("{}:{name}", algorithm.as_str()).parse::<Digest>() else {
            continue;
        };
        if after.is_some_and(|after| digest.as_str() <= after.as_str()) {
            continue;
        }
        let Some(metadata) = or_none(fs::metadata(layout.blob(&digest)))? else {
            continue;
        };
        found.push(StoredBlob {
            digest,
            size: metadata.len(),
            written_at_ms: written_at_ms(&metadata),
        });
    }
    Ok(())
}

fn written_at_ms(metadata: &Metadata) -> u64 {
    let seconds = u64::try_from(metadata.mtime()).unwrap_or_default();
    let nanoseconds = u64::try_from(metadata.mtime_nsec()).unwrap_or_default();
    seconds
        .saturating_mul(1000)
        .saturating_add(nanoseconds / 1_000_000)
}

fn has_entries(folder: &Path) -> io::Result<bool> {
    Ok(match or_none(fs::read_dir(folder))? {
        Some(mut entries) => entries.next().transpose()?.is_some(),
        None => false,
    })
}

/// The names in a folder; none when there is no folder, or it is a file that somebody else left.
fn sorted_names(folder: &Path) -> io::Result<Vec<String>> {
    let Some(entries) = or_none(fs::read_dir(folder))? else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

fn or_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
