//! An upstream failed: what the caller can do about it, what a client may be shown of it, and which setting to look at.

use std::{error::Error, fmt::Display, sync::Arc, time::Duration};

use crate::{
    address::{Blocked, Unresolved},
    outgoing::{EndlessHead, HttpError},
    rate::Class,
};

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
    /// It leads to an address it may not lead to.
    Blocked,
    /// It names a token endpoint that may not have what would be sent there.
    Realm,
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
    /// Not read on: other large lists take the memory.
    Memory,
    /// Not asked: what one client request may cause is used up.
    Budget,
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
            Self::Realm => "realm",
            Self::Token => "token",
            Self::Credentials => "credentials",
            Self::RateLimit => "rate_limit",
            Self::Paused => "paused",
            Self::Breaker => "breaker",
            Self::Saturated => "saturated",
            Self::Memory => "memory",
            Self::Budget => "budget",
        }
    }
}

/// What a client is shown of an upstream's failure: a closed list, without host, address or text of the upstream.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Fault {
    /// The upstream's name has no address.
    Name,
    /// No connection, or one that broke.
    Connect,
    /// No TLS.
    Tls,
    /// The upstream or its token endpoint refused the credentials, or there are none.
    Login,
    /// A rate limit of the upstream, or a limit of this gateway for it.
    Limit,
    /// No answer, or no body, in time.
    Timeout,
    /// An answer that is not the registry protocol, or a failure of the upstream itself.
    BadAnswer,
}

impl Fault {
    /// The word that clients are shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Login => "login",
            Self::Limit => "limit",
            Self::Timeout => "timeout",
            Self::BadAnswer => "bad answer",
        }
    }

    /// The setting of a mirror that such a failure is mostly mended with.
    fn setting(self) -> &'static str {
        match self {
            Self::Name | Self::Connect | Self::BadAnswer => "url",
            Self::Tls => "tls",
            Self::Login => "credentials",
            Self::Limit => "limits",
            Self::Timeout => "limits.silence_timeout",
        }
    }
}

/// The failure that opened a breaker: the source of the errors of calls that are then not tried.
#[derive(Debug, thiserror::Error)]
#[error("the failure before was: {}", .0.as_str())]
pub(crate) struct Earlier(pub(crate) Fault);

/// The chain of an error's sources, the last cause first.
#[must_use]
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut texts = vec![error.to_string()];
    let mut below = error.source();
    while let Some(source) = below {
        let text = source.to_string();
        // Wrappers repeat what they wrap.
        if texts.last() != Some(&text) {
            texts.push(text);
        }
        below = source.source();
    }
    texts.reverse();
    texts.join("; ")
}

/// A source of any type.
pub type BoxError = Box<dyn Error + Send + Sync>;

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

    /// What a client may be shown.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let earlier = || self.source.as_ref()?.downcast_ref::<Earlier>();
        match self.cause {
            Cause::Dns => Fault::Name,
            Cause::Connect | Cause::Broken => Fault::Connect,
            Cause::Tls => Fault::Tls,
            Cause::Realm | Cause::Token | Cause::Credentials => Fault::Login,
            Cause::RateLimit | Cause::Paused | Cause::Saturated | Cause::Memory | Cause::Budget => {
                Fault::Limit
            }
            Cause::FirstByte | Cause::Stalled | Cause::TooSlow => Fault::Timeout,
            Cause::Breaker => earlier().map_or(Fault::Connect, |earlier| earlier.0),
            Cause::Blocked => Fault::BadAnswer,
            Cause::Answer => match self.kind {
                Kind::Refused => Fault::Login,
                Kind::RateLimited => Fault::Limit,
                Kind::NotFound | Kind::Unavailable | Kind::Invalid => Fault::BadAnswer,
            },
        }
    }

    /// The key of the configuration to look at, such as `mirrors.hub.tls`.
    #[must_use]
    pub fn setting(&self) -> String {
        let setting = match self.cause {
            Cause::Realm => "token_realms",
            Cause::TooSlow => "limits.slowest_rate",
            Cause::Saturated => "limits.concurrency",
            // No key of the configuration gives lists more memory.
            Cause::Memory => return format!("mirrors.{}", self.upstream),
            Cause::Budget => return "limits.derived_requests".to_owned(),
            _ => self.fault().setting(),
        };
        format!("mirrors.{}.{setting}", self.upstream)
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

    /// What an upstream limits it with.
    pub(crate) fn class(&self) -> Class {
        if self.verb.contains("token") {
            Class::Tokens
        } else if self.verb.contains("blob") {
            Class::Blobs
        } else {
            Class::Manifests
        }
    }

    /// The mirror's name.
    pub(crate) fn upstream(&self) -> &str {
        &self.upstream
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

    /// The HTTP client failed.
    pub(crate) fn transport(&self, error: HttpError) -> UpstreamError {
        let (answer, cause) = match root(&error) {
            Some(Cause::Blocked) => {
                return self.fail(Kind::Refused, Blocked).because(Cause::Blocked);
            }
            Some(Cause::Answer) => return self.fail_with(Kind::Invalid, EndlessHead, error),
            Some(Cause::Dns) => ("the name has no address", Cause::Dns),
            Some(cause) => ("no TLS", cause),
            None if error.is_connect() => ("cannot connect", Cause::Connect),
            None => ("the connection broke", Cause::Broken),
        };
        self.fail_with(Kind::Unavailable, answer, error)
            .because(cause)
    }
}

/// What lies at the bottom, where that is ours or the TLS stack's.
fn root(error: &HttpError) -> Option<Cause> {
    let known = [
        (error.is_endless(), Cause::Answer),
        (error.find::<Blocked>().is_some(), Cause::Blocked),
        (error.find::<Unresolved>().is_some(), Cause::Dns),
        (error.find::<rustls::Error>().is_some(), Cause::Tls),
    ];
    let found = known.into_iter().find(|(is_there, _)| *is_there);
    found.map(|(_, cause)| cause)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn error(kind: Kind, cause: Cause) -> UpstreamError {
        let call = Call::new(&Arc::from("hub"), "GET manifest");
        call.fail(kind, "it failed").because(cause)
    }

    #[test]
    fn every_cause_has_a_word_for_the_client_and_a_key_to_look_at() {
        for (kind, cause, word, key) in [
            (Kind::Unavailable, Cause::Dns, "name", "url"),
            (Kind::Unavailable, Cause::Connect, "connect", "url"),
            (Kind::Unavailable, Cause::Broken, "connect", "url"),
            (Kind::Unavailable, Cause::Tls, "tls", "tls"),
            (Kind::Refused, Cause::Realm, "login", "token_realms"),
            (Kind::Refused, Cause::Token, "login", "credentials"),
            (
                Kind::Unavailable,
                Cause::Credentials,
                "login",
                "credentials",
            ),
            (Kind::Refused, Cause::Answer, "login", "credentials"),
            (Kind::RateLimited, Cause::RateLimit, "limit", "limits"),
            (Kind::Unavailable, Cause::Paused, "limit", "limits"),
            (
                Kind::Unavailable,
                Cause::Saturated,
                "limit",
                "limits.concurrency",
            ),
            (
                Kind::Unavailable,
                Cause::FirstByte,
                "timeout",
                "limits.silence_timeout",
            ),
            (
                Kind::Unavailable,
                Cause::Stalled,
                "timeout",
                "limits.silence_timeout",
            ),
            (
                Kind::Unavailable,
                Cause::TooSlow,
                "timeout",
                "limits.slowest_rate",
            ),
            (Kind::Refused, Cause::Blocked, "bad answer", "url"),
            (Kind::Unavailable, Cause::Answer, "bad answer", "url"),
            (Kind::Invalid, Cause::Answer, "bad answer", "url"),
        ] {
            let error = error(kind, cause);
            assert_eq!(error.fault().as_str(), word, "{error:?}");
            assert_eq!(error.setting(), format!("mirrors.hub.{key}"));
        }
    }

    #[test]
    fn a_call_that_was_not_tried_tells_the_failure_before() {
        let source: BoxError = Box::new(Earlier(Fault::Tls));
        let error = UpstreamError {
            source: Some(source),
            ..error(Kind::Unavailable, Cause::Breaker)
        };
        assert_eq!(error.fault(), Fault::Tls);
        assert_eq!(error.setting(), "mirrors.hub.tls");
    }

    #[test]
    fn the_last_cause_comes_first() {
        let call = Call::new(&Arc::from("hub"), "GET manifest");
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let token =
            call.instead("GET token")
                .fail_with(Kind::Unavailable, "cannot connect", refused);
        let error = call.fail_with(Kind::Unavailable, "no token", token);
        assert_eq!(
            causes(&error),
            "connection refused; upstream hub failed: GET token: cannot connect; upstream hub failed: GET manifest: no token"
        );
    }
}
