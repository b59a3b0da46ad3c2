//! An upstream failed: what the caller can do about it.

use std::time::Duration;

/// What the caller can do about it; also the metric label.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Kind {
    /// The upstream said that it is not there. The only kind that may become a 404.
    NotFound,
    /// The upstream refused our credentials, or refuses us this content.
    Refused,
    /// The upstream asks to slow down.
    RateLimited,
    /// The upstream cannot be reached, is too slow, or failed.
    Unavailable,
    /// The upstream answered something that is not the registry protocol, or more than is allowed.
    Invalid,
}

/// A source of any type.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An upstream failed. `Display` names the attempt; URLs, tokens and credentials never appear in it or in its sources.
#[derive(Debug, thiserror::Error)]
#[error("upstream {upstream} failed: {attempt}")]
pub struct UpstreamError {
    /// What the caller can do about it.
    pub kind: Kind,
    /// The mirror's name.
    pub upstream: String,
    /// What was attempted and what came back, such as `GET manifest: 503`.
    pub attempt: String,
    /// When the upstream says to try again.
    pub retry_after: Option<Duration>,
    /// What lies below.
    #[source]
    pub source: Option<BoxError>,
}

impl UpstreamError {
    /// Whether trying the same again, or another mirror, may help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.kind, Kind::Unavailable | Kind::RateLimited)
    }
}
