//! The outbox in memory, under the lock of the metadata it belongs to.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use gantry_model::{Event, RepositoryName};

use super::MemoryMetadata;
use crate::{
    blocking::lock,
    error::StorageError,
    outbox::{
        Depth, EventCursor, EventEntry, EventFilter, EventOutbox, MAX_CHANGED, OutboxSettings,
        Settled, Settlement, SinkDepth, Take, Taken, Waiting, heirs, receiver_of, weight,
    },
};

/// Events that wait.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    sinks: BTreeSet<String>,
    bounds: Option<(u64, u64)>,
    latest: u64,
    events: BTreeMap<u64, Kept>,
    deliveries: BTreeMap<Key, State>,
    /// When the first event that waits is due, by sink and repository.
    lanes: BTreeMap<Lane, u64>,
    bytes: u64,
    evicted: u64,
}

/// Sequence and sink.
type Key = (u64, String);
type Lane = (String, RepositoryName);

#[derive(Debug)]
struct Kept {
    event: Event,
    bytes: u64,
}

#[derive(Clone, Debug, Default)]
struct State {
    dead: bool,
    attempts: u32,
    attempted_at_ms: Option<u64>,
    error: Option<String>,
}

impl Outbox {
    pub(super) fn insert(&mut self, events: Vec<Event>) {
        if self.sinks.is_empty() {
            return;
        }
        for event in events {
            if self.events.values().all(|kept| kept.event.id != event.id) {
                self.insert_one(event);
            }
        }
        self.evict();
    }

    fn insert_one(&mut self, event: Event) {
        self.latest += 1;
        for sink in &self.sinks {
            self.deliveries
                .insert((self.latest, sink.clone()), State::default());
            self.lanes
                .entry((sink.clone(), event.repository.clone()))
                .or_insert(event.at_ms);
        }
        let payload = serde_json::to_string(&event.payload).unwrap_or_default();
        let bytes = weight(&event, &payload);
        self.bytes += bytes;
        self.events.insert(self.latest, Kept { event, bytes });
    }

    fn evict(&mut self) {
        let (max_events, max_bytes) = self.bounds.unwrap_or((u64::MAX, u64::MAX));
        while self.events.len() as u64 > max_events || self.bytes > max_bytes {
            if self.forget_one_unclaimed() {
                continue;
            }
            let rank =
                |(sequence, kept): (&u64, &Kept)| (!kept.event.kind.is_droppable(), *sequence);
            let Some((_rank, sequence)) = self.events.iter().map(rank).min() else {
                return;
            };
            self.deliveries
                .retain(|(other, _sink), _state| *other != sequence);
            self.evicted += 1;
            self.tidy();
        }
    }

    /// Gives up the oldest delivery of a sink that is not registered.
    fn forget_one_unclaimed(&mut self) -> bool {
        let unclaimed = self
            .deliveries
            .keys()
            .find(|key| !self.sinks.contains(&key.1));
        let Some(key) = unclaimed.cloned() else {
            return false;
        };
        self.deliveries.remove(&key);
        let before = self.events.len();
        self.tidy();
        self.evicted += (before - self.events.len()) as u64;
        true
    }

    /// Gives what waits for `from` to `sink` too.
    fn inherit(&mut self, from: &str, sink: &str) {
        let left = self.deliveries.iter().filter(|(key, _)| key.1 == from);
        let left: Vec<(u64, State)> = left.map(|(key, state)| (key.0, state.clone())).collect();
        for (sequence, state) in left {
            let key = (sequence, sink.to_owned());
            let is_dead = state.dead;
            self.deliveries.entry(key.clone()).or_insert(state);
            if let Some(lane) = self.lane(&key).filter(|_| !is_dead) {
                self.lanes.entry(lane).or_insert(0);
            }
        }
    }

    fn register(&mut self, settings: &OutboxSettings) {
        let new: BTreeSet<String> = settings.sinks.iter().cloned().collect();
        let former = std::mem::replace(&mut self.sinks, new.clone());
        for (gone, heirs) in heirs(&former, &new) {
            for heir in &heirs {
                self.inherit(gone, heir);
            }
            if !heirs.is_empty() {
                self.deliveries.retain(|key, _state| key.1 != gone);
                self.tidy();
            }
        }
        self.bounds = Some((settings.max_events, settings.max_bytes));
        self.evict();
    }

    /// Forgets events without deliveries, and lanes in which nothing waits.
    fn tidy(&mut self) {
        let kept: BTreeSet<u64> = self
            .deliveries
            .keys()
            .map(|(sequence, _)| *sequence)
            .collect();
        self.events
            .retain(|sequence, _event| kept.contains(sequence));
        self.bytes = self.events.values().map(|kept| kept.bytes).sum();
        let waiting: BTreeSet<Lane> = self
            .deliveries
            .iter()
            .filter(|(_key, state)| !state.dead)
            .filter_map(|(key, _state)| self.lane(key))
            .collect();
        self.lanes.retain(|lane, _due| waiting.contains(lane));
    }

    fn lane(&self, (sequence, sink): &Key) -> Option<Lane> {
        let kept = self.events.get(sequence)?;
        Some((sink.clone(), kept.event.repository.clone()))
    }

    fn settle(&mut self, wanted: &Take, settled: &Settled) {
        let key = (settled.sequence, wanted.sink.clone());
        let lane = self.lane(&key).and_then(|lane| self.lanes.get_mut(&lane));
        let (Some(state), Some(due)) = (self.deliveries.get_mut(&key), lane) else {
            return;
        };
        *due = wanted.now_ms;
        match &settled.settlement {
            Settlement::Done => drop(self.deliveries.remove(&key)),
            Settlement::Again { due_at_ms, error } => {
                *due = *due_at_ms;
                state.error = Some(error.clone());
            }
            Settlement::Dead { error } => {
                state.dead = true;
                state.error = Some(error.clone());
            }
        }
        self.tidy();
    }

    fn take(&mut self, wanted: &Take) -> Taken {
        let lanes = self.lanes.iter().filter(|(lane, _)| lane.0 == wanted.sink);
        let mut lanes: Vec<(u64, Lane)> = lanes.map(|(lane, due)| (*due, lane.clone())).collect();
        lanes.sort();
        let next_due_at_ms = lanes.first().map(|(due, _lane)| *due);
        let due = lanes.iter().filter(|(due, _)| *due <= wanted.now_ms);
        let due: Vec<&Lane> = due.take(wanted.limit).map(|(_, lane)| lane).collect();
        let batch: Vec<Waiting> = due
            .into_iter()
            .filter_map(|lane| self.attempt(lane, wanted.now_ms))
            .collect();
        Taken {
            next_due_at_ms: next_due_at_ms.filter(|_| batch.is_empty()),
            batch,
        }
    }

    fn attempt(&mut self, (sink, repository): &Lane, now_ms: u64) -> Option<Waiting> {
        let events = &self.events;
        let first = |((sequence, of), state): &(&Key, &mut State)| {
            let event = events.get(sequence).map(|kept| &kept.event);
            of == sink && !state.dead && event.is_some_and(|event| event.repository == *repository)
        };
        let ((sequence, _sink), state) = self.deliveries.iter_mut().find(first)?;
        state.attempts += 1;
        state.attempted_at_ms = Some(now_ms);
        Some(Waiting {
            sequence: *sequence,
            attempts: state.attempts,
            event: events.get(sequence)?.event.clone(),
        })
    }

    fn matching<'a>(&'a self, filter: &'a EventFilter) -> impl Iterator<Item = EventEntry> + 'a {
        self.deliveries
            .iter()
            .filter_map(|((sequence, sink), state)| {
                let event = self.events.get(sequence)?.event.clone();
                Some(EventEntry {
                    sink: sink.clone(),
                    dead: state.dead,
                    attempted_at_ms: state.attempted_at_ms,
                    error: state.error.clone(),
                    waiting: Waiting {
                        sequence: *sequence,
                        attempts: state.attempts,
                        event,
                    },
                })
            })
            .filter(|entry| matches(filter, entry))
    }

    fn chosen(&self, filter: &EventFilter) -> Vec<Key> {
        let limit = usize::try_from(MAX_CHANGED).unwrap_or(usize::MAX);
        self.matching(filter)
            .take(limit)
            .map(|entry| (entry.waiting.sequence, entry.sink))
            .collect()
    }

    fn depth(&self) -> Depth {
        let mut sinks: BTreeMap<&str, SinkDepth> = BTreeMap::new();
        for ((sequence, sink), state) in &self.deliveries {
            let depth = sinks.entry(sink).or_insert_with(|| SinkDepth {
                sink: sink.clone(),
                waiting: 0,
                dead: 0,
                oldest_at_ms: None,
            });
            if state.dead {
                depth.dead += 1;
                continue;
            }
            depth.waiting += 1;
            let at_ms = self.events.get(sequence).map(|kept| kept.event.at_ms);
            depth.oldest_at_ms = depth.oldest_at_ms.or(at_ms);
        }
        Depth {
            sinks: sinks.into_values().collect(),
            events: self.events.len() as u64,
            bytes: self.bytes,
            evicted: self.evicted,
            unreadable: 0,
        }
    }
}

fn matches(filter: &EventFilter, entry: &EventEntry) -> bool {
    let event = &entry.waiting.event;
    let name = filter.repository.as_ref();
    let is_meant = |sink: &String| *sink == entry.sink || sink == receiver_of(&entry.sink);
    filter.sink.as_ref().is_none_or(is_meant)
        && filter.dead.is_none_or(|dead| dead == entry.dead)
        && name.is_none_or(|name| *name == event.repository)
        && filter.id.as_ref().is_none_or(|id| *id == event.id)
}

#[async_trait]
impl EventOutbox for MemoryMetadata {
    async fn register(&self, settings: &OutboxSettings) -> Result<(), StorageError> {
        lock(&self.facts).outbox.register(settings);
        Ok(())
    }

    async fn append(&self, events: Vec<Event>) -> Result<(), StorageError> {
        lock(&self.facts).outbox.insert(events);
        Ok(())
    }

    async fn take(&self, wanted: Take) -> Result<Taken, StorageError> {
        let outbox = &mut lock(&self.facts).outbox;
        for settled in &wanted.settled {
            outbox.settle(&wanted, settled);
        }
        Ok(outbox.take(&wanted))
    }

    async fn list(
        &self,
        filter: &EventFilter,
        after: &EventCursor,
        limit: usize,
    ) -> Result<Vec<EventEntry>, StorageError> {
        let facts = lock(&self.facts);
        let after = (after.sequence, after.sink.as_str());
        let later = |entry: &EventEntry| (entry.waiting.sequence, entry.sink.as_str()) > after;
        let listed = facts.outbox.matching(filter).filter(later).take(limit);
        Ok(listed.collect())
    }

    async fn replay(&self, filter: &EventFilter) -> Result<u64, StorageError> {
        let outbox = &mut lock(&self.facts).outbox;
        let filter = EventFilter {
            dead: Some(true),
            ..filter.clone()
        };
        let chosen = outbox.chosen(&filter);
        for key in &chosen {
            if let Some(state) = outbox.deliveries.get_mut(key) {
                state.dead = false;
                state.attempts = 0;
            }
            if let Some(lane) = outbox.lane(key) {
                outbox.lanes.entry(lane).or_insert(0);
            }
        }
        Ok(chosen.len() as u64)
    }

    async fn discard(&self, filter: &EventFilter) -> Result<u64, StorageError> {
        let outbox = &mut lock(&self.facts).outbox;
        let chosen = outbox.chosen(filter);
        for key in &chosen {
            outbox.deliveries.remove(key);
        }
        outbox.tidy();
        Ok(chosen.len() as u64)
    }

    async fn forget_unclaimed(&self, before_ms: u64) -> Result<u64, StorageError> {
        let outbox = &mut lock(&self.facts).outbox;
        let before = outbox.deliveries.len();
        let (events, sinks) = (&outbox.events, &outbox.sinks);
        outbox.deliveries.retain(|(sequence, sink), _state| {
            let kept = events.get(sequence);
            sinks.contains(sink) || kept.is_some_and(|kept| kept.event.at_ms >= before_ms)
        });
        let forgotten = before - outbox.deliveries.len();
        outbox.tidy();
        Ok(forgotten as u64)
    }

    async fn depth(&self) -> Result<Depth, StorageError> {
        Ok(lock(&self.facts).outbox.depth())
    }
}
