//! A blob store that fails on purpose.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use gantry_model::{Algorithm, Digest, UploadId};

use super::{Call, Faults};
use crate::{Blob, BlobStore, BlobWriter, PublishError, StorageError, StoredBlob};

/// Fails as [`Faults`] says; otherwise the store behind.
#[derive(Clone, Debug)]
pub struct FaultyBlobStore {
    store: Arc<dyn BlobStore>,
    faults: Faults,
}

impl FaultyBlobStore {
    /// Puts faults before a store.
    #[must_use]
    pub fn new(store: Arc<dyn BlobStore>, faults: Faults) -> Self {
        Self { store, faults }
    }

    fn writer(&self, upload: UploadId, writer: Box<dyn BlobWriter>) -> Box<dyn BlobWriter> {
        Box::new(FaultyWriter {
            writer,
            upload,
            store: self.clone(),
            is_broken: false,
        })
    }

    fn blob(&self, blob: Arc<dyn Blob>) -> Arc<dyn Blob> {
        let faults = self.faults.clone();
        Arc::new(FaultyBlob { blob, faults })
    }
}

#[async_trait]
impl BlobStore for FaultyBlobStore {
    async fn stat(&self, digest: &Digest) -> Result<Option<u64>, StorageError> {
        self.faults
            .around(Call::Stat, self.store.stat(digest))
            .await
    }

    async fn open(&self, digest: &Digest) -> Result<Option<Arc<dyn Blob>>, StorageError> {
        let opened = self.faults.around(Call::Open, self.store.open(digest));
        Ok(opened.await?.map(|blob| self.blob(blob)))
    }

    async fn create(
        &self,
        upload: UploadId,
        algorithm: Algorithm,
    ) -> Result<Box<dyn BlobWriter>, StorageError> {
        let create = self.store.create(upload, algorithm);
        let writer = self.faults.around(Call::Create, create).await?;
        Ok(self.writer(upload, writer))
    }

    async fn resume(
        &self,
        upload: UploadId,
        algorithm: Algorithm,
    ) -> Result<Option<Box<dyn BlobWriter>>, StorageError> {
        let resume = self.store.resume(upload, algorithm);
        let writer = self.faults.around(Call::Resume, resume).await?;
        Ok(writer.map(|writer| self.writer(upload, writer)))
    }

    async fn discard(&self, upload: UploadId) -> Result<(), StorageError> {
        self.faults
            .around(Call::Discard, self.store.discard(upload))
            .await
    }

    async fn delete(&self, digest: &Digest) -> Result<bool, StorageError> {
        self.faults
            .around(Call::Delete, self.store.delete(digest))
            .await
    }

    async fn staged(&self) -> Result<Vec<UploadId>, StorageError> {
        self.faults.around(Call::Staged, self.store.staged()).await
    }

    async fn published(
        &self,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<StoredBlob>, StorageError> {
        let read = self.store.published(after, limit);
        self.faults.around(Call::Published, read).await
    }
}

#[derive(Debug)]
struct FaultyBlob {
    blob: Arc<dyn Blob>,
    faults: Faults,
}

#[async_trait]
impl Blob for FaultyBlob {
    fn size(&self) -> u64 {
        self.blob.size()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        let read = self.blob.read_at(offset, length);
        self.faults.around(Call::ReadAt, read).await
    }

    fn file(&self) -> Option<Arc<std::fs::File>> {
        self.blob.file()
    }

    fn is_warm(&self, offset: u64, length: usize) -> bool {
        self.blob.is_warm(offset, length)
    }

    async fn warm(&self, offset: u64, length: usize) -> Result<(), StorageError> {
        let read = self.blob.warm(offset, length);
        self.faults.around(Call::ReadAt, read).await
    }
}

#[derive(Debug)]
struct FaultyWriter {
    writer: Box<dyn BlobWriter>,
    upload: UploadId,
    store: FaultyBlobStore,
    is_broken: bool,
}

impl FaultyWriter {
    fn check(&self) -> Result<(), StorageError> {
        if self.is_broken {
            let kind = crate::Kind::Unavailable;
            let attempt = "write an upload";
            return Err(StorageError::new(kind, attempt, "an earlier write failed"));
        }
        Ok(())
    }
}

#[async_trait]
impl BlobWriter for FaultyWriter {
    fn written(&self) -> u64 {
        self.writer.written()
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), StorageError> {
        self.check()?;
        let write = self.writer.write(bytes);
        let result = self.store.faults.around(Call::Write, write).await;
        self.is_broken = result.is_err();
        result
    }

    async fn flush(&mut self) -> Result<(), StorageError> {
        self.check()?;
        let flush = self.writer.flush();
        let result = self.store.faults.around(Call::Flush, flush).await;
        self.is_broken = result.is_err();
        result
    }

    fn tail(&self) -> Arc<dyn Blob> {
        self.store.blob(self.writer.tail())
    }

    fn digest(&self) -> Digest {
        self.writer.digest()
    }

    async fn commit(self: Box<Self>, expected: &Digest) -> Result<u64, PublishError> {
        let checked = self.check();
        let Self {
            writer,
            upload,
            store,
            is_broken: _,
        } = *self;
        let commit = async {
            checked?;
            writer.commit(expected).await
        };
        let result = store.faults.around(Call::Publish, commit).await;
        if let Err(PublishError::Storage(_)) = &result {
            store.store.discard(upload).await?;
        }
        result
    }
}
