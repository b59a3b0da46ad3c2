//! Writes a staging file: hashes in the caller's task, hands batches of about 1 MiB to threads that may block.
//!
//! One batch is written while the next one fills. Every await can be cancelled: what was handed over ends by itself and the claim
//! on the file is held until then.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use gantry_model::{Algorithm, Digest};
use tokio::{runtime::Handle, task::JoinHandle};

use super::{
    Shared,
    claims::Claim,
    staging::{Staging, Tail},
};
use crate::{
    Blob, BlobWriter,
    blob::PublishError,
    blocking::join,
    error::{Kind, StorageError},
    hash::Hasher,
};

const WRITE: &str = "write an upload";

/// The one writer of a staging file.
#[derive(Debug)]
pub(super) struct FsWriter {
    store: Arc<Shared>,
    staging: Arc<Staging>,
    claim: Arc<Claim>,
    hasher: Hasher,
    batch: Batch,
    /// Where the batch begins: everything before it was handed over.
    handed: u64,
    in_flight: Option<JoinHandle<Result<(), StorageError>>>,
    /// A batch was lost: the hash no longer tells of the file, so nothing more is taken.
    broken: Option<Kind>,
}

impl FsWriter {
    /// Continues after what is in the file, of which `hasher` was told.
    pub(super) fn new(
        store: Arc<Shared>,
        staging: Arc<Staging>,
        claim: Arc<Claim>,
        hasher: Hasher,
    ) -> Self {
        Self {
            handed: staging.flushed(),
            staging,
            claim,
            hasher,
            batch: Batch::of(&store.buffered),
            store,
            in_flight: None,
            broken: None,
        }
    }

    fn check(&self) -> Result<(), StorageError> {
        match self.broken {
            None => Ok(()),
            Some(kind) => Err(StorageError::new(kind, WRITE, "an earlier write failed")),
        }
    }

    /// Hands the batch over, after the one before is written.
    async fn hand_over(&mut self) -> Result<(), StorageError> {
        self.settle().await?;
        let turn = self.store.writes.turn(WRITE).await?;
        let offset = self.handed;
        self.handed += self.batch.length;
        let frames = self.batch.take();
        let staging = Arc::clone(&self.staging);
        let claim = Arc::clone(&self.claim);
        self.in_flight = Some(tokio::task::spawn_blocking(move || {
            let result = staging.append(offset, &frames);
            drop((turn, claim));
            result
        }));
        Ok(())
    }

    /// Waits for the batch that is being written.
    async fn settle(&mut self) -> Result<(), StorageError> {
        self.check()?;
        let Some(task) = &mut self.in_flight else {
            return Ok(());
        };
        let result = join(WRITE, task).await;
        self.in_flight = None;
        if let Err(error) = &result {
            self.broken = Some(error.kind());
            self.batch.take();
            self.handed = self.staging.flushed();
        }
        result
    }

    /// The digest of the content under `algorithm`, reading it again when it was not hashed with that.
    async fn digest_under(&self, algorithm: Algorithm) -> Result<Digest, StorageError> {
        if algorithm == self.hasher.algorithm() {
            return Ok(self.digest());
        }
        let hasher = self.store.rehash(&self.staging, algorithm).await?;
        Ok(hasher.finish())
    }

    /// Runs work on the staging file that nobody interrupts.
    async fn finish<T: Send + 'static>(
        &self,
        attempt: &'static str,
        work: impl FnOnce(&Shared, &Staging) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let store = Arc::clone(&self.store);
        let staging = Arc::clone(&self.staging);
        let claim = Arc::clone(&self.claim);
        self.store
            .writes
            .run(attempt, move || {
                let result = work(&store, &staging);
                drop(claim);
                result
            })
            .await
    }

    async fn free(&self) {
        let freed = self.finish("drop an upload", |_store, staging| {
            staging.remove();
            Ok(())
        });
        if let Err(error) = freed.await {
            tracing::warn!(%error, "a failed upload stays for the sweep");
        }
    }
}

#[async_trait]
impl BlobWriter for FsWriter {
    fn written(&self) -> u64 {
        self.handed + self.batch.length
    }

    async fn write(&mut self, bytes: Bytes) -> Result<(), StorageError> {
        self.check()?;
        self.hasher.update(&bytes);
        self.batch.push(bytes);
        if self.batch.is_due() {
            self.hand_over().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), StorageError> {
        if self.batch.length > 0 {
            self.hand_over().await?;
        }
        self.settle().await
    }

    fn tail(&self) -> Arc<dyn Blob> {
        Arc::new(Tail::of(&self.staging, &self.store.reads))
    }

    fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    async fn commit(mut self: Box<Self>, expected: &Digest) -> Result<u64, PublishError> {
        let found = match self.flush().await {
            Ok(()) => self.digest_under(expected.algorithm()).await,
            Err(error) => Err(error),
        };
        match found {
            Ok(found) if found == *expected => {}
            Ok(found) => return Err(PublishError::Mismatch { found }),
            Err(error) => {
                self.free().await;
                return Err(error.into());
            }
        }
        let size = self.written();
        let digest = expected.clone();
        self.finish("publish a blob", move |store, staging| {
            store.publisher.publish(staging, &digest, size)?;
            let path = store.layout().blob(&digest);
            if let Ok(Some(blob)) = store.files.find(&path, &store.reads) {
                staging.published(blob);
            }
            Ok(())
        })
        .await?;
        Ok(size)
    }
}

impl Drop for FsWriter {
    /// Keeps what was written: the rest of it is handed over, and a resume waits for that.
    fn drop(&mut self) {
        self.claim.abandon();
        let frames = self.batch.take();
        if frames.is_empty() || self.broken.is_some() {
            return;
        }
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        let before = self.in_flight.take();
        let offset = self.handed;
        let staging = Arc::clone(&self.staging);
        let claim = Arc::clone(&self.claim);
        runtime.clone().spawn_blocking(move || {
            let before = before.map_or(Ok(()), |task| runtime.block_on(join(WRITE, task)));
            if let Err(error) = before.and_then(|()| staging.append(offset, &frames)) {
                tracing::warn!(%error, "the end of an abandoned upload is lost");
            }
            drop(claim);
        });
    }
}

/// Frames to be written at once. Small ones are copied together, so that they do not keep their senders' large buffers.
#[derive(Debug)]
struct Batch {
    frames: Vec<Bytes>,
    small: BytesMut,
    length: u64,
    /// The bytes of all batches.
    buffered: Arc<AtomicU64>,
}

impl Batch {
    fn of(buffered: &Arc<AtomicU64>) -> Self {
        Self {
            frames: Vec::new(),
            small: BytesMut::new(),
            length: 0,
            buffered: Arc::clone(buffered),
        }
    }

    /// Whether it is worth writing: earlier where many slow uploads hold much together.
    fn is_due(&self) -> bool {
        let many = self.buffered.load(Ordering::Relaxed) > MAX_BUFFERED_BYTES;
        self.length >= if many { LEAST_BATCH_BYTES } else { BATCH_BYTES }
    }

    fn push(&mut self, bytes: Bytes) {
        self.buffered
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.length += bytes.len() as u64;
        if bytes.len() < SMALL_BYTES {
            self.small.extend_from_slice(&bytes);
        } else {
            self.close_small();
            self.frames.push(bytes);
        }
    }

    fn close_small(&mut self) {
        if !self.small.is_empty() {
            self.frames.push(self.small.split().freeze());
        }
    }

    fn take(&mut self) -> Vec<Bytes> {
        self.close_small();
        self.buffered.fetch_sub(self.length, Ordering::Relaxed);
        self.length = 0;
        mem::take(&mut self.frames)
    }
}

const BATCH_BYTES: u64 = 1 << 20;
/// What all batches hold together before smaller ones are written.
const MAX_BUFFERED_BYTES: u64 = 32 << 20;
const LEAST_BATCH_BYTES: u64 = 64 << 10;
/// Below this a copy costs less than another slice to write.
const SMALL_BYTES: usize = 16 << 10;
