//! The decision cache: answers that plugins allowed to be reused, until their time is over.
//!
//! Invariant: a key holds everything the answer may depend on: the plugin's code and configuration, the whole principal, the question,
//! and what the plugin said its answers vary by; and an answer about stored content counts only while its repository is as it was. Only
//! this process's own answers are in it.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use gantry_model::{Change, Client, Digest, OperationKind, Principal, Scope, Tag};
use gantry_plugin_host::{CacheHint, Varies};
use moka::{Expiry, sync::Cache};

/// What was asked.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Question {
    /// An authorizer was asked.
    Authorize {
        operation: OperationKind,
        scopes: Vec<Scope>,
        reference: Option<String>,
    },
    /// An admission was asked about a serve.
    Serve {
        change: Change,
        repository: Arc<str>,
        tag: Option<Tag>,
        target: Digest,
        parents: Vec<Digest>,
    },
}

/// Everything an answer may depend on.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Key {
    fingerprint: Arc<str>,
    principal: Arc<Principal>,
    question: Question,
    client_address: Option<IpAddr>,
    user_agent: Option<String>,
}

/// An answer as it was given.
pub(crate) struct Given<A> {
    /// The answer.
    pub(crate) answer: A,
    /// How long it may be reused, and by whom.
    pub(crate) hint: CacheHint,
    /// The repository's version, when the answer is about what is stored in it.
    pub(crate) version: Option<u64>,
}

/// An answer and its times.
#[derive(Clone, Debug)]
struct Entry<A> {
    answer: A,
    version: Option<u64>,
    fresh_until: Instant,
    keep_for: Duration,
}

/// Answers of one kind.
#[derive(Debug)]
pub(crate) struct Decisions<A: Clone + Send + Sync + 'static> {
    entries: Cache<Key, Entry<A>>,
    varies: AtomicU8,
}

/// An answer from the cache.
#[derive(Debug)]
pub(crate) enum Cached<A> {
    /// May be used instead of asking.
    Fresh(A),
    /// May be used only when asking fails and the binding permits it.
    Stale(A),
}

struct PerEntry;

impl<A> Expiry<Key, Entry<A>> for PerEntry {
    fn expire_after_create(&self, _key: &Key, entry: &Entry<A>, _now: Instant) -> Option<Duration> {
        Some(entry.keep_for)
    }

    fn expire_after_update(
        &self,
        _key: &Key,
        entry: &Entry<A>,
        _now: Instant,
        _left: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.keep_for)
    }
}

const CLIENT_ADDRESS: u8 = 1;
const USER_AGENT: u8 = 2;

impl<A: Clone + Send + Sync + 'static> Decisions<A> {
    /// A cache of at most `entries` answers.
    pub(crate) fn new(entries: u64) -> Self {
        Self {
            entries: Cache::builder()
                .max_capacity(entries)
                .expire_after(PerEntry)
                .build(),
            varies: AtomicU8::new(0),
        }
    }

    /// The key of a question, with what answers have said so far that they vary by.
    pub(crate) fn key(
        &self,
        fingerprint: &Arc<str>,
        principal: &Arc<Principal>,
        client: &Client,
        question: Question,
    ) -> Key {
        let varies = self.varies.load(Ordering::Relaxed);
        Key {
            fingerprint: Arc::clone(fingerprint),
            principal: Arc::clone(principal),
            question,
            client_address: (varies & CLIENT_ADDRESS != 0).then_some(client.address),
            user_agent: (varies & USER_AGENT != 0)
                .then(|| client.user_agent.clone())
                .flatten(),
        }
    }

    /// The answer, when one is kept; fresh only for the `version` of the repository that it was given for.
    pub(crate) fn get(&self, key: &Key, version: Option<u64>) -> Option<Cached<A>> {
        let entry = self.entries.get(key)?;
        let is_fresh = entry.version == version && Instant::now() < entry.fresh_until;
        Some(if is_fresh {
            Cached::Fresh(entry.answer)
        } else {
            Cached::Stale(entry.answer)
        })
    }

    /// Keeps an answer as long as its hint says. An answer that varies by more than the key holds is kept under a wider key.
    pub(crate) fn keep(&self, key: Key, client: &Client, given: Given<A>) {
        let Given {
            answer,
            hint,
            version,
        } = given;
        let Varies {
            client_address,
            user_agent,
            time_of_day,
        } = hint.varies;
        let keep_for = hint.ttl + hint.stale_if_error;
        if time_of_day || keep_for.is_zero() {
            return;
        }
        let flags = u8::from(client_address) * CLIENT_ADDRESS + u8::from(user_agent) * USER_AGENT;
        let seen = self.varies.fetch_or(flags, Ordering::Relaxed) | flags;
        let key = Key {
            client_address: (seen & CLIENT_ADDRESS != 0).then_some(client.address),
            user_agent: (seen & USER_AGENT != 0)
                .then(|| client.user_agent.clone())
                .flatten(),
            ..key
        };
        self.entries.insert(
            key,
            Entry {
                answer,
                version,
                fresh_until: Instant::now() + hint.ttl,
                keep_for,
            },
        );
    }
}
