//! Reads at an offset into buffers that are used again: at once what the system has in memory, off the executor what it has not.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use rustix::io::ReadWriteFlags;

use crate::{
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

    /// Reads as much of `length` as lies before `size`, at most [`MAX_READ_BYTES`] at once.
    pub(super) async fn read(
        &self,
        file: &Arc<File>,
        offset: u64,
        length: usize,
        size: u64,
    ) -> Result<Bytes, StorageError> {
        let left = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = length.min(left).min(MAX_READ_BYTES);
        if length == 0 {
            return Ok(Bytes::new());
        }
        let buffers = Arc::clone(&self.buffers);
        if length <= MOST_AT_ONCE {
            let mut buffer = Arc::clone(&buffers).take(length);
            if read_at_once(file, buffer.as_mut(), offset) == length {
                return Ok(Bytes::from_owner(buffer));
            }
        }
        let file = Arc::clone(file);
        self.blocking
            .run(READ, move || {
                let mut buffer = buffers.take(length);
                file.read_exact_at(buffer.as_mut(), offset)
                    .map_err(failed)?;
                Ok(Bytes::from_owner(buffer))
            })
            .await
    }

    /// Reads a part of a file only so that the system has it in memory.
    pub(super) async fn warm(
        &self,
        file: Arc<File>,
        offset: u64,
        length: usize,
    ) -> Result<(), StorageError> {
        let buffers = Arc::clone(&self.buffers);
        self.blocking
            .run(READ, move || {
                // The part after this one will be asked for next.
                let ahead = u64::try_from(length).unwrap_or(u64::MAX).saturating_mul(2);
                rustix::fs::fadvise(
                    &file,
                    offset,
                    std::num::NonZeroU64::new(ahead),
                    rustix::fs::Advice::WillNeed,
                )
                .ok();
                let mut left = length;
                let mut offset = offset;
                let mut buffer = buffers.take(KEPT_BYTES);
                while left > 0 {
                    let window = buffer.as_mut().get_mut(..left.min(KEPT_BYTES));
                    let window = window.unwrap_or_default();
                    file.read_exact_at(window, offset).map_err(failed)?;
                    offset += window.len() as u64;
                    left -= window.len();
                }
                Ok(())
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

pub(super) const READ: &str = "read a blob";

fn failed(error: io::Error) -> StorageError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => StorageError::corrupt(READ),
        _ => StorageError::io(READ, error),
    }
}

/// Whether both ends of a part can be read without waiting for a disk.
pub(super) fn is_warm(file: &File, offset: u64, length: usize) -> bool {
    let last = (length as u64).saturating_sub(1);
    [offset, offset.saturating_add(last)]
        .into_iter()
        .all(|at| read_at_once(file, &mut [0], at) == 1)
}

/// How many bytes could be read without waiting for a disk; none where the file's system cannot tell.
fn read_at_once(file: &File, buffer: &mut [u8], offset: u64) -> usize {
    let mut slices = [IoSliceMut::new(buffer)];
    rustix::io::preadv2(file, &mut slices, offset, ReadWriteFlags::NOWAIT).unwrap_or(0)
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
/// More is copied elsewhere, so that one read does not keep an executor's thread.
const MOST_AT_ONCE: usize = 1 << 20;
/// What the edge asks for at a time.
const KEPT_BYTES: usize = 64 << 10;
/// 16 MiB in all.
const MAX_KEPT: usize = 256;
