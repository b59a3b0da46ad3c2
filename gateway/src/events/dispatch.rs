//! One receiver's task: takes what is due, hands it over, writes down what became of it.
//!
//! Owns when to try again and when to give up. An attempt is in the outbox before it is made; its outcome is settled with the next
//! taking, so that a delivery costs one fsync.

use std::{collections::HashSet, sync::Arc, time::Duration};

use gantry_model::{Delivery, Event};
use gantry_storage::{
    Settled, Settlement, Take, Taken,
    outbox::{Waiting, receiver_of},
};
use tokio::sync::watch;

use super::{EventSettings, Events, Receiver, random};
use crate::telemetry::DeliveryOutcome;

/// Events of one call at most, each of another repository.
const BATCH: usize = 16;
/// The second attempt comes at most so long after the first; each further wait may be twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// No wait of ours is longer.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// No wait that a receiver asks for is longer.
const MAX_ASKED_WAIT: Duration = Duration::from_secs(3600);
/// No wait is shorter.
const MIN_WAIT: Duration = Duration::from_millis(100);
/// How long an outbox that failed is left alone.
const STORE_WAIT: Duration = Duration::from_secs(2);
/// Characters of an error that are kept.
const MAX_ERROR: usize = 500;

pub(super) struct Dispatcher {
    events: Arc<Events>,
    receiver: Arc<dyn Receiver>,
    settings: EventSettings,
    /// Events whose batch failed as a whole: they are handed over alone, so that one bad event does not fail the others for ever.
    suspects: HashSet<u64>,
}

/// Why the task waits.
enum Next {
    /// For the next commit, or until an event is due.
    Wait(Option<u64>),
    /// For the end of a pause that the receiver named.
    Pause(Duration),
    /// For the outbox to work again.
    Failed,
    /// These have to be settled.
    Settle(Vec<Settled>),
}

impl Dispatcher {
    pub(super) fn new(
        events: Arc<Events>,
        receiver: Arc<dyn Receiver>,
        settings: EventSettings,
    ) -> Self {
        Self {
            events,
            receiver,
            settings,
            suspects: HashSet::new(),
        }
    }

    /// Runs until it is stopped.
    pub(super) async fn run(
        mut self,
        mut commits: watch::Receiver<u64>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut settled = Vec::new();
        loop {
            commits.mark_unchanged();
            let stopped = *stop.borrow_and_update();
            let pause = self.events.pause_left(self.receiver.name());
            let is_idle = stopped || pause.is_some();
            let limit = if is_idle { 0 } else { BATCH };
            let next = match self.take(&settled, limit).await {
                Some(taken) if taken.batch.is_empty() => {
                    settled.clear();
                    pause.map_or(Next::Wait(taken.next_due_at_ms), Next::Pause)
                }
                Some(taken) => Next::Settle(self.attempt(taken.batch).await),
                None => Next::Failed,
            };
            if stopped {
                return;
            }
            let wait = match next {
                Next::Settle(outcomes) => {
                    settled = outcomes;
                    continue;
                }
                Next::Wait(due_at_ms) => self.until(due_at_ms),
                Next::Pause(left) => left,
                Next::Failed => STORE_WAIT,
            };
            tokio::select! {
                _changed = commits.changed(), if matches!(next, Next::Wait(_)) => {}
                _stopped = stop.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn take(&self, settled: &[Settled], limit: usize) -> Option<Taken> {
        let take = Take {
            sink: self.receiver.name().to_owned(),
            settled: settled.to_vec(),
            limit,
            now_ms: self.events.clock.now_ms(),
        };
        match self.events.outbox.take(take).await {
            Ok(taken) => Some(taken),
            Err(error) => {
                let name = self.receiver.name();
                tracing::warn!(plugin.name = name, error = ?error, "the outbox failed");
                None
            }
        }
    }

    fn until(&self, due_at_ms: Option<u64>) -> Duration {
        let Some(due_at_ms) = due_at_ms else {
            return MAX_WAIT;
        };
        let wait_ms = due_at_ms.saturating_sub(self.events.clock.now_ms());
        Duration::from_millis(wait_ms.max(1)).min(MAX_WAIT)
    }

    async fn attempt(&mut self, batch: Vec<Waiting>) -> Vec<Settled> {
        let (covered, other): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .partition(|waiting| self.receiver.covers(&waiting.event.repository));
        let mut settled: Vec<Settled> = other
            .iter()
            .map(|waiting| settled_as(waiting, Settlement::Done))
            .collect();
        let (alone, together): (Vec<_>, Vec<_>) = covered
            .into_iter()
            .partition(|waiting| self.suspects.remove(&waiting.sequence));
        settled.extend(self.hand_over(together).await);
        for waiting in alone {
            settled.extend(match self.events.pause_left(self.receiver.name()) {
                Some(left) => vec![self.postponed(&waiting, left)],
                None => self.hand_over(vec![waiting]).await,
            });
        }
        settled
    }

    /// An event that was taken before the receiver named a pause.
    fn postponed(&mut self, waiting: &Waiting, left: Duration) -> Settled {
        self.suspects.insert(waiting.sequence);
        let again = self.again(waiting, Some(left), "the receiver asked for a pause");
        settled_as(waiting, again)
    }

    /// The event without the name of another repository that the receiver does not cover.
    fn shown(&self, event: &Event) -> Event {
        let mut event = event.clone();
        let is_covered = |source: &String| {
            let source = source.parse();
            source.is_ok_and(|source| self.receiver.covers(&source))
        };
        let source = event.payload.from_repository.take();
        event.payload.from_repository = source.filter(is_covered);
        event
    }

    async fn hand_over(&mut self, batch: Vec<Waiting>) -> Vec<Settled> {
        if batch.is_empty() {
            return Vec::new();
        }
        let events: Vec<Event> = batch
            .iter()
            .map(|waiting| self.shown(&waiting.event))
            .collect();
        let outcomes = match self.receiver.observe(&events).await {
            Ok(outcomes) if outcomes.len() == batch.len() => Ok(outcomes),
            Ok(outcomes) => Err(format!(
                "{} outcomes for {} events",
                outcomes.len(),
                batch.len()
            )),
            Err(error) => Err(error),
        };
        if let Ok(outcomes) = &outcomes {
            self.keep_pause(outcomes);
        }
        let settled: Vec<Settled> = match outcomes {
            Ok(outcomes) => batch
                .iter()
                .zip(outcomes)
                .map(|(waiting, outcome)| settled_as(waiting, self.judge(waiting, outcome)))
                .collect(),
            Err(error) => {
                self.suspects.extend(batch.iter().map(|it| it.sequence));
                batch
                    .iter()
                    .map(|waiting| settled_as(waiting, self.again(waiting, None, &error)))
                    .collect()
            }
        };
        self.count(&settled);
        settled
    }

    /// An endpoint that named a wait is left alone with everything.
    fn keep_pause(&self, outcomes: &[Delivery]) {
        let named = outcomes.iter().filter_map(|outcome| match outcome {
            Delivery::Retry(wait) => Some(*wait),
            Delivery::Delivered | Delivery::Drop(_) => None,
        });
        let longest = named.max().unwrap_or_default().min(MAX_ASKED_WAIT);
        if self.receiver.is_one_endpoint() && !longest.is_zero() {
            self.events.pause(self.receiver.name(), longest);
        }
    }

    fn count(&self, settled: &[Settled]) {
        for settled in settled {
            let outcome = match settled.settlement {
                Settlement::Done => DeliveryOutcome::Delivered,
                Settlement::Again { .. } => DeliveryOutcome::Again,
                Settlement::Dead { .. } => DeliveryOutcome::Dead,
            };
            let meter = &self.events.meter;
            meter.count_attempt(receiver_of(self.receiver.name()), outcome);
        }
    }

    fn judge(&self, waiting: &Waiting, outcome: Delivery) -> Settlement {
        match outcome {
            Delivery::Delivered => Settlement::Done,
            Delivery::Retry(asked) => {
                let asked = (!asked.is_zero()).then(|| asked.min(MAX_ASKED_WAIT));
                self.again(waiting, asked, "the receiver asked to try again")
            }
            Delivery::Drop(reason) => self.dead(waiting, &format!("dropped: {reason}")),
        }
    }

    fn again(&self, waiting: &Waiting, asked: Option<Duration>, error: &str) -> Settlement {
        let now_ms = self.events.clock.now_ms();
        let age = Duration::from_millis(now_ms.saturating_sub(waiting.event.at_ms));
        if waiting.attempts >= self.settings.max_attempts {
            return self.dead(waiting, &format!("the last attempt failed: {error}"));
        }
        if age >= self.settings.max_age {
            return self.dead(waiting, &format!("too old to try again: {error}"));
        }
        let wait = asked.unwrap_or_else(|| backoff(waiting.attempts, random()));
        let wait_ms = u64::try_from(wait.max(MIN_WAIT).as_millis()).unwrap_or(u64::MAX);
        Settlement::Again {
            due_at_ms: now_ms.saturating_add(wait_ms),
            error: shortened(error),
        }
    }

    fn dead(&self, waiting: &Waiting, error: &str) -> Settlement {
        let event = &waiting.event;
        tracing::warn!(
            plugin.name = self.receiver.name(),
            event.id = event.id,
            event.kind = event.kind.as_str(),
            repository.name = %event.repository,
            attempts = waiting.attempts,
            error,
            "an event was not delivered"
        );
        Settlement::Dead {
            error: shortened(error),
        }
    }
}

fn settled_as(waiting: &Waiting, settlement: Settlement) -> Settled {
    Settled {
        sequence: waiting.sequence,
        settlement,
    }
}

/// Anything between nothing and twice the last greatest wait: receivers that come back are not met by everybody at once.
/// `random` has 32 bits.
pub(super) fn backoff(attempts: u32, random: u64) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    let most = FIRST_WAIT.saturating_mul(1 << doublings).min(MAX_WAIT);
    let most_ms = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(most_ms.saturating_mul(random) >> 32)
}

fn shortened(error: &str) -> String {
    error.chars().take(MAX_ERROR).collect()
}
