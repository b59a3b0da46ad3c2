//! Blocking access to content, for the adoption of a folder that another registry wrote: its size, its bytes, and a second name for it.
//!
//! Distribution keeps content that was pushed under another algorithm under its sha256 only; here every digest names a file of its own.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use gantry_model::{Digest, UploadId};

use super::{FsBlobStore, Layout, hash_range, publish::stored_size, staging::Staging};
use crate::{
    adopt::MANY_BYTES,
    error::{Kind, StorageError},
    hash::{Hasher, digest_of},
};

const READ: &str = "read adopted content";
const NAME: &str = "name adopted content";

impl FsBlobStore {
    /// Where another registry keeps what belongs to its repositories.
    pub(crate) fn repositories(&self) -> PathBuf {
        self.shared.layout().repositories()
    }

    /// A blob's length. Blocks.
    pub(crate) fn size_now(&self, digest: &Digest) -> Result<Option<u64>, StorageError> {
        self.shared.layout().size_now(digest)
    }

    /// A blob's bytes, when they are what its digest says and at most `max_bytes`. Blocks.
    pub(crate) fn read_now(
        &self,
        digest: &Digest,
        max_bytes: usize,
    ) -> Result<Option<Vec<u8>>, StorageError> {
        self.shared.layout().read_now(digest, max_bytes)
    }

    /// Makes content that is stored under one digest readable under another, which it must hash to; whether it does. Takes no space.
    /// Blocks.
    pub(crate) fn name_now(&self, stored: &Digest, digest: &Digest) -> Result<bool, StorageError> {
        if stored == digest || self.size_now(digest)?.is_some() {
            return Ok(self.size_now(digest)?.is_some());
        }
        let Some(size) = self.size_now(stored)? else {
            return Ok(false);
        };
        note_hashing(stored, digest, size);
        let second = self.shared.layout().upload(upload_of(digest)?);
        link_anew(&self.shared.layout().blob(stored), &second)
            .map_err(|error| StorageError::file(NAME, &second, error))?;
        let named = self.publish_as(&second, digest, size);
        if !matches!(named, Ok(true))
            && let Err(error) = fs::remove_file(&second)
        {
            tracing::debug!(%error, "a second name is gone already");
        }
        named
    }

    fn publish_as(&self, path: &Path, digest: &Digest, size: u64) -> Result<bool, StorageError> {
        let in_name = |error| StorageError::file(NAME, path, error);
        let Some(staging) =
            Staging::open(path.to_owned(), &self.shared.uploads).map_err(in_name)?
        else {
            return Ok(false);
        };
        let mut hasher = Hasher::new(digest.algorithm());
        staging
            .file()
            .and_then(|file| hash_range(&file, 0, size, &mut hasher))
            .map_err(in_name)?;
        if hasher.finish() != *digest {
            return Ok(false);
        }
        let shared = Arc::clone(&self.shared);
        shared.publisher.publish(&staging, digest, size)?;
        Ok(true)
    }
}

impl Layout {
    /// See [`FsBlobStore::size_now`]. Content that may not be read is an error.
    pub(crate) fn size_now(&self, digest: &Digest) -> Result<Option<u64>, StorageError> {
        let path = self.blob(digest);
        let size = stored_size(&path).and_then(|size| match size {
            Some(size) => {
                rustix::fs::access(&path, rustix::fs::Access::READ_OK)?;
                Ok(Some(size))
            }
            None => Ok(None),
        });
        size.map_err(|error| StorageError::file(READ, &path, error))
    }

    /// Whether content that is stored under one digest would be readable under another: see [`FsBlobStore::name_now`]. Changes nothing.
    pub(crate) fn would_name(
        &self,
        stored: &Digest,
        digest: &Digest,
    ) -> Result<bool, StorageError> {
        let Some(size) = self.size_now(stored)? else {
            return Ok(false);
        };
        if stored == digest || self.size_now(digest)?.is_some() {
            return Ok(true);
        }
        let path = self.blob(stored);
        let mut hasher = Hasher::new(digest.algorithm());
        File::open(&path)
            .and_then(|file| hash_range(&file, 0, size, &mut hasher))
            .map_err(|error| StorageError::file(READ, &path, error))?;
        Ok(hasher.finish() == *digest)
    }

    /// See [`FsBlobStore::read_now`].
    pub(crate) fn read_now(
        &self,
        digest: &Digest,
        max_bytes: usize,
    ) -> Result<Option<Vec<u8>>, StorageError> {
        let is_too_large = |size| size > max_bytes as u64;
        if self.size_now(digest)?.is_none_or(is_too_large) {
            return Ok(None);
        }
        let path = self.blob(digest);
        let bytes = fs::read(&path).map_err(|error| StorageError::file(READ, &path, error))?;
        Ok((digest_of(digest.algorithm(), &bytes) == *digest).then_some(bytes))
    }
}

/// A start that reads much says so before.
fn note_hashing(stored: &Digest, digest: &Digest, size: u64) {
    if size >= MANY_BYTES {
        tracing::warn!(
            blob.digest = %stored,
            size,
            "reading a large blob once to adopt it: a repository knows it as {digest}"
        );
    }
}

/// A staging name that only this digest has.
fn upload_of(digest: &Digest) -> Result<UploadId, StorageError> {
    let first: Option<[u8; 16]> = digest
        .hex()
        .as_bytes()
        .get(..16)
        .and_then(|bytes| bytes.try_into().ok());
    let short = || StorageError::new(Kind::Internal, NAME, "a digest is short");
    Ok(UploadId::from_random(first.ok_or_else(short)?))
}

/// Links, also when a start before this one died with the link in place.
fn link_anew(from: &Path, to: &Path) -> io::Result<()> {
    match fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::hard_link(from, to)
}
