//! A fill that the store has no space for: its bytes go through memory to the readers that are there, verified as ever, and are not kept.
//!
//! Owns when that happens and what is said of it. Whoever comes later starts a fill of his own, in one of as many places.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gantry_storage::Blob;
use gantry_upstream::BlobStream;

use super::{
    CacheContent, CacheOutcome, Engine,
    failure::Failure,
    fetch::{Fetch, Length, Receiving},
    fill::Content,
    flight::lock,
    sink::{Passing, Sink},
    window::Window,
};

/// How long after the store had no space it is not tried again, so that every fetch does not begin twice.
const REST: Duration = Duration::from_millis(500);

/// Whether the store had no space lately.
#[derive(Debug, Default)]
pub(super) struct Fullness {
    /// When it last had none, in milliseconds since 1970; 0 since it last took something.
    last_ms: AtomicU64,
}

impl Fullness {
    fn note(&self, now_ms: u64) -> bool {
        self.last_ms.swap(now_ms.max(1), Ordering::Relaxed) == 0
    }

    fn is_recent(&self, now_ms: u64) -> bool {
        let last_ms = self.last_ms.load(Ordering::Relaxed);
        last_ms != 0 && now_ms.saturating_sub(last_ms) < super::manifest::millis(REST)
    }
}

impl Engine {
    /// Notes that the store has no space. Says so once, until it had some again.
    pub(super) fn store_is_full(&self, failure: &Failure) {
        if self.running.fullness.note(self.now_ms()) {
            tracing::warn!(
                error = failure as &dyn std::error::Error,
                "no space to cache: mirrored content passes through and is not kept"
            );
        }
    }

    /// Notes that the store took something.
    pub(super) fn store_has_space(&self) {
        if self.running.fullness.last_ms.swap(0, Ordering::Relaxed) != 0 {
            tracing::info!("there is space to cache again");
        }
    }

    /// Whether it is too soon to try the store again.
    pub(super) fn store_was_full(&self) -> bool {
        self.running.fullness.is_recent(self.now_ms())
    }
}

/// What a fetch has when it turns out that there is no space.
#[derive(Default)]
pub(super) struct Begun {
    /// The staging file, which is dropped already and stays readable while somebody holds it.
    pub(super) head: Option<Arc<dyn Blob>>,
    /// An answer of the upstream that begins at byte 0, when nothing of it was taken.
    pub(super) body: Option<BlobStream>,
}

impl Begun {
    /// Nothing but the upstream's answer.
    pub(super) fn of(body: BlobStream) -> Self {
        let mut begun = Self::default();
        drop(begun.keep(body));
        begun
    }

    /// Keeps an answer that goes on to the blob's end; gives one back that is a part of it.
    pub(super) fn keep(&mut self, body: BlobStream) -> Option<BlobStream> {
        match body.last {
            Some(_) => Some(body),
            None => {
                self.body = Some(body);
                None
            }
        }
    }
}

impl Fetch {
    /// Passes the blob to the readers that are there. Returns when each has it whole, or was too slow for the others.
    pub(super) async fn pass(&self, begun: Begun, length: Length) -> Result<CacheOutcome, Failure> {
        self.retire();
        let head_bytes = begun.head.as_ref().map_or(0, |head| head.size());
        let window = Arc::new(Window::new(self.fill.readers(), head_bytes));
        let algorithm = self.digest.algorithm();
        let passing = Passing::after(begun.head.as_ref(), algorithm, Arc::clone(&window)).await?;
        let content = Content::Passing {
            head: begun.head,
            head_bytes,
            window: Arc::clone(&window),
        };
        self.progress.opened(length.expected, content.clone());
        self.progress.advanced(head_bytes);
        let mut receiving = Receiving::new(self, Sink::Passing(passing), length);
        if length.expected != Some(head_bytes) {
            receiving.receive(begun.body).await?;
        }
        let size = window.end();
        let Sink::Passing(passing) = receiving.into_sink() else {
            return Err(Failure::internal("a fill changed its sink"));
        };
        let found = passing.digest();
        if found != self.digest {
            return Err(Failure::invalid(format!("the content hashes to {found}")));
        }
        self.origin.count(CacheContent::Blob, CacheOutcome::Passed);
        self.progress.verified(content, size);
        window.drain().await;
        Ok(CacheOutcome::Passed)
    }

    /// Takes this fill out of the table, so that whoever comes from now on starts another.
    pub(super) fn retire(&self) {
        let key = (self.origin.place(), self.digest.clone());
        let mut fills = lock(&self.engine.running.fills);
        if fills.get(&key).is_some_and(|fill| fill.is(&self.fill)) {
            fills.remove(&key);
        }
    }
}
