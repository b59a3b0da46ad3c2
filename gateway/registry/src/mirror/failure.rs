//! Why the cache has no answer, in a form that many waiting callers can share.
//!
//! Owns the table from an upstream's failure to the domain's [`Error`]: only the upstream's own 404 becomes an unknown manifest or
//! blob; everything else says what really happened.

use std::{fmt, sync::Arc, time::Duration};

use gantry_model::{Digest, ManifestError, Refusal};
use gantry_storage::{CommitError, StorageError, blob::PublishError};
use gantry_upstream::{Fault, Kind, UpstreamError};

use crate::error::{BoxError, Error, UpstreamFailure};

/// When a client is told to try again after our own store was busy or full.
const STORE_RETRY_AFTER: Duration = Duration::from_secs(5);

/// A source that can be shared: the callers of one fill or check all get the same.
#[derive(Clone, Debug)]
pub(super) struct Cause(Arc<dyn std::error::Error + Send + Sync>);

impl Cause {
    pub(super) fn new(source: impl Into<BoxError>) -> Self {
        Self(Arc::from(source.into()))
    }

    fn boxed(self) -> BoxError {
        Box::new(self)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The upstream said that it is not there.
    #[error("the upstream does not have it")]
    NotFound,
    /// The upstream failed in any other way.
    #[error("the upstream failed")]
    Upstream(#[source] Arc<UpstreamError>),
    /// What the upstream sent cannot be accepted.
    #[error("the upstream sent something invalid")]
    Invalid(#[source] Cause),
    /// The upstream has docker's schema 1, which is not passed on.
    #[error("the upstream has a manifest of docker's schema 1")]
    Schema1,
    /// An admission hook refused the content.
    #[error("an admission hook refused")]
    Policy(Box<Refusal>),
    /// An address asks too often for what is not there.
    #[error("too many questions for what is not there")]
    TooMany {
        /// When to try again.
        retry_after: Duration,
    },
    /// Somebody else keeps moving the same tag.
    #[error("somebody else keeps moving the tag")]
    Conflict,
    /// Our own store has no space.
    #[error("the store is full")]
    Full(#[source] Cause),
    /// Our own store failed in another way.
    #[error("the store failed")]
    Store(#[source] Cause),
    /// A bug.
    #[error("the mirror failed")]
    Internal(#[source] Cause),
}

impl Failure {
    pub(super) fn invalid(source: impl Into<BoxError>) -> Self {
        Self::Invalid(Cause::new(source))
    }

    pub(super) fn full(source: impl Into<BoxError>) -> Self {
        Self::Full(Cause::new(source))
    }

    pub(super) fn internal(source: impl Into<BoxError>) -> Self {
        Self::Internal(Cause::new(source))
    }

    /// Our own limits are used up for now.
    pub(super) fn busy(source: &'static str) -> Self {
        Self::Store(Cause::new(source))
    }

    /// A body that ended before its end, or a connection that broke: worth resuming.
    pub(super) fn interrupted(mirror: &str, attempt: String) -> Self {
        Self::Upstream(Arc::new(UpstreamError {
            kind: Kind::Unavailable,
            cause: gantry_upstream::Cause::Broken,
            upstream: mirror.to_owned(),
            attempt,
            retry_after: None,
            source: None,
        }))
    }

    /// What one client request may cause is used up.
    pub(super) fn over_budget(mirror: &str, attempt: String) -> Self {
        Self::Upstream(Arc::new(UpstreamError {
            kind: Kind::Unavailable,
            cause: gantry_upstream::Cause::Budget,
            upstream: mirror.to_owned(),
            attempt,
            retry_after: Some(Duration::from_secs(1)),
            source: None,
        }))
    }

    /// Whether the upstream could not answer, so that what it said before may be served instead. Its 404 is an answer.
    pub(super) fn is_upstream_trouble(&self) -> bool {
        matches!(self, Self::Upstream(_) | Self::Invalid(_))
    }

    /// Whether asking the upstream again for the rest may help.
    pub(super) fn is_resumable(&self) -> bool {
        matches!(self, Self::Upstream(error) if error.is_retryable())
    }

    /// One line of the log for what no client is told: the last cause first, and the key of the configuration to look at.
    pub(super) fn warn(&self, mirror: &str, what: &'static str) {
        let error = gantry_upstream::causes(self);
        let (fault, key) = match self {
            Self::Upstream(error) => (error.fault(), error.setting()),
            Self::Invalid(_) => (Fault::BadAnswer, format!("mirrors.{mirror}.url")),
            _ => {
                tracing::warn!(mirror.name = mirror, error, "{what}");
                return;
            }
        };
        let fault = fault.as_str();
        tracing::warn!(
            mirror.name = mirror,
            upstream.fault = fault,
            config.key = key,
            error,
            "{what}"
        );
    }

    pub(super) fn into_blob_error(self, digest: &Digest) -> Error {
        self.into_error(|| Error::BlobUnknown {
            digest: digest.clone(),
        })
    }

    pub(super) fn into_manifest_error(self) -> Error {
        self.into_error(|| Error::ManifestUnknown)
    }

    /// The domain's word for it; `not_found` is what the upstream's own 404 means to the caller.
    pub(super) fn into_error(self, not_found: impl FnOnce() -> Error) -> Error {
        match self {
            Self::NotFound => not_found(),
            Self::Upstream(error) => upstream_error(error),
            Self::Invalid(cause) => Error::UpstreamInvalid {
                source: cause.boxed(),
            },
            Self::Schema1 => Error::ManifestInvalid(ManifestError::Schema1),
            Self::Policy(refusal) => Error::from(*refusal),
            Self::TooMany { retry_after } => Error::TooManyRequests {
                retry_after: Some(retry_after),
            },
            Self::Conflict => Error::Conflict,
            Self::Full(cause) | Self::Store(cause) => Error::Unavailable {
                retry_after: Some(STORE_RETRY_AFTER),
                source: cause.boxed(),
            },
            Self::Internal(cause) => Error::Internal {
                source: cause.boxed(),
            },
        }
    }
}

fn upstream_error(error: Arc<UpstreamError>) -> Error {
    let (kind, retry_after) = (error.kind, error.retry_after);
    let source: BoxError = Box::new(UpstreamFailure {
        mirror: error.upstream.clone(),
        fault: error.fault(),
        setting: error.setting(),
        source: Cause(error).boxed(),
    });
    match kind {
        Kind::RateLimited => Error::UpstreamLimited {
            retry_after,
            source,
        },
        Kind::Refused => Error::UpstreamRefused { source },
        Kind::Invalid => Error::UpstreamInvalid { source },
        // `NotFound` became `Failure::NotFound`; were one left, it must not turn into a 404 of something else.
        Kind::Unavailable | Kind::NotFound => Error::Unavailable {
            retry_after,
            source,
        },
    }
}

impl From<UpstreamError> for Failure {
    fn from(error: UpstreamError) -> Self {
        match error.kind {
            Kind::NotFound => Self::NotFound,
            Kind::Refused | Kind::RateLimited | Kind::Unavailable | Kind::Invalid => {
                Self::Upstream(Arc::new(error))
            }
        }
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        use gantry_storage::Kind as Store;
        match error.kind() {
            Store::Full => Self::full(error),
            Store::Unavailable => Self::Store(Cause::new(error)),
            Store::Corrupt | Store::Internal => Self::internal(error),
        }
    }
}

impl From<PublishError> for Failure {
    /// A mismatch is the upstream's fault: it sent other bytes than it was asked for.
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Mismatch { .. } => Self::invalid(error),
            PublishError::Storage(error) => error.into(),
        }
    }
}

impl From<CommitError> for Failure {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::TagMoved { .. } => Self::Conflict,
            CommitError::Storage(error) => error.into(),
            CommitError::MissingReference { .. }
            | CommitError::StillNamed { .. }
            | CommitError::Absent => Self::internal(error),
        }
    }
}
