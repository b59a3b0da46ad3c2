//! The port for content: immutable blobs, named only by a verified digest, and the staging files they grow in.
//!
//! Invariant: [`BlobStore::open`] finds a digest only after [`BlobWriter::commit`] verified it and made it durable.

use std::{fmt::Debug, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use gantry_model::{Algorithm, Digest, UploadId};

use crate::error::StorageError;

/// Content that can be read at any offset: a published blob, or the written part of a staging file.
#[async_trait]
pub trait Blob: Debug + Send + Sync {
    /// Bytes that can be read now: the whole length of a published blob; for a staging file, what has been written so far.
    fn size(&self) -> u64;

    /// Reads up to `length` bytes at `offset`, at least one byte when `offset < size()`; empty at the end. A published blob that
    /// turns out shorter than its size is [`crate::Kind::Corrupt`], never a short success.
    ///
    /// # Errors
    /// [`StorageError`] of any kind.
    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError>;

    /// Opens what the first read needs, so that content that cannot be opened is an error before anything of it has left.
    ///
    /// # Errors
    /// As [`Blob::read_at`].
    fn prepare(&self) -> Result<(), StorageError> {
        Ok(())
    }

    /// The file, opened when it is not, for an edge that can send it without copying; `None` for every other backend, and when it cannot be
    /// opened. Of a staging file only the bytes before [`Blob::size`] are content. To be dropped after each use: the store closes files that
    /// rest.
    fn file(&self) -> Option<Arc<std::fs::File>> {
        None
    }

    /// Whether the bytes at both ends of this part can be read without waiting for a disk.
    fn is_warm(&self, _offset: u64, _length: usize) -> bool {
        true
    }

    /// Reads a part of [`Blob::file`] into the system's cache, off the executor, so that sending it does not wait for a disk.
    ///
    /// # Errors
    /// As [`Blob::read_at`].
    async fn warm(&self, _offset: u64, _length: usize) -> Result<(), StorageError> {
        Ok(())
    }
}

/// A published blob, as a list of all of them shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// When its last byte was written, in milliseconds since 1970; 0 where the store does not know.
    pub written_at_ms: u64,
}

/// Content by digest.
#[async_trait]
pub trait BlobStore: Debug + Send + Sync {
    /// The length of a published blob; `None` when it is not here.
    ///
    /// # Errors
    /// [`StorageError`]; a missing blob is not an error.
    async fn stat(&self, digest: &Digest) -> Result<Option<u64>, StorageError>;

    /// Opens a published blob. An open blob stays readable to its end, even when it is deleted meanwhile.
    ///
    /// # Errors
    /// [`StorageError`]; a missing blob is not an error.
    async fn open(&self, digest: &Digest) -> Result<Option<Arc<dyn Blob>>, StorageError>;

    /// Starts a staging file for `upload`, hashing with `algorithm` while bytes pass.
    ///
    /// # Errors
    /// [`StorageError`]; [`crate::Kind::Internal`] when the upload exists already.
    async fn create(
        &self,
        upload: UploadId,
        algorithm: Algorithm,
    ) -> Result<Box<dyn BlobWriter>, StorageError>;

    /// Continues a staging file after a restart: reads what is there to rebuild the hash. `None` when there is none.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn resume(
        &self,
        upload: UploadId,
        algorithm: Algorithm,
    ) -> Result<Option<Box<dyn BlobWriter>>, StorageError>;

    /// Drops a staging file and its bytes. Dropping one that is not there succeeds.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn discard(&self, upload: UploadId) -> Result<(), StorageError>;

    /// Deletes a published blob; whether it was there. Open readers keep reading.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn delete(&self, digest: &Digest) -> Result<bool, StorageError>;

    /// Uploads that have a staging file, for the sweep of those nobody owns any more.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn staged(&self) -> Result<Vec<UploadId>, StorageError>;

    /// Published blobs that may be swept when no repository has them, in the order of their digests' text: those after `after`, at
    /// most `limit`. Content that somebody else may name, whose facts are not in our metadata, is never listed.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn published(
        &self,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<StoredBlob>, StorageError>;
}

/// A staging file that grows. Dropping it keeps the bytes (a session may be resumed); [`BlobStore::discard`] removes them.
/// After an error from `write` the file is cut back to the last good length or the writer refuses every later call.
#[async_trait]
pub trait BlobWriter: Debug + Send + Sync {
    /// Bytes written so far.
    fn written(&self) -> u64;

    /// Appends bytes and hashes them. Hashes in the caller's task; blocking writes happen elsewhere. The bytes may be buffered:
    /// only [`BlobWriter::flush`] makes them visible to [`BlobWriter::tail`] and to a resume after the process dies.
    ///
    /// # Errors
    /// [`StorageError`]; [`crate::Kind::Full`] when the disk is full, and then the unwritten bytes take no space.
    async fn write(&mut self, bytes: Bytes) -> Result<(), StorageError>;

    /// Hands everything written to the operating system.
    ///
    /// # Errors
    /// As [`BlobWriter::write`].
    async fn flush(&mut self) -> Result<(), StorageError>;

    /// A reader of the staging file. It outlives the writer and the publication: the bytes it has seen stay readable. Its
    /// [`Blob::size`] is what was flushed when it was last asked.
    fn tail(&self) -> Arc<dyn Blob>;

    /// The digest of what has been written, under the algorithm the writer was made with.
    fn digest(&self) -> Digest;

    /// Verifies that the content hashes to `expected` (re-reading it when the algorithm differs from the writer's), makes it durable
    /// (fsync, rename without replacing, fsync of every new directory) and publishes it. Publishing content that is already there succeeds
    /// and frees the staging bytes. Returns its size.
    ///
    /// # Errors
    /// [`PublishError::Mismatch`] with the staging file kept; otherwise a [`StorageError`], after which the staging bytes are freed
    /// and a failed fsync is never retried on the same file.
    async fn commit(self: Box<Self>, expected: &Digest) -> Result<u64, PublishError>;
}

/// Content could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The content does not hash to the digest it was to be published under.
    #[error("content hashes to {found}")]
    Mismatch {
        /// What it hashes to.
        found: Digest,
    },
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}
