//! Reads at an offset, off the executor, into buffers that are used again.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    Blob,
    blocking::{Blocking, lock},
    error::StorageError,
};

/// How reads are done: on which threads, into which buffers.
#[derive(Clone, Debug)]
pub(super) struct Reads {
    blocking: Blocking,
    buffers: Arc<Buffers>,
}

impl Reads {
    pub(super) fn new(threads: usize) -> Self {
        Self {
            blocking: Blocking::new(threads),
            buffers: Arc::default(),
        }
    }

    /// Fills as much of `length` as lies before `size`, at most [`MAX_READ_BYTES`] at once.
    pub(super) async fn read(
        &self,
        offset: u64,
        length: usize,
        size: u64,
        fill: impl FnOnce(&mut [u8]) -> io::Result<()> + Send + 'static,
    ) -> Result<Bytes, StorageError> {
        const ATTEMPT: &str = "read a blob";
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = length.min(left).min(MAX_READ_BYTES);
        if length == 0 {
            return Ok(Bytes::new());
        }
        let buffers = Arc::clone(&self.buffers);
        self.blocking
            .run(ATTEMPT, move || {
                let mut buffer = buffers.take(length);
                match fill(buffer.as_mut()) {
                    Ok(()) => Ok(Bytes::from_owner(buffer)),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        Err(StorageError::corrupt(ATTEMPT))
                    }
                    Err(error) => Err(StorageError::io(ATTEMPT, error)),
                }
            })
            .await
    }

    /// Runs other reading work, a lookup of a name for example, on the same threads.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        attempt: &'static str,
        work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        self.blocking.run(attempt, work).await
    }
}

/// A published blob.
#[derive(Debug)]
pub(super) struct FsBlob {
    pub(super) file: Arc<File>,
    pub(super) size: u64,
    pub(super) reads: Reads,
}

#[async_trait]
impl Blob for FsBlob {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        let file = Arc::clone(&self.file);
        self.reads
            .read(offset, length, self.size, move |buffer| {
                file.read_exact_at(buffer, offset)
            })
            .await
    }

    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

/// Buffers of one size, kept for the next read.
#[derive(Debug, Default)]
struct Buffers {
    /// At most [`MAX_KEPT`] of them, each [`KEPT_BYTES`] long.
    idle: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// A buffer that is `length` long; of its own making when it is much smaller or larger than the kept ones.
    fn take(self: Arc<Self>, length: usize) -> Buffer {
        if !(KEPT_BYTES / 4..=KEPT_BYTES).contains(&length) {
            return Buffer {
                bytes: vec![0; length],
                length,
                home: None,
            };
        }
        let bytes = lock(&self.idle).pop();
        Buffer {
            bytes: bytes.unwrap_or_else(|| vec![0; KEPT_BYTES]),
            length,
            home: Some(self),
        }
    }
}

#[derive(Debug)]
struct Buffer {
    bytes: Vec<u8>,
    length: usize,
    home: Option<Arc<Buffers>>,
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.length).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(home) = self.home.take() else { return };
        let mut idle = lock(&home.idle);
        if idle.len() < MAX_KEPT {
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// More than the largest manifest, so that one read gets it whole.
const MAX_READ_BYTES: usize = 8 << 20;
/// What the edge asks for at a time.
const KEPT_BYTES: usize = 32 << 10;
/// 16 MiB in all.
const MAX_KEPT: usize = 512;
