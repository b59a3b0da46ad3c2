//! A fill as its readers see it: they join while it runs, read the staging file at their own pace, and share its end.
//!
//! Owns how far a reader may read, and from where. Knows nothing of upstreams.
//! Invariants: before the digest is verified no reader gets the last byte of the blob, so a corrupt upstream never makes a body whole;
//! after that every reader may have all of it, whatever becomes of the publication.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::BoxStream};
use gantry_model::Digest;
use gantry_storage::Blob;
use tokio::sync::watch;

use super::{
    failure::Failure,
    window::{Place, Readers, Window},
};
use crate::{error::Error, outcome::Arrived};

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
    /// All of it is here and verified; the store does not have it yet.
    Verified,
    /// Verified, and what is to be done with it is done: published, or passed through where there was no space to keep it.
    Done,
    /// Verified, but the store did not take it: readers have the open staging file, whoever comes later fetches anew.
    Unkept(Failure),
    /// Over without content.
    Failed(Failure),
}

/// Where readers find the bytes.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// In the store.
    Stored(Arc<dyn Blob>),
    /// There is no space for them: in memory, on their way through, after the part that was stored before.
    Passing {
        /// The first bytes of the blob.
        head: Option<Arc<dyn Blob>>,
        /// How many these are.
        head_bytes: u64,
        /// The rest.
        window: Arc<Window>,
    },
}

#[derive(Clone, Debug)]
struct State {
    phase: Phase,
    size: Option<u64>,
    content: Option<Content>,
    readable: u64,
}

impl State {
    /// Whether nothing more will become readable.
    fn is_settled(&self) -> bool {
        !matches!(self.phase, Phase::Waiting | Phase::Running)
    }

    /// Whether the task behind it is done.
    fn is_over(&self) -> bool {
        self.is_settled() && !matches!(self.phase, Phase::Verified)
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
        let readers = Arc::default();
        let fill = Fill {
            digest,
            state,
            readers,
            _place: None,
        };
        (Self(sender), fill)
    }

    /// The upstream answered; `content` grows.
    pub(super) fn opened(&self, size: Option<u64>, content: Content) {
        self.0.send_modify(|state| {
            state.phase = Phase::Running;
            state.size = size;
            state.content = Some(content);
        });
    }

    /// `flushed` bytes can be read.
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

    /// All `size` bytes are verified and readable from `content`. Nothing that fails later takes them from a reader.
    pub(super) fn verified(&self, content: Content, size: u64) {
        self.0.send_modify(|state| {
            state.phase = Phase::Verified;
            state.size = Some(size);
            state.content = Some(content);
            state.readable = size;
        });
    }

    /// Whether [`Progress::verified`] was called.
    pub(super) fn is_verified(&self) -> bool {
        matches!(self.0.borrow().phase, Phase::Verified)
    }

    /// What was verified is where it should be.
    pub(super) fn done(&self) {
        self.0.send_modify(|state| state.phase = Phase::Done);
    }

    /// There will be no content; or it is verified and cannot be kept.
    /// Whether readers may have the first bytes, and so the head of an answer.
    pub(super) fn has_readers_bytes(&self) -> bool {
        self.0.borrow().readable > 0
    }

    pub(super) fn failed(&self, failure: Failure) {
        self.0.send_modify(|state| {
            state.phase = match state.phase {
                Phase::Verified => Phase::Unkept(failure),
                _ => Phase::Failed(failure),
            };
        });
    }
}

/// A reader's handle on a fill. Cheap to clone; dropping it never stops the fill.
#[derive(Clone, Debug)]
pub(crate) struct Fill {
    digest: Digest,
    state: watch::Receiver<State>,
    readers: Arc<Readers>,
    /// Nothing is let go of before its holder said where it begins to read.
    _place: Option<Arc<Place>>,
}

impl Fill {
    /// The handle of somebody who will read.
    pub(super) fn joined(&self) -> Self {
        Self {
            _place: Some(Arc::new(Place::take(&self.readers, 0))),
            ..self.clone()
        }
    }

    /// Where its readers are.
    pub(super) fn readers(&self) -> &Arc<Readers> {
        &self.readers
    }

    /// Whether both are handles on one fill.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.state.same_channel(&other.state)
    }

    /// The bytes `first..=last` of the blob, or to its end, as they arrive. Ends early only with an error, which must abort the
    /// connection. A range that ends before the blob's last 64 KiB may be complete before the digest is verified.
    pub(crate) fn stream(
        &self,
        first: u64,
        last: Option<u64>,
    ) -> BoxStream<'static, Result<Arrived, Error>> {
        let reader = Reader {
            place: Place::take(&self.readers, first),
            fill: Self {
                _place: None,
                ..self.clone()
            },
            offset: first,
            end: last.map(|last| last.saturating_add(1)),
        };
        futures_util::stream::try_unfold(reader, |mut reader| async move {
            match reader.next().await {
                Ok(arrived) => Ok(arrived.map(|arrived| (arrived, reader))),
                Err(failure) => Err(failure.into_blob_error(&reader.fill.digest)),
            }
        })
        .boxed()
    }

    /// The whole blob's length: as soon as the upstream says, or else when all of it is verified.
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
    /// the store has the blob by now.
    pub(super) async fn ready(&self) -> Result<bool, Failure> {
        let opened = self
            .wait_for(|state| !matches!(state.phase, Phase::Waiting))
            .await?;
        let first_byte = self.wait_for(|state| state.readable > 0);
        let state = tokio::time::timeout(FIRST_BYTE_PATIENCE, first_byte)
            .await
            .unwrap_or(Ok(opened))?;
        Ok(matches!(state.phase, Phase::Done))
    }

    /// Waits until it is over, its publication too, as somebody who will not read: nothing is kept for him.
    ///
    /// # Errors
    /// Why there is no content, or why it is not kept.
    pub(super) async fn finished(mut self) -> Result<(), Failure> {
        self._place = None;
        let over = self.state.wait_for(State::is_over).await;
        match &over.map_err(|_task_gone| lost())?.phase {
            Phase::Failed(failure) | Phase::Unkept(failure) => Err(failure.clone()),
            Phase::Waiting | Phase::Running | Phase::Verified | Phase::Done => Ok(()),
        }
    }

    /// Whether readers may have all of it.
    pub(super) fn is_verified(&self) -> bool {
        matches!(self.state.borrow().phase, Phase::Verified)
    }

    /// The length, when it is known by now.
    pub(super) fn known_size(&self) -> Option<u64> {
        self.state.borrow().size
    }

    /// The first state that satisfies `condition`; a failed fill is an error whatever was waited for.
    async fn wait_for(&self, condition: impl Fn(&State) -> bool) -> Result<State, Failure> {
        let mut states = self.state.clone();
        let state = states
            .wait_for(|state| condition(state) || state.is_settled())
            .await
            .map_err(|_task_gone| lost())?
            .clone();
        match state.phase {
            Phase::Failed(failure) => Err(failure),
            Phase::Waiting | Phase::Running | Phase::Verified | Phase::Done | Phase::Unkept(_) => {
                Ok(state)
            }
        }
    }
}

struct Reader {
    fill: Fill,
    place: Place,
    offset: u64,
    end: Option<u64>,
}

impl Reader {
    /// As much as can be read, without reading it: whoever sends it knows best how.
    async fn next(&mut self) -> Result<Option<Arrived>, Failure> {
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
        let arrived = content.between(offset, until).ok_or_else(left_behind)?;
        self.offset = offset.saturating_add(arrived.length());
        self.place.reach(self.offset);
        Ok(Some(arrived))
    }
}

impl Content {
    /// Some of the bytes `offset..until`, which are readable; `None` when they were let go of.
    fn between(self, offset: u64, until: u64) -> Option<Arrived> {
        let (blob, until) = match self {
            Self::Stored(blob) => (blob, until),
            Self::Passing {
                head: Some(head),
                head_bytes,
                ..
            } if offset < head_bytes => (head, until.min(head_bytes)),
            Self::Passing { window, .. } => {
                let mut bytes = window.read(offset)?;
                let most = usize::try_from(until - offset).unwrap_or(usize::MAX);
                bytes.truncate(most);
                return Some(Arrived::Loose(bytes));
            }
        };
        Some(Arrived::Stored {
            blob,
            offset,
            length: until - offset,
        })
    }
}

fn left_behind() -> Failure {
    Failure::full("the others could not wait for this reader any longer")
}

fn lost() -> Failure {
    Failure::internal("the fill went away")
}
