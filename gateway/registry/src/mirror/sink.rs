//! Where a fetch puts its bytes: a staging file, or a window in memory when the store has no space.
//!
//! Owns the hash of what only passes through; a staging file's writer has its own.

use std::sync::Arc;

use bytes::Bytes;
use gantry_model::{Algorithm, Digest};
use gantry_storage::{Blob, BlobWriter, Hasher, StorageError};

use super::{failure::Failure, window::Window};

/// What the part that was stored already is read by, to be hashed again.
const REREAD_BYTES: usize = 1 << 20;

/// Takes the bytes of a blob in order.
pub(super) enum Sink {
    /// They stay.
    Staging(Box<dyn BlobWriter>),
    /// They go on to the readers that are there.
    Passing(Passing),
}

/// Bytes that are hashed and handed to the readers that are there.
pub(super) struct Passing {
    hasher: Hasher,
    window: Arc<Window>,
}

impl Passing {
    /// Goes on after what `head` has, when there is one.
    pub(super) async fn after(
        head: Option<&Arc<dyn Blob>>,
        algorithm: Algorithm,
        window: Arc<Window>,
    ) -> Result<Self, Failure> {
        let mut hasher = Hasher::new(algorithm);
        if let Some(head) = head {
            reread(head.as_ref(), window.end(), &mut hasher).await?;
        }
        Ok(Self { hasher, window })
    }

    /// The digest of all that came.
    pub(super) fn digest(self) -> Digest {
        self.hasher.finish()
    }
}

impl Sink {
    /// Bytes taken so far.
    pub(super) fn written(&self) -> u64 {
        match self {
            Self::Staging(writer) => writer.written(),
            Self::Passing(passing) => passing.window.end(),
        }
    }

    /// Takes the next bytes; waits until there is room for them.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), Failure> {
        match self {
            Self::Staging(writer) => Ok(writer.write(bytes).await?),
            Self::Passing(passing) => {
                passing.hasher.update(&bytes);
                let pushed = passing.window.push(bytes).await;
                pushed.map_err(|_deserted| Failure::full("nobody reads what cannot be kept"))
            }
        }
    }

    /// Makes everything taken readable.
    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        match self {
            Self::Staging(writer) => Ok(writer.flush().await?),
            Self::Passing(_) => Ok(()),
        }
    }
}

/// Hashes the first `length` bytes again.
async fn reread(head: &dyn Blob, length: u64, hasher: &mut Hasher) -> Result<(), Failure> {
    let mut offset = 0;
    while offset < length {
        let left = usize::try_from(length - offset).unwrap_or(REREAD_BYTES);
        let bytes = head.read_at(offset, left.min(REREAD_BYTES)).await?;
        if bytes.is_empty() {
            return Err(StorageError::corrupt("read what was stored of a fill").into());
        }
        hasher.update(&bytes);
        offset += bytes.len() as u64;
    }
    Ok(())
}
