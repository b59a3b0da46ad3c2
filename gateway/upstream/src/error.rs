//! An upstream failed: what the caller can do about it.

use std::{error::Error as _, fmt::Display, io, sync::Arc, time::Duration};

use crate::address::{Blocked, Unresolved};

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

/// Where it went wrong; a metric label finer than [`Kind`], for people who look for the fault.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Cause {
    /// The upstream answered, and that was the answer.
    Answer,
    /// Its name has no address.
    Dns,
    /// No connection in time, or a refused one.
    Connect,
    /// No TLS: an unknown issuer, a wrong name, a client certificate it does not take.
    Tls,
    /// Connected, and no head of a response in time.
    FirstByte,
    /// The connection broke, before the response or in its body.
    Broken,
    /// A body that came to a halt.
    Stalled,
    /// A body slower than the minimum rate.
    TooSlow,
    /// It leads to an address or a realm it may not lead to.
    Blocked,
    /// The token endpoint failed or refused.
    Token,
    /// The credential helper brought nothing.
    Credentials,
    /// Over the upstream's rate limit: by its answer now, or by an earlier one that still holds.
    RateLimit,
    /// Not asked: it said when to come back.
    Paused,
    /// Not asked: it failed too often just now.
    Breaker,
    /// Not asked: our own limits for this upstream are used up.
    Saturated,
}

impl Cause {
    /// The label of a metric.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Answer => "answer",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::FirstByte => "first_byte",
            Self::Broken => "broken",
            Self::Stalled => "stalled",
            Self::TooSlow => "too_slow",
            Self::Blocked => "blocked",
            Self::Token => "token",
            Self::Credentials => "credentials",
            Self::RateLimit => "rate_limit",
            Self::Paused => "paused",
            Self::Breaker => "breaker",
            Self::Saturated => "saturated",
        }
    }
}

/// A source of any type.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An upstream failed. `Display` names the attempt; URLs, tokens and credentials never appear in it or in its sources.
#[derive(Debug, thiserror::Error)]
#[error("upstream {upstream} failed: {attempt}")]
pub struct UpstreamError {
    /// What the caller can do about it.
    pub kind: Kind,
    /// Where it went wrong.
    pub cause: Cause,
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

    /// The same, with its cause.
    pub(crate) fn because(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }

    /// The same, with the time to come back.
    pub(crate) fn retry_after(self, pause: Duration) -> Self {
        let retry_after = Some(pause);
        Self {
            retry_after,
            ..self
        }
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

    /// What is attempted: the class of the request.
    pub(crate) fn verb(&self) -> &'static str {
        self.verb
    }

    /// The same upstream, something else attempted.
    pub(crate) fn instead(&self, verb: &'static str) -> Self {
        Self::new(&self.upstream, verb)
    }

    pub(crate) fn fail(&self, kind: Kind, answer: impl Display) -> UpstreamError {
        UpstreamError {
            kind,
            cause: Cause::Answer,
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
        let (answer, cause) = match root(&error) {
            Some(Cause::Blocked) => {
                return self.fail(Kind::Refused, Blocked).because(Cause::Blocked);
            }
            Some(Cause::Dns) => ("the name has no address", Cause::Dns),
            Some(cause) => ("no TLS", cause),
            None if error.is_connect() => ("cannot connect", Cause::Connect),
            None if error.is_timeout() => ("timed out", Cause::FirstByte),
            None => ("the connection broke", Cause::Broken),
        };
        self.fail_with(Kind::Unavailable, answer, error)
            .because(cause)
    }
}

/// What lies at the bottom, where that is ours or the TLS stack's.
fn root(error: &reqwest::Error) -> Option<Cause> {
    let mut below = error.source();
    while let Some(source) = below {
        if source.is::<Blocked>() {
            return Some(Cause::Blocked);
        } else if source.is::<Unresolved>() {
            return Some(Cause::Dns);
        } else if source.is::<rustls::Error>() {
            return Some(Cause::Tls);
        }
        // An I/O error's `source` skips what it was made of.
        let made_of = source.downcast_ref().and_then(io::Error::get_ref);
        below = match made_of {
            Some(inner) => Some(inner),
            None => source.source(),
        };
    }
    None
}
