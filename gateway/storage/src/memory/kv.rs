//! Plugins' own data in memory.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;

use crate::{
    blocking::lock,
    error::StorageError,
    kv::{KeyValueStore, KvAdd, KvEntry, KvPut, KvWrite, MAX_SKEW_MS, weight, window_end},
};

/// Values in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryKv {
    state: Arc<Mutex<State>>,
}

/// Bucket and key.
type Key = (String, String);

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<Key, KvEntry>,
    counters: BTreeMap<Key, Counter>,
    latest_version: u64,
}

#[derive(Clone, Copy, Debug)]
struct Counter {
    window_ms: u32,
    ends_at_ms: u64,
    total: u64,
}

impl MemoryKv {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl State {
    /// Forgets what ended.
    fn heard(&mut self, now_ms: u64) {
        self.entries.retain(|_key, entry| is_live(entry, now_ms));
        self.counters
            .retain(|_key, counter| counter.ends_at_ms > now_ms);
    }

    fn used_bytes(&self, bucket: &str) -> u64 {
        let is_in = |key: &Key| key.0 == bucket;
        let entries = self.entries.iter().filter(|(key, _)| is_in(key));
        let counters = self.counters.keys().filter(|key| is_in(key));
        entries
            .map(|(key, entry)| weight(&key.1, &entry.value))
            .chain(counters.map(|key| weight(&key.1, &[])))
            .sum()
    }

    /// Whether a row may grow from `old` to `new` bytes.
    fn has_room(&self, bucket: &str, max_bytes: Option<u64>, (old, new): (u64, u64)) -> bool {
        let room = |max: u64| new <= old || self.used_bytes(bucket) - old + new <= max;
        max_bytes.is_none_or(room)
    }
}

fn is_live(entry: &KvEntry, now_ms: u64) -> bool {
    entry.expires_at_ms.is_none_or(|end| end > now_ms)
}

fn key(bucket: &str, key: &str) -> Key {
    (bucket.to_owned(), key.to_owned())
}

#[async_trait]
impl KeyValueStore for MemoryKv {
    async fn get(
        &self,
        bucket: &str,
        name: &str,
        now_ms: u64,
    ) -> Result<Option<KvEntry>, StorageError> {
        let mut state = lock(&self.state);
        state.heard(now_ms);
        Ok(state.entries.get(&key(bucket, name)).cloned())
    }

    async fn put(&self, put: KvPut<'_>) -> Result<KvWrite, StorageError> {
        let mut state = lock(&self.state);
        state.heard(put.now_ms);
        let key = key(put.bucket, put.key);
        let current = state.entries.get(&key);
        let version = current.map(|entry| entry.version);
        if put.expected.is_some_and(|expected| expected != version) {
            return Ok(KvWrite::Lost);
        }
        let old = current.map_or(0, |entry| weight(put.key, &entry.value));
        let grows = (old, weight(put.key, put.value));
        if !state.has_room(put.bucket, put.max_bytes, grows) {
            return Ok(KvWrite::Full);
        }
        state.latest_version += 1;
        let entry = KvEntry {
            value: put.value.to_owned(),
            version: state.latest_version,
            expires_at_ms: put.expires_at_ms,
        };
        let version = entry.version;
        state.entries.insert(key, entry);
        Ok(KvWrite::Written(version))
    }

    async fn delete(&self, bucket: &str, name: &str) -> Result<bool, StorageError> {
        let mut state = lock(&self.state);
        let key = key(bucket, name);
        let entry = state.entries.remove(&key).is_some();
        let counter = state.counters.remove(&key).is_some();
        Ok(entry || counter)
    }

    async fn increment(&self, add: KvAdd<'_>) -> Result<Option<u64>, StorageError> {
        let mut state = lock(&self.state);
        state.heard(add.now_ms);
        let ends_at_ms = window_end(add.now_ms, add.window_ms);
        let fresh = Counter {
            window_ms: add.window_ms,
            ends_at_ms,
            total: 0,
        };
        let key = key(add.bucket, add.key);
        let grows = (0, weight(add.key, &[]));
        if !state.counters.contains_key(&key) && !state.has_room(add.bucket, add.max_bytes, grows) {
            return Ok(None);
        }
        let counter = state.counters.entry(key).or_insert(fresh);
        let goes_on = ends_at_ms..=ends_at_ms.saturating_add(MAX_SKEW_MS);
        if counter.window_ms != add.window_ms || !goes_on.contains(&counter.ends_at_ms) {
            *counter = fresh;
        }
        counter.total += u64::from(add.by);
        Ok(Some(counter.total))
    }

    async fn used_bytes(&self, bucket: &str) -> Result<u64, StorageError> {
        Ok(lock(&self.state).used_bytes(bucket))
    }
}
