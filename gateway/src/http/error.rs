//! Every way a request fails, and the one table from there to status, OCI code and text.

use std::time::Duration;

use gantry_model::{Denial, Scope};

/// A source of any type, for the log only.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the 401 says besides "show a credential".
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ChallengeError {
    /// The token is malformed, expired, or not ours.
    InvalidToken,
    /// The token is good but does not cover this.
    InsufficientScope,
}

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// 401 with a challenge, Bearer first.
    #[error("authentication required")]
    Unauthorized {
        /// What a token for this would have to hold, in the client's spelling; empty on `/v2/`.
        scopes: Vec<Scope>,
        /// Why the shown token was not enough; `None` when none was shown.
        error: Option<ChallengeError>,
        /// Shown to the client.
        message: String,
    },
    /// 403 (or as the denial's code says): no other credential helps.
    #[error("{}", .0.message)]
    Denied(Box<Denial>),
    /// 503: a plugin or a disk failed. Nothing of the source is shown.
    #[error("the service is temporarily unavailable")]
    Unavailable {
        /// When to try again.
        retry_after: Option<Duration>,
        /// For the log.
        source: BoxError,
    },
    /// The registry has no outcome.
    #[error(transparent)]
    Registry(#[from] gantry_registry::Error),
}

impl Error {
    /// A part that is not there yet.
    #[must_use]
    pub fn not_built() -> Self {
        Self::Unavailable {
            retry_after: None,
            source: "not built yet".into(),
        }
    }
}
