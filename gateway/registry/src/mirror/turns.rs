//! Places that each mirror has for itself: a stuck upstream takes its own, and nobody else's.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{failure::Failure, flight::lock};

/// So many places for each mirror.
#[derive(Debug)]
pub(super) struct Turns {
    each: usize,
    /// Held for a look-up.
    turns: Mutex<HashMap<Arc<str>, Arc<Semaphore>>>,
}

impl Turns {
    pub(super) fn new(each: usize) -> Self {
        Self {
            each: each.clamp(1, Semaphore::MAX_PERMITS),
            turns: Mutex::default(),
        }
    }

    /// Waits for a place of the mirror's.
    pub(super) async fn take(&self, mirror: &Arc<str>) -> Result<OwnedSemaphorePermit, Failure> {
        let turns = {
            let mut turns = lock(&self.turns);
            let turns = turns.entry(Arc::clone(mirror));
            Arc::clone(turns.or_insert_with(|| Arc::new(Semaphore::new(self.each))))
        };
        turns.acquire_owned().await.map_err(Failure::internal)
    }
}
