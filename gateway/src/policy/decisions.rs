//! The decision cache: answers that plugins allowed to be reused, until their time is over.
//!
//! Invariant: a key holds everything the answer may depend on: the plugin's code and configuration, the whole principal, the question,
//! and what the plugin said its answers vary by; and an answer about stored content counts only while its repository is as it was. Only
//! this process's own answers are in it.

use std::{
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use gantry_model::{Change, Client, Digest, OperationKind, Principal, Scope, Tag, Version};
use gantry_plugin_host::{CacheHint, Varies};
use moka::{Equivalent, Expiry, sync::Cache};

/// What is asked. Borrowed: most questions were asked before, and finding that out copies nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Question<'a> {
    /// Of an authorizer.
    Authorize {
        operation: OperationKind,
        scopes: &'a [Scope],
        reference: Option<&'a str>,
    },
    /// Of an admission, about a serve.
    Serve {
        change: Change,
        repository: &'a str,
        tag: Option<&'a Tag>,
        target: Option<&'a Digest>,
        parents: &'a [Digest],
    },
}

/// Everything an answer may depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'a> {
    fingerprint: &'a Arc<str>,
    principal: &'a Arc<Principal>,
    question: Question<'a>,
    client_address: Option<IpAddr>,
    user_agent: Option<&'a str>,
}

impl PartialEq for Key<'_> {
    fn eq(&self, other: &Self) -> bool {
        let same_principal = || {
            // The same identity is mostly the same object: it was kept with its credential.
            Arc::ptr_eq(self.principal, other.principal) || self.principal == other.principal
        };
        self.question == other.question
            && self.fingerprint == other.fingerprint
            && self.client_address == other.client_address
            && self.user_agent == other.user_agent
            && same_principal()
    }
}

/// Of what tells keys apart only what does so mostly; equality looks at all of it.
impl Hash for Key<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.fingerprint.hash(state);
        self.principal.id.hash(state);
        match self.question {
            Question::Authorize {
                operation,
                scopes,
                reference,
            } => {
                operation.hash(state);
                reference.hash(state);
                for scope in scopes {
                    scope.name.hash(state);
                }
            }
            Question::Serve {
                change,
                repository,
                tag,
                target,
                ..
            } => {
                change.hash(state);
                repository.hash(state);
                tag.hash(state);
                target.hash(state);
            }
        }
        self.client_address.hash(state);
        self.user_agent.hash(state);
    }
}

/// A key that is kept.
#[derive(Clone, Debug)]
struct KeptKey {
    fingerprint: Arc<str>,
    principal: Arc<Principal>,
    question: KeptQuestion,
    client_address: Option<IpAddr>,
    user_agent: Option<String>,
}

#[derive(Clone, Debug)]
enum KeptQuestion {
    Authorize {
        operation: OperationKind,
        scopes: Vec<Scope>,
        reference: Option<String>,
    },
    Serve {
        change: Change,
        repository: Box<str>,
        tag: Option<Tag>,
        target: Option<Digest>,
        parents: Vec<Digest>,
    },
}

impl KeptKey {
    /// The memory of an entry, about. A principal counts whole in each, although entries of one credential share it.
    fn bytes(&self) -> usize {
        let question = match &self.question {
            KeptQuestion::Authorize {
                scopes, reference, ..
            } => {
                let scopes = scopes.iter().map(|scope| {
                    let actions = scope.actions.iter();
                    let actions: usize = actions.map(|action| ENTRY_TEXT + action.len()).sum();
                    size_of::<Scope>() + scope.kind.len() + scope.name.len() + actions
                });
                scopes.sum::<usize>() + reference.as_ref().map_or(0, String::len)
            }
            KeptQuestion::Serve {
                repository,
                parents,
                ..
            } => repository.len() + parents.len() * size_of::<Digest>(),
        };
        let agent = self.user_agent.as_ref().map_or(0, String::len);
        ENTRY_BYTES + self.principal.bytes() + question + agent
    }

    fn borrowed(&self) -> Key<'_> {
        Key {
            fingerprint: &self.fingerprint,
            principal: &self.principal,
            question: match &self.question {
                KeptQuestion::Authorize {
                    operation,
                    scopes,
                    reference,
                } => Question::Authorize {
                    operation: *operation,
                    scopes,
                    reference: reference.as_deref(),
                },
                KeptQuestion::Serve {
                    change,
                    repository,
                    tag,
                    target,
                    parents,
                } => Question::Serve {
                    change: *change,
                    repository,
                    tag: tag.as_ref(),
                    target: target.as_ref(),
                    parents,
                },
            },
            client_address: self.client_address,
            user_agent: self.user_agent.as_deref(),
        }
    }
}

impl From<Key<'_>> for KeptKey {
    fn from(key: Key<'_>) -> Self {
        Self {
            fingerprint: Arc::clone(key.fingerprint),
            principal: Arc::clone(key.principal),
            question: match key.question {
                Question::Authorize {
                    operation,
                    scopes,
                    reference,
                } => KeptQuestion::Authorize {
                    operation,
                    scopes: scopes.to_vec(),
                    reference: reference.map(str::to_owned),
                },
                Question::Serve {
                    change,
                    repository,
                    tag,
                    target,
                    parents,
                } => KeptQuestion::Serve {
                    change,
                    repository: repository.into(),
                    tag: tag.cloned(),
                    target: target.cloned(),
                    parents: parents.to_vec(),
                },
            },
            client_address: key.client_address,
            user_agent: key.user_agent.map(str::to_owned),
        }
    }
}

impl PartialEq for KeptKey {
    fn eq(&self, other: &Self) -> bool {
        self.borrowed() == other.borrowed()
    }
}

impl Eq for KeptKey {}

impl Hash for KeptKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.borrowed().hash(state);
    }
}

impl Equivalent<KeptKey> for Key<'_> {
    fn equivalent(&self, kept: &KeptKey) -> bool {
        *self == kept.borrowed()
    }
}

/// What an answer is about, beside the question.
#[derive(Clone, Copy, Debug)]
pub(crate) enum About {
    /// Nothing that is stored.
    Configuration,
    /// What a repository had at that version.
    Stored(Version),
}

impl About {
    fn is_still(self, earlier: Self) -> bool {
        match (self, earlier) {
            (Self::Configuration, Self::Configuration) => true,
            (Self::Stored(now), Self::Stored(then)) => now.is_still(then),
            (Self::Configuration | Self::Stored(_), _) => false,
        }
    }
}

/// An answer as it was given.
pub(crate) struct Given<A> {
    /// The answer.
    pub(crate) answer: Arc<A>,
    /// How long it may be reused, and by whom.
    pub(crate) hint: CacheHint,
    /// What it is about.
    pub(crate) about: About,
}

/// An answer and its times.
#[derive(Debug)]
struct Entry<A> {
    answer: Arc<A>,
    about: About,
    fresh_until: Instant,
    keep_for: Duration,
}

impl<A> Clone for Entry<A> {
    fn clone(&self) -> Self {
        Self {
            answer: Arc::clone(&self.answer),
            ..*self
        }
    }
}

/// Answers of one kind.
#[derive(Debug)]
pub(crate) struct Decisions<A: Send + Sync + 'static> {
    entries: Cache<KeptKey, Entry<A>>,
    varies: AtomicU8,
}

/// An answer from the cache.
#[derive(Debug)]
pub(crate) enum Cached<A> {
    /// May be used instead of asking.
    Fresh(Arc<A>),
    /// May be used only when asking fails and the binding permits it.
    Stale(Arc<A>),
}

struct PerEntry;

impl<A> Expiry<KeptKey, Entry<A>> for PerEntry {
    fn expire_after_create(
        &self,
        _key: &KeptKey,
        entry: &Entry<A>,
        _now: Instant,
    ) -> Option<Duration> {
        Some(entry.keep_for)
    }

    fn expire_after_update(
        &self,
        _key: &KeptKey,
        entry: &Entry<A>,
        _now: Instant,
        _left: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.keep_for)
    }
}

/// An answer, its key without texts, and what the cache's own tables take for them, about.
const ENTRY_BYTES: usize = 640;
/// A text's own place in a list or set.
const ENTRY_TEXT: usize = 32;

const CLIENT_ADDRESS: u8 = 1;
const USER_AGENT: u8 = 2;

impl<A: Send + Sync + 'static> Decisions<A> {
    /// A cache whose entries take at most about `max_bytes` of memory; 0 keeps nothing.
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self {
            entries: Cache::builder()
                .max_capacity(max_bytes)
                .weigher(|key: &KeptKey, _| u32::try_from(key.bytes()).unwrap_or(u32::MAX))
                .expire_after(PerEntry)
                .build(),
            varies: AtomicU8::new(0),
        }
    }

    /// The key of a question, with what answers have said so far that they vary by.
    pub(crate) fn key<'a>(
        &self,
        fingerprint: &'a Arc<str>,
        principal: &'a Arc<Principal>,
        client: &'a Client,
        question: Question<'a>,
    ) -> Key<'a> {
        let key = Key {
            fingerprint,
            principal,
            question,
            client_address: None,
            user_agent: None,
        };
        widened(key, client, self.varies.load(Ordering::Relaxed))
    }

    /// The answer, when one is kept; fresh only while what it was given about is still the same.
    pub(crate) fn get(&self, key: &Key<'_>, about: About) -> Option<Cached<A>> {
        let entry = self.entries.get(key)?;
        let is_fresh = about.is_still(entry.about) && Instant::now() < entry.fresh_until;
        Some(if is_fresh {
            Cached::Fresh(entry.answer)
        } else {
            Cached::Stale(entry.answer)
        })
    }

    /// Keeps an answer as long as its hint says. An answer that varies by more than the key holds is kept under a wider key.
    pub(crate) fn keep(&self, key: Key<'_>, client: &Client, given: Given<A>) {
        let Given {
            answer,
            hint,
            about,
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
        self.entries.insert(
            widened(key, client, seen).into(),
            Entry {
                answer,
                about,
                fresh_until: Instant::now() + hint.ttl,
                keep_for,
            },
        );
    }
}

/// The key with what answers vary by.
fn widened<'a>(key: Key<'a>, client: &'a Client, varies: u8) -> Key<'a> {
    let user_agent = client.user_agent.as_deref();
    Key {
        client_address: (varies & CLIENT_ADDRESS != 0).then_some(client.address),
        user_agent: user_agent.filter(|_| varies & USER_AGENT != 0),
        ..key
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher as _, RandomState};

    use super::*;

    fn client(user_agent: &str) -> Client {
        Client {
            address: [192, 0, 2, 1].into(),
            user_agent: Some(user_agent.to_owned()),
            tls_subject: None,
        }
    }

    fn alice(group: &str) -> Arc<Principal> {
        Arc::new(Principal {
            id: "user:alice".to_owned(),
            groups: vec![group.to_owned()],
            ..Principal::anonymous()
        })
    }

    fn scopes(action: &str) -> Vec<Scope> {
        vec![format!("repository:apps/web:{action}").parse().unwrap()]
    }

    fn question(scopes: &[Scope]) -> Question<'_> {
        Question::Authorize {
            operation: OperationKind::PullManifest,
            scopes,
            reference: Some("v1"),
        }
    }

    fn hint(varies: Varies) -> CacheHint {
        CacheHint {
            ttl: Duration::from_secs(60),
            stale_if_error: Duration::ZERO,
            varies,
        }
    }

    fn fresh(decisions: &Decisions<u8>, key: &Key<'_>) -> Option<u8> {
        match decisions.get(key, About::Configuration) {
            Some(Cached::Fresh(answer)) => Some(*answer),
            Some(Cached::Stale(_)) | None => None,
        }
    }

    fn keep(decisions: &Decisions<u8>, key: Key<'_>, client: &Client, varies: Varies) {
        let given = Given {
            answer: Arc::new(7),
            hint: hint(varies),
            about: About::Configuration,
        };
        decisions.keep(key, client, given);
    }

    #[test]
    fn a_key_is_found_by_what_it_borrows() {
        let (fingerprint, who, client) = ("f".into(), alice("ops"), client("curl"));
        let (digest, tag) = (
            format!("sha256:{:064}", 1).parse().unwrap(),
            "v1".parse().unwrap(),
        );
        let (pull, parents) = (
            scopes("pull"),
            [format!("sha256:{:064}", 2).parse().unwrap()],
        );
        let decisions = Decisions::<u8>::new(1 << 20);
        let hasher = RandomState::new();
        for question in [
            question(&pull),
            Question::Serve {
                change: Change::ServeManifest,
                repository: "apps/web",
                tag: Some(&tag),
                target: Some(&digest),
                parents: &parents,
            },
        ] {
            let key = decisions.key(&fingerprint, &who, &client, question);
            let kept = KeptKey::from(key);
            assert_eq!(hasher.hash_one(key), hasher.hash_one(&kept));
            assert!(key.equivalent(&kept) && kept == kept.clone());
            keep(&decisions, key, &client, Varies::default());
            assert_eq!(fresh(&decisions, &key), Some(7));
        }
    }

    #[test]
    fn an_answer_is_for_the_whole_principal_the_question_and_the_plugin_it_was_given_to() {
        let (fingerprint, who, client) = ("f".into(), alice("ops"), client("curl"));
        let decisions = Decisions::<u8>::new(1 << 20);
        let (pull, push) = (scopes("pull"), scopes("push"));
        let key = decisions.key(&fingerprint, &who, &client, question(&pull));
        keep(&decisions, key, &client, Varies::default());
        let same = alice("ops");
        let same = decisions.key(&fingerprint, &same, &client, question(&pull));
        assert_eq!(fresh(&decisions, &same), Some(7));
        let (other, other_plugin) = (alice("guests"), "g".into());
        for different in [
            decisions.key(&fingerprint, &other, &client, question(&pull)),
            decisions.key(&fingerprint, &who, &client, question(&push)),
            decisions.key(&other_plugin, &who, &client, question(&pull)),
        ] {
            assert_eq!(fresh(&decisions, &different), None, "{different:?}");
        }
    }

    #[test]
    fn an_answer_about_an_unknown_version_is_never_fresh() {
        let (fingerprint, who, client) = ("f".into(), alice("ops"), client("curl"));
        let pull = scopes("pull");
        let stored = |version| About::Stored(version);
        for (given_for, asked_for, is_fresh) in [
            (Version::Known(7), Version::Known(7), true),
            (Version::Known(7), Version::Known(8), false),
            (Version::Known(7), Version::Unknown, false),
            (Version::Unknown, Version::Known(7), false),
            (Version::Unknown, Version::Unknown, false),
        ] {
            let decisions = Decisions::<u8>::new(1 << 20);
            let key = decisions.key(&fingerprint, &who, &client, question(&pull));
            let given = Given {
                answer: Arc::new(7),
                hint: hint(Varies::default()),
                about: stored(given_for),
            };
            decisions.keep(key, &client, given);
            let found = decisions.get(&key, stored(asked_for));
            let found = matches!(found, Some(Cached::Fresh(_)));
            assert_eq!(found, is_fresh, "{given_for:?}, {asked_for:?}");
            let of_configuration = decisions.get(&key, About::Configuration);
            assert!(matches!(of_configuration, Some(Cached::Stale(_))));
        }
    }

    #[test]
    fn long_questions_take_no_more_memory_than_the_cache_may() {
        const MAX: u64 = 64 << 10;
        let (fingerprint, who, client) = ("f".into(), alice("ops"), client("curl"));
        let decisions = Decisions::<u8>::new(MAX);
        let digest = |index: usize| format!("sha256:{index:064}").parse().unwrap();
        let parents: Vec<Digest> = (0..200).map(digest).collect();
        for index in 0..100 {
            let target = digest(index);
            let question = Question::Serve {
                change: Change::ServeBlob,
                repository: "apps/web",
                tag: None,
                target: Some(&target),
                parents: &parents,
            };
            let key = decisions.key(&fingerprint, &who, &client, question);
            keep(&decisions, key, &client, Varies::default());
        }
        decisions.entries.run_pending_tasks();
        assert!(decisions.entries.weighted_size() <= MAX);
        assert!((1..20).contains(&decisions.entries.entry_count()));
    }

    #[test]
    fn what_answers_vary_by_is_part_of_the_key_from_then_on() {
        let (fingerprint, who, curl, other) =
            ("f".into(), alice("ops"), client("curl"), client("x"));
        let decisions = Decisions::<u8>::new(1 << 20);
        let pull = scopes("pull");
        let key = decisions.key(&fingerprint, &who, &curl, question(&pull));
        let varies = Varies {
            user_agent: true,
            ..Varies::default()
        };
        keep(&decisions, key, &curl, varies);
        let by_curl = decisions.key(&fingerprint, &who, &curl, question(&pull));
        let by_other = decisions.key(&fingerprint, &who, &other, question(&pull));
        assert_eq!(fresh(&decisions, &by_curl), Some(7));
        assert_eq!(fresh(&decisions, &by_other), None);
    }
}
