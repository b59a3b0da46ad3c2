//! What upstreams answered about callers, for a while: yes for as long as the mirror says, no for ten seconds, silence for a moment.
//!
//! Owns that a question is asked once however many wait for its answer, and that an answer outlives neither its time nor its
//! question. Lasts over reloads: a question names the upstream it was put to.
//! Invariant: neither a password nor a hash of one is kept: the key is [`Keyed`].

use std::{sync::Arc, time::Duration};

use gantry_model::RepositoryName;
use gantry_upstream::{Credentials, Kind, UpstreamError};
use moka::future::Cache;
use tokio::time::Instant;

use super::AskedMirror;
use crate::auth::keyed::Keyed;

/// Answers at most.
const MAX_ANSWERS: u64 = 20_000;
/// How long a no is believed: a right that was just given counts soon, and a wrong password is no flood upstream.
pub(crate) const NO_FOR: Duration = Duration::from_secs(10);
/// How long everybody is spared an upstream that did not answer.
const SILENT_FOR: Duration = Duration::from_secs(1);
/// The pause after a limit that names none, and the longest that is believed.
const LIMITED_FOR: Duration = Duration::from_secs(10);
const LONGEST_LIMIT: Duration = Duration::from_secs(60);

/// What is asked of an upstream about a caller. Holds a borrowed credential, so it has no `Debug`.
pub(crate) struct Question<'a> {
    mirror: &'a AskedMirror,
    caller: Option<&'a Credentials>,
    /// `None` = who it is.
    repository: Option<&'a RepositoryName>,
}

impl<'a> Question<'a> {
    /// Whose credential it is.
    pub(crate) fn whose(mirror: &'a AskedMirror, caller: &'a Credentials) -> Self {
        Self {
            mirror,
            caller: Some(caller),
            repository: None,
        }
    }

    /// Whether somebody may pull; `None` is everybody.
    pub(crate) fn pulls(
        mirror: &'a AskedMirror,
        caller: Option<&'a Credentials>,
        repository: &'a RepositoryName,
    ) -> Self {
        Self {
            mirror,
            caller,
            repository: Some(repository),
        }
    }
}

/// An answer, or that there was none.
#[derive(Clone, Debug)]
pub(crate) enum Word {
    Yes,
    No,
    Open(Open),
}

/// A question that the upstream left open.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub(crate) is_limited: bool,
    pub(crate) retry_after: Duration,
    /// For the log.
    pub(crate) why: Arc<str>,
}

/// An answer and its end.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) word: Word,
    pub(crate) until: Instant,
}

impl Said {
    /// Whether it is good now and for so much longer. Only a yes is needed for longer than now.
    pub(crate) fn is_good_for(&self, lasting: Duration) -> bool {
        let lasting = match self.word {
            Word::Yes => lasting,
            Word::No | Word::Open(_) => Duration::ZERO,
        };
        Instant::now() + lasting < self.until
    }
}

/// Answers by question.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    keyed: Keyed,
    answers: Cache<[u8; 32], Said>,
}

impl Memory {
    /// Knows nothing yet.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            keyed: Keyed::new()?,
            answers: Cache::new(MAX_ANSWERS),
        })
    }

    /// Until when a remembered yes is good, when it is for so long.
    pub(crate) async fn yes(&self, question: &Question<'_>, lasting: Duration) -> Option<Instant> {
        let said = self.answers.get(&self.cache_key(question)?).await?;
        let is_yes = matches!(said.word, Word::Yes) && said.is_good_for(lasting);
        is_yes.then_some(said.until)
    }

    /// The answer: a remembered one that is good for so long, or the one that `ask` brings, once for all who wait. What was a yes and
    /// still is one stays, when the upstream cannot be asked again.
    pub(crate) async fn ask(
        &self,
        question: &Question<'_>,
        lasting: Duration,
        yes_for: Duration,
        ask: impl Future<Output = Result<bool, UpstreamError>>,
    ) -> Said {
        let Some(key) = self.cache_key(question) else {
            return said(ask.await, yes_for);
        };
        let answer = async {
            let before = self.answers.get(&key).await;
            let said = said(ask.await, yes_for);
            let still = before.filter(|before| {
                matches!(before.word, Word::Yes) && before.is_good_for(Duration::ZERO)
            });
            match (&said.word, still) {
                (Word::Open(_), Some(still)) => still,
                _ => said,
            }
        };
        let entry = self.answers.entry(key);
        let entry = entry.or_insert_with_if(answer, |before| !before.is_good_for(lasting));
        Box::pin(entry).await.into_value()
    }

    fn cache_key(&self, question: &Question<'_>) -> Option<[u8; 32]> {
        let caller = match question.caller {
            Some(caller) => ["caller", &*caller.username, &*caller.password],
            None => ["everybody", "", ""],
        };
        let about = match question.repository {
            Some(repository) => ["pulls", repository.as_str()],
            None => ["is known", ""],
        };
        let mirror = [&*question.mirror.name, &*question.mirror.upstream];
        self.keyed.of(mirror.into_iter().chain(caller).chain(about))
    }
}

fn said(answer: Result<bool, UpstreamError>, yes_for: Duration) -> Said {
    let (word, good_for) = match answer {
        Ok(true) => (Word::Yes, yes_for),
        Ok(false) => (Word::No, NO_FOR),
        Err(error) => {
            let is_limited = error.kind == Kind::RateLimited;
            let otherwise = if is_limited { LIMITED_FOR } else { SILENT_FOR };
            let retry_after = error.retry_after.unwrap_or(otherwise);
            let retry_after = retry_after.clamp(SILENT_FOR, LONGEST_LIMIT);
            let open = Open {
                is_limited,
                retry_after,
                why: error.to_string().into(),
            };
            let good_for = if is_limited { retry_after } else { SILENT_FOR };
            (Word::Open(open), good_for)
        }
    };
    Said {
        word,
        until: Instant::now() + good_for,
    }
}
