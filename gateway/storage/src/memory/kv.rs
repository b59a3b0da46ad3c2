//! Plugins' own data in memory.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;

use crate::{
    blocking::lock,
    error::StorageError,
    kv::{KeyValueStore, KvEntry, KvPut, window_end},
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
    latest_ms: u64,
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
        self.latest_ms = self.latest_ms.max(now_ms);
        let latest_ms = self.latest_ms;
        self.entries.retain(|_key, entry| is_live(entry, latest_ms));
        self.counters
            .retain(|_key, counter| counter.ends_at_ms > latest_ms);
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

    async fn put(&self, put: KvPut<'_>) -> Result<Option<u64>, StorageError> {
        let mut state = lock(&self.state);
        state.heard(put.now_ms);
        let key = key(put.bucket, put.key);
        let current = state.entries.get(&key).map(|entry| entry.version);
        if put.expected.is_some_and(|expected| expected != current) {
            return Ok(None);
        }
        state.latest_version += 1;
        let entry = KvEntry {
            value: put.value.to_owned(),
            version: state.latest_version,
            expires_at_ms: put.expires_at_ms,
        };
        let version = entry.version;
        state.entries.insert(key, entry);
        Ok(Some(version))
    }

    async fn delete(&self, bucket: &str, name: &str) -> Result<bool, StorageError> {
        let mut state = lock(&self.state);
        let key = key(bucket, name);
        let entry = state.entries.remove(&key).is_some();
        let counter = state.counters.remove(&key).is_some();
        Ok(entry || counter)
    }

    async fn increment(
        &self,
        bucket: &str,
        name: &str,
        by: u32,
        window_ms: u32,
        now_ms: u64,
    ) -> Result<u64, StorageError> {
        let mut state = lock(&self.state);
        state.heard(now_ms);
        let ends_at_ms = window_end(now_ms, window_ms);
        let fresh = Counter {
            window_ms,
            ends_at_ms,
            total: 0,
        };
        let counter = state.counters.entry(key(bucket, name)).or_insert(fresh);
        if counter.window_ms != window_ms || counter.ends_at_ms < ends_at_ms {
            *counter = fresh;
        }
        counter.total += u64::from(by);
        Ok(counter.total)
    }

    async fn used_bytes(&self, bucket: &str) -> Result<u64, StorageError> {
        let state = lock(&self.state);
        let is_in = |key: &Key| key.0 == bucket;
        let entries = state.entries.iter().filter(|(key, _)| is_in(key));
        let counters = state.counters.keys().filter(|key| is_in(key));
        let used = entries
            .map(|(key, entry)| key.1.len() + entry.value.len())
            .chain(counters.map(|key| key.1.len() + 8))
            .sum::<usize>();
        Ok(used as u64)
    }
}
