//! Who writes which staging file: one writer at a time, so that nobody appends to a file that another publishes.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use gantry_model::UploadId;
use tokio::sync::Semaphore;

use crate::{
    blocking::lock,
    error::{Kind, StorageError},
};

/// The staging files being written.
#[derive(Clone, Debug, Default)]
pub(super) struct Claims {
    /// One entry for each [`Claim`] that lives.
    held: Arc<Mutex<HashMap<UploadId, Arc<Hold>>>>,
}

#[derive(Debug)]
struct Hold {
    /// The writer is gone; only work it had started may still run.
    abandoned: AtomicBool,
    /// Closed when that work ended.
    ended: Semaphore,
}

/// The right to write one staging file; shared by a writer and the work it starts, and given back when the last of them is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    upload: UploadId,
    hold: Arc<Hold>,
    claims: Claims,
}

impl Claims {
    /// Takes the claim, after whatever an abandoned writer had started has ended.
    pub(super) async fn claim(&self, upload: UploadId) -> Result<Arc<Claim>, StorageError> {
        loop {
            let taken = match self.try_claim(upload) {
                Ok(claim) => return Ok(claim),
                Err(taken) => taken,
            };
            if !taken.abandoned.load(Ordering::Acquire) {
                let reason = "another writer has it";
                return Err(StorageError::new(
                    Kind::Unavailable,
                    "continue an upload",
                    reason,
                ));
            }
            let closed = taken.ended.acquire().await;
            drop(closed);
        }
    }

    fn try_claim(&self, upload: UploadId) -> Result<Arc<Claim>, Arc<Hold>> {
        let mut held = lock(&self.held);
        if let Some(taken) = held.get(&upload) {
            return Err(Arc::clone(taken));
        }
        let hold = Arc::new(Hold {
            abandoned: AtomicBool::new(false),
            ended: Semaphore::new(0),
        });
        held.insert(upload, Arc::clone(&hold));
        Ok(Arc::new(Claim {
            upload,
            hold,
            claims: self.clone(),
        }))
    }
}

impl Claim {
    /// The writer is gone: the next one may wait instead of being refused.
    pub(super) fn abandon(&self) {
        self.hold.abandoned.store(true, Ordering::Release);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.claims.held).remove(&self.upload);
        self.hold.ended.close();
    }
}
