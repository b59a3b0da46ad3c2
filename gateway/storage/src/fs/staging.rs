//! A staging file: bytes appended in batches, readable up to what was appended.
//!
//! Invariant: `flushed` bytes from the start are content that was written whole; a batch that failed is cut off again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice},
    num::NonZeroU64,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::Advice;

use super::read::{Reads, is_warm};
use crate::{Blob, error::StorageError};

/// An open staging file.
#[derive(Debug)]
pub(super) struct Staging {
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
    flushed: AtomicU64,
}

impl Staging {
    /// Makes the file, which must not exist. Blocks.
    pub(super) fn create(path: PathBuf) -> io::Result<Self> {
        let file = options().create_new(true).open(&path)?;
        Ok(Self::of(file, path))
    }

    /// An empty file that is open already.
    pub(super) fn of(file: File, path: PathBuf) -> Self {
        Self {
            file: Arc::new(file),
            path,
            flushed: AtomicU64::new(0),
        }
    }

    /// Opens what is there; `None` when nothing is. Blocks.
    pub(super) fn open(path: PathBuf) -> io::Result<Option<Self>> {
        let file = match options().open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let flushed = AtomicU64::new(file.metadata()?.len());
        Ok(Some(Self {
            file: Arc::new(file),
            path,
            flushed,
        }))
    }

    /// How many bytes can be read.
    pub(super) fn flushed(&self) -> u64 {
        self.flushed.load(Ordering::Acquire)
    }

    /// Writes a batch at `offset`, the end of the last one; on failure the file is cut back to there, or dropped. Blocks.
    pub(super) fn append(&self, offset: u64, batch: &[Bytes]) -> Result<(), StorageError> {
        match write_at(&self.file, offset, batch) {
            Ok(end) => {
                self.flushed.store(end, Ordering::Release);
                write_back(&self.file, offset, end - offset);
                Ok(())
            }
            Err(error) => {
                if let Err(stuck) = self.file.set_len(offset) {
                    tracing::warn!(error = %stuck, "a staging file could not be cut back and is dropped");
                    self.remove();
                }
                Err(StorageError::file("write an upload", &self.path, error))
            }
        }
    }

    /// Frees the staging bytes; open readers keep theirs. Blocks.
    pub(super) fn remove(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "a staging file could not be removed; the sweep will try again");
            }
            _ => {}
        }
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
}

fn write_at(file: &File, mut offset: u64, batch: &[Bytes]) -> io::Result<u64> {
    /// The kernel's `IOV_MAX`.
    const MOST_SLICES: usize = 1024;
    let mut slices: Vec<IoSlice<'_>> = batch.iter().map(|bytes| IoSlice::new(bytes)).collect();
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        let window = rest.get(..MOST_SLICES).unwrap_or(rest);
        match rustix::io::pwritev(file, window, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                offset += count as u64;
                IoSlice::advance_slices(&mut rest, count);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(offset)
}

/// Has the system begin to write a large batch to the disk now, so that the fsync at the end, which somebody waits for, finds little left
/// to do. Linux begins the write-back of a range that is not needed any more, and drops only pages that are clean: these are not.
fn write_back(file: &File, offset: u64, length: u64) {
    const WORTH_BYTES: u64 = 256 << 10;
    if let Some(range) = NonZeroU64::new(length).filter(|length| length.get() >= WORTH_BYTES)
        && let Err(error) = rustix::fs::fadvise(file, offset, Some(range), Advice::DontNeed)
    {
        tracing::trace!(%error, "the system takes no advice about this file");
    }
}

/// A reader of a staging file; it keeps the file open, wherever that goes.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) staging: Arc<Staging>,
    pub(super) reads: Reads,
}

#[async_trait]
impl Blob for Tail {
    fn size(&self) -> u64 {
        self.staging.flushed()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        self.reads
            .read(&self.staging.file, offset, length, self.size())
            .await
    }

    fn file(&self) -> Option<Arc<File>> {
        Some(Arc::clone(&self.staging.file))
    }

    fn is_warm(&self, offset: u64, length: usize) -> bool {
        is_warm(&self.staging.file, offset, length)
    }

    async fn warm(&self, offset: u64, length: usize) -> Result<(), StorageError> {
        let file = Arc::clone(&self.staging.file);
        self.reads.warm(file, offset, length).await
    }
}
