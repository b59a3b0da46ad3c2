//! A blob store whose writers panic while it is armed, as a store with a bug would.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use gantry_model::{Algorithm, Digest, UploadId};
use gantry_storage::{
    Blob, BlobStore, BlobWriter, StorageError, StoredBlob, blob::PublishError,
    memory::MemoryBlobStore,
};

#[derive(Debug)]
pub(super) struct PanickingStore {
    store: MemoryBlobStore,
    armed: Arc<AtomicBool>,
}

impl Default for PanickingStore {
    fn default() -> Self {
        Self {
            store: MemoryBlobStore::new(),
            armed: Arc::default(),
        }
    }
}

impl PanickingStore {
    pub(super) fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    pub(super) fn disarm(&self) {
        self.armed.store(false, Ordering::SeqCst);
    }

    fn wrap(&self, writer: Box<dyn BlobWriter>) -> Box<dyn BlobWriter> {
        Box::new(PanickingWriter {
            writer,
            armed: Arc::clone(&self.armed),
        })
    }
}

#[async_trait]
impl BlobStore for PanickingStore {
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
        Ok(self.wrap(self.store.create(upload, algorithm).await?))
    }

    async fn resume(
        &self,
        upload: UploadId,
        algorithm: Algorithm,
    ) -> Result<Option<Box<dyn BlobWriter>>, StorageError> {
        let writer = self.store.resume(upload, algorithm).await?;
        Ok(writer.map(|writer| self.wrap(writer)))
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

#[derive(Debug)]
struct PanickingWriter {
    writer: Box<dyn BlobWriter>,
    armed: Arc<AtomicBool>,
}

#[async_trait]
impl BlobWriter for PanickingWriter {
    fn written(&self) -> u64 {
        self.writer.written()
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), StorageError> {
        assert!(!self.armed.load(Ordering::SeqCst), "a bug in the store");
        self.writer.write(bytes).await
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
        self.writer.commit(expected).await
    }
}
