//! Why an operation has no outcome, in the words of the distribution spec. The edge has one table from here to statuses.

use std::time::Duration;

use gantry_model::{Denial, Digest, ManifestError, Refusal};
use gantry_storage::{CommitError, Kind, StorageError};
use gantry_upstream::Fault;

use crate::{body::BodyError, outcome::UploadState};

/// A source of any type.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why an operation has no outcome. Texts are safe to show; sources are for the log only.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such blob in this repository.
    #[error("blob unknown to registry")]
    BlobUnknown {
        /// Which.
        digest: Digest,
    },
    /// No such upload session of this principal in this repository.
    #[error("blob upload unknown to registry")]
    BlobUploadUnknown,
    /// The content does not hash to the digest, or the digest cannot be verified.
    #[error("provided digest did not match uploaded content")]
    DigestInvalid {
        /// What it hashes to, when it was hashed.
        found: Option<Digest>,
    },
    /// The body's length is not what was declared.
    #[error("provided length did not match content length")]
    SizeInvalid,
    /// No such manifest or tag.
    #[error("manifest unknown")]
    ManifestUnknown,
    /// The manifest cannot be accepted.
    #[error("manifest invalid: {0}")]
    ManifestInvalid(ManifestError),
    /// The manifest is larger than [`gantry_model::manifest::MAX_MANIFEST_BYTES`] or the configured limit.
    #[error("manifest is larger than {max_bytes} bytes")]
    ManifestTooLarge {
        /// The limit.
        max_bytes: usize,
    },
    /// The manifest names content that is not in the repository.
    #[error("manifest references content unknown to registry")]
    ManifestBlobUnknown {
        /// Which.
        digests: Vec<Digest>,
    },
    /// No such repository.
    #[error("repository name not known to registry")]
    NameUnknown,
    /// The operation is not offered for this repository; the sentence says why.
    #[error("{0}")]
    Unsupported(String),
    /// A hook refused.
    #[error("{}", .0.message)]
    Denied(Box<Denial>),
    /// A hook has not decided yet.
    #[error("{reason}")]
    Held {
        /// When to try again.
        retry_after: Duration,
        /// Why.
        reason: String,
    },
    /// No byte of the asked range exists.
    #[error("requested range not satisfiable")]
    RangeUnsatisfiable {
        /// The blob's length.
        size: u64,
    },
    /// A chunk does not start where the upload stands, or does not carry what it says.
    #[error("chunk does not start where the upload stands")]
    ChunkOutOfOrder(Box<UploadState>),
    /// Somebody else writes to this upload session, or keeps moving this tag.
    #[error("somebody else is changing this right now; try again")]
    Conflict,
    /// The principal has too many uploads open, or an address asks too often for what is not there.
    #[error("too many requests; try again later")]
    TooManyRequests {
        /// When to try again.
        retry_after: Option<Duration>,
    },
    /// The request's body ended before its end.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// Something this needs does not work now: a disk, an upstream, a plugin.
    #[error("the service is temporarily unavailable")]
    Unavailable {
        /// When to try again.
        retry_after: Option<Duration>,
        /// For the log.
        source: BoxError,
    },
    /// An upstream asks to slow down, or this gateway's own limits for it are used up.
    #[error("too many requests; try again later")]
    UpstreamLimited {
        /// When to try again.
        retry_after: Option<Duration>,
        /// For the log; an [`UpstreamFailure`].
        source: BoxError,
    },
    /// An upstream refuses us this content: its credentials are wrong, or it is private there.
    #[error("the upstream refused access")]
    UpstreamRefused {
        /// For the log.
        source: BoxError,
    },
    /// An upstream sent something that cannot be accepted: a wrong digest, a broken answer.
    #[error("the upstream sent an invalid answer")]
    UpstreamInvalid {
        /// For the log.
        source: BoxError,
    },
    /// A bug.
    #[error("internal error")]
    Internal {
        /// For the log.
        source: BoxError,
    },
}

/// An upstream failed: what a client may know of that, and what the operator looks at.
#[derive(Debug, thiserror::Error)]
#[error("mirror {mirror}: {}", .fault.as_str())]
pub struct UpstreamFailure {
    /// The mirror's configured name.
    pub mirror: String,
    /// What kind of failure it was.
    pub fault: Fault,
    /// The key of the configuration to look at.
    pub setting: String,
    /// For the log.
    #[source]
    pub source: BoxError,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Denied(denial) => Self::Denied(denial),
            Refusal::Held {
                retry_after,
                reason,
                ..
            } => Self::Held {
                retry_after,
                reason,
            },
            Refusal::Failed { plugin, failure } => Self::Unavailable {
                retry_after: None,
                source: format!("plugin {plugin} failed: {failure}").into(),
            },
        }
    }
}

/// When a client is told to try again after a store was busy or full.
const STORE_RETRY_AFTER: Duration = Duration::from_secs(5);

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        match error.kind() {
            Kind::Full | Kind::Unavailable => Self::Unavailable {
                retry_after: Some(STORE_RETRY_AFTER),
                source: error.into(),
            },
            Kind::Corrupt | Kind::Internal => Self::Internal {
                source: error.into(),
            },
        }
    }
}

impl Error {
    /// A commit that did not happen; `absent` is what the missing thing is called in this operation.
    pub(crate) fn from_commit(error: CommitError, absent: Self) -> Self {
        match error {
            CommitError::TagMoved { .. } => Self::Conflict,
            CommitError::MissingReference { digest } => Self::ManifestBlobUnknown {
                digests: vec![digest],
            },
            CommitError::StillNamed { manifest } => Self::Unsupported(format!(
                "manifest {manifest} of this repository names the blob: delete the manifest first"
            )),
            CommitError::Absent => absent,
            CommitError::Storage(error) => error.into(),
        }
    }

    /// The upstream's failure, when it is one.
    #[must_use]
    pub fn upstream(&self) -> Option<&UpstreamFailure> {
        match self {
            Self::Unavailable { source, .. }
            | Self::UpstreamLimited { source, .. }
            | Self::UpstreamRefused { source }
            | Self::UpstreamInvalid { source } => source.downcast_ref(),
            _ => None,
        }
    }

    /// The same; what an upstream sent and cannot be accepted is told of this mirror.
    pub(crate) fn of_mirror(self, mirror: &str) -> Self {
        match self {
            Self::UpstreamInvalid { source } if !source.is::<UpstreamFailure>() => {
                Self::UpstreamInvalid {
                    source: Box::new(UpstreamFailure {
                        mirror: mirror.to_owned(),
                        fault: Fault::BadAnswer,
                        setting: format!("mirrors.{mirror}.url"),
                        source,
                    }),
                }
            }
            other => other,
        }
    }

    /// Something that cannot happen unless what was stored changed by itself.
    pub(crate) fn corrupt(attempt: &'static str) -> Self {
        StorageError::corrupt(attempt).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_full_or_busy_is_asked_again_and_one_that_is_broken_is_not() {
        for kind in [Kind::Full, Kind::Unavailable, Kind::Corrupt, Kind::Internal] {
            let error = StorageError::new(kind, "write", "/a/path");
            let error = Error::from(error);
            let again = matches!(
                error,
                Error::Unavailable {
                    retry_after: Some(_),
                    ..
                }
            );
            assert_eq!(again, matches!(kind, Kind::Full | Kind::Unavailable));
            assert_eq!(again, !matches!(error, Error::Internal { .. }));
            assert!(!error.to_string().contains("path"), "{error}");
        }
    }

    #[test]
    fn a_commit_that_did_not_happen_is_told_in_the_specs_words() {
        let digest: Digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        let missing = CommitError::MissingReference {
            digest: digest.clone(),
        };
        let missing = Error::from_commit(missing, Error::ManifestUnknown);
        assert!(matches!(missing, Error::ManifestBlobUnknown { digests } if digests == [digest]));
        let absent = Error::from_commit(CommitError::Absent, Error::NameUnknown);
        assert!(matches!(absent, Error::NameUnknown));
        let moved = CommitError::TagMoved {
            tag: "v1".parse().unwrap(),
            current: None,
        };
        let moved = Error::from_commit(moved, Error::ManifestUnknown);
        assert!(matches!(moved, Error::Conflict));
        let failed = StorageError::new(Kind::Full, "write", "disk");
        let failed = Error::from_commit(failed.into(), Error::ManifestUnknown);
        assert!(matches!(failed, Error::Unavailable { .. }));
    }
}
