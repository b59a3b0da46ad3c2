//! Who we are to one origin, over time: fixed credentials, or those a helper brings; replaceable while in use.
//!
//! Owns when a helper is asked again: when its answer has grown old, and once when the upstream refuses it. Callers that wait share
//! one run and its outcome. What leaves here is bound to the origin ([`Credential`]).

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use moka::future::Cache;

use crate::{
    credential::{Credential, CredentialSource, Credentials, Origin},
    error::{Call, Cause, Kind, UpstreamError},
    helper::{Helper, HelperError},
};

/// How long a helper is left alone when it had nothing better than what was refused.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

/// The credentials for one origin.
pub(crate) struct Account {
    origin: Origin,
    /// Guards which source is used now; held for a clone only.
    source: Mutex<Option<Source>>,
    generation: AtomicU64,
}

#[derive(Clone)]
enum Source {
    Fixed(Arc<Credentials>),
    Helper(Arc<Kept>),
}

/// A helper, and its last answer while that is fresh.
struct Kept {
    helper: Helper,
    answer: Cache<(), Arc<Credentials>>,
    /// An answer that was refused, and that the helper gave again.
    refused: Cache<(), Arc<Credentials>>,
}

impl Account {
    pub(crate) fn new(origin: Origin, source: Option<CredentialSource>) -> Self {
        Self {
            origin,
            source: Mutex::new(source.map(Source::from)),
            generation: AtomicU64::new(0),
        }
    }

    /// Uses other credentials from now on. What is under way ends with the old ones.
    pub(crate) fn replace(&self, source: Option<CredentialSource>) {
        *self.lock() = source.map(Source::from);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Counts replacements: a token got with other credentials is not used after one.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether there is anything but anonymity.
    pub(crate) fn is_known(&self) -> bool {
        self.lock().is_some()
    }

    /// The credentials to use now; `None` = anonymous.
    pub(crate) async fn current(&self, call: &Call) -> Result<Option<Credential>, UpstreamError> {
        let Some(source) = self.source() else {
            return Ok(None);
        };
        let secret = match source {
            Source::Fixed(secret) => secret,
            Source::Helper(kept) => kept.current(call).await?,
        };
        Ok(Some(Credential::bind(secret, self.origin.clone())))
    }

    /// After the upstream refused these: whether there are others now. Only a helper can have others.
    pub(crate) async fn renew(
        &self,
        call: &Call,
        refused: &Credential,
    ) -> Result<bool, UpstreamError> {
        match self.source() {
            Some(Source::Helper(kept)) => kept.renew(call, refused).await,
            // Replaced while the request was on its way.
            Some(Source::Fixed(secret)) => Ok(!refused.holds(&secret)),
            None => Ok(false),
        }
    }

    fn source(&self) -> Option<Source> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Source>> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<CredentialSource> for Source {
    fn from(source: CredentialSource) -> Self {
        match source {
            CredentialSource::Fixed(secret) => Self::Fixed(Arc::new(secret)),
            CredentialSource::Helper(helper) => Self::Helper(Arc::new(Kept {
                answer: Cache::builder().time_to_live(helper.refresh).build(),
                refused: Cache::builder().time_to_live(REFUSED_PAUSE).build(),
                helper,
            })),
        }
    }
}

impl Kept {
    async fn current(&self, call: &Call) -> Result<Arc<Credentials>, UpstreamError> {
        let run = async { self.helper.run().await.map(Arc::new) };
        let found = self.answer.try_get_with((), run).await;
        found.map_err(|error: Arc<HelperError>| {
            call.fail_with(Kind::Unavailable, "no credentials", error)
                .because(Cause::Credentials)
        })
    }

    async fn renew(&self, call: &Call, refused: &Credential) -> Result<bool, UpstreamError> {
        let known = self.refused.get(&()).await;
        if known.is_some_and(|known| refused.holds(&known)) {
            return Ok(false);
        }
        let kept = self.answer.get(&()).await;
        if kept.is_some_and(|kept| refused.holds(&kept)) {
            self.answer.invalidate(&()).await;
        }
        let found = self.current(call).await?;
        let is_other = !refused.holds(&found);
        if !is_other {
            self.refused.insert((), found).await;
        }
        Ok(is_other)
    }
}
