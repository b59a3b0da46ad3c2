//! Credential → authenticator plugins in order → principal; and our own tokens.

use std::sync::Arc;

use gantry_model::{Client, Principal, Scope};
use gantry_plugin_host::Credential;

use crate::{app::App, http::error::Error};

/// Authenticator bindings, caches and the token key.
#[derive(Debug)]
pub struct Authentication {}

/// Who asks, and what the credential allows at most.
#[derive(Clone, Debug)]
pub struct Identified {
    /// The principal.
    pub principal: Arc<Principal>,
    /// What the credential itself allows at most, on canonical names; `None` = no limit of its own.
    pub at_most: Option<Vec<Scope>>,
    /// Whether a token of ours was shown: then a lack of scope is answered `insufficient_scope`.
    pub by_token: bool,
}

/// Finds the principal. No credential is anonymous; a credential that nobody claims is refused.
///
/// # Errors
/// [`Error::Unauthorized`] for a bad credential, [`Error::Unavailable`] when an authenticator failed.
pub async fn authenticate(
    _app: &App,
    _client: &Arc<Client>,
    _credential: Credential,
) -> Result<Identified, Error> {
    Err(Error::not_built())
}

/// A signed token, as the token endpoint answers it.
#[derive(Clone, Debug)]
pub struct IssuedToken {
    /// The JWT.
    pub token: String,
    /// Seconds it is valid; at least 60.
    pub expires_in: u64,
    /// Seconds since 1970.
    pub issued_at: u64,
    /// What it holds, in the client's spelling.
    pub scopes: Vec<Scope>,
}

/// Makes a token for what `identified` may do of `scopes`. Each scope comes in the client's spelling, with the repository it means
/// (`None`: not a repository, or one that is not here; those are dropped unless a policy grants them as they are).
///
/// # Errors
/// [`Error::Unavailable`] when a hook failed.
pub async fn issue_token(_app: &App, _request: TokenRequest) -> Result<IssuedToken, Error> {
    Err(Error::not_built())
}

/// A request of the token endpoint, after the credential was checked.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// Ties log and audit lines together.
    pub request_id: Arc<str>,
    /// The machine.
    pub client: Arc<Client>,
    /// Who asks.
    pub identified: Identified,
    /// What is asked, in the client's spelling, merged and deduplicated.
    pub scopes: Vec<(Scope, Option<gantry_model::Repository>)>,
    /// The `service` of the realm: the host the client addresses.
    pub service: String,
}
