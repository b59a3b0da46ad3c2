//! Key sets behind `jwks-source.url`: fetched through the way out, kept in the process, refreshed by need.
//!
//! Owns how often an issuer is asked and how long its last word counts. One fetch at a time per address, however many tokens wait; an
//! issuer that is down is not asked again for a while. Whether the address is granted is asked before every use, kept or not.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::http::{HeaderMap, HeaderValue, Method, header::ACCEPT};
use bytes::Bytes;
use tokio::sync::Semaphore;

use crate::{
    grant::{Target, granted},
    host::CallState,
    limits::CallClock,
    ports::{Outbound, OutboundRequest, Reach},
};

/// A set older than this is fetched before it is used.
const FRESH_MS: u64 = 10 * 60 * 1000;
/// How long the last set counts while its issuer is down.
const STALE_MS: u64 = 24 * 60 * 60 * 1000;
/// An address is asked at most once in this time, by an unknown key or after a failure.
const PAUSE_MS: u64 = 30 * 1000;
/// The same after a failure with nothing to fall back to: an issuer that comes up is noticed soon.
const PAUSE_WITHOUT_KEYS_MS: u64 = 2 * 1000;
const MAX_SET_BYTES: usize = 1 << 20;
const MAX_FETCH: Duration = Duration::from_secs(10);
/// Addresses are the guests' words, so there is a bound to how many are kept.
const MAX_SETS: usize = 64;

/// Every key set that the process knows.
#[derive(Debug, Default)]
pub(crate) struct KeySets {
    /// Protects the map alone; never held while something is fetched.
    sets: Mutex<HashMap<(String, Reach), Arc<KeySet>>>,
}

#[derive(Debug)]
struct KeySet {
    /// Protects what is known; never held while something is fetched.
    known: Mutex<Known>,
    /// Held by the one who fetches.
    fetching: Semaphore,
}

#[derive(Clone, Debug, Default)]
struct Known {
    text: Option<Arc<str>>,
    fetched_at_ms: u64,
    tried_at_ms: Option<u64>,
}

/// Why a set is asked for.
#[derive(Clone, Copy, PartialEq)]
enum Need {
    /// To look for a key.
    Use,
    /// The key was not in the one there is.
    Newer,
}

impl Known {
    /// Whether the issuer is to be asked now.
    fn wants_fetch(&self, need: Need, now_ms: u64) -> bool {
        let age = now_ms.saturating_sub(self.fetched_at_ms);
        let needed = need == Need::Newer || self.text.is_none() || age >= FRESH_MS;
        let pause = match self.text {
            Some(_) => PAUSE_MS,
            None => PAUSE_WITHOUT_KEYS_MS,
        };
        let rested = self
            .tried_at_ms
            .is_none_or(|tried| now_ms.saturating_sub(tried) >= pause);
        needed && rested
    }

    /// The set, as long as it counts.
    fn usable(&self, now_ms: u64) -> Option<Arc<str>> {
        let age = now_ms.saturating_sub(self.fetched_at_ms);
        self.text.clone().filter(|_| age < STALE_MS)
    }
}

impl KeySets {
    fn of(&self, target: &Target) -> Arc<KeySet> {
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        let name = (target.url.to_string(), target.reach);
        if sets.len() >= MAX_SETS && !sets.contains_key(&name) {
            let oldest = sets
                .iter()
                .min_by_key(|(_, set)| set.known().fetched_at_ms)
                .map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                sets.remove(&oldest);
            }
        }
        Arc::clone(sets.entry(name).or_insert_with(|| {
            Arc::new(KeySet {
                known: Mutex::default(),
                fetching: Semaphore::new(1),
            })
        }))
    }
}

impl KeySet {
    fn known(&self) -> Known {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner));
    }

    async fn get(&self, asked: Asked<'_>, need: Need) -> Option<Arc<str>> {
        if self.known().wants_fetch(need, asked.now_ms) {
            let Ok(_turn) = self.fetching.acquire().await else {
                return None;
            };
            // Whoever waited for the turn finds what the one before has fetched.
            if self.known().wants_fetch(need, asked.now_ms) {
                self.fetch(&asked).await;
            }
        }
        self.known().usable(asked.now_ms)
    }

    async fn fetch(&self, asked: &Asked<'_>) {
        self.change(|known| known.tried_at_ms = Some(asked.now_ms));
        match fetch(asked).await {
            Ok(text) => self.change(|known| {
                known.text = Some(text);
                known.fetched_at_ms = asked.now_ms;
            }),
            Err(problem) => tracing::warn!(
                jwks.origin = %asked.target.origin,
                "cannot fetch a key set: {problem}"
            ),
        }
    }
}

/// Who is asked, through what, when, and how long.
struct Asked<'a> {
    target: &'a Target,
    outbound: &'a dyn Outbound,
    now_ms: u64,
    timeout: Duration,
}

async fn fetch(asked: &Asked<'_>) -> Result<Arc<str>, String> {
    let mut headers = HeaderMap::new();
    headers.insert(
        ACCEPT,
        HeaderValue::from_static("application/jwk-set+json, application/json"),
    );
    let request = OutboundRequest {
        method: Method::GET,
        url: asked.target.url.clone(),
        headers,
        body: Bytes::new(),
        reach: asked.target.reach,
        timeout: asked.timeout,
        max_response_bytes: MAX_SET_BYTES,
    };
    let response = asked.outbound.send(request).await;
    let response = response.map_err(|error| error.to_string())?;
    if response.status != 200 {
        return Err(format!("its answer has status {}", response.status));
    }
    let text = std::str::from_utf8(&response.body).map_err(|_error| "it is not text")?;
    let set: serde_json::Value =
        serde_json::from_str(text).map_err(|_error| "it is not JSON".to_owned())?;
    if !set.get("keys").is_some_and(serde_json::Value::is_array) {
        return Err("it has no list of keys".to_owned());
    }
    Ok(text.into())
}

/// A granted address of a key set, for one call.
pub(crate) struct KeySource {
    set: Arc<KeySet>,
    target: Target,
    outbound: Arc<dyn Outbound>,
    clock: Arc<CallClock>,
    now_ms: u64,
}

impl KeySource {
    /// The key set; `None` when it cannot be had.
    pub(crate) async fn keys(&self) -> Option<Arc<str>> {
        self.get(Need::Use).await
    }

    /// The key set, newer than the one that lacked a key when it may be asked for already.
    pub(crate) async fn newer_keys(&self) -> Option<Arc<str>> {
        self.get(Need::Newer).await
    }

    async fn get(&self, need: Need) -> Option<Arc<str>> {
        let asked = Asked {
            target: &self.target,
            outbound: &*self.outbound,
            now_ms: self.now_ms,
            timeout: self.clock.remaining().min(MAX_FETCH),
        };
        self.set.get(asked, need).await
    }
}

impl CallState {
    /// Where the keys at `url` come from; `None` when the binding does not grant the address.
    pub(crate) fn key_source(&self, url: &str) -> Option<KeySource> {
        let target = granted(&self.context.grants.http, url)
            .inspect_err(|problem| {
                tracing::warn!(
                    plugin.name = &*self.context.name,
                    "a key set is not fetched: {problem}"
                );
            })
            .ok()?;
        Some(KeySource {
            set: self.context.key_sets.of(&target),
            target,
            outbound: Arc::clone(&self.context.ports.outbound),
            clock: Arc::clone(&self.clock),
            now_ms: self.now_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(text: Option<&str>, fetched_at_ms: u64, tried_at_ms: Option<u64>) -> Known {
        Known {
            text: text.map(Into::into),
            fetched_at_ms,
            tried_at_ms,
        }
    }

    #[test]
    fn a_fresh_set_is_asked_again_only_for_an_unknown_key_and_not_too_often() {
        let set = known(Some("{}"), 1000, Some(1000));
        for (need, now_ms, expected) in [
            (Need::Use, 1000 + FRESH_MS - 1, false),
            (Need::Use, 1000 + FRESH_MS, true),
            (Need::Newer, 1000 + PAUSE_MS - 1, false),
            (Need::Newer, 1000 + PAUSE_MS, true),
        ] {
            assert_eq!(set.wants_fetch(need, now_ms), expected, "{now_ms}");
        }
    }

    #[test]
    fn a_failed_fetch_is_repeated_after_a_pause() {
        let nothing = known(None, 0, Some(1000));
        assert!(!nothing.wants_fetch(Need::Use, 1000 + PAUSE_WITHOUT_KEYS_MS - 1));
        assert!(nothing.wants_fetch(Need::Use, 1000 + PAUSE_WITHOUT_KEYS_MS));
        let old = known(Some("{}"), 1000, Some(1000 + FRESH_MS));
        assert!(!old.wants_fetch(Need::Use, 1000 + FRESH_MS + PAUSE_MS - 1));
        assert!(known(None, 0, None).wants_fetch(Need::Use, 0));
    }

    #[test]
    fn the_last_set_counts_for_a_bounded_time() {
        let set = known(Some("{}"), 1000, Some(1000));
        assert!(set.usable(1000 + STALE_MS - 1).is_some());
        assert!(set.usable(1000 + STALE_MS).is_none());
    }

    #[test]
    fn guests_cannot_make_the_host_keep_more_than_so_many_sets() {
        let sets = KeySets::default();
        let grants = ["https://issuer.example".parse().unwrap()];
        for number in 0..MAX_SETS * 2 {
            let target = granted(&grants, &format!("https://issuer.example/{number}")).unwrap();
            sets.of(&target);
        }
        assert_eq!(sets.sets.lock().unwrap().len(), MAX_SETS);
    }
}
