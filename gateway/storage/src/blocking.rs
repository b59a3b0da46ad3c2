//! Runs work that may block on threads made for it, so many at a time.
//!
//! Work that was started ends, also when nobody waits for it any more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinError,
};

use crate::error::{Kind, StorageError};

/// So many threads at a time.
#[derive(Clone, Debug)]
pub(crate) struct Blocking {
    permits: Arc<Semaphore>,
}

impl Blocking {
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(threads)),
        }
    }

    /// Waits for a thread's turn.
    pub(crate) async fn turn(
        &self,
        attempt: &'static str,
    ) -> Result<OwnedSemaphorePermit, StorageError> {
        Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|closed| StorageError::new(Kind::Internal, attempt, closed))
    }

    /// Waits for a turn and for the work.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        attempt: &'static str,
        work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let turn = self.turn(attempt).await?;
        let task = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(turn);
            result
        });
        join(attempt, task).await
    }
}

/// Waits for work that was started.
pub(crate) async fn join<T>(
    attempt: &'static str,
    task: impl Future<Output = Result<Result<T, StorageError>, JoinError>>,
) -> Result<T, StorageError> {
    match task.await {
        Ok(result) => result,
        Err(lost) => Err(StorageError::new(Kind::Internal, attempt, lost)),
    }
}

/// Locks. What these locks protect is whole after every statement, so a panic elsewhere does not spoil it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
