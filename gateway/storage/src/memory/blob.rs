//! Blobs in memory. Writers buffer as the durable backend's do, so that a caller who forgets to flush is found out here.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use gantry_model::{Algorithm, Digest, UploadId};

use crate::{
    Blob, BlobStore, BlobWriter, StoredBlob,
    blob::PublishError,
    blocking::lock,
    error::{Kind, StorageError},
    hash::{Hasher, digest_of},
};

/// Blobs in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryBlobStore {
    content: Arc<Mutex<Content>>,
}

#[derive(Debug, Default)]
struct Content {
    blobs: HashMap<Digest, Bytes>,
    staging: HashMap<UploadId, Arc<Staging>>,
}

#[derive(Debug, Default)]
struct Staging {
    state: Mutex<StagingState>,
}

#[derive(Debug, Default)]
struct StagingState {
    bytes: Vec<u8>,
    has_writer: bool,
}

impl MemoryBlobStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn writer(
        &self,
        upload: UploadId,
        staging: Arc<Staging>,
        algorithm: Algorithm,
    ) -> Result<Box<dyn BlobWriter>, StorageError> {
        let mut hasher = Hasher::new(algorithm);
        let mut state = lock(&staging.state);
        if mem::replace(&mut state.has_writer, true) {
            let reason = "another writer has it";
            return Err(StorageError::new(
                Kind::Unavailable,
                "continue an upload",
                reason,
            ));
        }
        hasher.update(&state.bytes);
        drop(state);
        Ok(Box::new(MemoryWriter {
            store: self.clone(),
            upload,
            staging,
            hasher,
            buffered: Vec::new(),
        }))
    }
}

#[async_trait]
impl BlobStore for MemoryBlobStore {
    async fn stat(&self, digest: &Digest) -> Result<Option<u64>, StorageError> {
        let content = lock(&self.content);
        Ok(content.blobs.get(digest).map(|bytes| bytes.len() as u64))
    }

    async fn open(&self, digest: &Digest) -> Result<Option<Arc<dyn Blob>>, StorageError> {
        let bytes = lock(&self.content).blobs.get(digest).cloned();
        Ok(bytes.map(|bytes| {
            let blob: Arc<dyn Blob> = Arc::new(MemoryBlob { bytes });
            blob
        }))
    }

    async fn create(
        &self,
        upload: UploadId,
        algorithm: Algorithm,
    ) -> Result<Box<dyn BlobWriter>, StorageError> {
        let staging = Arc::<Staging>::default();
        let mut content = lock(&self.content);
        if content.staging.contains_key(&upload) {
            let attempt = "start an upload";
            return Err(StorageError::new(
                Kind::Internal,
                attempt,
                "it exists already",
            ));
        }
        content.staging.insert(upload, Arc::clone(&staging));
        drop(content);
        self.writer(upload, staging, algorithm)
    }

    async fn resume(
        &self,
        upload: UploadId,
        algorithm: Algorithm,
    ) -> Result<Option<Box<dyn BlobWriter>>, StorageError> {
        let staging = lock(&self.content).staging.get(&upload).cloned();
        staging
            .map(|staging| self.writer(upload, staging, algorithm))
            .transpose()
    }

    async fn discard(&self, upload: UploadId) -> Result<(), StorageError> {
        lock(&self.content).staging.remove(&upload);
        Ok(())
    }

    async fn delete(&self, digest: &Digest) -> Result<bool, StorageError> {
        Ok(lock(&self.content).blobs.remove(digest).is_some())
    }

    async fn staged(&self) -> Result<Vec<UploadId>, StorageError> {
        Ok(lock(&self.content).staging.keys().copied().collect())
    }

    async fn published(
        &self,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<StoredBlob>, StorageError> {
        let content = lock(&self.content);
        let blobs = content.blobs.iter();
        let blobs =
            blobs.filter(|(digest, _)| after.is_none_or(|it| digest.as_str() > it.as_str()));
        let mut found: Vec<StoredBlob> = blobs
            .map(|(digest, bytes)| StoredBlob {
                digest: digest.clone(),
                size: bytes.len() as u64,
                written_at_ms: 0,
            })
            .collect();
        found.sort_by(|one, other| one.digest.as_str().cmp(other.digest.as_str()));
        found.truncate(limit);
        Ok(found)
    }
}

#[derive(Debug)]
struct MemoryBlob {
    bytes: Bytes,
}

#[async_trait]
impl Blob for MemoryBlob {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        let range = range(offset, length, self.bytes.len());
        Ok(self.bytes.slice(range))
    }
}

#[derive(Debug)]
struct MemoryTail {
    staging: Arc<Staging>,
}

#[async_trait]
impl Blob for MemoryTail {
    fn size(&self) -> u64 {
        lock(&self.staging.state).bytes.len() as u64
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        let state = lock(&self.staging.state);
        let range = range(offset, length, state.bytes.len());
        Ok(Bytes::copy_from_slice(
            state.bytes.get(range).unwrap_or_default(),
        ))
    }
}

/// What of `length` bytes at `offset` lies before `end`.
fn range(offset: u64, length: usize, end: usize) -> std::ops::Range<usize> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(end);
    start..start.saturating_add(length).min(end)
}

#[derive(Debug)]
struct MemoryWriter {
    store: MemoryBlobStore,
    upload: UploadId,
    staging: Arc<Staging>,
    hasher: Hasher,
    buffered: Vec<u8>,
}

impl MemoryWriter {
    fn append(&mut self) {
        lock(&self.staging.state).bytes.append(&mut self.buffered);
    }
}

#[async_trait]
impl BlobWriter for MemoryWriter {
    fn written(&self) -> u64 {
        let appended = lock(&self.staging.state).bytes.len();
        (appended + self.buffered.len()) as u64
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), StorageError> {
        self.hasher.update(&bytes);
        self.buffered.extend_from_slice(&bytes);
        if self.buffered.len() >= BATCH_BYTES {
            self.append();
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), StorageError> {
        self.append();
        Ok(())
    }

    fn tail(&self) -> Arc<dyn Blob> {
        let staging = Arc::clone(&self.staging);
        Arc::new(MemoryTail { staging })
    }

    fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    async fn commit(mut self: Box<Self>, expected: &Digest) -> Result<u64, PublishError> {
        self.append();
        let content = lock(&self.staging.state).bytes.clone();
        let found = digest_of(expected.algorithm(), &content);
        if found != *expected {
            return Err(PublishError::Mismatch { found });
        }
        let size = content.len() as u64;
        let mut store = lock(&self.store.content);
        if store.staging.remove(&self.upload).is_none() {
            let reason = "the upload was dropped meanwhile";
            return Err(StorageError::new(Kind::Unavailable, "publish a blob", reason).into());
        }
        store.blobs.insert(expected.clone(), content.into());
        drop(store);
        Ok(size)
    }
}

impl Drop for MemoryWriter {
    fn drop(&mut self) {
        self.append();
        lock(&self.staging.state).has_writer = false;
    }
}

const BATCH_BYTES: usize = 1 << 20;
