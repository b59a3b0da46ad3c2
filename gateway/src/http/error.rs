//! Every way a request fails, and the one table from there to status, OCI code and text.
//!
//! Owns the only mapping of failures to statuses. Texts of 4xx are ours and safe to show; a 5xx shows nothing but the request id, and of an
//! upstream's failure the mirror's name and a kind of a closed list.

use std::time::Duration;

use gantry_model::{Denial, DenialCode, Scope};
use gantry_registry::{BodyError, Error as RegistryError};
use http::StatusCode;
use serde_json::{Value, json};
use tracing::Level;

use super::route::RouteError;

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

impl ChallengeError {
    /// RFC 6750's spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidToken => "invalid_token",
            Self::InsufficientScope => "insufficient_scope",
        }
    }
}

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request means no operation.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// 403 or 421: a page of another site made a browser send it.
    #[error("{message}")]
    OtherSite {
        /// The status.
        status: StatusCode,
        /// Shown to the client.
        message: String,
    },
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
    /// 429: an upstream that has a say limits how often it is asked.
    #[error("the upstream asks to come back later")]
    Limited {
        /// When to try again.
        retry_after: Duration,
        /// For the log.
        source: BoxError,
    },
    /// 429: too many requests came by proxies, and most of them from this client.
    #[error("too many requests at once, most of them from this client's address")]
    Crowded,
    /// 500: the request's own code panicked. The panic's text is in the log.
    #[error("internal error")]
    Panicked,
    /// The registry has no outcome.
    #[error(transparent)]
    Registry(Box<RegistryError>),
}

impl From<RegistryError> for Error {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Box::new(error))
    }
}

/// A failure as the client sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The OCI error code.
    pub code: &'static str,
    /// The public text.
    pub message: String,
    /// One entry of the `errors` array each; none = one entry without detail.
    pub details: Vec<Value>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// How loud the log is about it.
    pub level: Level,
    /// What a client is shown of an upstream's failure.
    pub upstream: Option<UpstreamFault>,
}

/// What a client is shown of an upstream's failure, beside the request's id.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UpstreamFault {
    /// The mirror's configured name.
    pub mirror: String,
    /// A word of a closed list.
    pub kind: &'static str,
}

impl Answer {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            details: Vec::new(),
            retry_after: None,
            level: Level::DEBUG,
            upstream: None,
        }
    }

    /// The same, of a mirror's upstream: that a client can say which one, and an operator need not guess.
    fn of_upstream(mut self, error: &RegistryError) -> Self {
        if let Some(failure) = error.upstream() {
            let fault = UpstreamFault {
                mirror: failure.mirror.clone(),
                kind: failure.fault.as_str(),
            };
            self.message = format!(
                "the upstream of mirror {} failed: {}",
                fault.mirror, fault.kind
            );
            self.upstream = Some(fault);
            self.level = Level::WARN;
        }
        self
    }

    fn after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }

    fn detail(mut self, detail: Option<Value>) -> Self {
        self.details.extend(detail);
        self
    }

    fn loud(mut self, level: Level) -> Self {
        self.level = level;
        self
    }
}

impl Error {
    /// Something this needs does not work now.
    pub(crate) fn unavailable(source: impl Into<BoxError>) -> Self {
        Self::Unavailable {
            retry_after: None,
            source: source.into(),
        }
    }

    /// The same failure for everybody who waited for it.
    pub(crate) fn share(&self) -> Self {
        match self {
            Self::Unauthorized {
                scopes,
                error,
                message,
            } => Self::Unauthorized {
                scopes: scopes.clone(),
                error: *error,
                message: message.clone(),
            },
            Self::Denied(denial) => Self::Denied(denial.clone()),
            other => Self::unavailable(other.chain()),
        }
    }

    /// The whole chain of sources as text, for the log.
    pub(crate) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }

    /// The table.
    #[must_use]
    pub fn answer(&self) -> Answer {
        match self {
            Self::Route(error) => route(error),
            Self::OtherSite { status, message } => Answer::new(*status, "DENIED", message.as_str()),
            Self::Unauthorized { message, .. } => {
                Answer::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message.as_str())
            }
            Self::Denied(denial) => denied(denial),
            Self::Unavailable { retry_after, .. } => unavailable(*retry_after),
            Self::Limited { retry_after, .. } => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                Answer::new(status, "TOOMANYREQUESTS", self.to_string()).after(Some(*retry_after))
            }
            Self::Crowded => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                let again = Some(Duration::from_secs(1));
                Answer::new(status, "TOOMANYREQUESTS", self.to_string()).after(again)
            }
            Self::Panicked => internal(),
            Self::Registry(error) => registry(error),
        }
    }
}

/// A plugin that fails is 503, whoever asks: never anonymous, never allowed.
impl From<gantry_plugin_host::CallError> for Error {
    fn from(error: gantry_plugin_host::CallError) -> Self {
        let saturated = error.failure == gantry_plugin_host::Failure::Saturated;
        Self::Unavailable {
            retry_after: saturated.then_some(Duration::from_secs(1)),
            source: Box::new(error),
        }
    }
}

fn route(error: &RouteError) -> Answer {
    let (status, code) = match error {
        RouteError::NotFound => (StatusCode::NOT_FOUND, "UNSUPPORTED"),
        RouteError::MethodNotAllowed { .. } => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
        RouteError::Encoding(_) | RouteError::Name(_) => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
        RouteError::NameUnknown { .. } => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
        RouteError::Digest(_) | RouteError::DigestMissing => {
            (StatusCode::BAD_REQUEST, "DIGEST_INVALID")
        }
        RouteError::Tag(_) => (StatusCode::BAD_REQUEST, "TAG_INVALID"),
        RouteError::TooManyTags => (StatusCode::URI_TOO_LONG, "TAG_INVALID"),
        RouteError::UploadUnknown => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
        RouteError::Page | RouteError::Repeated("n" | "last") => {
            (StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID")
        }
        RouteError::Range => (StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID"),
        RouteError::MediaType => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
        RouteError::Repeated("digest" | "mount" | "digest-algorithm") => {
            (StatusCode::BAD_REQUEST, "DIGEST_INVALID")
        }
        RouteError::Repeated(_) => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
        RouteError::Host => (StatusCode::BAD_REQUEST, "UNSUPPORTED"),
    };
    Answer::new(status, code, error.to_string())
}

fn denied(denial: &Denial) -> Answer {
    let (status, code) = match denial.code {
        DenialCode::Unauthorized => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
        DenialCode::Denied => (StatusCode::FORBIDDEN, "DENIED"),
        DenialCode::TooManyRequests => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
        DenialCode::NameInvalid => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
        DenialCode::ManifestInvalid => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
        DenialCode::Unsupported => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
        DenialCode::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
    };
    let detail = denial
        .detail
        .as_deref()
        .map(|text| serde_json::from_str(text).unwrap_or_else(|_not_json| json!(text)));
    Answer::new(status, code, denial.message.as_str())
        .detail(detail)
        .after(denial.retry_after)
}

fn registry(error: &RegistryError) -> Answer {
    let text = error.to_string();
    match error {
        RegistryError::BlobUnknown { digest } => {
            Answer::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", text)
                .detail(Some(json!({ "digest": digest })))
        }
        RegistryError::BlobUploadUnknown => {
            Answer::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", text)
        }
        RegistryError::DigestInvalid { found } => {
            let found = found.as_ref().map(|found| json!({ "found": found }));
            Answer::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", text).detail(found)
        }
        RegistryError::SizeInvalid => Answer::new(StatusCode::BAD_REQUEST, "SIZE_INVALID", text),
        RegistryError::ManifestUnknown => {
            Answer::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", text)
        }
        RegistryError::ManifestInvalid(_) => {
            Answer::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", text)
        }
        RegistryError::ManifestTooLarge { .. } => {
            Answer::new(StatusCode::PAYLOAD_TOO_LARGE, "MANIFEST_INVALID", text)
        }
        RegistryError::ManifestBlobUnknown { digests } => {
            let mut answer = Answer::new(StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN", text);
            // A manifest may name a hundred thousand; clients print the first few.
            answer.details = digests
                .iter()
                .take(20)
                .map(|digest| json!({ "digest": digest }))
                .collect();
            answer
        }
        RegistryError::NameUnknown => Answer::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", text),
        RegistryError::Unsupported(_) => {
            Answer::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", text)
        }
        RegistryError::Denied(denial) => denied(denial),
        RegistryError::Held { retry_after, .. } => {
            Answer::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", text)
                .after(Some(*retry_after))
        }
        RegistryError::RangeUnsatisfiable { .. } | RegistryError::ChunkOutOfOrder(_) => {
            Answer::new(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", text)
        }
        RegistryError::Conflict => {
            Answer::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", text)
                .after(Some(Duration::from_secs(1)))
        }
        RegistryError::TooManyRequests { .. }
        | RegistryError::Body(_)
        | RegistryError::Unavailable { .. }
        | RegistryError::UpstreamLimited { .. }
        | RegistryError::UpstreamRefused { .. }
        | RegistryError::UpstreamInvalid { .. }
        | RegistryError::Internal { .. } => service(error, text).of_upstream(error),
    }
}

/// Failures of something else than the request.
fn service(error: &RegistryError, text: String) -> Answer {
    match error {
        RegistryError::TooManyRequests { retry_after }
        | RegistryError::UpstreamLimited { retry_after, .. } => {
            Answer::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", text).after(*retry_after)
        }
        RegistryError::Body(error) => body(*error),
        RegistryError::Unavailable { retry_after, .. } => unavailable(*retry_after),
        // Never 401: docker would throw its own credential away for the upstream's sake. Never 404: unknown is not absent.
        RegistryError::UpstreamRefused { .. } => {
            Answer::new(StatusCode::FORBIDDEN, "DENIED", text).loud(Level::WARN)
        }
        RegistryError::UpstreamInvalid { .. } => {
            Answer::new(StatusCode::BAD_GATEWAY, "UNKNOWN", text).loud(Level::WARN)
        }
        _ => internal(),
    }
}

fn body(error: BodyError) -> Answer {
    let text = error.to_string();
    match error {
        // nginx's word for it; nobody is there to read it, but the access log is.
        BodyError::Disconnected => Answer::new(
            StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            "SIZE_INVALID",
            text,
        ),
        BodyError::Malformed(_) => Answer::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", text),
        BodyError::TooSlow => Answer::new(StatusCode::REQUEST_TIMEOUT, "SIZE_INVALID", text),
        BodyError::TooLarge => Answer::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", text),
        BodyError::Revoked => Answer::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", text),
    }
}

fn unavailable(retry_after: Option<Duration>) -> Answer {
    Answer::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "UNAVAILABLE",
        "the service is temporarily unavailable",
    )
    .after(retry_after.or(Some(Duration::from_secs(1))))
    .loud(Level::WARN)
}

fn internal() -> Answer {
    Answer::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "UNKNOWN",
        "internal error",
    )
    .loud(Level::ERROR)
}
