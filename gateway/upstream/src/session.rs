//! As whom an upstream is asked: an account, the tokens got with it, how its repositories wanted to be asked, and its limits.
//!
//! Owns that two identities share nothing: no token, no remembered scheme, no client certificate, no rest after a 429. Sends nothing itself.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use gantry_model::RepositoryName;
use moka::sync::Cache;

use crate::{
    account::Account,
    credential::{Credential, CredentialSource, Credentials, Origin},
    rate::Budget,
    token::{Token, TokenKey, Tokens},
};

/// Repositories whose way of authentication is remembered.
const MAX_REMEMBERED: u64 = 10_000;
/// When a caller's limits are forgotten: longer than any rest.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(10 * 60);

/// How a repository wants to be asked.
#[derive(Clone)]
pub(crate) enum Scheme {
    Basic,
    Bearer(Arc<TokenKey>),
}

/// What a request proves its sender with.
pub(crate) enum Proof {
    None,
    Basic(Credential),
    Bearer(Arc<TokenKey>, Token),
}

/// One identity at one base URL.
pub(crate) struct Session {
    pub(crate) account: Account,
    pub(crate) tokens: Tokens,
    pub(crate) remembered: Cache<RepositoryName, Scheme>,
    /// What the upstream allows this identity.
    pub(crate) budget: Arc<Budget>,
    /// Whether it is the gateway's own: then it shows the client certificate and the headers of the configuration.
    pub(crate) is_ours: bool,
}

impl Session {
    /// The gateway's own.
    pub(crate) fn ours(origin: Origin, source: Option<CredentialSource>) -> Self {
        Self {
            account: Account::new(origin, source),
            tokens: Tokens::new(),
            remembered: Cache::new(MAX_REMEMBERED),
            budget: Arc::default(),
            is_ours: true,
        }
    }

    /// The gateway's at a registry that a redirect led to, where it is nobody.
    pub(crate) fn away(origin: Origin) -> Self {
        Self {
            is_ours: false,
            ..Self::ours(origin, None)
        }
    }

    /// A caller's, for one question: `None` is somebody who shows nothing.
    pub(crate) fn of_caller(
        origin: Origin,
        caller: Option<&Credentials>,
        budget: Arc<Budget>,
    ) -> Self {
        Self {
            account: Account::new(origin, caller.cloned().map(CredentialSource::Fixed)),
            tokens: Tokens::new(),
            remembered: Cache::new(1),
            budget,
            is_ours: false,
        }
    }
}

/// What the upstream allows callers, each by itself: nobody switches a mirror off with an account that is used up.
pub(crate) struct CallerBudgets {
    /// Makes keys that tell nothing of a password.
    keys: [RandomState; 2],
    budgets: Cache<[u64; 2], Arc<Budget>>,
}

impl Default for CallerBudgets {
    fn default() -> Self {
        Self {
            keys: Default::default(),
            budgets: Cache::builder()
                .max_capacity(MAX_REMEMBERED)
                .time_to_idle(FORGOTTEN_AFTER)
                .build(),
        }
    }
}

impl CallerBudgets {
    /// The caller's own; `None` is everybody who shows nothing.
    pub(crate) fn of(&self, caller: Option<&Credentials>) -> Arc<Budget> {
        let caller = caller.map(|caller| (&*caller.username, &**caller.password));
        let key = self.keys.each_ref().map(|key| key.hash_one(caller));
        self.budgets.get_with(key, Arc::default)
    }
}
