//! A fill as its readers see it: they join while it runs, read the staging file at their own pace, and share its end.
//!
//! Owns how far a reader may read. Knows nothing of upstreams.
//! Invariant: before the digest is verified no reader gets the last byte of the blob, so a corrupt upstream never makes a body whole.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use gantry_model::Digest;
use gantry_storage::{Blob, StorageError};
use tokio::sync::watch;

use super::failure::Failure;
use crate::error::Error;

/// What a reader takes from the staging file at a time, and so its whole memory.
const READ_BYTES: usize = 64 << 10;

/// The end of a blob that is withheld until the digest is verified. A smaller blob is withheld whole.
const HOLDBACK_BYTES: u64 = 64 << 10;

/// How long a first byte is waited for before the headers leave. Until then a failure is still an honest status; later it can only
/// abort the connection, but clients give up on headers after about half a minute.
const FIRST_BYTE_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
enum Phase {
    /// The upstream has not answered.
    Waiting,
    /// Bytes arrive.
    Running,
    /// Verified and published.
    Published,
    /// Over without content.
    Failed(Failure),
}

#[derive(Clone, Debug)]
struct State {
    phase: Phase,
    size: Option<u64>,
    content: Option<Arc<dyn Blob>>,
    readable: u64,
}

impl State {
    fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Published | Phase::Failed(_))
    }
}

/// The fill's own side: it says how far it is.
#[derive(Debug)]
pub(super) struct Progress(watch::Sender<State>);

impl Progress {
    /// A fill that waits, and what its readers hold.
    pub(super) fn start(digest: Digest) -> (Self, Fill) {
        let (sender, state) = watch::channel(State {
            phase: Phase::Waiting,
            size: None,
            content: None,
            readable: 0,
        });
        (Self(sender), Fill { digest, state })
    }

    /// The upstream answered; `staged` grows.
    pub(super) fn opened(&self, size: Option<u64>, staged: Arc<dyn Blob>) {
        self.0.send_modify(|state| {
            state.phase = Phase::Running;
            state.size = size;
            state.content = Some(staged);
        });
    }

    /// `flushed` bytes can be read from the staging file.
    pub(super) fn advanced(&self, flushed: u64) {
        self.0.send_if_modified(|state| {
            // With a known size only the blob's own end is withheld; otherwise any byte may be the last.
            let readable = match state.size {
                Some(size) => flushed.min(size.saturating_sub(HOLDBACK_BYTES)),
                None => flushed.saturating_sub(HOLDBACK_BYTES),
            };
            let moved = readable > state.readable;
            state.readable = state.readable.max(readable);
            moved
        });
    }

    /// The content is verified, whole and readable from `content`.
    pub(super) fn published(&self, content: Arc<dyn Blob>, size: u64) {
        self.0.send_modify(|state| {
            state.phase = Phase::Published;
            state.size = Some(size);
            state.content = Some(content);
            state.readable = size;
        });
    }

    /// There will be no content.
    pub(super) fn failed(&self, failure: Failure) {
        self.0
            .send_modify(|state| state.phase = Phase::Failed(failure));
    }
}

/// A reader's handle on a fill. Cheap to clone; dropping it never stops the fill.
#[derive(Clone, Debug)]
pub(crate) struct Fill {
    digest: Digest,
    state: watch::Receiver<State>,
}

impl Fill {
    /// The bytes `first..=last` of the blob, or to its end, as they arrive. Ends early only with an error, which must abort the
    /// connection. A range that ends before the blob's last 64 KiB may be complete before the digest is verified.
    pub(crate) fn stream(
        &self,
        first: u64,
        last: Option<u64>,
    ) -> BoxStream<'static, Result<Bytes, Error>> {
        let reader = Reader {
            fill: self.clone(),
            offset: first,
            end: last.map(|last| last.saturating_add(1)),
        };
        futures_util::stream::try_unfold(reader, |mut reader| async move {
            match reader.next().await {
                Ok(bytes) => Ok(bytes.map(|bytes| (bytes, reader))),
                Err(failure) => Err(failure.into_blob_error(&reader.fill.digest)),
            }
        })
        .boxed()
    }

    /// The whole blob's length: as soon as the upstream says, or else when the fill is over.
    ///
    /// # Errors
    /// Why the fill failed.
    pub(crate) async fn size(&self) -> Result<u64, Error> {
        self.wait_for(|state| state.size.is_some())
            .await
            .and_then(|state| state.size.ok_or_else(lost))
            .map_err(|failure| failure.into_blob_error(&self.digest))
    }

    /// Waits until the first bytes may leave, so that an early failure is still an answer and not an aborted connection. True when
    /// the blob is published.
    pub(super) async fn ready(&self) -> Result<bool, Failure> {
        let opened = self
            .wait_for(|state| !matches!(state.phase, Phase::Waiting))
            .await?;
        let first_byte = self.wait_for(|state| state.readable > 0);
        let state = tokio::time::timeout(FIRST_BYTE_PATIENCE, first_byte)
            .await
            .unwrap_or(Ok(opened))?;
        Ok(matches!(state.phase, Phase::Published))
    }

    /// Waits until it is over.
    pub(super) async fn finished(&self) -> Result<(), Failure> {
        self.wait_for(|_state| false).await.map(drop)
    }

    /// The length, when it is known by now.
    pub(super) fn known_size(&self) -> Option<u64> {
        self.state.borrow().size
    }

    /// The first state that satisfies `condition`; a failed fill is an error whatever was waited for.
    async fn wait_for(&self, condition: impl Fn(&State) -> bool) -> Result<State, Failure> {
        let mut states = self.state.clone();
        let state = states
            .wait_for(|state| condition(state) || state.is_over())
            .await
            .map_err(|_task_gone| lost())?
            .clone();
        match state.phase {
            Phase::Failed(failure) => Err(failure),
            Phase::Waiting | Phase::Running | Phase::Published => Ok(state),
        }
    }
}

struct Reader {
    fill: Fill,
    offset: u64,
    end: Option<u64>,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let offset = self.offset;
        if self.end.is_some_and(|end| offset >= end) {
            return Ok(None);
        }
        let state = self.fill.wait_for(|state| state.readable > offset).await?;
        let until = self
            .end
            .map_or(state.readable, |end| end.min(state.readable));
        let Some(content) = state.content.filter(|_| until > offset) else {
            return Ok(None);
        };
        let length =
            usize::try_from(until - offset).map_or(READ_BYTES, |rest| rest.min(READ_BYTES));
        let bytes = content.read_at(offset, length).await?;
        if bytes.is_empty() {
            return Err(StorageError::corrupt("read the staging file of a fill").into());
        }
        self.offset += bytes.len() as u64;
        Ok(Some(bytes))
    }
}

fn lost() -> Failure {
    Failure::internal("the fill went away")
}
