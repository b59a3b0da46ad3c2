//! The verified-credential cache: a good answer about a credential, for at most a minute, so that a slow password hash is checked once
//! and not at every blob.
//!
//! Invariant: neither a password nor a hash of one is kept: the key is [`Keyed`].

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use gantry_model::Client;
use gantry_plugin_host::{Credential, Identity};
use gantry_registry::Clock as _;
use moka::{Expiry, future::Cache};

use super::{Identified, keyed::Keyed, revocation::Proof};
use crate::{clock::SystemClock, http::error::Error, policy::binding::Binding};

const LONGEST: Duration = Duration::from_secs(60);

/// Identities by what proved them.
#[derive(Clone, Debug)]
pub(crate) struct VerifiedCredentials {
    keyed: Keyed,
    chain: String,
    identities: Cache<[u8; 32], Verified>,
}

/// A good credential.
#[derive(Clone, Debug)]
pub(crate) struct Verified {
    identified: Identified,
    /// Zero: not at all.
    keep_for: Duration,
}

impl Verified {
    pub(crate) fn new(identity: Identity, proof: Arc<Proof>) -> Self {
        Self {
            keep_for: keep_for(&identity),
            identified: Identified {
                principal: Arc::new(identity.principal),
                at_most: identity.at_most.map(Arc::from),
                by_token: false,
                token_ends: None,
                proof: Some(proof),
                upstream: None,
            },
        }
    }
}

/// Why nothing was kept: the chain failed, or nobody claimed the credential.
#[derive(Debug)]
enum Unkept {
    Failed(Error),
    Nobody,
    Uncacheable(Identified),
}

struct PerEntry;

impl Expiry<[u8; 32], Verified> for PerEntry {
    fn expire_after_create(
        &self,
        _key: &[u8; 32],
        verified: &Verified,
        _now: Instant,
    ) -> Option<Duration> {
        Some(verified.keep_for)
    }
}

impl VerifiedCredentials {
    /// An empty cache, of no chain yet.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            keyed: Keyed::new()?,
            chain: String::new(),
            identities: Cache::builder()
                .max_capacity(10_000)
                .expire_after(PerEntry)
                .build(),
        })
    }

    /// The same cache for a chain: what another chain verified is not found here.
    pub(crate) fn of_chain(&self, authenticators: &[Arc<Binding>]) -> Self {
        Self {
            chain: authenticators
                .iter()
                .map(|binding| format!("{}={}\n", binding.name(), binding.fingerprint))
                .collect(),
            ..self.clone()
        }
    }

    /// Who a credential was found to belong to, a moment ago.
    pub(crate) async fn known(
        &self,
        client: &Client,
        credential: &Credential,
    ) -> Option<Identified> {
        let key = self.cache_key(client, credential)?;
        let verified = self.identities.get(&key).await?;
        Some(verified.identified)
    }

    /// The credential is to be checked again.
    pub(crate) async fn forget(&self, client: &Client, credential: &Credential) {
        if let Some(key) = self.cache_key(client, credential) {
            self.identities.invalidate(&key).await;
        }
    }

    /// Whose credential it is: kept, or asked once for all who wait.
    pub(crate) async fn get_or_ask(
        &self,
        client: &Client,
        credential: &Credential,
        ask: impl Future<Output = Result<Option<Verified>, Error>>,
    ) -> Result<Option<Identified>, Error> {
        let Some(key) = self.cache_key(client, credential) else {
            return Ok(ask.await?.map(|verified| verified.identified));
        };
        let verified = async {
            match ask.await {
                Ok(Some(verified)) if verified.keep_for.is_zero() => {
                    Err(Unkept::Uncacheable(verified.identified))
                }
                Ok(Some(verified)) => Ok(verified),
                Ok(None) => Err(Unkept::Nobody),
                Err(error) => Err(Unkept::Failed(error)),
            }
        };
        match self.identities.try_get_with(key, verified).await {
            Ok(verified) => Ok(Some(verified.identified)),
            Err(unkept) => match &*unkept {
                Unkept::Nobody => Ok(None),
                Unkept::Uncacheable(identified) => Ok(Some(identified.clone())),
                Unkept::Failed(error) => Err(error.share()),
            },
        }
    }

    /// Credentials that a certificate proves, or none, are not kept.
    fn cache_key(&self, client: &Client, credential: &Credential) -> Option<[u8; 32]> {
        let (kind, parts) = match credential {
            Credential::Anonymous => return None,
            Credential::Basic(shown) => ("basic", [shown.username(), shown.password()]),
            Credential::Bearer(token) => ("bearer", [&**token, ""]),
        };
        let subject = client.tls_subject.as_deref().unwrap_or_default();
        let parts = [&*self.chain, subject, kind].into_iter().chain(parts);
        self.keyed.of(parts)
    }
}

/// How long an identity may be kept; an answer that varies by what the key does not hold is not.
fn keep_for(identity: &Identity) -> Duration {
    let varies = identity.cache.varies;
    if varies.client_address || varies.user_agent || varies.time_of_day {
        return Duration::ZERO;
    }
    let until_end = match identity.principal.expires_at_ms {
        Some(end) => Duration::from_millis(end.saturating_sub(SystemClock.now_ms())),
        None => LONGEST,
    };
    identity.cache.ttl.min(LONGEST).min(until_end)
}
