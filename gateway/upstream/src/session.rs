//! As whom an upstream is asked: an account, the tokens got with it, and how its repositories wanted to be asked.
//!
//! Owns that two identities share nothing: no token, no remembered scheme, no client certificate. Sends nothing itself.

use std::sync::Arc;

use gantry_model::RepositoryName;
use moka::sync::Cache;

use crate::{
    account::Account,
    credential::{Credential, CredentialSource, Credentials, Origin},
    token::{Token, TokenKey, Tokens},
};

/// Repositories whose way of authentication is remembered.
const MAX_REMEMBERED: u64 = 10_000;

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
    /// Whether it is the gateway's own: then it shows the client certificate, and what the upstream says about limits is about us.
    pub(crate) is_ours: bool,
}

impl Session {
    /// The gateway's own.
    pub(crate) fn ours(origin: Origin, source: Option<CredentialSource>) -> Self {
        Self {
            account: Account::new(origin, source),
            tokens: Tokens::new(),
            remembered: Cache::new(MAX_REMEMBERED),
            is_ours: true,
        }
    }

    /// A caller's, for one question: `None` is somebody who shows nothing.
    pub(crate) fn of_caller(origin: Origin, caller: Option<&Credentials>) -> Self {
        Self {
            account: Account::new(origin, caller.cloned().map(CredentialSource::Fixed)),
            tokens: Tokens::new(),
            remembered: Cache::new(1),
            is_ours: false,
        }
    }

    /// Whether a limit that the upstream states is about the address we come from: a caller's account has limits of its own, and nobody
    /// is to switch a mirror off with an account that is used up.
    pub(crate) fn shares_our_limits(&self) -> bool {
        self.is_ours || !self.account.is_known()
    }
}
