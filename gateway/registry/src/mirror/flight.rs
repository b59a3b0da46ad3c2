//! Single flight: many callers, one piece of work, which runs detached so that no caller's leaving cancels it.
//!
//! Owns the table of what runs. Invariant: an entry is gone before its result is seen, so whoever comes after a failure starts anew.

use std::{
    any::Any,
    collections::HashMap,
    fmt,
    hash::Hash,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tracing::Instrument as _;

use super::failure::Failure;

type Landed<V> = Option<Result<V, Failure>>;

/// Work under way, by key.
pub(super) struct Flights<K, V> {
    /// Protects: which keys are being worked on. Held for a look-up, never over an await.
    running: Arc<Mutex<HashMap<K, watch::Receiver<Landed<V>>>>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self {
            running: Arc::default(),
        }
    }
}

impl<K, V> fmt::Debug for Flights<K, V> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Flights")
            .field("running", &lock(&self.running).len())
            .finish()
    }
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The result of the work under `key`: joins what runs, or starts `work` detached under `span`.
    pub(super) async fn run<F>(
        &self,
        key: K,
        span: tracing::Span,
        work: impl FnOnce() -> F,
    ) -> Result<V, Failure>
    where
        F: Future<Output = Result<V, Failure>> + Send + 'static,
    {
        let mut flight = self.join_or_start(key, span, work);
        match flight.wait_for(Option::is_some).await {
            Ok(landed) => landed.clone().unwrap_or_else(|| Err(lost())),
            Err(_gone) => Err(lost()),
        }
    }

    /// Starts the work under `key`, unless it runs already; nobody waits for it here.
    pub(super) fn start<F>(&self, key: K, span: tracing::Span, work: impl FnOnce() -> F)
    where
        F: Future<Output = Result<V, Failure>> + Send + 'static,
    {
        drop(self.join_or_start(key, span, work));
    }

    fn join_or_start<F>(
        &self,
        key: K,
        span: tracing::Span,
        work: impl FnOnce() -> F,
    ) -> watch::Receiver<Landed<V>>
    where
        F: Future<Output = Result<V, Failure>> + Send + 'static,
    {
        let mut running = lock(&self.running);
        if let Some(flight) = running.get(&key) {
            return flight.clone();
        }
        let (land, flight) = watch::channel(None);
        running.insert(key.clone(), flight.clone());
        let table = Arc::clone(&self.running);
        // A trace tells which request it began for, without being part of it: others may join.
        span.follows_from(tracing::Span::current());
        let work = work();
        spawn(span, async move {
            let result = contained(work).await;
            lock(&table).remove(&key);
            land.send_replace(Some(result));
        });
        flight
    }
}

/// Runs `work` detached; its span is its name.
pub(super) fn spawn(span: tracing::Span, work: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(work.instrument(span)));
}

/// Runs `work`; its panic becomes a failure, so that what follows still cleans up and tells the callers.
pub(super) async fn contained<V>(
    work: impl Future<Output = Result<V, Failure>>,
) -> Result<V, Failure> {
    AssertUnwindSafe(work)
        .catch_unwind()
        .await
        .unwrap_or_else(|panic| Err(Failure::internal(panic_text(panic.as_ref()))))
}

/// Takes a lock; a panic elsewhere leaves these tables whole, because every change to them is one call.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lost() -> Failure {
    Failure::internal("the task went away")
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("a task panicked: {}", text.unwrap_or("without a text"))
}
