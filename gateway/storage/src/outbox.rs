//! The port for events that wait for their receivers: written with the commit they tell of, handed out in order, until they arrive
//! or die.
//!
//! Owns the meaning: each event is fanned out to every sink that is registered when it is written; a sink gets the events of one
//! repository in their order, one at a time, and one that fails holds back its own repository only. What is due when, and when to give
//! up, is the caller's: a store has no clock.
//! Invariant: an attempt is durable before it is made, so that a crash in the middle counts it.

use std::{collections::BTreeSet, fmt::Debug};

use async_trait::async_trait;
use gantry_model::{Event, RepositoryName};

use crate::error::StorageError;

/// Who gets events, and how many may wait.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OutboxSettings {
    /// Names of the sinks that get every event written from now on: `RECEIVER`, or `RECEIVER/PART` for a part of one, see [`sink_name`].
    /// What a sink of the last registration leaves behind goes to the sinks of the same receiver that are new. Without such a sink it
    /// waits for the sink to come back; it is the first that a full outbox gives up, and [`EventOutbox::forget_unclaimed`] ends it.
    pub sinks: Vec<String>,
    /// Events kept at most, waiting and dead.
    pub max_events: u64,
    /// Their bytes at most, about.
    pub max_bytes: u64,
}

/// One event for one sink.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Waiting {
    /// Its place in the order of all events.
    pub sequence: u64,
    /// How often it was tried since it was written or replayed, this time included.
    pub attempts: u32,
    /// The event.
    pub event: Event,
}

/// What became of an event that was taken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settled {
    /// Which, for the sink that took it.
    pub sequence: u64,
    /// What.
    pub settlement: Settlement,
}

/// What is to happen with an event after an attempt.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Settlement {
    /// It arrived: forget it.
    Done,
    /// Not before this time, in milliseconds since 1970; its repository waits with it.
    Again {
        /// When.
        due_at_ms: u64,
        /// Why, for the operator.
        error: String,
    },
    /// To the dead letters; its repository goes on.
    Dead {
        /// Why, for the operator.
        error: String,
    },
}

/// What a sink takes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Taken {
    /// At most one event per repository. Their attempts are durable.
    pub batch: Vec<Waiting>,
    /// When the batch is empty: when the next event is due, in milliseconds since 1970; `None` when none waits.
    pub next_due_at_ms: Option<u64>,
}

/// Which deliveries are meant; everything that is `None` means all.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EventFilter {
    /// Of this sink, or of every part of this receiver.
    pub sink: Option<String>,
    /// Only dead letters, or only waiting ones.
    pub dead: Option<bool>,
    /// Of this repository.
    pub repository: Option<RepositoryName>,
    /// Of this event.
    pub id: Option<String>,
}

/// A place in the list: after this sequence and sink.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EventCursor {
    /// See [`Waiting::sequence`].
    pub sequence: u64,
    /// The sink.
    pub sink: String,
}

/// One delivery, as an operator sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EventEntry {
    /// For whom.
    pub sink: String,
    /// Whether it is a dead letter.
    pub dead: bool,
    /// When it was last tried, in milliseconds since 1970.
    pub attempted_at_ms: Option<u64>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    /// The event, its place and its attempts.
    pub waiting: Waiting,
}

/// How much waits.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Depth {
    /// By sink, in the order of their names.
    pub sinks: Vec<SinkDepth>,
    /// Events kept.
    pub events: u64,
    /// Their bytes, about.
    pub bytes: u64,
    /// Events pushed out since the store was opened, because there was no space.
    pub evicted: u64,
    /// Deliveries given up since the store was opened, because their rows could not be read.
    pub unreadable: u64,
}

/// How much waits for one sink.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SinkDepth {
    /// Which.
    pub sink: String,
    /// Events that wait.
    pub waiting: u64,
    /// Dead letters.
    pub dead: u64,
    /// When the oldest that waits happened, in milliseconds since 1970.
    pub oldest_at_ms: Option<u64>,
}

/// Events that wait for their receivers. Those of a commit come by [`crate::Commit::Telling`].
#[async_trait]
pub trait EventOutbox: Debug + Send + Sync {
    /// Says who gets events from now on. Without sinks nothing is written.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn register(&self, settings: &OutboxSettings) -> Result<(), StorageError>;

    /// Writes facts that have no commit of their own, all in one transaction.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn append(&self, events: Vec<Event>) -> Result<(), StorageError>;

    /// Settles what the sink took before, and takes what is due: at most `limit` events, the longest due first. Both in one
    /// transaction, durable on return. A sink has one taker at a time. A delivery that cannot be read is given up.
    ///
    /// # Errors
    /// [`StorageError`]: nothing was settled and nothing taken.
    async fn take(&self, take: Take) -> Result<Taken, StorageError>;

    /// Deliveries after `after`, by sequence and sink, at most `limit`.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn list(
        &self,
        filter: &EventFilter,
        after: &EventCursor,
        limit: usize,
    ) -> Result<Vec<EventEntry>, StorageError>;

    /// Lets dead letters wait again, from their first attempt on and in their old places. Returns how many: at most
    /// [`MAX_CHANGED`], so that pushes do not wait for it; call it again while it returns as many.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn replay(&self, filter: &EventFilter) -> Result<u64, StorageError>;

    /// Forgets deliveries. Returns how many, as [`EventOutbox::replay`] does.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn discard(&self, filter: &EventFilter) -> Result<u64, StorageError>;

    /// Forgets deliveries of sinks that are not registered whose events happened before `before_ms`. Returns how many, as
    /// [`EventOutbox::replay`] does.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn forget_unclaimed(&self, before_ms: u64) -> Result<u64, StorageError>;

    /// How much waits.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn depth(&self) -> Result<Depth, StorageError>;
}

/// See [`EventOutbox::take`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Take {
    /// For whom.
    pub sink: String,
    /// What became of what it took before.
    pub settled: Vec<Settled>,
    /// At most so many.
    pub limit: usize,
    /// Now, in milliseconds since 1970.
    pub now_ms: u64,
}

/// Deliveries that one call of [`EventOutbox::replay`] or [`EventOutbox::discard`] changes at most.
pub const MAX_CHANGED: u64 = 1000;

/// The name of a receiver's part, as a sink.
#[must_use]
pub fn sink_name(receiver: &str, part: &str) -> String {
    format!("{receiver}/{part}")
}

/// The receiver that a sink belongs to.
#[must_use]
pub fn receiver_of(sink: &str) -> &str {
    sink.split_once('/')
        .map_or(sink, |(receiver, _part)| receiver)
}

/// Which new sinks take over what each former sink leaves behind.
pub(crate) fn heirs<'a>(
    former: &'a BTreeSet<String>,
    new: &'a BTreeSet<String>,
) -> impl Iterator<Item = (&'a str, Vec<&'a str>)> {
    former.difference(new).map(move |gone| {
        let added = new.difference(former);
        let family = added.filter(|sink| receiver_of(sink) == receiver_of(gone));
        (gone.as_str(), family.map(String::as_str).collect())
    })
}

/// What an event is counted with beside its texts: its other columns and its indexes.
const ROW_BYTES: u64 = 256;

/// An event's bytes, about.
pub(crate) fn weight(event: &Event, payload: &str) -> u64 {
    let digest = event.digest.as_ref().map_or(0, |it| it.as_str().len());
    let tag = event.tag.as_ref().map_or(0, |it| it.as_str().len());
    let texts = [
        event.id.len(),
        event.repository.as_str().len(),
        event.actor.len(),
        payload.len(),
        digest,
        tag,
    ];
    texts.into_iter().sum::<usize>() as u64 + ROW_BYTES
}
