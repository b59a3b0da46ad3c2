//! An upstream failed: what the caller can do about it.

use std::{error::Error as _, fmt::Display, sync::Arc, time::Duration};

use crate::address::Blocked;

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

/// What is being attempted at which upstream: where every error of a call comes from.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    upstream: Arc<str>,
    verb: &'static str,
}

impl Call {
    pub(crate) fn new(upstream: &Arc<str>, verb: &'static str) -> Self {
        let upstream = Arc::clone(upstream);
        Self { upstream, verb }
    }

    /// The same upstream, something else attempted.
    pub(crate) fn instead(&self, verb: &'static str) -> Self {
        Self::new(&self.upstream, verb)
    }

    pub(crate) fn fail(&self, kind: Kind, answer: impl Display) -> UpstreamError {
        UpstreamError {
            kind,
            upstream: self.upstream.as_ref().to_owned(),
            attempt: format!("{}: {answer}", self.verb),
            retry_after: None,
            source: None,
        }
    }

    pub(crate) fn fail_with(
        &self,
        kind: Kind,
        answer: impl Display,
        source: impl Into<BoxError>,
    ) -> UpstreamError {
        let source = Some(source.into());
        UpstreamError {
            source,
            ..self.fail(kind, answer)
        }
    }

    /// The HTTP client failed. Its own text names the URL, which may carry a CDN's signature, so that is taken off.
    pub(crate) fn transport(&self, error: reqwest::Error) -> UpstreamError {
        let error = error.without_url();
        let mut below = error.source();
        while let Some(source) = below {
            if source.is::<Blocked>() {
                return self.fail(Kind::Refused, Blocked);
            }
            below = source.source();
        }
        let answer = if error.is_timeout() {
            "timed out"
        } else if error.is_connect() {
            "cannot connect"
        } else {
            "the connection broke"
        };
        self.fail_with(Kind::Unavailable, answer, error)
    }
}
