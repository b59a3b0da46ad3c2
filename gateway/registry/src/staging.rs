//! Staging files: which are being written right now, and content that goes through one in a single step.
//!
//! Owns the set of uploads that have a writer in this process, whoever made it (a session, a push, a fill), so that the sweep
//! of forgotten staging files never takes one that is in use.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use gantry_model::{Algorithm, Digest, UploadId};
use gantry_storage::{Blob, BlobStore, BlobWriter, StorageError, StoredBlob, blob::PublishError};

use crate::{body::Body, error::Error, registry::Shared};

/// A blob store that knows which uploads have a writer. Everything else is the store's behind it.
#[derive(Debug)]
pub(crate) struct TrackedStore {
    store: Arc<dyn BlobStore>,
    /// Held for single operations on the set, never over an await.
    writing: Arc<Mutex<HashSet<UploadId>>>,
    written_bytes: Arc<AtomicU64>,
}

/// Keeps an upload in the set while its writer lives.
#[derive(Debug)]
struct Writing {
    upload: UploadId,
    set: Arc<Mutex<HashSet<UploadId>>>,
}

#[derive(Debug)]
struct TrackedWriter {
    writer: Box<dyn BlobWriter>,
    writing: Writing,
    written_bytes: Arc<AtomicU64>,
}

impl Writing {
    fn start(upload: UploadId, set: &Arc<Mutex<HashSet<UploadId>>>) -> Self {
        let set = Arc::clone(set);
        set.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(upload);
        Self { upload, set }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.set
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.upload);
    }
}

impl TrackedStore {
    pub(crate) fn new(store: Arc<dyn BlobStore>) -> Self {
        Self {
            store,
            writing: Arc::default(),
            written_bytes: Arc::default(),
        }
    }

    /// Bytes written since the store was made.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    fn tracked(&self, writer: Box<dyn BlobWriter>, writing: Writing) -> Box<dyn BlobWriter> {
        Box::new(TrackedWriter {
            writer,
            writing,
            written_bytes: Arc::clone(&self.written_bytes),
        })
    }

    /// Whether a writer of this upload lives in this process.
    pub(crate) fn is_writing(&self, upload: UploadId) -> bool {
        self.writing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&upload)
    }
}

#[async_trait]
impl BlobStore for TrackedStore {
    async fn stat(&self, digest: &Digest) -> Result<Option<u64>, StorageError> {
        self.store.stat(digest).await
    }

    async fn open(&self, digest: &Digest) -> Result<Option<Arc<dyn Blob>>, StorageError> {
        self.store.open(digest).await
    }

    async fn create(
        &self,
        upload: UploadId,
        algorithm: Algorithm,
    ) -> Result<Box<dyn BlobWriter>, StorageError> {
        let writing = Writing::start(upload, &self.writing);
        let writer = self.store.create(upload, algorithm).await?;
        Ok(self.tracked(writer, writing))
    }

    async fn resume(
        &self,
        upload: UploadId,
        algorithm: Algorithm,
    ) -> Result<Option<Box<dyn BlobWriter>>, StorageError> {
        let writing = Writing::start(upload, &self.writing);
        let writer = self.store.resume(upload, algorithm).await?;
        Ok(writer.map(|writer| self.tracked(writer, writing)))
    }

    async fn discard(&self, upload: UploadId) -> Result<(), StorageError> {
        self.store.discard(upload).await
    }

    async fn delete(&self, digest: &Digest) -> Result<bool, StorageError> {
        self.store.delete(digest).await
    }

    async fn staged(&self) -> Result<Vec<UploadId>, StorageError> {
        self.store.staged().await
    }

    async fn published(
        &self,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<StoredBlob>, StorageError> {
        self.store.published(after, limit).await
    }
}

#[async_trait]
impl BlobWriter for TrackedWriter {
    fn written(&self) -> u64 {
        self.writer.written()
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), StorageError> {
        let length = bytes.len() as u64;
        self.writer.write(bytes).await?;
        self.written_bytes.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), StorageError> {
        self.writer.flush().await
    }

    fn tail(&self) -> Arc<dyn Blob> {
        self.writer.tail()
    }

    fn digest(&self) -> Digest {
        self.writer.digest()
    }

    async fn commit(self: Box<Self>, expected: &Digest) -> Result<u64, PublishError> {
        let Self {
            writer, writing, ..
        } = *self;
        let published = writer.commit(expected).await;
        drop(writing);
        published
    }
}

/// A fresh, unguessable name.
pub(crate) fn new_upload_id() -> Result<UploadId, Error> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|unspecified| Error::Internal {
        source: unspecified.into(),
    })?;
    Ok(UploadId::from_random(bytes))
}

impl Shared {
    /// Publishes a whole body under `digest`, through a staging file of its own. Returns its length in bytes.
    ///
    /// # Errors
    /// [`Error::DigestInvalid`] when it hashes to something else; [`Error::Body`]; as the store. Nothing stays behind.
    pub(crate) async fn publish(&self, digest: &Digest, body: Body) -> Result<u64, Error> {
        let upload = new_upload_id()?;
        let published = self.stage_and_commit(upload, digest, body).await;
        if published.is_err() {
            self.discard(upload).await;
        }
        published
    }

    async fn stage_and_commit(
        &self,
        upload: UploadId,
        digest: &Digest,
        mut body: Body,
    ) -> Result<u64, Error> {
        let blobs = &self.ports.blobs;
        let mut writer = blobs.create(upload, digest.algorithm()).await?;
        while let Some(bytes) = body.next().await {
            writer.write(bytes?).await?;
        }
        writer.commit(digest).await.map_err(publish_error)
    }

    /// Frees a staging file. A failure leaves it to the sweep: the caller has its own answer to give.
    pub(crate) async fn discard(&self, upload: UploadId) {
        if let Err(error) = self.ports.blobs.discard(upload).await {
            tracing::warn!(%upload, error = &error as &dyn std::error::Error, "a staging file stays until the sweep");
        }
    }
}

pub(crate) fn publish_error(error: PublishError) -> Error {
    match error {
        PublishError::Mismatch { found } => Error::DigestInvalid { found: Some(found) },
        PublishError::Storage(error) => error.into(),
    }
}
