//! Shadow plugins: asked the same questions beside the enforcing ones, off the request's path.
//!
//! Owns the queue between the two. Invariant: a request never waits for a shadow: what does not fit into the queue is dropped and counted.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::{Semaphore, mpsc};

/// Questions that wait at most.
const MAX_WAITING: usize = 1024;
/// Questions asked at once: few, so that shadows leave the instance pool to what decides.
const MAX_AT_ONCE: usize = 4;

type Question = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The way to the shadow plugins. Clones share the queue; it ends with the last of them.
#[derive(Clone)]
pub(crate) struct Shadows {
    queue: mpsc::Sender<Question>,
    /// Questions that were dropped because the queue was full.
    pub(crate) dropped: Counter,
}

impl fmt::Debug for Shadows {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Shadows")
            .field("dropped", &self.dropped.get())
            .finish_non_exhaustive()
    }
}

impl Shadows {
    /// Starts the task that asks.
    pub(crate) fn start() -> Self {
        let (queue, waiting) = mpsc::channel(MAX_WAITING);
        tokio::spawn(ask(waiting));
        Self {
            queue,
            dropped: Counter::default(),
        }
    }

    /// Has a question asked some time; returns at once.
    pub(crate) fn later(&self, question: impl Future<Output = ()> + Send + 'static) {
        if self.queue.try_send(Box::pin(question)).is_err() {
            self.dropped.inc();
        }
    }
}

async fn ask(mut waiting: mpsc::Receiver<Question>) {
    let places = Arc::new(Semaphore::new(MAX_AT_ONCE));
    while let Some(question) = waiting.recv().await {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        tokio::spawn(async move {
            question.await;
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    async fn through(gate: Arc<Semaphore>, asked: Arc<AtomicUsize>) {
        gate.acquire().await.unwrap().forget();
        asked.fetch_add(1, Ordering::Relaxed);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_shadow_and_what_does_not_fit_is_counted() {
        let shadows = Shadows::start();
        let (gate, asked) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let sent = MAX_WAITING * 2;
        for _ in 0..sent {
            shadows.later(through(Arc::clone(&gate), Arc::clone(&asked)));
        }
        let dropped = usize::try_from(shadows.dropped.get()).unwrap();
        assert!(dropped >= sent - MAX_WAITING - MAX_AT_ONCE - 1, "{dropped}");
        gate.add_permits(sent);
        while asked.load(Ordering::Relaxed) + dropped < sent {
            tokio::task::yield_now().await;
        }
    }
}
