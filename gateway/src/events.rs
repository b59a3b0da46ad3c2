//! Events on their way: what has no commit is gathered, what waits is handed to its receivers.
//!
//! Owns who is told of what, and the task of each receiver (`events/dispatch`). The state is the outbox's, so that a restart loses
//! nothing and a replaced receiver goes on where the former stopped. Knows nothing of plugins or formats.
//! Invariant: no request ever waits for a receiver, or for the outbox to have space.

mod dispatch;
mod gather;

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use gantry_model::{
    Delivery, Denial, Event, EventKind, RepositoryName, Requester,
    event::{DenialReason, Payload, SourceFacts},
};
use gantry_registry::{Clock, EventSink};
use gantry_storage::{EventOutbox, OutboxSettings, StorageError};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use self::{dispatch::Dispatcher, gather::gather};
use crate::telemetry::EventMeter;

/// Facts without a commit that wait to be written; more are lost and counted.
const MAX_FACTS: usize = 8192;

/// How long a count of what waits is good enough for the metrics.
const COUNT_FOR: Duration = Duration::from_secs(1);

/// How long events may be pushed out before the log says so.
const MEASURE_EVERY: Duration = Duration::from_secs(15);

/// Somebody who is told of events.
#[async_trait]
pub trait Receiver: Debug + Send + Sync {
    /// Its name, under which events wait for it; stays the same over restarts and reloads. See [`OutboxSettings::sinks`].
    fn name(&self) -> &str;

    /// Whether it is a single endpoint: a wait that it names for one event is then meant for every event.
    fn is_one_endpoint(&self) -> bool;

    /// Whether it is told of this repository.
    fn covers(&self, repository: &RepositoryName) -> bool;

    /// Takes a batch: at most one event of each repository. One outcome per event, in the same order.
    ///
    /// # Errors
    /// A sentence for the operator: the whole batch is tried again.
    async fn observe(&self, events: &[Event]) -> Result<Vec<Delivery>, String>;
}

/// Which pulls are told.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Pulls {
    /// None.
    #[default]
    Off,
    /// Every one.
    All,
    /// This share of them, above 0 and up to 1.
    Sample(f64),
}

/// How events are kept and delivered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EventSettings {
    /// Which pulls are told.
    pub pulls: Pulls,
    /// Events kept at most.
    pub max_events: u64,
    /// Their bytes at most.
    pub max_bytes: u64,
    /// Attempts before an event is a dead letter.
    pub max_attempts: u32,
    /// How old an event is at most when it is tried again.
    pub max_age: Duration,
}

impl Default for EventSettings {
    fn default() -> Self {
        Self {
            pulls: Pulls::Off,
            max_events: 100_000,
            max_bytes: 256 << 20,
            max_attempts: 50,
            max_age: Duration::from_secs(3 * 24 * 3600),
        }
    }
}

/// What a receiver's task holds while it runs.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// Takes events from everywhere in the gateway.
#[derive(Debug)]
pub struct Events {
    outbox: Arc<dyn EventOutbox>,
    clock: Arc<dyn Clock>,
    facts: mpsc::Sender<Event>,
    /// This node, as events name it.
    source: SourceFacts,
    /// Facts that were told and are not written yet; taken by whoever writes them.
    gathering: Mutex<Option<mpsc::Receiver<Event>>>,
    listening: AtomicBool,
    /// How old events of a receiver that is gone may become, in milliseconds.
    max_age_ms: AtomicU64,
    /// The share of pulls that is told, of [`u32::MAX`].
    pulls: AtomicU32,
    meter: EventMeter,
    /// When what waits was last counted. Held for a look.
    counted: Mutex<Option<Instant>>,
    /// Until when receivers that named a wait are left alone, by name; lasts over reloads. Held for a look.
    pauses: Mutex<HashMap<String, Instant>>,
    /// The turn of each receiver's task, by name: after a reload the next task waits for the call that the former one is in. Held for a look.
    turns: Mutex<HashMap<String, Turn>>,
    /// Goes up with each commit that wrote events: what the dispatchers wake on.
    commits: watch::Sender<u64>,
}

impl Events {
    /// Nobody is told yet.
    #[must_use]
    pub fn new(
        outbox: Arc<dyn EventOutbox>,
        clock: Arc<dyn Clock>,
        source: SourceFacts,
        meter: EventMeter,
    ) -> Arc<Self> {
        let (facts, gathered) = mpsc::channel(MAX_FACTS);
        Arc::new(Self {
            outbox,
            clock,
            facts,
            source,
            gathering: Mutex::new(Some(gathered)),
            listening: AtomicBool::new(false),
            max_age_ms: AtomicU64::new(u64::MAX),
            pulls: AtomicU32::new(0),
            meter,
            counted: Mutex::default(),
            pauses: Mutex::default(),
            turns: Mutex::default(),
            commits: watch::Sender::new(0),
        })
    }

    /// Where events wait.
    #[must_use]
    pub fn outbox(&self) -> &Arc<dyn EventOutbox> {
        &self.outbox
    }

    /// Facts without a commit that found no place since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.meter.lost()
    }

    /// Looks for what is due now, as after a commit: for the operator who lets letters wait again.
    pub fn wake(&self) {
        self.commits
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// This node, as events name it.
    #[must_use]
    pub fn source(&self) -> &SourceFacts {
        &self.source
    }

    /// Whether anybody is told of anything.
    #[must_use]
    pub fn listening(&self) -> bool {
        self.listening.load(Ordering::Relaxed)
    }

    /// Tells that a request was refused.
    pub fn denied(
        &self,
        requester: &Requester,
        repository: &RepositoryName,
        operation: &str,
        denial: &Denial,
    ) {
        if !self.listening() {
            return;
        }
        let id = match gantry_registry::random_uuid() {
            Ok(id) => id,
            Err(error) => {
                tracing::error!(error = ?error, "a denial is not told");
                return;
            }
        };
        self.record(Event {
            id,
            kind: EventKind::RequestDenied,
            at_ms: self.clock.now_ms(),
            repository: repository.clone(),
            digest: None,
            tag: None,
            actor: requester.principal.id.clone(),
            payload: Payload {
                operation: Some(operation.to_owned()),
                reason: Some(DenialReason::from(denial)),
                ..Payload::of(requester)
            },
        });
    }

    /// Writes facts that have no commit, many at once, until `stop` is told or dropped. To be run once.
    pub async fn gather(self: Arc<Self>, stop: watch::Receiver<bool>) {
        let gathering = {
            let mut gathering = self
                .gathering
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            gathering.take()
        };
        if let Some(facts) = gathering {
            gather(&self, facts, stop).await;
        }
    }

    /// Measures what waits, for the metrics, and says so when events were pushed out. Counting reads every row, so whoever asks again within
    /// `COUNT_FOR` gets the last count.
    pub async fn measure(&self) {
        if !self.is_count_due() {
            return;
        }
        match self.outbox.depth().await {
            Ok(depth) => {
                let (kept, evicted) = (depth.events, self.meter.measured(depth));
                if evicted > 0 {
                    tracing::warn!(
                        count = evicted,
                        kept,
                        "the outbox is full: its oldest events were given up"
                    );
                }
            }
            Err(error) => tracing::warn!(error = ?error, "the outbox cannot be measured"),
        }
    }

    /// Leaves a receiver alone for so long.
    fn pause(&self, receiver: &str, wait: Duration) {
        let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        pauses.insert(receiver.to_owned(), Instant::now() + wait);
    }

    /// How long a receiver is left alone from now on.
    fn pause_left(&self, receiver: &str) -> Option<Duration> {
        let pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
        let left = pauses.get(receiver)?.duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    fn is_count_due(&self) -> bool {
        let now = Instant::now();
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let due = counted.is_none_or(|last| now.duration_since(last) >= COUNT_FOR);
        if due {
            *counted = Some(now);
        }
        due
    }

    /// Forgets what is too old of receivers that are gone.
    async fn forget_unclaimed(&self) {
        let max_age_ms = self.max_age_ms.load(Ordering::Relaxed);
        let before_ms = self.clock.now_ms().saturating_sub(max_age_ms);
        match self.outbox.forget_unclaimed(before_ms).await {
            Ok(0) => {}
            Ok(count) => tracing::warn!(
                count,
                "events for receivers that are no longer configured are forgotten: they are older than events.max_age"
            ),
            Err(error) => tracing::warn!(error = ?error, "the outbox failed"),
        }
    }

    /// Counts what waits and removes old events of removed receivers at intervals, until `stop` is true or dropped.
    pub async fn watch(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        loop {
            self.measure().await;
            self.forget_unclaimed().await;
            tokio::select! {
                _stopped = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(MEASURE_EVERY) => {}
            }
        }
    }

    /// Starts to tell these receivers, and nobody else. Those that were told before have to be stopped first.
    ///
    /// # Errors
    /// [`StorageError`]: nobody is told of what happens from now on.
    pub async fn start(
        self: &Arc<Self>,
        receivers: Vec<Arc<dyn Receiver>>,
        settings: &EventSettings,
    ) -> Result<Dispatchers, StorageError> {
        let names = receivers.iter().map(|receiver| receiver.name().to_owned());
        let settled = OutboxSettings {
            sinks: names.collect(),
            max_events: settings.max_events,
            max_bytes: settings.max_bytes,
        };
        self.outbox.register(&settled).await?;
        {
            let mut pauses = self.pauses.lock().unwrap_or_else(PoisonError::into_inner);
            pauses.retain(|name, _until| settled.sinks.contains(name));
        }
        let max_age_ms = u64::try_from(settings.max_age.as_millis()).unwrap_or(u64::MAX);
        self.max_age_ms.store(max_age_ms, Ordering::Relaxed);
        self.pulls.store(share(settings.pulls), Ordering::Relaxed);
        self.listening
            .store(!receivers.is_empty(), Ordering::Relaxed);
        let stop = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        for receiver in receivers {
            let turn = self.turn(receiver.name());
            let dispatcher = Dispatcher::new(Arc::clone(self), receiver, *settings);
            let (commits, mut stopped) = (self.commits.subscribe(), stop.subscribe());
            tasks.spawn(async move {
                let _turn = tokio::select! {
                    turn = turn.lock_owned() => turn,
                    _ = stopped.wait_for(|stopped| *stopped) => return,
                };
                dispatcher.run(commits, stopped).await;
            });
        }
        Ok(Dispatchers { stop, tasks })
    }

    fn turn(&self, receiver: &str) -> Turn {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_name, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(receiver.to_owned()).or_default())
    }
}

/// The running tasks of the receivers, one each.
#[derive(Debug)]
pub struct Dispatchers {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Dispatchers {
    /// Ends every task after the call it is in, with its outcome written down.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a dispatcher failed");
            }
        }
    }
}

impl EventSink for Events {
    fn wants(&self, kind: EventKind) -> bool {
        if !self.listening() {
            return false;
        }
        match kind {
            EventKind::ManifestPulled | EventKind::BlobPulled => {
                let share = self.pulls.load(Ordering::Relaxed);
                share == u32::MAX || (share > 0 && random() < u64::from(share))
            }
            EventKind::ManifestPushed
            | EventKind::TagMoved
            | EventKind::BlobPushed
            | EventKind::BlobMounted
            | EventKind::ManifestDeleted
            | EventKind::TagDeleted
            | EventKind::BlobDeleted
            | EventKind::RequestDenied => true,
        }
    }

    fn record(&self, event: Event) {
        if self.facts.try_send(event).is_err() {
            self.meter.count_lost(1);
        }
    }

    fn committed(&self) {
        self.wake();
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of at most one of the greatest number"
)]
fn share(pulls: Pulls) -> u32 {
    match pulls {
        Pulls::Off => 0,
        Pulls::All => u32::MAX,
        Pulls::Sample(share) => (share.clamp(0.0, 1.0) * f64::from(u32::MAX)) as u32,
    }
}

/// Thirty-two random bits; without randomness all of them are set, which samples less and waits longer.
fn random() -> u64 {
    let mut bytes = [0xff; 4];
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        tracing::error!("no randomness for events");
    }
    u64::from(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests;
